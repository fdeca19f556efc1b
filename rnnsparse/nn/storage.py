"""A model as named tensors that grow with its connections: what checkpoints and exports hold.

Per block of every weight `BLOCK.values` [N] and, unless all its positions are connections,
`BLOCK.row_pointers` [R + 1] (where in `values` each row starts, and N) and `BLOCK.columns` [N]; of a weight in a basis
that its shape does not tell, `BLOCK.left_basis` [R, R] and `BLOCK.right_basis` [C, C] (`nn/basis.py`); biases under
their parameter names.

Shape suffixes: R rows of a block, C columns, N its connections.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rnnsparse.nn.language_model import CharLM
from rnnsparse.nn.weight import Gate, SparseWeight


def block_tensors(model: CharLM) -> dict[str, Tensor]:
    """Return the topology, values and biases of `model` by name, on the CPU."""
    values = {id(weight.values) for weight in model.sparse_weights().values()}
    tensors = {name: p.detach().cpu() for name, p in model.named_parameters() if id(p) not in values}
    for weight in model.sparse_weights().values():
        for number, block in enumerate(weight.gates):
            tensors |= _block(weight, block)
            if weight.basis and not weight.basis.derived:
                tensors[f"{block.name}.left_basis"] = weight.basis.left_KRR[number].clone().cpu()
                tensors[f"{block.name}.right_basis"] = weight.basis.right_KCC[number].clone().cpu()
    return tensors


def _block(weight: SparseWeight, block: Gate) -> dict[str, Tensor]:
    start, stop = weight.bounds(block.start_row, block.stop_row)
    tensors = {f"{block.name}.values": weight.values.detach()[start:stop].clone().cpu()}
    # Only the count tells that a block is full: a connection may have the value zero.
    if stop - start < (block.stop_row - block.start_row) * weight.cols:
        indices_N = weight.indices[start:stop].cpu()
        rows_R = torch.arange(block.start_row, block.stop_row + 1)
        pointers_R = torch.searchsorted(indices_N, rows_R * weight.cols)
        tensors[f"{block.name}.row_pointers"] = pointers_R.to(pointer_type(stop - start))
        tensors[f"{block.name}.columns"] = (indices_N % weight.cols).to(column_type(weight.cols))
    return tensors


def column_type(cols: int) -> torch.dtype:
    """Return the smallest type that can number `cols` columns and that safetensors can hold."""
    return torch.uint8 if cols <= 1 << 8 else torch.uint16 if cols <= 1 << 16 else torch.int32


def pointer_type(connections: int) -> torch.dtype:
    """Return the smallest type that can count so many connections."""
    return torch.int32 if connections < 1 << 31 else torch.int64
