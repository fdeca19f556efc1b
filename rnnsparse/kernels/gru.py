"""The GRU recurrence over connections, forward and backward through time.

As in `lstm.py`, threads own units and meet once per step. `gates` [T, 4H, B] holds n r z q, where q = W_n h + b_n is
what the reset gate multiplies: before forward what the input contributes to n r z (biases included) and b_n for q;
after it n r z and q; after backward their gradients. So rows H to 4H are the gradient of the recurrent products (of
r z n, in the order of the weight's rows), and rows 0 to 3H that of the input's (of n r z).

Shape suffixes: T time, H hidden, B batch (innermost, whole vectors).
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from rnnsparse.kernels import threads
from rnnsparse.kernels.compiling import kernel
from rnnsparse.kernels.matrix import Matrix, accumulate, by_column, flat
from rnnsparse.kernels.vector import VECTOR_BYTES, fill, load, meet, multiply_add, sigmoid, store, tanh


@kernel
def _forward(thread, threads, values, pointers, columns, gates, h, times, hidden, batch, counter):
    start, stop = hidden * thread // threads, hidden * (thread + 1) // threads
    width, size = VECTOR_BYTES // h.itemsize, hidden * batch
    for t in range(times):
        for unit in range(start, stop):
            for gate in range(3):
                row = gate * hidden + unit
                place = t * 4 * size + size + row * batch
                accumulate(values, columns, pointers[row], pointers[row + 1], h, t * size, batch, gates, place)
            for b in range(unit * batch, (unit + 1) * batch, width):
                place, before = t * 4 * size + b, t * size + b
                r, z = sigmoid(load(gates, place + size)), sigmoid(load(gates, place + 2 * size))
                n = tanh(multiply_add(r, load(gates, place + 3 * size), load(gates, place)))
                store(gates, place, n)
                store(gates, place + size, r)
                store(gates, place + 2 * size, z)
                store(h, before + size, multiply_add(z, load(h, before) - n, n))
        meet(counter, threads * (t + 1))


@kernel
def _backward(thread, threads, values, column_pointers, rows, gates, h, dy, dy_step, dh, times, hidden, batch, counter):
    start, stop = hidden * thread // threads, hidden * (thread + 1) // threads
    width, size = VECTOR_BYTES // dh.itemsize, hidden * batch
    one = fill(dh.dtype.type(1))
    for step in range(times):
        t = times - 1 - step
        for b in range(start * batch, stop * batch, width):
            place, before = t * 4 * size + b, t * size + b
            n, r = load(gates, place), load(gates, place + size)
            z, q = load(gates, place + 2 * size), load(gates, place + 3 * size)
            d_h = load(dh, b) + load(dy, t * dy_step + b)
            d_n = d_h * (one - z) * (one - n * n)
            store(gates, place, d_n)
            store(gates, place + size, d_n * q * r * (one - r))
            store(gates, place + 2 * size, d_h * (load(h, before) - n) * z * (one - z))
            store(gates, place + 3 * size, d_n * r)
            store(dh, b, d_h * z)
        meet(counter, threads * (step + 1))
        for part in range(column_pointers.shape[0]):
            for unit in range(start, stop):
                k, end = column_pointers[part, unit], column_pointers[part, unit + 1]
                accumulate(values, rows, k, end, gates, t * 4 * size + size, batch, dh, unit * batch)


def forward(matrix: Matrix, values: Tensor, gates_TGB: Tensor, h_THB: Tensor) -> None:
    """Run all steps; h [T + 1, H, B] holds the initial state at moment 0 and gets all others."""
    times, hidden, batch = len(gates_TGB), h_THB.shape[1], h_THB.shape[2]
    threads.run(
        _forward, values.detach().numpy(), matrix.row_pointers, matrix.columns,
        flat(gates_TGB), flat(h_THB), times, hidden, batch, np.zeros(1, np.int64),
    )  # fmt: skip


def backward(matrix: Matrix, values: Tensor, gates_TGB: Tensor, h_THB: Tensor, dy_THB: Tensor, dh_HB: Tensor) -> None:
    """Turn gates into their gradients, and dh from that of the final state into that of the initial state.

    `dy` [T, H, B] is the gradient of every output.
    """
    times, hidden, batch = dy_THB.shape
    threads.run(
        _backward, by_column(matrix, values), matrix.column_pointers, matrix.rows, flat(gates_TGB), flat(h_THB),
        flat(dy_THB), dy_THB.stride(0), dh_HB.view(-1).numpy(), times, hidden, batch, np.zeros(1, np.int64),
    )  # fmt: skip
