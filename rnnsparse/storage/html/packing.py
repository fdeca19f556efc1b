"""The numbers of a model, rounded and packed, for the engine of a page (`engine.js`) to read.

Of each weight, from input to output:

    how many connections each row has, and of each connection how many columns it skips; neither if the weight is full
    scales [R], float32: of int8 only, what a row's values are multiples of
    values [N]: fp32, fp16 or int8, by row, as they are stored

then all biases and gains: fp16, or fp32 if the values are. Numbers are little-endian; each count is bytes that add up,
of which the last is not 255. A weight whose connections are blocks of b rows that share a column has counts of blocks,
one for every b rows, and values by block. A weight in a basis is packed as the matrix that it stands for.

Shape suffixes: R rows, B bands of b rows, N connections (b = 1) or blocks of a weight.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from rnnsparse.errors import UserError
from rnnsparse.nn.language_model import CharLM
from rnnsparse.nn.weight import SparseWeight

Kind = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True)
class Rounded:
    """Values [N, b] as they are stored and as they are computed with, and what int8 of each row are multiples of."""

    stored: NDArray[Any]
    values: NDArray[np.float32]
    scales_R: NDArray[np.float32] | None = None


def pack(model: CharLM, kind: Kind) -> tuple[dict[str, Any], bytes]:
    """Return what the engine has to know of a model's shape, as plain data, and its weights.

    Raises:
        UserError: weights are not numbers, or too large for fp16.
    """
    plain, config = _canonical(model), model.config
    packed: list[NDArray[Any]] = []
    matrices: list[dict[str, Any]] = []
    for weight in plain.sparse_weights().values():
        block, full = weight.block_rows, weight.is_full
        matrices.append(
            {
                "name": weight.name,
                "rows": weight.rows,
                "cols": weight.cols,
                "block": block,
                "connections": weight.values.numel(),
                "gates": [gate.name for gate in weight.gates],
            }
        )
        if not full:
            packed += _topology(weight.indices.cpu().numpy(), weight.rows // block, weight.cols)
        rounded = _of_weight(weight, kind)
        packed += [rounded.scales_R, rounded.stored] if rounded.scales_R is not None else [rounded.stored]
    biases = [_round(name, bias, _bias_kind(kind)).stored for name, bias in _biases(plain).items()]
    header = {
        "cell": config.cell,
        "layers": config.num_layers,
        "activation": config.readout_activation,
        "tied": config.tie_embeddings,
        "norm": config.layer_norm,
        "skip": model.rnn.skips,
        "weights": kind,
        "matrices": matrices,
        "biases": [len(bias) for bias in biases],
    }
    return header, b"".join(part.tobytes() for part in (*packed, *biases))


def rounded(model: CharLM, kind: Kind) -> CharLM:
    """Return a copy of a model that computes with the numbers that its page has.

    Raises:
        UserError: as `pack`.
    """
    plain = _canonical(model)
    with torch.no_grad():
        for weight in plain.sparse_weights().values():
            values = torch.from_numpy(_of_weight(weight, kind).values)
            weight.values.copy_(values.view(weight.values.shape))
        for name, bias in _biases(plain).items():
            bias.copy_(torch.from_numpy(_round(name, bias, _bias_kind(kind)).values))
    return plain


def _canonical(model: CharLM) -> CharLM:
    """Return a copy in fp32 on the CPU whose values are entries of matrices."""
    plain = copy.deepcopy(model).to(device="cpu", dtype=torch.float32)
    plain.compute_dtype = None
    for weight, own in zip(model.sparse_weights().values(), plain.sparse_weights().values(), strict=True):
        if weight.basis:
            own.express(weight.to_dense().to(own.values), None)
    return plain


def _biases(model: CharLM) -> dict[str, torch.Tensor]:
    """Return every bias by name, in the order in which the engine reads them; those of a layer come together."""
    found: dict[str, torch.Tensor] = {}
    for i, layer in enumerate(model.recurrent_layers):
        found |= {f"rnn.{i}.bias_{side}": b for side, b in zip(("ih", "hh"), layer.biases(), strict=True)}
        if layer.norm is not None:
            found |= {f"rnn.{i}.norm.{name}": parameter for name, parameter in layer.norm.named_parameters()}
    return found | {f"{weight.name}.bias": bias for weight, bias in model.linears()}


def _bias_kind(kind: Kind) -> Kind:
    return "fp32" if kind == "fp32" else "fp16"


def _of_weight(weight: SparseWeight, kind: Kind) -> Rounded:
    block = weight.block_rows
    band_N = weight.indices.cpu().numpy() // weight.cols
    rows = band_N[:, None] * block + np.arange(block)
    return _round(weight.name, weight.values.detach().view(-1, block), kind, rows, weight.rows)


def _round(
    name: str, tensor: torch.Tensor, kind: Kind, rows: NDArray[np.int64] | None = None, height: int = 0
) -> Rounded:
    exact = tensor.detach().numpy()
    if not np.isfinite(exact).all():
        raise UserError(
            f"{name}: holds values that are not numbers: its training diverged; export an earlier checkpoint"
        )
    if kind == "int8":
        assert rows is not None
        scales_R = np.zeros(height, np.float32)
        np.maximum.at(scales_R, rows, np.abs(exact) / np.float32(127))
        steps = np.where(scales_R > 0, scales_R, np.float32(1))[rows]
        stored = np.rint(exact / steps).clip(-127, 127).astype(np.int8)
        return Rounded(stored, stored.astype(np.float32) * steps, scales_R)
    if kind == "fp16" and np.abs(exact).max(initial=0) > np.finfo(np.float16).max:
        raise UserError(f"{name}: holds values beyond 65,504, which fp16 cannot hold; export with --weights int8")
    stored = exact.astype("<f2" if kind == "fp16" else "<f4")
    return Rounded(stored, stored.astype(np.float32))


def _topology(positions_N: NDArray[np.int64], bands: int, cols: int) -> list[NDArray[np.uint8]]:
    """Return how many connections each band has, and how many columns each of them skips, as counts."""
    band_N, column_N = np.divmod(positions_N, cols)
    skipped_N = np.diff(column_N, prepend=-1) - 1
    first_N = np.diff(band_N, prepend=-1) > 0
    skipped_N[first_N] = column_N[first_N]
    return [_counts(np.bincount(band_N, minlength=bands)), _counts(skipped_N)]


def _counts(numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return numbers from 0 on as bytes that add up: 255 as often as it fits, and what is left."""
    ends = (numbers // 255 + 1).cumsum()
    found = np.full(ends[-1] if len(ends) else 0, 255, np.uint8)
    found[ends - 1] = numbers % 255
    return found
