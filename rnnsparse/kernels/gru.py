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
from rnnsparse.kernels.emit import VECTOR_BYTES
from rnnsparse.kernels.functions import sigmoid, tanh
from rnnsparse.kernels.matrix import Matrix
from rnnsparse.kernels.products import add_group, row_of, vector_width
from rnnsparse.kernels.recurrence import (
    LayerInput,
    OutputGradient,
    begin_rows,
    parts_backwards,
    share_tiles,
    sums_buffer,
)
from rnnsparse.kernels.vector import fill, load, meet, multiply_add, store


@kernel
def _forward(
    thread, threads, row, order, values, q_bias, gates, h, tiles, times, hidden, counter,
    is_table, table, tokens, bias, in_order, in_values, x, x_step,
):  # fmt: skip
    first_tile, last_tile, first_group, last_group = share_tiles(thread, threads, tiles, order)
    width, meetings = VECTOR_BYTES // h.itemsize, 0
    batch = len(row) * width
    size = hidden * batch
    for tile in range(first_tile, last_tile):
        for t in range(times):
            moment = tile * times + t
            step = moment * 4 * size
            before = (tile * (times + 1) + t) * size
            # Few units at a time, so that their gates stay in the cache from the first sum to the last.
            for group in range(first_group, last_group):
                low, high = group * order.units, min((group + 1) * order.units, hidden)
                # The input's r z n go to places 1 2 0, the recurrent ones to 1 2 3.
                for gate in range(3):
                    rows, place = (gate * hidden + low, gate * hidden + high), (gate + 1) % 3 * size
                    begin_rows(gates, step + place + low * batch, rows, moment, batch, is_table, table, tokens, bias)
                begin_rows(gates, step + 3 * size + low * batch, (low, high), 0, batch, False, table, tokens, q_bias)
                if not is_table:
                    turn = 2 * hidden, 3 * size
                    add_group(row, in_order, in_values, group, x, moment * x_step, gates, step + size, turn)
                add_group(row, order, values, group, h, before, gates, step + size)
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
    thread, threads, row, order, values, gates, h, dy, dh, sums, tiles, times, first, last, hidden, counter
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
            for group in range(first_group, last_group):
                add_group(row, order, values, group, gates, step + size, dh, state)


def forward(
    matrix: Matrix, values: Tensor, source: LayerInput, q_bias_H: Tensor, gates_KTGB: Tensor, h_KTHB: Tensor
) -> None:
    """Run all steps; h [K, T + 1, H, B] holds the initial state at moment 0 and gets all others."""
    (tiles, times, _, _), order = gates_KTGB.shape, matrix.by_row(3)
    threads.run(
        _forward, row_of(h_KTHB), order, order.arranged(values), q_bias_H.detach().numpy(), gates_KTGB.view(-1).numpy(),
        h_KTHB.view(-1).numpy(), tiles, times, h_KTHB.shape[2], np.zeros(1, np.int64), *source.arguments(3, order),
    )  # fmt: skip


def backward(
    matrix: Matrix, values: Tensor, gates_KTGB: Tensor, h_KTHB: Tensor, dy: OutputGradient, dh_KHB: Tensor
) -> Tensor:
    """Turn gates into their gradients, and dh from that of the final state into that of the initial state.

    Returns the sum of each of n r z q's gradients [4H].
    """
    (tiles, times, _, _), hidden, order = gates_KTGB.shape, dh_KHB.shape[1], matrix.by_column
    sums, arranged = sums_buffer(tiles, 4 * hidden, dh_KHB), order.arranged(values)
    for first, last in parts_backwards(times):
        threads.run(
            _backward, row_of(dh_KHB), order, arranged, gates_KTGB.view(-1).numpy(), h_KTHB.view(-1).numpy(),
            dy(first, last).view(-1).numpy(), dh_KHB.view(-1).numpy(), sums.view(-1).numpy(), tiles, times, first, last,
            hidden, np.zeros(1, np.int64),
        )  # fmt: skip
    return sums.sum((0, 2))


def step(input_R: Tensor, recurrent_R: Tensor, state_SH: Tensor) -> Tensor:
    """Return the next state [1, H] for both products [3H], r z n, with their biases, of one moment of one text."""
    new_SH, hidden = torch.empty(state_SH.shape, dtype=state_SH.dtype), state_SH.shape[1]
    # For the last units, which may be no whole vector.
    room = np.zeros(8 * vector_width(new_SH.dtype), new_SH.numpy().dtype)
    _step(input_R.numpy(), recurrent_R.numpy(), state_SH[0].numpy(), new_SH.view(-1).numpy(), hidden, room)
    return new_SH


@kernel
def _step(inputs, recurrent, h, new, hidden, room):
    width = VECTOR_BYTES // h.itemsize
    whole = hidden // width * width
    for u in range(0, whole, width):
        _step_units(inputs, u, recurrent, u, hidden, h, u, new, u)
    rest = hidden - whole
    if rest > 0:
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
