"""A model as one file for other programs: dense, for plain PyTorch, or sparse, in safetensors."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor

from rnnsparse.errors import RunFailed, UserError
from rnnsparse.nn.language_model import CharLM
from rnnsparse.nn.layers import Linear, TiedOutput
from rnnsparse.nn.storage import block_tensors

FORMAT_VERSION = 1
NOT_IN_ARCHITECTURE = {"dropout", "execution"}


def export_torch(model: CharLM, path: Path) -> None:
    """Write the dense state of a plain PyTorch model, for `torch.load(path, weights_only=True)`.

    The file holds {"config": ..., "state_dict": ...}; the state loads strictly into a module of `embedding`
    (nn.Embedding), `rnn` (one nn.LSTM or nn.GRU with all layers), `readout` (nn.Linear layers, each followed
    by the activation; absent if there are none) and `output` (nn.Linear; if tied, the embedding's weight).

    Raises:
        UserError: `path` exists, or its folder does not.
        RunFailed: it cannot be written.
    """
    exported = {"config": architecture(model), "state_dict": torch_state_dict(model)}
    _write_new(path, lambda file: torch.save(exported, file))


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
    _write_new(path, lambda file: file.write(safetensors.torch.save(block_tensors(model), metadata)))


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


def _write_new(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file that appears at `path` only when it is complete and on disk."""
    if os.path.lexists(path):
        raise UserError(f"{path}: exists and is never overwritten; choose another name, or remove it first")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; make it first, or choose another")
    temporary = path.with_name(f".{path.name}.new-{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        # torch hides the reason why its file could not be written behind an internal error of its own.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        reason = cause.strerror or cause
        raise RunFailed(f"{path}: cannot be written ({reason}) and was not; write it elsewhere") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
