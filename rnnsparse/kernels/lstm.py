"""The LSTM recurrence over connections, forward and backward through time.

`gates` [K, T, 4H, B] holds i f g o after forward and their gradients after backward. Of the cell states only the first
of every PART moments is kept; backward computes the others again, which costs one multiply-add per gate.

Shape suffixes: K batch tiles, T time, P parts, H hidden, B batch within a tile (innermost).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rnnsparse.kernels import memory, threads
from rnnsparse.kernels.compiling import inlined, kernel
from rnnsparse.kernels.emit import VECTOR_BYTES
from rnnsparse.kernels.functions import sigmoid, tanh
from rnnsparse.kernels.matrix import Matrix
from rnnsparse.kernels.products import add_group, row_of, vector_width
from rnnsparse.kernels.recurrence import (
    PART,
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
    thread, threads, row, order, values, gates, h, c, kept, tiles, times, hidden, counter,
    is_table, table, tokens, bias, in_order, in_values, x, x_step,
):  # fmt: skip
    first_tile, last_tile, first_group, last_group = share_tiles(thread, threads, tiles, order)
    width, meetings, parts = VECTOR_BYTES // h.itemsize, 0, (times + PART - 1) // PART
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
                for gate in range(4):
                    rows = gate * hidden + low, gate * hidden + high
                    begin_rows(
                        gates, step + gate * size + low * batch, rows, moment, batch, is_table, table, tokens, bias
                    )
                if not is_table:
                    add_group(row, in_order, in_values, group, x, moment * x_step, gates, step)
                add_group(row, order, values, group, h, before, gates, step)
                for b in range(low * batch, high * batch, width):
                    place, old = step + b, before + b
                    i, f = sigmoid(load(gates, place)), sigmoid(load(gates, place + size))
                    g, o = tanh(load(gates, place + 2 * size)), sigmoid(load(gates, place + 3 * size))
                    c_old = load(c, tile * size + b)
                    if t % PART == 0:
                        store(kept, (tile * parts + t // PART) * size + b, c_old)
                    new = multiply_add(f, c_old, i * g)
                    store(gates, place, i)
                    store(gates, place + size, f)
                    store(gates, place + 2 * size, g)
                    store(gates, place + 3 * size, o)
                    store(c, tile * size + b, new)
                    store(h, old + size, o * tanh(new))
            if tiles % threads != 0:
                meetings += threads
                meet(counter, meetings)


@kernel
def _backward(
    thread, threads, row, order, values, gates, kept, c, dy, dh, dc, sums, tiles, times, first, last, hidden, counter
):  # fmt: skip
    """Go back from moment `last` to `first`; `c` is room for the cell states of PART moments and the one before."""
    first_tile, last_tile, first_group, last_group = share_tiles(thread, threads, tiles, order)
    width, meetings = VECTOR_BYTES // dh.itemsize, 0
    batch = len(row) * width
    size, start, stop = hidden * batch, first_group * order.units, min(last_group * order.units, hidden)
    one = fill(dh.dtype.type(1))
    parts = (times + PART - 1) // PART
    for tile in range(first_tile, last_tile):
        state, cells = tile * size, tile * (PART + 1) * size
        for b in range(start * batch, stop * batch, width):
            store(c, cells + b, load(kept, (tile * parts + first // PART) * size + b))
        for t in range(first, last):
            step, before = (tile * times + t) * 4 * size, cells + (t - first) * size
            for b in range(start * batch, stop * batch, width):
                i, f, g = load(gates, step + b), load(gates, step + size + b), load(gates, step + 2 * size + b)
                store(c, before + size + b, multiply_add(f, load(c, before + b), i * g))
        for backwards in range(last - first):
            t = last - 1 - backwards
            step = (tile * times + t) * 4 * size
            output = (tile * (last - first) + t - first) * size
            before = cells + (t - first) * size
            for unit in range(start, stop):
                s = (tile * 4 * hidden + unit) * width
                for b in range(unit * batch, (unit + 1) * batch, width):
                    place, old = step + b, before + b
                    i, f = load(gates, place), load(gates, place + size)
                    g, o = load(gates, place + 2 * size), load(gates, place + 3 * size)
                    d_h = load(dh, state + b) + load(dy, output + b)
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
            for group in range(first_group, last_group):
                add_group(row, order, values, group, gates, step, dh, state)


def forward(
    matrix: Matrix, values: Tensor, source: LayerInput, gates_KTGB: Tensor, h_KTHB: Tensor, c_KHB: Tensor
) -> Tensor:
    """Run all steps; h [K, T + 1, H, B] holds the initial state at moment 0 and gets all others, c becomes the last.

    Returns the cell states [K, P, H, B] that `backward` starts from.
    """
    (tiles, times, _, _), order = gates_KTGB.shape, matrix.by_row(4)
    kept_KPHB = memory.empty((tiles, -(-times // PART), *c_KHB.shape[1:]), c_KHB.dtype)
    threads.run(
        _forward, row_of(h_KTHB), order, order.arranged(values), gates_KTGB.view(-1).numpy(), h_KTHB.view(-1).numpy(),
        c_KHB.view(-1).numpy(), kept_KPHB.view(-1).numpy(), tiles, times, h_KTHB.shape[2], np.zeros(1, np.int64),
        *source.arguments(4, order),
    )  # fmt: skip
    return kept_KPHB


def backward(
    matrix: Matrix, values: Tensor, gates_KTGB: Tensor, kept_KPHB: Tensor, dy: OutputGradient, dh_KHB: Tensor,
    dc_KHB: Tensor,
) -> Tensor:  # fmt: skip
    """Turn gates into their gradients, and dh, dc from those of the final state into those of the initial state.

    Returns the sum of each gate's gradients [4H].
    """
    (tiles, times, _, batch), hidden, order = gates_KTGB.shape, dh_KHB.shape[1], matrix.by_column
    sums, arranged = sums_buffer(tiles, 4 * hidden, dh_KHB), order.arranged(values)
    c_KTHB = memory.empty((tiles, PART + 1, hidden, batch), dh_KHB.dtype)
    for first, last in parts_backwards(times):
        threads.run(
            _backward, row_of(dh_KHB), order, arranged, gates_KTGB.view(-1).numpy(), kept_KPHB.view(-1).numpy(),
            c_KTHB.view(-1).numpy(), dy(first, last).view(-1).numpy(), dh_KHB.view(-1).numpy(),
            dc_KHB.view(-1).numpy(), sums.view(-1).numpy(), tiles, times, first, last, hidden, np.zeros(1, np.int64),
        )  # fmt: skip
    return sums.sum((0, 2))


def step(gates_G: Tensor, state_SH: Tensor) -> Tensor:
    """Return the next state [2, H] for the sums [4H] that go into the gates i f g o, of one moment of one text."""
    new_SH, hidden = torch.empty(state_SH.shape, dtype=state_SH.dtype), state_SH.shape[1]
    # For the last units, which may be no whole vector.
    room = np.zeros(7 * vector_width(new_SH.dtype), new_SH.numpy().dtype)
    _step(gates_G.numpy(), state_SH[1].numpy(), new_SH.view(-1).numpy(), hidden, room)
    return new_SH


@kernel
def _step(gates, c, new, hidden, room):
    width = VECTOR_BYTES // c.itemsize
    whole = hidden // width * width
    for u in range(0, whole, width):
        _step_units(gates, u, hidden, c, u, new, u, hidden)
    rest = hidden - whole
    if rest > 0:
        for j in range(rest):
            for gate in range(4):
                room[gate * width + j] = gates[gate * hidden + whole + j]
            room[4 * width + j] = c[whole + j]
        _step_units(room, 0, width, room, 4 * width, room, 5 * width, width)
        for j in range(rest):
            new[whole + j], new[hidden + whole + j] = room[5 * width + j], room[6 * width + j]


@inlined
def _step_units(gates, place, size, c, old, new, h, new_size):
    i, f = sigmoid(load(gates, place)), sigmoid(load(gates, place + size))
    g, o = tanh(load(gates, place + 2 * size)), sigmoid(load(gates, place + 3 * size))
    c_new = multiply_add(f, load(c, old), i * g)
    store(new, h + new_size, c_new)
    store(new, h, o * tanh(c_new))
