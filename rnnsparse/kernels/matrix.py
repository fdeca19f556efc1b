"""Products of a sparse matrix with sequences of batches, and their gradients.

Everything is batch-innermost: at each moment a matrix [features, batch], so that one connection is one number times
one contiguous row. Shape suffixes: T time, R rows of the matrix, C its columns, B batch (whole vectors), N
connections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnnsparse.kernels import threads
from rnnsparse.kernels.compiling import inlined, kernel, vector_kernel
from rnnsparse.kernels.vector import VECTOR_BYTES, add_dots, add_few_dots, at, fill, load, multiply_add, store, zero

# A slice of activations that is read again and again should stay in the second-level cache.
CACHE_BYTES = 768 * 1024
GRADIENT_ROWS = 4096
# Below this a second thread takes longer to wake than it saves.
ONE_THREAD_CONNECTIONS = 100_000


def lanes(dtype: torch.dtype) -> int:
    """Return how many numbers one vector holds."""
    return VECTOR_BYTES // dtype.itemsize


@dataclass(frozen=True, eq=False)
class Matrix:
    """Where the connections of one weight are, by row and by column.

    `row_pointers` [R + 1] and `columns` [N] are compressed rows. The transpose is cut into `column_pointers` [Q, C + 1]
    for Q ranges of GRADIENT_ROWS rows: `rows` [N] of the connections in that order, `order` [N] their numbers.
    """

    row_count: int
    column_count: int
    row_pointers: NDArray[np.int64]
    columns: NDArray[np.integer]
    column_pointers: NDArray[np.int64]
    rows: NDArray[np.integer]
    order: NDArray[np.integer]


def build_matrix(indices: Tensor, row_count: int, column_count: int) -> Matrix:
    """Return the structure of a weight [R, C] with connections at sorted flat positions [N]; O(N) time and memory."""
    flat = indices.numpy()
    row_starts = np.arange(row_count + 1, dtype=np.int64) * column_count
    row_pointers = np.searchsorted(flat, row_starts)
    columns = np.empty(len(flat), _index_type(column_count))
    ranges = -(-row_count // GRADIENT_ROWS)
    column_pointers = np.zeros((ranges, column_count + 1), np.int64)
    rows = np.empty(len(flat), _index_type(row_count))
    order = np.empty(len(flat), np.int32 if len(flat) < 1 << 31 else np.int64)
    _build(flat, row_pointers, columns, column_pointers, rows, order)
    return Matrix(row_count, column_count, row_pointers, columns, column_pointers, rows, order)


def _index_type(size: int) -> type[np.unsignedinteger]:
    return np.uint16 if size <= 1 << 16 else np.uint32


@kernel
def _build(flat, row_pointers, columns, column_pointers, rows, order):
    """Counting sort by (range of rows, column); rows come in order, so each list of rows is sorted."""
    row_count, column_count = row_pointers.size - 1, column_pointers.shape[1] - 1
    for row in range(row_count):
        part = row // GRADIENT_ROWS
        for k in range(row_pointers[row], row_pointers[row + 1]):
            column = flat[k] - row * column_count
            columns[k] = column
            column_pointers[part, column + 1] += 1
    total = 0
    for part in range(column_pointers.shape[0]):
        column_pointers[part, 0] = total
        for column in range(column_count):
            column_pointers[part, column + 1] += column_pointers[part, column]
        total = column_pointers[part, column_count]
    place = column_pointers[:, :-1].copy()
    for row in range(row_count):
        part = row // GRADIENT_ROWS
        for k in range(row_pointers[row], row_pointers[row + 1]):
            column = columns[k]
            rows[place[part, column]] = row
            order[place[part, column]] = k
            place[part, column] += 1


@inlined
def accumulate(values, neighbours, start, stop, x, x_0, batch, y, y_0):
    """y[y_0 :] += sum over connections `start` to `stop` of value * row of x, each row `batch` numbers."""
    width = VECTOR_BYTES // y.itemsize
    b = 0
    while b + 2 * width <= batch:
        a_0, a_1 = load(y, y_0 + b), load(y, y_0 + b + width)
        c_0, c_1 = zero(values), zero(values)
        k = start
        while k + 4 <= stop:
            v = fill(at(values, k))
            place = x_0 + np.int64(at(neighbours, k)) * batch + b
            a_0, a_1 = multiply_add(v, load(x, place), a_0), multiply_add(v, load(x, place + width), a_1)
            v = fill(at(values, k + 1))
            place = x_0 + np.int64(at(neighbours, k + 1)) * batch + b
            c_0, c_1 = multiply_add(v, load(x, place), c_0), multiply_add(v, load(x, place + width), c_1)
            v = fill(at(values, k + 2))
            place = x_0 + np.int64(at(neighbours, k + 2)) * batch + b
            a_0, a_1 = multiply_add(v, load(x, place), a_0), multiply_add(v, load(x, place + width), a_1)
            v = fill(at(values, k + 3))
            place = x_0 + np.int64(at(neighbours, k + 3)) * batch + b
            c_0, c_1 = multiply_add(v, load(x, place), c_0), multiply_add(v, load(x, place + width), c_1)
            k += 4
        while k < stop:
            v = fill(at(values, k))
            place = x_0 + np.int64(at(neighbours, k)) * batch + b
            a_0, a_1 = multiply_add(v, load(x, place), a_0), multiply_add(v, load(x, place + width), a_1)
            k += 1
        store(y, y_0 + b, a_0 + c_0)
        store(y, y_0 + b + width, a_1 + c_1)
        b += 2 * width
    if b < batch:
        a_0, a_1 = load(y, y_0 + b), zero(values)
        k = start
        while k + 2 <= stop:
            place = x_0 + np.int64(at(neighbours, k)) * batch + b
            a_0 = multiply_add(fill(at(values, k)), load(x, place), a_0)
            place = x_0 + np.int64(at(neighbours, k + 1)) * batch + b
            a_1 = multiply_add(fill(at(values, k + 1)), load(x, place), a_1)
            k += 2
        if k < stop:
            place = x_0 + np.int64(at(neighbours, k)) * batch + b
            a_0 = multiply_add(fill(at(values, k)), load(x, place), a_0)
        store(y, y_0 + b, a_0 + a_1)


@kernel
def _product(thread, threads, values, pointers, columns, first, last, x, x_step, y, y_step, times, batch):
    start, stop = first + (last - first) * thread // threads, first + (last - first) * (thread + 1) // threads
    for t in range(times):
        for row in range(start, stop):
            k, end = at(pointers, row), at(pointers, row + 1)
            accumulate(values, columns, k, end, x, t * x_step, batch, y, t * y_step + (row - first) * batch)


@kernel
def _transposed_product(thread, threads, values, column_pointers, rows, g, g_step, x, x_step, times, batch):
    column_count = column_pointers.shape[1] - 1
    start, stop = column_count * thread // threads, column_count * (thread + 1) // threads
    for t in range(times):
        for part in range(column_pointers.shape[0]):
            for column in range(start, stop):
                k, end = column_pointers[part, column], column_pointers[part, column + 1]
                accumulate(values, rows, k, end, g, t * g_step, batch, x, t * x_step + column * batch)


@kernel
def _sampled_product(
    thread, threads, pointers, columns, first, last, g, g_step, x, x_step, times, batch, tile_columns, tile_times, out
):
    # Rows are shared out by connections, so that threads finish together whatever the densities.
    total = pointers[last] - pointers[first]
    low, high = pointers[first] + total * thread // threads, pointers[first] + total * (thread + 1) // threads
    start = first + np.searchsorted(pointers[first:last], low)
    stop = last if thread == threads - 1 else first + np.searchsorted(pointers[first:last], high)
    width = VECTOR_BYTES // out.itemsize
    # Where each row's connections in the current range of columns begin.
    heads = pointers[start:stop].copy()
    for t in range(0, times, tile_times):
        some = min(tile_times, times - t)
        heads[:] = pointers[start:stop]
        column_stop = 0
        while column_stop < tile_columns[0]:
            column_stop += tile_columns[1]
            for row in range(start, stop):
                k, end = heads[row - start], pointers[row + 1]
                stop_k = end
                if column_stop < tile_columns[0]:
                    stop_k = k + np.searchsorted(columns[k:end], column_stop)
                heads[row - start] = stop_k
                g_0 = t * g_step + (row - first) * batch
                while k < stop_k:
                    count = min(stop_k - k, width)
                    if count > 4:
                        add_dots(g, g_0, g_step, x, t * x_step, x_step, batch, some, columns, k, count, out)
                    else:
                        add_few_dots(g, g_0, g_step, x, t * x_step, x_step, batch, some, columns, k, count, out)
                    k += count


@kernel
def _look_up(thread, threads, table, first, last, tokens, y, y_step, batch):
    start, stop = first + (last - first) * thread // threads, first + (last - first) * (thread + 1) // threads
    for t in range(tokens.shape[0]):
        for row in range(start, stop):
            y_0 = t * y_step + (row - first) * batch
            for b in range(batch):
                y[y_0 + b] = table[row, tokens[t, b]]


@kernel
def _sum_by_symbol(thread, threads, g, g_step, first, last, tokens, table, batch):
    start, stop = first + (last - first) * thread // threads, first + (last - first) * (thread + 1) // threads
    for t in range(tokens.shape[0]):
        for row in range(start, stop):
            g_0 = t * g_step + (row - first) * batch
            for b in range(batch):
                table[row, tokens[t, b]] += g[g_0 + b]


@vector_kernel
def _vector_product(thread, threads, values, pointers, columns, x, y):
    total = pointers[-1]
    start = np.searchsorted(pointers[:-1], total * thread // threads)
    stop = y.size if thread == threads - 1 else np.searchsorted(pointers[:-1], total * (thread + 1) // threads)
    for row in range(start, stop):
        dot = y[row]
        for k in range(pointers[row], pointers[row + 1]):
            dot += values[k] * x[columns[k]]
        y[row] = dot


def flat(x_TFB: Tensor) -> NDArray[np.floating]:
    """Return the memory of a tensor whose last two dimensions are contiguous, from its first element on."""
    times, features, batch = x_TFB.shape
    assert x_TFB.stride()[1:] == (batch, 1), "activations must be batch-innermost"
    size = (times - 1) * x_TFB.stride(0) + features * batch
    return x_TFB.detach().as_strided((max(size, 0),), (1,)).numpy()


def add_product(
    matrix: Matrix, values: Tensor, x_TCB: Tensor, y_TRB: Tensor, first: int = 0, last: int | None = None
) -> None:
    """y += W x at every moment; with `first` and `last` only those rows of W, which are then all rows of y."""
    last = matrix.row_count if last is None else last
    threads.run(
        _product, values.detach().numpy(), matrix.row_pointers, matrix.columns, first, last,
        flat(x_TCB), x_TCB.stride(0), flat(y_TRB), y_TRB.stride(0), len(x_TCB), x_TCB.shape[2],
    )  # fmt: skip


def add_transposed_product(matrix: Matrix, values: Tensor, g_TRB: Tensor, x_TCB: Tensor) -> None:
    """x += W^T g at every moment."""
    threads.run(
        _transposed_product, by_column(matrix, values), matrix.column_pointers, matrix.rows,
        flat(g_TRB), g_TRB.stride(0), flat(x_TCB), x_TCB.stride(0), len(g_TRB), g_TRB.shape[2],
    )  # fmt: skip


def by_column(matrix: Matrix, values: Tensor) -> NDArray[np.floating]:
    """Return the values in the order of `matrix.rows`."""
    numbers: NDArray[np.floating] = values.detach().numpy()[matrix.order]
    return numbers


def add_sampled_product(
    matrix: Matrix, g_TRB: Tensor, x_TCB: Tensor, out_N: Tensor, first: int = 0, last: int | None = None
) -> None:
    """out[k] += sum over moments and batch of g[row of k] * x[column of k]: the gradient of the connections alone."""
    last = matrix.row_count if last is None else last
    if out_N.numel() == 0:
        return
    batch = x_TCB.shape[2]
    row_bytes = batch * x_TCB.element_size()
    tile_columns = min(matrix.column_count, max(1024, CACHE_BYTES // row_bytes))
    tile_times = max(1, CACHE_BYTES // (tile_columns * row_bytes))
    threads.run(
        _sampled_product, matrix.row_pointers, matrix.columns, first, last, flat(g_TRB), g_TRB.stride(0),
        flat(x_TCB), x_TCB.stride(0), len(x_TCB), batch, (matrix.column_count, tile_columns), tile_times, out_N.numpy(),
    )  # fmt: skip


def add_vector_product(matrix: Matrix, values: Tensor, x_C: Tensor, y_R: Tensor) -> None:
    """y += W x for one vector."""
    kernel_arguments = (values.detach().numpy(), matrix.row_pointers, matrix.columns, x_C.numpy(), y_R.numpy())
    if values.numel() < ONE_THREAD_CONNECTIONS:
        _vector_product(0, 1, *kernel_arguments)
    else:
        threads.run(_vector_product, *kernel_arguments)


def look_up(table_RV: Tensor, tokens_TB: Tensor, y_TRB: Tensor, first: int = 0, last: int | None = None) -> None:
    """y[t, :, b] = the column of the table for symbol tokens[t, b]; with `first` and `last` only those rows."""
    last = len(table_RV) if last is None else last
    threads.run(
        _look_up, table_RV.numpy(), first, last, tokens_TB.numpy(), flat(y_TRB), y_TRB.stride(0), y_TRB.shape[2]
    )  # fmt: skip


def sum_by_symbol(g_TRB: Tensor, tokens_TB: Tensor, table_RV: Tensor, first: int = 0, last: int | None = None) -> None:
    """Add the gradient of `look_up` to the table's."""
    last = len(table_RV) if last is None else last
    threads.run(
        _sum_by_symbol, flat(g_TRB), g_TRB.stride(0), first, last, tokens_TB.numpy(), table_RV.numpy(), g_TRB.shape[2]
    )  # fmt: skip
