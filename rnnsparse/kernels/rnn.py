"""The plain recurrence h' = tanh(W_ih x + W_hh h + b) over connections, forward and backward through time.

`gates` [K, T, H, B] holds the outputs after forward and the gradients of what went into tanh after backward.

Shape suffixes: K batch tiles, T time, H hidden, B batch within a tile (innermost).
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from rnnsparse.kernels import threads
from rnnsparse.kernels.compiling import kernel
from rnnsparse.kernels.emit import VECTOR_BYTES
from rnnsparse.kernels.functions import tanh
from rnnsparse.kernels.matrix import Matrix
from rnnsparse.kernels.products import add_group, row_of
from rnnsparse.kernels.recurrence import (
    LayerInput,
    OutputGradient,
    begin_rows,
    parts_backwards,
    share_tiles,
    sums_buffer,
)
from rnnsparse.kernels.vector import fill, load, meet, store


@kernel
def _forward(
    thread, threads, row, order, values, gates, h, tiles, times, hidden, counter,
    is_table, table, tokens, bias, in_order, in_values, x, x_step,
):  # fmt: skip
    first_tile, last_tile, first_group, last_group = share_tiles(thread, threads, tiles, order)
    width, meetings = VECTOR_BYTES // h.itemsize, 0
    batch = len(row) * width
    size = hidden * batch
    for tile in range(first_tile, last_tile):
        for t in range(times):
            moment = tile * times + t
            step = moment * size
            before = (tile * (times + 1) + t) * size
            # Few units at a time, so that they stay in the cache from the first sum to the last.
            for group in range(first_group, last_group):
                low, high = group * order.units, min((group + 1) * order.units, hidden)
                begin_rows(gates, step + low * batch, (low, high), moment, batch, is_table, table, tokens, bias)
                if not is_table:
                    add_group(row, in_order, in_values, group, x, moment * x_step, gates, step)
                add_group(row, order, values, group, h, before, gates, step)
                for b in range(low * batch, high * batch, width):
                    new = tanh(load(gates, step + b))
                    store(gates, step + b, new)
                    store(h, before + size + b, new)
            if tiles % threads != 0:
                meetings += threads
                meet(counter, meetings)


@kernel
def _backward(
    thread, threads, row, order, values, gates, dy, dh, sums, tiles, times, first, last, hidden, counter
):  # fmt: skip
    """Go back from moment `last` to `first`."""
    first_tile, last_tile, first_group, last_group = share_tiles(thread, threads, tiles, order)
    width, meetings = VECTOR_BYTES // dh.itemsize, 0
    batch = len(row) * width
    size, start, stop = hidden * batch, first_group * order.units, min(last_group * order.units, hidden)
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
            for group in range(first_group, last_group):
                add_group(row, order, values, group, gates, step, dh, state)


def forward(matrix: Matrix, values: Tensor, source: LayerInput, gates_KTHB: Tensor, h_KTHB: Tensor) -> None:
    """Run all steps; h [K, T + 1, H, B] holds the initial state at moment 0 and gets all others."""
    (tiles, times, hidden, _), order = gates_KTHB.shape, matrix.by_row(1)
    threads.run(
        _forward, row_of(h_KTHB), order, order.arranged(values), gates_KTHB.view(-1).numpy(), h_KTHB.view(-1).numpy(),
        tiles, times, hidden, np.zeros(1, np.int64), *source.arguments(1, order),
    )  # fmt: skip


def backward(matrix: Matrix, values: Tensor, gates_KTHB: Tensor, dy: OutputGradient, dh_KHB: Tensor) -> Tensor:
    """Turn gates into their gradients, and dh from that of the final state into that of the initial state.

    Returns the sum of each unit's gradients [H].
    """
    (tiles, times, hidden, _), order = gates_KTHB.shape, matrix.by_column
    sums, arranged = sums_buffer(tiles, hidden, dh_KHB), order.arranged(values)
    for first, last in parts_backwards(times):
        threads.run(
            _backward, row_of(dh_KHB), order, arranged, gates_KTHB.view(-1).numpy(), dy(first, last).view(-1).numpy(),
            dh_KHB.view(-1).numpy(), sums.view(-1).numpy(), tiles, times, first, last, hidden, np.zeros(1, np.int64),
        )  # fmt: skip
    return sums.sum((0, 2))
