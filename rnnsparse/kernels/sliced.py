"""The product of a sparse matrix with one vector, as sampling needs it at every symbol.

A single vector leaves nothing to do at once but rows. So as many rows as a register has lanes lie side by side in a
slice, the k-th connections of all of them next to each other; rows are sorted by their number of connections, so that
hardly any slice has to be filled up (SELL-C-sigma, Kreutzer et al. 2014). Each lane sums one row: no sum crosses lanes,
and short rows cost no more per connection than long ones. Shape suffixes as in `matrix.py`; S slices.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from rnnsparse.kernels import threads
from rnnsparse.kernels.compiling import kernel
from rnnsparse.kernels.matrix import Matrix, lanes
from rnnsparse.kernels.vector import VECTOR_BYTES, gather, load, multiply_add, store, zero

# Waking a second thread takes as long as this many connections.
ONE_THREAD_CONNECTIONS = 2_500_000


class VectorProduct:
    """y += W x for one x at a time, with a copy of the values; O(N + R log R) time to make."""

    def __init__(self, matrix: Matrix, values_N: Tensor) -> None:
        height = lanes(values_N.dtype)
        counts_R = matrix.row_pointers[:, -1] - matrix.row_pointers[:, 0]
        rows_R = np.argsort(-counts_R, kind="stable")
        self._starts_S = np.append(0, counts_R[rows_R[::height]].cumsum() * height)
        # Rows without connections take part in nothing; they come last.
        self._rows = rows_R[: np.count_nonzero(counts_R)]
        self._values = np.zeros(self._starts_S[-1], values_N.numpy().dtype)
        self._columns = np.zeros(self._starts_S[-1], matrix.columns.dtype)
        _slice(
            matrix.row_pointers, matrix.columns, values_N.numpy(),
            self._rows, self._starts_S, height, self._values, self._columns,
        )  # fmt: skip

    def add(self, x_C: Tensor, y_R: Tensor) -> None:
        """y += W x; both contiguous."""
        arguments = (self._values, self._columns, self._starts_S, self._rows, x_C.numpy(), y_R.numpy())
        if self._values.size < ONE_THREAD_CONNECTIONS:
            _product(0, 1, *arguments)
        else:
            threads.run(_product, *arguments)


@kernel
def _slice(pointers, columns, values, rows, starts, height, sliced_values, sliced_columns):
    """Where a row has no more connections its last one stands again, with a value of zero."""
    for i in range(rows.size):
        piece, lane = i // height, i % height
        first, last = pointers[rows[i], 0], pointers[rows[i], -1] - 1
        for k in range((starts[piece + 1] - starts[piece]) // height):
            place = starts[piece] + k * height + lane
            sliced_columns[place] = columns[min(first + k, last)]
            if first + k <= last:
                sliced_values[place] = values[first + k]


@kernel
def _product(thread, threads, values, columns, starts, rows, x, y):
    height = VECTOR_BYTES // y.itemsize
    first = np.searchsorted(starts, starts[-1] * thread // threads)
    stop = np.searchsorted(starts, starts[-1] * (thread + 1) // threads)
    sums = np.empty(height, y.dtype)
    for piece in range(first, stop):
        total = zero(x)
        for k in range(starts[piece], starts[piece + 1], height):
            total = multiply_add(load(values, k), gather(x, columns, k), total)
        store(sums, 0, total)
        for lane in range(min(height, rows.size - piece * height)):
            y[rows[piece * height + lane]] += sums[lane]
