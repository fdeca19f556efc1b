"""The GRU recurrence over connections, forward and backward through time.

`gates` [K, T, 4H, B] holds n r z q after forward, where q = W_n h + b_n is what the reset gate multiplies, and their
gradients after backward. So rows H to 4H are then the gradients of the recurrent products, in the order r z n of the
weight's rows, and rows 0 to 3H those of the input's, in the order n r z.

Shape suffixes: K batch tiles, T time, H hidden, B batch within a tile (innermost).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rnnsparse.kernels import threads
from rnnsparse.kernels.compiling import inlined, kernel
from rnnsparse.kernels.functions import sigmoid, tanh
from rnnsparse.kernels.matrix import Matrix, accumulate, by_column
from rnnsparse.kernels.recurrence import UNITS, Input, OutputGradient, begin_row, parts_backwards, share, sums_buffer
from rnnsparse.kernels.vector import VECTOR_BYTES, at, fill, load, meet, multiply_add, store


@kernel
def _forward(
    thread, threads, values, pointers, columns, q_bias, gates, h, tiles, times, hidden, batch, counter,
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
                for gate in range(3):
                    # The input's r z n go to places 1 2 0, the recurrent ones to 1 2 3.
                    shift = step + ((gate + 1) % 3 - gate) * size
                    for row in range(gate * hidden + low, gate * hidden + high):
                        begin_row(gates, shift + row * batch, row, moment, batch, is_table, table, tokens, bias)
                for unit in range(low, high):
                    for b in range(unit * batch, (unit + 1) * batch, width):
                        store(gates, step + 3 * size + b, fill(at(q_bias, unit)))
                for part in range(in_pointers.shape[1] - 1):
                    for gate in range(3):
                        shift = step + ((gate + 1) % 3 - gate) * size
                        for row in range(gate * hidden + low, gate * hidden + high):
                            k, end = in_pointers[row, part], in_pointers[row, part + 1]
                            accumulate(
                                in_values, in_columns, k, end, x, moment * x_step, batch, gates, shift + row * batch
                            )
                for part in range(pointers.shape[1] - 1):
                    for gate in range(3):
                        for row in range(gate * hidden + low, gate * hidden + high):
                            k, end = pointers[row, part], pointers[row, part + 1]
                            accumulate(values, columns, k, end, h, before, batch, gates, step + size + row * batch)
                for b in range(low * batch, high * batch, width):
                    place, old = step + b, before + b
                    r, z = sigmoid(load(gates, place + size)), sigmoid(load(gates, place + 2 * size))
                    n = tanh(multiply_add(r, load(gates, place + 3 * size), load(gates, place)))
                    store(gates, place, n)
                    store(gates, place + size, r)
                    store(gates, place + 2 * size, z)
                    store(h, old + size, multiply_add(z, load(h, old) - n, n))
            if tiles % threads != 0:
                meetings += threads
                meet(counter, meetings)


@kernel
def _backward(
    thread, threads, values, pointers, rows, gates, h, dy, dh, sums, tiles, times, first, last, hidden, batch, counter
):
    """Go back from moment `last` to `first`."""
    first_tile, last_tile, start, stop = share(thread, threads, tiles, hidden)
    width, size, meetings = VECTOR_BYTES // dh.itemsize, hidden * batch, 0
    one = fill(dh.dtype.type(1))
    for tile in range(first_tile, last_tile):
        state = tile * size
        for backwards in range(last - first):
            t = last - 1 - backwards
            step = (tile * times + t) * 4 * size
            output = (tile * (last - first) + t - first) * size
            before = (tile * (times + 1) + t) * size
            for unit in range(start, stop):
                s = (tile * 4 * hidden + unit) * width
                for b in range(unit * batch, (unit + 1) * batch, width):
                    place = step + b
                    n, r = load(gates, place), load(gates, place + size)
                    z, q = load(gates, place + 2 * size), load(gates, place + 3 * size)
                    d_h = load(dh, state + b) + load(dy, output + b)
                    d_n = d_h * (one - z) * (one - n * n)
                    d_r = d_n * q * r * (one - r)
                    d_z = d_h * (load(h, before + b) - n) * z * (one - z)
                    store(gates, place, d_n)
                    store(gates, place + size, d_r)
                    store(gates, place + 2 * size, d_z)
                    store(gates, place + 3 * size, d_n * r)
                    store(dh, state + b, d_h * z)
                    store(sums, s, load(sums, s) + d_n)
                    store(sums, s + hidden * width, load(sums, s + hidden * width) + d_r)
                    store(sums, s + 2 * hidden * width, load(sums, s + 2 * hidden * width) + d_z)
                    store(sums, s + 3 * hidden * width, load(sums, s + 3 * hidden * width) + d_n * r)
            if tiles % threads != 0:
                meetings += threads
                meet(counter, meetings)
            for part in range(pointers.shape[0]):
                for unit in range(start, stop):
                    k, end = pointers[part, unit], pointers[part, unit + 1]
                    accumulate(values, rows, k, end, gates, step + size, batch, dh, state + unit * batch)


def forward(
    matrix: Matrix, values: Tensor, source: Input, q_bias_H: Tensor, gates_KTGB: Tensor, h_KTHB: Tensor
) -> None:
    """Run all steps; h [K, T + 1, H, B] holds the initial state at moment 0 and gets all others."""
    tiles, times, _, batch = gates_KTGB.shape
    threads.run(
        _forward, values.detach().numpy(), matrix.row_pointers, matrix.columns, q_bias_H.detach().numpy(),
        gates_KTGB.view(-1).numpy(), h_KTHB.view(-1).numpy(), tiles, times, h_KTHB.shape[2], batch,
        np.zeros(1, np.int64), *source.arguments(),
    )  # fmt: skip


def backward(
    matrix: Matrix, values: Tensor, gates_KTGB: Tensor, h_KTHB: Tensor, dy: OutputGradient, dh_KHB: Tensor
) -> Tensor:
    """Turn gates into their gradients, and dh from that of the final state into that of the initial state.

    Returns the sum of each of n r z q's gradients [4H].
    """
    (tiles, times, _, batch), hidden = gates_KTGB.shape, dh_KHB.shape[1]
    sums, values_by_column = sums_buffer(tiles, 4 * hidden, dh_KHB), by_column(matrix, values)
    for first, last in parts_backwards(times):
        threads.run(
            _backward, values_by_column, matrix.column_pointers, matrix.rows, gates_KTGB.view(-1).numpy(),
            h_KTHB.view(-1).numpy(), dy(first, last).view(-1).numpy(), dh_KHB.view(-1).numpy(), sums.view(-1).numpy(),
            tiles, times, first, last, hidden, batch, np.zeros(1, np.int64),
        )  # fmt: skip
    return sums.sum((0, 2))


def step(input_R: Tensor, recurrent_R: Tensor, state_SH: Tensor) -> Tensor:
    """Return the next state [1, H] for both products [3H], r z n, with their biases, of one moment of one text."""
    new_SH = torch.empty(state_SH.shape, dtype=state_SH.dtype)
    _step(input_R.numpy(), recurrent_R.numpy(), state_SH[0].numpy(), new_SH.view(-1).numpy(), state_SH.shape[1])
    return new_SH


@kernel
def _step(inputs, recurrent, h, new, hidden):
    width = VECTOR_BYTES // h.itemsize
    whole = hidden // width * width
    for u in range(0, whole, width):
        _step_units(inputs, u, recurrent, u, hidden, h, u, new, u)
    rest = hidden - whole
    if rest > 0:
        # The last units in vectors of their own.
        room = np.zeros(8 * width, h.dtype)
        for j in range(rest):
            for gate in range(3):
                room[gate * width + j] = inputs[gate * hidden + whole + j]
                room[(3 + gate) * width + j] = recurrent[gate * hidden + whole + j]
            room[6 * width + j] = h[whole + j]
        _step_units(room, 0, room, 3 * width, width, room, 6 * width, room, 7 * width)
        for j in range(rest):
            new[whole + j] = room[7 * width + j]


@inlined
def _step_units(inputs, i, recurrent, k, size, h, old, new, place):
    r = sigmoid(load(inputs, i) + load(recurrent, k))
    z = sigmoid(load(inputs, i + size) + load(recurrent, k + size))
    n = tanh(multiply_add(r, load(recurrent, k + 2 * size), load(inputs, i + 2 * size)))
    store(new, place, multiply_add(z, load(h, old) - n, n))
