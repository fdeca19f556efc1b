"""What the LSTM and the GRU recurrence share: where a step's input comes from, and who computes what.

Shape suffixes: K batch tiles, T time, M = K * T moments, R rows of the input weight, I inputs, V vocabulary, B batch
within a tile (innermost).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rnnsparse.kernels.compiling import inlined
from rnnsparse.kernels.emit import VECTOR_BYTES
from rnnsparse.kernels.matrix import Matrix, Order, share
from rnnsparse.kernels.products import flat
from rnnsparse.kernels.vector import at, fill, look_up, store

# A pass backward through time takes so many moments at a time: what it needs of them exists only as long.
PART = 8

# From two moments to the gradient [K, t, H, B], contiguous, of the outputs from the first to before the second.
OutputGradient = Callable[[int, int], Tensor]


def parts_backwards(times: int) -> Iterator[tuple[int, int]]:
    """Yield where the parts of a sequence start and stop, the last one first."""
    for start in reversed(range(0, times, PART)):
        yield start, min(start + PART, times)


@dataclass(frozen=True)
class LayerInput:
    """What a layer adds to its gates at each moment: either W x + b, or the row of a table for a symbol.

    `x` [M, I, B] goes through `matrix` and `values`; with `table` [V, R], which includes the bias, and `tokens` [M, B]
    those are not used.
    """

    bias_R: Tensor
    matrix: Matrix | None = None
    values: Tensor | None = None
    x_MIB: Tensor | None = None
    table_VR: Tensor | None = None
    tokens_MB: Tensor | None = None

    def arguments(self, gates: int, recurrent: Order) -> tuple[Any, ...]:
        """Return (whether there is a table, table, tokens, bias, order, values, x, its step), of the same types always.

        The order of the recurrent connections stands in for one that there is not.
        """
        bias = self.bias_R.detach().numpy()
        if self.table_VR is not None:
            assert self.tokens_MB is not None
            return True, self.table_VR.numpy(), self.tokens_MB.numpy(), bias, recurrent, bias, bias, 0
        assert self.matrix is not None
        assert self.values is not None
        assert self.x_MIB is not None
        no_table, no_tokens = np.zeros((0, 0), bias.dtype), np.zeros((0, 0), np.int32)
        order = self.matrix.by_row(gates)
        values = order.arranged(self.values)
        return False, no_table, no_tokens, bias, order, values, flat(self.x_MIB), self.x_MIB.stride(0)


@inlined
def begin_rows(gates, place, rows, moment, batch, is_table, table, tokens, bias):
    """Set rows of gates, from `place` on, to what the table or the bias says of rows[0] to rows[1]."""
    width = VECTOR_BYTES // gates.itemsize
    if not is_table:
        for row in range(rows[0], rows[1]):
            for b in range(0, batch, width):
                store(gates, place + b, fill(at(bias, row)))
            place += batch
        return
    step, row = table.shape[1], rows[0]
    while row + width <= rows[1]:
        for b in range(0, batch, width):
            look_up(table, step, row, tokens, moment * batch + b, gates, place + b, batch)
        row += width
        place += width * batch
    for rest in range(row, rows[1]):
        for b in range(batch):
            gates[place + b] = table[tokens[moment, b], rest]
        place += batch


@inlined
def share_tiles(thread, threads, tiles, order):
    """Return (first tile, last tile, first group, last group) of a thread.

    Tiles do not depend on each other. Where they come out even, each thread takes whole ones and never waits; else
    all threads work on one tile together and meet at each step.
    """
    if tiles % threads == 0:
        return tiles * thread // threads, tiles * (thread + 1) // threads, 0, order.groups.size - 1
    first, last = share(thread, threads, order)
    return 0, tiles, first, last


def sums_buffer(tiles: int, rows: int, like: Tensor) -> Tensor:
    """Return zeros [K, R, vector] for sums of gate gradients: the same sums, whichever thread does a tile."""
    return torch.zeros(tiles, rows, VECTOR_BYTES // like.element_size(), dtype=like.dtype)
