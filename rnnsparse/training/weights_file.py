"""model.safetensors: the tensors of `nn/storage.py` in a file, and back into a model after every check."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from rnnsparse.errors import UserError
from rnnsparse.nn.basis import Basis
from rnnsparse.nn.language_model import CharLM
from rnnsparse.nn.storage import block_tensors, column_type
from rnnsparse.nn.weight import Gate, SparseWeight
from rnnsparse.training.manifest import damaged

# What the header of the file calls the types that it may hold.
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


def write(path: Path, model: CharLM) -> None:
    """Write the topology, values and biases of `model`.

    Raises:
        OSError, SafetensorError: disk full, read-only, no permission.
    """
    # The same bytes as by safetensors.torch, which makes a ctypes array type of each length in bytes that it meets, and
    # these are kept for ever (numpy.ctypeslib.as_array): where counts change, every checkpoint left some 50 kB behind.
    arrays = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in block_tensors(model).items()}
    save_file(arrays, path, metadata={"format": "pt"})


class WeightsFile:
    """A model.safetensors opened for reading; it stays readable when its folder is replaced.

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

    def require_shape(self, model: CharLM, with_bases: bool) -> None:
        """Compare the header with the shapes of `model`, of which nothing but these is looked at.

        Raises:
            UserError: the file is of another model.
        """
        weights, biases = model.sparse_weights().values(), _biases(model)
        blocks = [(weight, block) for weight in weights for block in weight.gates]
        expected = {name for _, block in blocks for name in _names(block)}
        if with_bases:
            expected |= {name for _, block in blocks for name in _basis_names(block)}
        for name in sorted(self._names - expected - set(biases)):
            raise self._of_another_model(f"the model has no {name!r}")
        for name, bias in biases.items():
            self._require(name, tuple(bias.shape))
        for weight, block in blocks:
            rows, cols = block.stop_row - block.start_row, weight.cols
            values, pointers, columns = _names(block)
            if with_bases:
                left, right = _basis_names(block)
                self._require(left, (rows, rows))
                self._require(right, (cols, cols))
            if pointers not in self._names and columns not in self._names:
                self._require(values, (rows * cols,))
                continue
            shape, _ = self._shape_and_type(values)
            if len(shape) != 1 or shape[0] > rows * cols:
                raise self._of_another_model(f"{values!r} has shape {list(shape)}, its block is {rows} x {cols}")
            self._require(pointers, (rows + 1,))
            self._require(columns, shape)

    def apply(self, model: CharLM) -> None:
        """Give `model` the topology, values and biases of the file, bit for bit, on the device it is on.

        Raises:
            UserError: the file is of another model, or holds no valid topology; `model` is then unchanged.
        """
        weights, biases = model.sparse_weights(), _biases(model)
        in_basis = {name: weight for name, weight in weights.items() if weight.basis and not weight.basis.derived}
        self.require_shape(model, with_bases=bool(in_basis))
        connections = {name: self._connections(weight) for name, weight in weights.items()}
        bases = {name: self._basis(weight) for name, weight in in_basis.items()}
        dense = {name: self._tensor(name, tuple(bias.shape), bias.dtype) for name, bias in biases.items()}
        for name, weight in weights.items():
            weight.connect(*connections[name])
            if name in bases:
                weight.basis = bases[name].to(weight.values)
        with torch.no_grad():
            for name, bias in biases.items():
                bias.copy_(dense[name])

    def _connections(self, weight: SparseWeight) -> tuple[Tensor, Tensor]:
        """Return the flat positions and the values of a weight, on the CPU, in memory of their own."""
        blocks = [self._block_connections(weight, block) for block in weight.gates]
        indices, values = zip(*blocks, strict=True)
        return torch.cat(indices), torch.cat(values)

    def _basis(self, weight: SparseWeight) -> Basis:
        rows, cols, value_type = weight.rows // len(weight.gates), weight.cols, weight.values.dtype
        left, right = zip(*map(_basis_names, weight.gates), strict=True)
        left_KRR = torch.stack([self._tensor(name, (rows, rows), value_type) for name in left])
        right_KCC = torch.stack([self._tensor(name, (cols, cols), value_type) for name in right])
        return Basis(left_KRR, right_KCC)

    def _block_connections(self, weight: SparseWeight, block: Gate) -> tuple[Tensor, Tensor]:
        rows, cols, value_type = block.stop_row - block.start_row, weight.cols, weight.values.dtype
        values, pointers, columns = _names(block)
        if pointers not in self._names and columns not in self._names:
            indices = torch.arange(block.start_row * cols, block.stop_row * cols)
            return indices, self._tensor(values, (rows * cols,), value_type)
        shape, _ = self._shape_and_type(values)
        values_N = self._tensor(values, shape, value_type)
        pointers_R = self._tensor(pointers, (rows + 1,), torch.int32, torch.int64).long()
        columns_N = self._tensor(columns, shape, column_type(cols)).long()
        # Neighbours are compared, not subtracted: differences of arbitrary numbers could overflow.
        falls = bool((pointers_R[1:] < pointers_R[:-1]).any())
        if pointers_R[0] != 0 or pointers_R[-1] != shape[0] or falls:
            raise damaged(self.path, f"{pointers!r} does not rise from 0 to {shape[0]}, its connections")
        if bool(((columns_N < 0) | (columns_N >= cols)).any()):
            raise damaged(self.path, f"{columns!r} leaves the range 0 to {cols - 1}")
        rows_N = torch.arange(block.start_row, block.stop_row).repeat_interleave(pointers_R.diff())
        indices = rows_N * cols + columns_N
        if bool((indices[1:] <= indices[:-1]).any()):
            raise damaged(self.path, f"{columns!r} does not rise strictly within each row")
        return indices, values_N

    def _tensor(self, name: str, shape: tuple[int, ...], *types: torch.dtype) -> Tensor:
        """Return a tensor of this shape and one of these types; the header is checked before data is read."""
        found_type = self._require(name, shape)
        wanted = [TYPE_NAMES[t] for t in types]
        if found_type not in wanted:
            raise self._of_another_model(f"{name!r} has type {found_type}, not {' or '.join(wanted)}")
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def _require(self, name: str, shape: tuple[int, ...]) -> str:
        """Return the type of a tensor that must have this shape."""
        found_shape, found_type = self._shape_and_type(name)
        if found_shape != shape:
            raise self._of_another_model(f"{name!r} has shape {list(found_shape)}, not {list(shape)}")
        return found_type

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


def _names(block: Gate) -> tuple[str, str, str]:
    return f"{block.name}.values", f"{block.name}.row_pointers", f"{block.name}.columns"


def _basis_names(block: Gate) -> tuple[str, str]:
    return f"{block.name}.left_basis", f"{block.name}.right_basis"


def _biases(model: CharLM) -> dict[str, nn.Parameter]:
    values = {id(weight.values) for weight in model.sparse_weights().values()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in values}
