"""The product of a sparse matrix with one vector, as sampling needs it at every symbol.

A single vector leaves nothing to do at once but rows. So as many rows as a register holds numbers lie side by side in a
slice, the k-th connections of all of them next to each other; rows are sorted by their number of connections, so that
hardly any slice has to be filled up (SELL-C-sigma, Kreutzer et al. 2014). Each element sums one row: no sum crosses
elements, and short rows cost no more per connection than long ones. Shape suffixes as in `matrix.py`; S slices.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rnnsparse.kernels import threads
from rnnsparse.kernels.compiling import kernel
from rnnsparse.kernels.connections import add_blocks
from rnnsparse.kernels.emit import VECTOR_BYTES
from rnnsparse.kernels.matrix import Matrix
from rnnsparse.kernels.vector import add_elements, at, gather, load, multiply_add, zero

# Waking a second thread takes as long as this many connections.
ONE_THREAD_CONNECTIONS = 2_500_000


class VectorProduct:
    """y += W x for one x at a time, with a copy of the values [N] or [N, b]; O(N + R log R) time to make."""

    def __init__(self, matrix: Matrix, values: Tensor) -> None:
        make = _sliced if matrix.block_rows == 1 else _by_block
        self._kernel, self._connections, self._arguments = make(matrix, values.numpy())

    def add(self, x_C: Tensor, y_R: Tensor) -> None:
        """y += W x; both contiguous."""
        arguments = (*self._arguments, x_C.numpy(), y_R.numpy())
        if self._connections < ONE_THREAD_CONNECTIONS:
            self._kernel(0, 1, *arguments)
        else:
            threads.run(self._kernel, *arguments)


def _by_block(matrix: Matrix, values: NDArray[np.floating]) -> tuple[Any, int, tuple[Any, ...]]:
    """A connection is already what lies side by side."""
    adds = (0,) * matrix.block_rows
    return _block_product, values.size, (adds, values.flatten(), matrix.columns, matrix.row_starts)


def _sliced(matrix: Matrix, values_N: NDArray[np.floating]) -> tuple[Any, int, tuple[Any, ...]]:
    height = VECTOR_BYTES // values_N.itemsize
    counts_R = np.diff(matrix.row_starts)
    rows_R = np.argsort(-counts_R, kind="stable")
    # Slices are filled up to an even number, for two sums at a time.
    lengths_S = -(-counts_R[rows_R[::height]] // 2) * 2
    starts_S = np.append(0, lengths_S.cumsum() * height)
    values, columns = np.zeros(starts_S[-1], values_N.dtype), np.zeros(starts_S[-1], matrix.columns.dtype)
    # Rows without connections take part in nothing; they come last.
    rows = rows_R[: np.count_nonzero(counts_R)]
    _slice(matrix.row_starts, matrix.columns, values_N, rows, starts_S, height, values, columns)
    return _product, len(values), (values, columns, starts_S, rows)


@kernel
def _slice(starts_of_rows, columns, values, rows, starts, height, sliced_values, sliced_columns):
    """Where a row has no more connections its last one stands again, with a value of zero."""
    for i in range(rows.size):
        piece, place = i // height, i % height
        first, last = starts_of_rows[rows[i]], starts_of_rows[rows[i] + 1] - 1
        for k in range((starts[piece + 1] - starts[piece]) // height):
            slot = starts[piece] + k * height + place
            sliced_columns[slot] = columns[min(first + k, last)]
            if first + k <= last:
                sliced_values[slot] = values[first + k]


@kernel
def _block_product(thread, threads, adds, values, columns, starts, x, y):
    count = starts.size - 1
    first = np.searchsorted(starts, starts[count] * thread // threads)
    stop = np.searchsorted(starts, starts[count] * (thread + 1) // threads)
    for row in range(first, stop):
        add_blocks(adds, values, columns, at(starts, row), at(starts, row + 1), x, y, row * len(adds))


@kernel
def _product(thread, threads, values, columns, starts, rows, x, y):
    height = VECTOR_BYTES // y.itemsize
    first = np.searchsorted(starts, starts[-1] * thread // threads)
    stop = np.searchsorted(starts, starts[-1] * (thread + 1) // threads)
    for piece in range(first, stop):
        even, odd = zero(x), zero(x)
        for k in range(at(starts, piece), at(starts, piece + 1), 2 * height):
            even = multiply_add(load(values, k), gather(x, columns, k), even)
            odd = multiply_add(load(values, k + height), gather(x, columns, k + height), odd)
        add_elements(even + odd, y, rows, piece * height, min((piece + 1) * height, rows.size))
