"""The LSTM recurrence over connections, forward and backward through time.

Shape suffixes: K batch tiles, T time, H hidden, B batch within a tile (innermost). `gates` [K, T, 4H, B] holds i f g o
after forward and their gradients after backward.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from rnnsparse.kernels import threads
from rnnsparse.kernels.compiling import kernel
from rnnsparse.kernels.functions import sigmoid, tanh
from rnnsparse.kernels.matrix import Matrix, accumulate, by_column
from rnnsparse.kernels.recurrence import UNITS, Input, begin_row, share, sums_buffer
from rnnsparse.kernels.vector import VECTOR_BYTES, fill, load, meet, multiply_add, store


@kernel
def _forward(
    thread, threads, values, pointers, columns, gates, h, c, tiles, times, hidden, batch, counter,
    is_table, table, tokens, bias, in_values, in_pointers, in_columns, x, x_step,
):  # fmt: skip
    first_tile, last_tile, start, stop = share(thread, threads, tiles, hidden)
    width, size, meetings = VECTOR_BYTES // h.itemsize, hidden * batch, 0
    for tile in range(first_tile, last_tile):
        for t in range(times):
            moment = tile * times + t
            step = moment * 4 * size
            before = (tile * (times + 1) + t) * size
            # Few units at a time, so that their gates stay in the cache from the first sum to the last.
            for low in range(start, stop, UNITS):
                high = min(low + UNITS, stop)
                for gate in range(4):
                    for row in range(gate * hidden + low, gate * hidden + high):
                        begin_row(gates, step + row * batch, row, moment, batch, is_table, table, tokens, bias)
                for part in range(in_pointers.shape[1] - 1):
                    for gate in range(4):
                        for row in range(gate * hidden + low, gate * hidden + high):
                            k, end = in_pointers[row, part], in_pointers[row, part + 1]
                            accumulate(
                                in_values, in_columns, k, end, x, moment * x_step, batch, gates, step + row * batch
                            )
                for part in range(pointers.shape[1] - 1):
                    for gate in range(4):
                        for row in range(gate * hidden + low, gate * hidden + high):
                            k, end = pointers[row, part], pointers[row, part + 1]
                            accumulate(values, columns, k, end, h, before, batch, gates, step + row * batch)
                for b in range(low * batch, high * batch, width):
                    place, old = step + b, before + b
                    i, f = sigmoid(load(gates, place)), sigmoid(load(gates, place + size))
                    g, o = tanh(load(gates, place + 2 * size)), sigmoid(load(gates, place + 3 * size))
                    new = multiply_add(f, load(c, old), i * g)
                    store(gates, place, i)
                    store(gates, place + size, f)
                    store(gates, place + 2 * size, g)
                    store(gates, place + 3 * size, o)
                    store(c, old + size, new)
                    store(h, old + size, o * tanh(new))
            if tiles % threads != 0:
                meetings += threads
                meet(counter, meetings)


@kernel
def _backward(
    thread, threads, values, pointers, rows, gates, c, dy, dh, dc, sums, tiles, times, hidden, batch, counter
):
    first_tile, last_tile, start, stop = share(thread, threads, tiles, hidden)
    width, size, meetings = VECTOR_BYTES // dh.itemsize, hidden * batch, 0
    one = fill(dh.dtype.type(1))
    for tile in range(first_tile, last_tile):
        state = tile * size
        for backwards in range(times):
            t = times - 1 - backwards
            moment = tile * times + t
            step = moment * 4 * size
            before = (tile * (times + 1) + t) * size
            for unit in range(start, stop):
                s = (tile * 4 * hidden + unit) * width
                for b in range(unit * batch, (unit + 1) * batch, width):
                    place, old = step + b, before + b
                    i, f = load(gates, place), load(gates, place + size)
                    g, o = load(gates, place + 2 * size), load(gates, place + 3 * size)
                    d_h = load(dh, state + b) + load(dy, moment * size + b)
                    c_tanh = tanh(load(c, old + size))
                    d_c = multiply_add(d_h * o, one - c_tanh * c_tanh, load(dc, state + b))
                    d_i, d_f = d_c * g * i * (one - i), d_c * load(c, old) * f * (one - f)
                    d_g, d_o = d_c * i * (one - g * g), d_h * c_tanh * o * (one - o)
                    store(gates, place, d_i)
                    store(gates, place + size, d_f)
                    store(gates, place + 2 * size, d_g)
                    store(gates, place + 3 * size, d_o)
                    store(dc, state + b, d_c * f)
                    store(dh, state + b, one - one)
                    store(sums, s, load(sums, s) + d_i)
                    store(sums, s + hidden * width, load(sums, s + hidden * width) + d_f)
                    store(sums, s + 2 * hidden * width, load(sums, s + 2 * hidden * width) + d_g)
                    store(sums, s + 3 * hidden * width, load(sums, s + 3 * hidden * width) + d_o)
            if tiles % threads != 0:
                meetings += threads
                meet(counter, meetings)
            for part in range(pointers.shape[0]):
                for unit in range(start, stop):
                    k, end = pointers[part, unit], pointers[part, unit + 1]
                    accumulate(values, rows, k, end, gates, step, batch, dh, state + unit * batch)


def forward(matrix: Matrix, values: Tensor, source: Input, gates_KTGB: Tensor, h_KTHB: Tensor, c_KTHB: Tensor) -> None:
    """Run all steps; h and c [K, T + 1, H, B] hold the initial state at moment 0 and get all others."""
    tiles, times, _, batch = gates_KTGB.shape
    threads.run(
        _forward, values.detach().numpy(), matrix.row_pointers, matrix.columns, gates_KTGB.view(-1).numpy(),
        h_KTHB.view(-1).numpy(), c_KTHB.view(-1).numpy(), tiles, times, h_KTHB.shape[2], batch,
        np.zeros(1, np.int64), *source.arguments(),
    )  # fmt: skip


def backward(
    matrix: Matrix, values: Tensor, gates_KTGB: Tensor, c_KTHB: Tensor, dy_KTHB: Tensor, dh_KHB: Tensor, dc_KHB: Tensor
) -> Tensor:
    """Turn gates into their gradients, and dh, dc from those of the final state into those of the initial state.

    `dy` [K, T, H, B] is the gradient of every output. Returns the sum of each gate's gradients [4H].
    """
    tiles, times, hidden, batch = dy_KTHB.shape
    sums = sums_buffer(tiles, 4 * hidden, dh_KHB)
    threads.run(
        _backward, by_column(matrix, values), matrix.column_pointers, matrix.rows, gates_KTGB.view(-1).numpy(),
        c_KTHB.view(-1).numpy(), dy_KTHB.view(-1).numpy(), dh_KHB.view(-1).numpy(), dc_KHB.view(-1).numpy(),
        sums.view(-1).numpy(), tiles, times, hidden, batch, np.zeros(1, np.int64),
    )  # fmt: skip
    return sums.sum((0, 2))
