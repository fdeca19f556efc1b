"""A model as one file for other programs. A format is one entry of `FORMATS`, which command line and tests go by.

The command line reads their names before it knows what to do, so torch is imported where a format needs it.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from rnnsparse import files

if TYPE_CHECKING:
    from torch import Tensor

    from rnnsparse.data.tokenizer import Tokenizer
    from rnnsparse.nn.language_model import CharLM

SAFETENSORS_VERSION = 1
NOT_IN_ARCHITECTURE = {"dropout", "execution", "output_dropout"}
# Left out where they are off, so that files are what they were before there was such a thing.
WHERE_ON = {"layer_norm", "skip_connections"}


Rounding = Literal["fp16", "int8"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a format may want beside a model and its tokenizer.

    Attributes:
        rounding: how weights are stored, where the format rounds them.
        title, facts: for people: what the model is called, and pairs of a heading and a text about it.
    """

    rounding: Rounding = "fp16"
    title: str = "A sparse recurrent network"
    facts: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Format:
    """What `export --format` offers: some words for people, what fills the file, and whether that rounds weights."""

    about: str
    write: Callable[[BinaryIO, CharLM, Tokenizer, Options], object]
    rounds: bool = False


def export(name: str, model: CharLM, tokenizer: Tokenizer, path: Path, options: Options | None = None) -> None:
    """Write a model to a new file in the format of that name.

    Raises:
        UserError: `path` exists, its folder does not, or the format cannot hold the weights.
        RunFailed: it cannot be written.
        ValueError: the tokenizer is of another model.
    """
    if tokenizer.vocab_size != model.vocab_size:
        raise ValueError(f"a tokenizer of {tokenizer.vocab_size} symbols is not that of a model of {model.vocab_size}")
    files.write_new(path, lambda file: FORMATS[name].write(file, model, tokenizer, options or Options()))


def _write_torch(file: BinaryIO, model: CharLM, tokenizer: Tokenizer, _: Options) -> None:
    """Write the dense state of a plain PyTorch model, for `torch.load(path, weights_only=True)`.

    The file holds {"config": ..., "state_dict": ..., "vocabulary": ..., "tokenizer": ...}. The state loads strictly
    into a module of `embedding` (nn.Embedding), `rnn` (one nn.LSTM, nn.GRU or nn.RNN with all layers), `readout`
    (nn.Linear layers, each followed by the activation; absent if there are none) and `output` (nn.Linear; if tied, the
    embedding's weight). With `layer_norm` or `skip_connections` in the config, `rnn` is a list of one-layer modules;
    with the former, `norm` is one of nn.LayerNorm, for the outputs of the layer of the same number. The vocabulary has
    the bytes of each symbol: a byte, or a character in UTF-8 and b"<unk>" for all others. The tokenizer is the JSON
    text of tokenizer.json.
    """
    import torch

    exported = {
        "config": _architecture(model),
        "state_dict": _torch_state_dict(model),
        "vocabulary": list(tokenizer.symbols),
        "tokenizer": tokenizer.to_json(),
    }
    torch.save(exported, file)


def _torch_state_dict(model: CharLM) -> dict[str, Tensor]:
    """Return dense weights and biases, on the CPU, under the names that PyTorch's own modules use."""
    from rnnsparse.nn.convert import to_dense

    plain = copy.deepcopy(model)
    plain.rnn.dropout = 0.0  # of which a single layer of PyTorch's warns that it has no effect
    if model.config.layer_norm or model.config.skip_connections:
        _take_apart(plain)
    state: dict[str, Tensor] = {name: tensor.cpu() for name, tensor in to_dense(plain).state_dict().items()}
    return {"output.weight": state["embedding.weight"]} | state  # if tied, it has none of its own


def _take_apart(model: CharLM) -> None:
    """Make each recurrent layer a module of its own, and put those that normalise its outputs beside them."""
    from torch import nn

    layers, norms = nn.ModuleList(), nn.ModuleList()
    for layer in model.recurrent_layers:
        alone = type(model.rnn)(layer.input_size, layer.hidden_size, sparsity=None)
        alone[0] = layer
        layers.append(alone)
        if layer.norm is not None:
            norms.append(layer.norm)
            layer.norm = None
    model.add_module("rnn", layers)
    model.add_module("norm", norms)


def _write_safetensors(file: BinaryIO, model: CharLM, tokenizer: Tokenizer, _: Options) -> None:
    """Write connections, biases, shape and tokenizer, in a size that grows with the connections.

    Tensors are named as in a checkpoint (`storage/weights.py`). The metadata holds `format` ("rnnsparse"),
    `format_version`, `config` (JSON, as for torch), `basis` ("canonical", "dct" or "svd") and `tokenizer` (the JSON of
    tokenizer.json).
    """
    from rnnsparse.storage import weights

    basis = model.embedding.basis
    metadata = {
        "format": "rnnsparse",
        "format_version": str(SAFETENSORS_VERSION),
        "config": json.dumps(_architecture(model)),
        "basis": "canonical" if basis is None else "dct" if basis.derived else "svd",
        "tokenizer": tokenizer.to_json(),
    }
    file.write(weights.to_bytes(model, metadata))


def _write_html(file: BinaryIO, model: CharLM, tokenizer: Tokenizer, options: Options) -> None:
    """Write one page for a browser, with the network in it (`storage/html`)."""
    from rnnsparse.storage.html import page

    page.write(file, model, tokenizer, options.rounding, options.title, options.facts)


def _architecture(model: CharLM) -> dict[str, Any]:
    """Return all that is needed to build a model of the same shape, as plain data."""
    config = {
        key: value
        for key, value in dataclasses.asdict(model.config).items()
        if key not in NOT_IN_ARCHITECTURE and (value or key not in WHERE_ON)
    }
    return {**config, "vocab_size": model.vocab_size, "readout_dims": list(model.config.readout_dims)}


FORMATS = {
    "torch": Format("a plain nn.LSTM, nn.GRU or nn.RNN model", _write_torch),
    "safetensors": Format("the connections alone, as in a checkpoint", _write_safetensors),
    "html": Format("one page for a browser: it writes, scores and shows its units", _write_html, rounds=True),
}
