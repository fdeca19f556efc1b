"""The plain recurrence h' = tanh(W_ih x + W_hh h + b) over connections, forward and backward through time.

`gates` [K, T, H, B] holds the outputs after forward and the gradients of what went into tanh after backward.

Shape suffixes: K batch tiles, T time, H hidden, B batch within a tile (innermost).
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from rnnsparse.kernels import threads
from rnnsparse.kernels.compiling import kernel
from rnnsparse.kernels.functions import tanh
from rnnsparse.kernels.matrix import Matrix, accumulate, by_column
from rnnsparse.kernels.recurrence import UNITS, Input, OutputGradient, begin_row, parts_backwards, share, sums_buffer
from rnnsparse.kernels.vector import VECTOR_BYTES, fill, load, meet, store


@kernel
def _forward(
    thread, threads, values, pointers, columns, gates, h, tiles, times, hidden, batch, counter,
    is_table, table, tokens, bias, in_values, in_pointers, in_columns, x, x_step,
):  # fmt: skip
    first_tile, last_tile, start, stop = share(thread, threads, tiles, hidden)
    width, size, meetings = VECTOR_BYTES // h.itemsize, hidden * batch, 0
    for tile in range(first_tile, last_tile):
        for t in range(times):
            moment = tile * times + t
            step = moment * size
            before = (tile * (times + 1) + t) * size
            # Few units at a time, so that they stay in the cache from the first sum to the last.
            for low in range(start, stop, UNITS):
                high = min(low + UNITS, stop)
                for row in range(low, high):
                    begin_row(gates, step + row * batch, row, moment, batch, is_table, table, tokens, bias)
                for part in range(in_pointers.shape[1] - 1):
                    for row in range(low, high):
                        k, end = in_pointers[row, part], in_pointers[row, part + 1]
                        accumulate(in_values, in_columns, k, end, x, moment * x_step, batch, gates, step + row * batch)
                for part in range(pointers.shape[1] - 1):
                    for row in range(low, high):
                        k, end = pointers[row, part], pointers[row, part + 1]
                        accumulate(values, columns, k, end, h, before, batch, gates, step + row * batch)
                for b in range(low * batch, high * batch, width):
                    new = tanh(load(gates, step + b))
                    store(gates, step + b, new)
                    store(h, before + size + b, new)
            if tiles % threads != 0:
                meetings += threads
                meet(counter, meetings)


@kernel
def _backward(
    thread, threads, values, pointers, rows, gates, dy, dh, sums, tiles, times, first, last, hidden, batch, counter
):
    """Go back from moment `last` to `first`."""
    first_tile, last_tile, start, stop = share(thread, threads, tiles, hidden)
    width, size, meetings = VECTOR_BYTES // dh.itemsize, hidden * batch, 0
    one = fill(dh.dtype.type(1))
    for tile in range(first_tile, last_tile):
        state = tile * size
        for backwards in range(last - first):
            t = last - 1 - backwards
            step = (tile * times + t) * size
            output = (tile * (last - first) + t - first) * size
            for unit in range(start, stop):
                s = (tile * hidden + unit) * width
                for b in range(unit * batch, (unit + 1) * batch, width):
                    h = load(gates, step + b)
                    d = (load(dh, state + b) + load(dy, output + b)) * (one - h * h)
                    store(gates, step + b, d)
                    store(dh, state + b, one - one)
                    store(sums, s, load(sums, s) + d)
            if tiles % threads != 0:
                meetings += threads
                meet(counter, meetings)
            for part in range(pointers.shape[0]):
                for unit in range(start, stop):
                    k, end = pointers[part, unit], pointers[part, unit + 1]
                    accumulate(values, rows, k, end, gates, step, batch, dh, state + unit * batch)


def forward(matrix: Matrix, values: Tensor, source: Input, gates_KTHB: Tensor, h_KTHB: Tensor) -> None:
    """Run all steps; h [K, T + 1, H, B] holds the initial state at moment 0 and gets all others."""
    tiles, times, hidden, batch = gates_KTHB.shape
    threads.run(
        _forward, values.detach().numpy(), matrix.row_pointers, matrix.columns, gates_KTHB.view(-1).numpy(),
        h_KTHB.view(-1).numpy(), tiles, times, hidden, batch, np.zeros(1, np.int64), *source.arguments(),
    )  # fmt: skip


def backward(matrix: Matrix, values: Tensor, gates_KTHB: Tensor, dy: OutputGradient, dh_KHB: Tensor) -> Tensor:
    """Turn gates into their gradients, and dh from that of the final state into that of the initial state.

    Returns the sum of each unit's gradients [H].
    """
    tiles, times, hidden, batch = gates_KTHB.shape
    sums, values_by_column = sums_buffer(tiles, hidden, dh_KHB), by_column(matrix, values)
    for first, last in parts_backwards(times):
        threads.run(
            _backward, values_by_column, matrix.column_pointers, matrix.rows, gates_KTHB.view(-1).numpy(),
            dy(first, last).view(-1).numpy(), dh_KHB.view(-1).numpy(), sums.view(-1).numpy(), tiles, times, first, last,
            hidden, batch, np.zeros(1, np.int64),
        )  # fmt: skip
    return sums.sum((0, 2))
