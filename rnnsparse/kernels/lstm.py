"""The LSTM recurrence over connections, forward and backward through time.

One parallel region spans all time steps: threads own units and meet once per step. Shape suffixes: T time, H hidden,
B batch (innermost, whole vectors). `gates` [T, 4H, B] holds i f g o: before forward what the input contributes (biases
included), after it the gates, after backward their gradients.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from rnnsparse.kernels import threads
from rnnsparse.kernels.compiling import kernel
from rnnsparse.kernels.matrix import Matrix, accumulate, by_column, flat
from rnnsparse.kernels.vector import VECTOR_BYTES, fill, load, meet, multiply_add, sigmoid, store, tanh


@kernel
def _forward(thread, threads, values, pointers, columns, gates, h, c, times, hidden, batch, counter):
    start, stop = hidden * thread // threads, hidden * (thread + 1) // threads
    width, size = VECTOR_BYTES // h.itemsize, hidden * batch
    for t in range(times):
        for unit in range(start, stop):
            for gate in range(4):
                row = gate * hidden + unit
                place = t * 4 * size + row * batch
                accumulate(values, columns, pointers[row], pointers[row + 1], h, t * size, batch, gates, place)
            for b in range(unit * batch, (unit + 1) * batch, width):
                place, before = t * 4 * size + b, t * size + b
                i, f = sigmoid(load(gates, place)), sigmoid(load(gates, place + size))
                g, o = tanh(load(gates, place + 2 * size)), sigmoid(load(gates, place + 3 * size))
                new = multiply_add(f, load(c, before), i * g)
                store(gates, place, i)
                store(gates, place + size, f)
                store(gates, place + 2 * size, g)
                store(gates, place + 3 * size, o)
                store(c, before + size, new)
                store(h, before + size, o * tanh(new))
        meet(counter, threads * (t + 1))


@kernel
def _backward(
    thread, threads, values, column_pointers, rows, gates, c, dy, dy_step, dh, dc, times, hidden, batch, counter
):
    start, stop = hidden * thread // threads, hidden * (thread + 1) // threads
    width, size = VECTOR_BYTES // dh.itemsize, hidden * batch
    one = fill(dh.dtype.type(1))
    for step in range(times):
        t = times - 1 - step
        for b in range(start * batch, stop * batch, width):
            place, before = t * 4 * size + b, t * size + b
            i, f = load(gates, place), load(gates, place + size)
            g, o = load(gates, place + 2 * size), load(gates, place + 3 * size)
            d_h = load(dh, b) + load(dy, t * dy_step + b)
            c_tanh = tanh(load(c, before + size))
            d_c = multiply_add(d_h * o, one - c_tanh * c_tanh, load(dc, b))
            store(gates, place, d_c * g * i * (one - i))
            store(gates, place + size, d_c * load(c, before) * f * (one - f))
            store(gates, place + 2 * size, d_c * i * (one - g * g))
            store(gates, place + 3 * size, d_h * c_tanh * o * (one - o))
            store(dc, b, d_c * f)
            store(dh, b, one - one)
        meet(counter, threads * (step + 1))
        for part in range(column_pointers.shape[0]):
            for unit in range(start, stop):
                k, end = column_pointers[part, unit], column_pointers[part, unit + 1]
                accumulate(values, rows, k, end, gates, t * 4 * size, batch, dh, unit * batch)


def forward(matrix: Matrix, values: Tensor, gates_TGB: Tensor, h_THB: Tensor, c_THB: Tensor) -> None:
    """Run all steps; h and c [T + 1, H, B] hold the initial state at moment 0 and get all others."""
    times, hidden, batch = len(gates_TGB), h_THB.shape[1], h_THB.shape[2]
    threads.run(
        _forward, values.detach().numpy(), matrix.row_pointers, matrix.columns,
        flat(gates_TGB), flat(h_THB), flat(c_THB), times, hidden, batch, np.zeros(1, np.int64),
    )  # fmt: skip


def backward(
    matrix: Matrix, values: Tensor, gates_TGB: Tensor, c_THB: Tensor, dy_THB: Tensor, dh_HB: Tensor, dc_HB: Tensor
) -> None:
    """Turn gates into their gradients, and dh, dc from those of the final state into those of the initial state.

    `dy` [T, H, B] is the gradient of every output.
    """
    times, hidden, batch = dy_THB.shape
    threads.run(
        _backward, by_column(matrix, values), matrix.column_pointers, matrix.rows, flat(gates_TGB), flat(c_THB),
        flat(dy_THB), dy_THB.stride(0), dh_HB.view(-1).numpy(), dc_HB.view(-1).numpy(),
        times, hidden, batch, np.zeros(1, np.int64),
    )  # fmt: skip
