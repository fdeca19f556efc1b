"""A model as one file for other programs: dense, for plain PyTorch, or sparse, in safetensors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from rnnsparse import files
from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.nn.language_model import CharLM
from rnnsparse.nn.layers import Linear, TiedOutput
from rnnsparse.nn.storage import block_tensors

FORMAT_VERSION = 1
NOT_IN_ARCHITECTURE = {"dropout", "execution"}


def export_torch(model: CharLM, tokenizer: Tokenizer, path: Path) -> None:
    """Write the dense state of a plain PyTorch model, for `torch.load(path, weights_only=True)`.

    The file holds {"config": ..., "state_dict": ..., "vocabulary": ..., "tokenizer": ...}. The state loads strictly
    into a module of `embedding` (nn.Embedding), `rnn` (one nn.LSTM or nn.GRU with all layers), `readout` (nn.Linear
    layers, each followed by the activation; absent if there are none) and `output` (nn.Linear; if tied, the embedding's
    weight). The vocabulary has the bytes of each symbol: a byte, or a character in UTF-8 and b"<unk>" for all others.
    The tokenizer is the JSON text of tokenizer.json.

    Raises:
        UserError: `path` exists, or its folder does not.
        RunFailed: it cannot be written.
        ValueError: the tokenizer is of another model.
    """
    if tokenizer.vocab_size != model.vocab_size:
        raise ValueError(f"a tokenizer of {tokenizer.vocab_size} symbols is not that of a model of {model.vocab_size}")
    exported = {
        "config": architecture(model),
        "state_dict": torch_state_dict(model),
        "vocabulary": list(tokenizer.symbols),
        "tokenizer": tokenizer.to_json(),
    }
    files.write_new(path, lambda file: torch.save(exported, file))


def export_safetensors(model: CharLM, tokenizer_json: str, path: Path) -> None:
    """Write connections, biases, shape and tokenizer to one safetensors file that grows with the connections.

    Tensors are named as in a checkpoint (`rnnsparse.nn.storage`). The metadata holds `format` ("rnnsparse"),
    `format_version`, `config` (JSON, as in `export_torch`), `basis` ("canonical", "dct" or "svd") and `tokenizer` (the
    JSON of tokenizer.json).

    Raises:
        UserError: `path` exists, or its folder does not.
        RunFailed: it cannot be written.
    """
    basis = model.embedding.basis
    metadata = {
        "format": "rnnsparse",
        "format_version": str(FORMAT_VERSION),
        "config": json.dumps(architecture(model)),
        "basis": "canonical" if basis is None else "dct" if basis.derived else "svd",
        "tokenizer": tokenizer_json,
    }
    files.write_new(path, lambda file: file.write(safetensors.torch.save(block_tensors(model), metadata)))


def architecture(model: CharLM) -> dict[str, Any]:
    """Return all that is needed to build a model of the same shape, as plain data."""
    config = {k: v for k, v in dataclasses.asdict(model.config).items() if k not in NOT_IN_ARCHITECTURE}
    return {**config, "vocab_size": model.vocab_size, "readout_dims": list(model.config.readout_dims)}


def torch_state_dict(model: CharLM) -> dict[str, Tensor]:
    """Return dense weights and biases, on the CPU, under the names that PyTorch's own modules use."""
    state = {"embedding.weight": model.embedding.to_dense()}
    for i, layer in enumerate(model.recurrent_layers):
        state[f"rnn.weight_ih_l{i}"] = layer.input.to_dense()
        state[f"rnn.weight_hh_l{i}"] = layer.recurrent.to_dense()
        state[f"rnn.bias_ih_l{i}"], state[f"rnn.bias_hh_l{i}"] = layer.biases()
    for linear in (*model.readout, model.output):
        if isinstance(linear, Linear):
            state[f"{linear.name}.weight"] = linear.to_dense()
            state[f"{linear.name}.bias"] = linear.bias_or_zeros()
    if isinstance(model.output, TiedOutput):
        state["output.weight"] = state["embedding.weight"]
        state["output.bias"] = model.output.bias
    return {name: tensor.detach().cpu() for name, tensor in state.items()}
