"""The weights of a model as tensors in a safetensors file, of a size that grows with the connections.

Of each gate of a weight, under the gate's name:

    values [N], or [N, b]                   in order of position
    row_pointers [R + 1], or [R / b + 1]    where in `values` each row starts, and N
    columns [N]                             absent, like the pointers, if all positions are connections
    left_basis [R, R], right_basis [C, C]   if it has a basis that its shape does not tell (`nn/basis.py`)

and biases under their parameter names. Values and biases are of the model's type, or rounded to fp16. Where connections
are blocks of b rows, N is how many blocks there are, and rows are rows of blocks. `_layout` describes all of them; what
is written, required and read follows.

Shape suffixes: R rows of a gate, C columns, N its connections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor, nn

from rnnsparse.errors import UserError
from rnnsparse.nn.basis import Basis
from rnnsparse.nn.language_model import CharLM
from rnnsparse.nn.topology import column_type
from rnnsparse.nn.weight import Gate, SparseWeight
from rnnsparse.storage.manifest import damaged

# What the header of a file calls the types that it may hold.
TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.int32: "I32",
    torch.int64: "I64",
}


@dataclass(frozen=True)
class Stored:
    """One tensor of a file: its shape, the types that it may have, of which the first is written, and what is in it."""

    shape: tuple[int, ...]
    types: tuple[torch.dtype, ...]
    content: Callable[[], Tensor]


# Returns how many connections a gate has, None if these are all its positions.
Count = Callable[[SparseWeight, Gate], int | None]


def _layout(model: CharLM, count: Count) -> dict[str, Stored]:
    """Return by name what a file holds of a model with so many connections in each gate."""
    stored = {
        name: Stored(tuple(bias.shape), (bias.dtype, torch.float16), bias.detach)
        for name, bias in _biases(model).items()
    }
    for weight in model.sparse_weights().values():
        for number, gate in enumerate(weight.gates):
            parts = _parts(weight, number, count(weight, gate))
            stored |= {f"{gate.name}.{part}": what for part, what in parts.items()}
    return stored


def _parts(weight: SparseWeight, number: int, connections: int | None) -> dict[str, Stored]:
    """Return what a file holds of one gate."""
    gate, basis, cols, number_type = weight.gates[number], weight.basis, weight.cols, weight.values.dtype
    rows, height = gate.stop_row - gate.start_row, weight.block_rows

    def own(of_weight: Tensor) -> Tensor:
        return of_weight[slice(*weight.bounds(gate.start_row, gate.stop_row))].cpu()

    def row_pointers() -> Tensor:
        pointers_R = weight.topology.row_pointers[gate.start_row // height : gate.stop_row // height + 1]
        return pointers_R - pointers_R[0]

    size = rows // height * cols if connections is None else connections
    shape = (size,) if height == 1 else (size, height)
    parts = {"values": Stored(shape, (number_type, torch.float16), lambda: own(weight.values.detach()))}
    # Only the count tells that a gate is full: a connection may have the value zero.
    if connections is not None:
        # The smallest types that can number what they count, and that safetensors can hold.
        pointer_types = (torch.int32, torch.int64) if size < 1 << 31 else (torch.int64,)
        parts["row_pointers"] = Stored((rows // height + 1,), pointer_types, row_pointers)
        parts["columns"] = Stored((size,), (column_type(cols),), lambda: own(weight.topology.columns))
    if basis and not basis.derived:
        parts["left_basis"] = Stored((rows, rows), (number_type,), lambda: basis.left_KRR[number])
        parts["right_basis"] = Stored((cols, cols), (number_type,), lambda: basis.right_KCC[number])
    return parts


def _biases(model: CharLM) -> dict[str, nn.Parameter]:
    values = {id(weight.values) for weight in model.sparse_weights().values()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in values}


def _size(weight: SparseWeight, gate: Gate) -> int:
    return (gate.stop_row - gate.start_row) // weight.block_rows * weight.cols


# ---- writing


def tensors(model: CharLM, *, halved: bool = False) -> dict[str, Tensor]:
    """Return what is stored of `model` by name, on the CPU; it may share memory with the model.

    `halved` rounds values and biases to fp16, in which they take half of the space or less.
    """

    def count(weight: SparseWeight, gate: Gate) -> int | None:
        start, stop = weight.bounds(gate.start_row, gate.stop_row)
        connections = stop - start
        return connections if connections < _size(weight, gate) else None

    def written(stored: Stored) -> Tensor:
        return stored.content().cpu().to(torch.float16 if halved and torch.float16 in stored.types else stored.types[0])

    return {name: written(stored) for name, stored in _layout(model, count).items()}


def to_bytes(model: CharLM, metadata: dict[str, str], *, halved: bool = False) -> bytes:
    """Return a safetensors file with the topology, values and biases of `model`, the latter two `halved` or not."""
    # The same bytes as by safetensors.torch, which makes a ctypes array type of each length in bytes that it meets, and
    # these are kept for ever (numpy.ctypeslib.as_array): where counts change, every checkpoint left some 50 kB behind.
    return save({name: tensor.contiguous().numpy() for name, tensor in tensors(model, halved=halved).items()}, metadata)


# ---- reading


class WeightsFile:
    """A safetensors file with weights, opened for reading; it stays readable when its folder is replaced.

    Raises:
        UserError: not a safetensors file.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise damaged(path, f"is no safetensors file ({error})") from error
        self._names = set(self._file.keys())

    def require_fit(self, model: CharLM) -> dict[str, Stored]:
        """Compare the header with the shapes and types of `model`, which may be on the meta device.

        Returns:
            What the file holds.

        Raises:
            UserError: the file is of another model.
        """
        for name in sorted(self._names - _layout(model, lambda *_: 0).keys()):
            raise self._of_another_model(f"the model has no {name!r}")
        layout = _layout(model, self._connections)
        for name, stored in layout.items():
            found_shape, found_type = self._shape_and_type(name)
            if found_shape != stored.shape:
                raise self._of_another_model(f"{name!r} has shape {list(found_shape)}, not {list(stored.shape)}")
            wanted = [TYPE_NAMES[t] for t in stored.types]
            if found_type not in wanted:
                raise self._of_another_model(f"{name!r} has type {found_type}, not {' or '.join(wanted)}")
        return layout

    def apply(self, model: CharLM) -> None:
        """Give `model` the topology, values and biases of the file, bit for bit, on its device and in its type.

        Raises:
            UserError: the file is of another model, or holds no valid topology; `model` is then unchanged.
        """
        # The header is checked before data is read.
        found: dict[str, Tensor] = {name: self._file.get_tensor(name) for name in self.require_fit(model)}
        weights = model.sparse_weights()
        positions = {
            name: torch.cat([self._positions(found, weight, gate) for gate in weight.gates])
            for name, weight in weights.items()
        }

        def of_gates(weight: SparseWeight, part: str) -> list[Tensor]:
            return [found[f"{gate.name}.{part}"] for gate in weight.gates]

        for name, weight in weights.items():
            weight.connect(positions[name], torch.cat(of_gates(weight, "values")))
            if weight.basis and not weight.basis.derived:
                left_KRR, right_KCC = (torch.stack(of_gates(weight, f"{side}_basis")) for side in ("left", "right"))
                weight.basis = Basis(left_KRR, right_KCC).to(weight.values)
        with torch.no_grad():
            for name, bias in _biases(model).items():
                bias.copy_(found[name])

    def _connections(self, weight: SparseWeight, gate: Gate) -> int | None:
        if not self._names & {f"{gate.name}.row_pointers", f"{gate.name}.columns"}:
            return None
        name, rows = f"{gate.name}.values", gate.stop_row - gate.start_row
        shape, _ = self._shape_and_type(name)
        if len(shape) != min(weight.block_rows, 2) or shape[0] > _size(weight, gate):
            blocks = f" in blocks of {weight.block_rows} rows" if weight.block_rows > 1 else ""
            raise self._of_another_model(
                f"{name!r} has shape {list(shape)}, its gate is {rows} x {weight.cols}{blocks}"
            )
        return shape[0]

    def _positions(self, found: Mapping[str, Tensor], weight: SparseWeight, gate: Gate) -> Tensor:
        """Return the flat positions of a gate's connections, of which nothing but the number is known yet."""
        pointers, columns, cols = f"{gate.name}.row_pointers", f"{gate.name}.columns", weight.cols
        start, stop = gate.start_row // weight.block_rows, gate.stop_row // weight.block_rows
        if columns not in found:
            return torch.arange(start * cols, stop * cols)
        pointers_R, columns_N = found[pointers].long(), found[columns].long()
        # Neighbours are compared, not subtracted: differences of arbitrary numbers could overflow.
        falls = bool((pointers_R[1:] < pointers_R[:-1]).any())
        if pointers_R[0] != 0 or pointers_R[-1] != len(columns_N) or falls:
            raise damaged(self.path, f"{pointers!r} does not rise from 0 to {len(columns_N)}, its connections")
        if bool(((columns_N < 0) | (columns_N >= cols)).any()):
            raise damaged(self.path, f"{columns!r} leaves the range 0 to {cols - 1}")
        rows_N = torch.arange(start, stop).repeat_interleave(pointers_R.diff())
        positions_N = rows_N * cols + columns_N
        if bool((positions_N[1:] <= positions_N[:-1]).any()):
            raise damaged(self.path, f"{columns!r} does not rise strictly within each row")
        return positions_N

    def _shape_and_type(self, name: str) -> tuple[tuple[int, ...], str]:
        if name not in self._names:
            raise self._of_another_model(f"{name!r} is missing")
        header = self._file.get_slice(name)
        return tuple(header.get_shape()), header.get_dtype()

    def _of_another_model(self, reason: str) -> UserError:
        return UserError(
            f"{self.path}: not the weights of this model: {reason}; make the model by the config.yaml and "
            f"tokenizer.json beside this file, or use another checkpoint"
        )
