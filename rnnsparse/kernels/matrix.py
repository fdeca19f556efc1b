"""Products of a sparse matrix with sequences of batches, and their gradients.

Everything is batch-innermost: at each moment a matrix [features, batch], so that one connection is one number times
one contiguous row. Shape suffixes: T time, R rows of the matrix, C its columns, B batch (whole vectors), N
connections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnnsparse.kernels import threads
from rnnsparse.kernels.compiling import inlined, kernel
from rnnsparse.kernels.dots import add_dots, add_few_dots
from rnnsparse.kernels.vector import VECTOR_BYTES, at, fill, load, multiply_add, store, zero

TILE_BYTES = 128  # of batch: two AVX-512 registers; a wider batch is several tiles
# A range of activations that is read again and again should stay in the first-level cache, unless that leaves too few
# connections of a row in it.
FIRST_CACHE_BYTES = 32 * 1024
FEWEST_CONNECTIONS = 16
SECOND_CACHE_BYTES = 768 * 1024
SYMBOL_ROWS = 64
OUTPUT_ROWS = 128


def lanes(dtype: torch.dtype) -> int:
    """Return how many numbers one vector holds."""
    return VECTOR_BYTES // dtype.itemsize


def tile_width(dtype: torch.dtype, batch: int) -> int:
    """Return the width of batch tiles: two vectors, or one where that is enough for the whole batch."""
    tile = TILE_BYTES // dtype.itemsize
    return min(tile, -(-batch // lanes(dtype)) * lanes(dtype))


@dataclass(frozen=True, eq=False)
class Matrix:
    """Where the connections of one weight are, by row and by column, each cut into ranges that fit a cache.

    Connections are numbered by row. `row_pointers` [R, Q + 1]: connections row_pointers[r, q] to [r, q + 1] of row r
    lie in the q-th range of columns; `columns` [N]. `column_pointers` [P, C + 1] cuts the transpose likewise: `rows`
    [N] of the connections in the order (range of rows, column, row), and `order` [N] their numbers.
    """

    row_count: int
    column_count: int
    row_pointers: NDArray[np.int64]
    columns: NDArray[np.integer]
    column_pointers: NDArray[np.int64]
    rows: NDArray[np.integer]
    order: NDArray[Any]


def build_matrix(indices: Tensor, row_count: int, column_count: int) -> Matrix:
    """Return the structure of a weight [R, C] with connections at sorted flat positions [N]; O(N) time and memory."""
    flat = indices.numpy()
    columns = np.empty(len(flat), _index_type(column_count))
    rows = np.empty(len(flat), _index_type(row_count))
    # What fits into the first cache, or as much as holds enough connections of one row.
    density = max(len(flat), 1) / (row_count * column_count)
    width = max(FIRST_CACHE_BYTES // TILE_BYTES, int(FEWEST_CONNECTIONS / density))
    row_pointers = np.empty((row_count, -(-column_count // width) + 1), np.int64)
    column_pointers = np.zeros((-(-row_count // width), column_count + 1), np.int64)
    order = np.empty(len(flat), np.int32 if len(flat) < 1 << 31 else np.int64)
    _build(flat, width, row_pointers, columns, column_pointers, rows, order)
    return Matrix(row_count, column_count, row_pointers, columns, column_pointers, rows, order)


def _index_type(size: int) -> type[np.unsignedinteger]:
    return np.uint16 if size <= 1 << 16 else np.uint32


@kernel
def _build(flat, width, row_pointers, columns, column_pointers, rows, order):
    """Two passes: count by (range of rows, column), then a counting sort, in which rows come in order."""
    row_count, ranges, column_count = row_pointers.shape[0], row_pointers.shape[1] - 1, column_pointers.shape[1] - 1
    k = 0
    for row in range(row_count):
        row_pointers[row, 0] = k
        for part in range(ranges):
            last = row * column_count + min((part + 1) * width, column_count)
            while k < flat.size and flat[k] < last:
                column = flat[k] - row * column_count
                columns[k] = column
                column_pointers[row // width, column + 1] += 1
                k += 1
            row_pointers[row, part + 1] = k
    total = 0
    for part in range(column_pointers.shape[0]):
        column_pointers[part, 0] = total
        for column in range(column_count):
            column_pointers[part, column + 1] += column_pointers[part, column]
        total = column_pointers[part, column_count]
    place = column_pointers[:, :-1].copy()
    for row in range(row_count):
        part = row // width
        for k in range(row_pointers[row, 0], row_pointers[row, ranges]):
            column = columns[k]
            rows[place[part, column]] = row
            order[place[part, column]] = k
            place[part, column] += 1


@inlined
def accumulate(values, neighbours, start, stop, x, x_0, batch, y, y_0):
    """y[y_0 :] += sum over connections `start` to `stop` of value * row of x, each row `batch` numbers.

    Several sums at a time keep a processor busy that starts two multiply-adds a cycle and needs four cycles for each.
    The last one to three connections are done without a branch, which would be mispredicted every other time: what is
    not there is the last connection again, times zero.
    """
    if start == stop:
        return
    width, number = VECTOR_BYTES // y.itemsize, y.dtype.type
    last = stop - 1
    whole = start + (stop - start) // 4 * 4
    k_0, k_1, k_2 = min(whole, last), min(whole + 1, last), min(whole + 2, last)
    is_0, is_1, is_2 = number(whole < stop), number(whole + 1 < stop), number(whole + 2 < stop)
    b = 0
    while b + 2 * width <= batch:
        p_0, p_1 = load(y, y_0 + b), load(y, y_0 + b + width)
        q_0, q_1, r_0, r_1 = zero(y), zero(y), zero(y), zero(y)
        for k in range(start, whole, 4):
            v, place = fill(at(values, k)), x_0 + np.int64(at(neighbours, k)) * batch + b
            p_0, p_1 = multiply_add(v, load(x, place), p_0), multiply_add(v, load(x, place + width), p_1)
            v, place = fill(at(values, k + 1)), x_0 + np.int64(at(neighbours, k + 1)) * batch + b
            q_0, q_1 = multiply_add(v, load(x, place), q_0), multiply_add(v, load(x, place + width), q_1)
            v, place = fill(at(values, k + 2)), x_0 + np.int64(at(neighbours, k + 2)) * batch + b
            r_0, r_1 = multiply_add(v, load(x, place), r_0), multiply_add(v, load(x, place + width), r_1)
            v, place = fill(at(values, k + 3)), x_0 + np.int64(at(neighbours, k + 3)) * batch + b
            p_0, p_1 = multiply_add(v, load(x, place), p_0), multiply_add(v, load(x, place + width), p_1)
        v, place = fill(at(values, k_0) * is_0), x_0 + np.int64(at(neighbours, k_0)) * batch + b
        q_0, q_1 = multiply_add(v, load(x, place), q_0), multiply_add(v, load(x, place + width), q_1)
        v, place = fill(at(values, k_1) * is_1), x_0 + np.int64(at(neighbours, k_1)) * batch + b
        r_0, r_1 = multiply_add(v, load(x, place), r_0), multiply_add(v, load(x, place + width), r_1)
        v, place = fill(at(values, k_2) * is_2), x_0 + np.int64(at(neighbours, k_2)) * batch + b
        p_0, p_1 = multiply_add(v, load(x, place), p_0), multiply_add(v, load(x, place + width), p_1)
        store(y, y_0 + b, (p_0 + q_0) + r_0)
        store(y, y_0 + b + width, (p_1 + q_1) + r_1)
        b += 2 * width
    if b < batch:
        p_0, q_0, r_0 = load(y, y_0 + b), zero(y), zero(y)
        for k in range(start, whole, 4):
            p_0 = multiply_add(fill(at(values, k)), load(x, x_0 + np.int64(at(neighbours, k)) * batch + b), p_0)
            q_0 = multiply_add(fill(at(values, k + 1)), load(x, x_0 + np.int64(at(neighbours, k + 1)) * batch + b), q_0)
            r_0 = multiply_add(fill(at(values, k + 2)), load(x, x_0 + np.int64(at(neighbours, k + 2)) * batch + b), r_0)
            p_0 = multiply_add(fill(at(values, k + 3)), load(x, x_0 + np.int64(at(neighbours, k + 3)) * batch + b), p_0)
        q_0 = multiply_add(fill(at(values, k_0) * is_0), load(x, x_0 + np.int64(at(neighbours, k_0)) * batch + b), q_0)
        r_0 = multiply_add(fill(at(values, k_1) * is_1), load(x, x_0 + np.int64(at(neighbours, k_1)) * batch + b), r_0)
        p_0 = multiply_add(fill(at(values, k_2) * is_2), load(x, x_0 + np.int64(at(neighbours, k_2)) * batch + b), p_0)
        store(y, y_0 + b, (p_0 + q_0) + r_0)


@kernel
def _product(thread, threads, values, pointers, columns, x, x_step, y, y_step, times, batch):
    row_count = pointers.shape[0]
    start, stop = row_count * thread // threads, row_count * (thread + 1) // threads
    for t in range(times):
        for low in range(start, stop, OUTPUT_ROWS):
            for part in range(pointers.shape[1] - 1):
                for row in range(low, min(low + OUTPUT_ROWS, stop)):
                    k, end = pointers[row, part], pointers[row, part + 1]
                    accumulate(values, columns, k, end, x, t * x_step, batch, y, t * y_step + row * batch)


@kernel
def _transposed_product(thread, threads, values, pointers, rows, g, g_step, x, x_step, times, batch):
    column_count = pointers.shape[1] - 1
    start, stop = column_count * thread // threads, column_count * (thread + 1) // threads
    for t in range(times):
        for low in range(start, stop, OUTPUT_ROWS):
            for part in range(pointers.shape[0]):
                for column in range(low, min(low + OUTPUT_ROWS, stop)):
                    k, end = pointers[part, column], pointers[part, column + 1]
                    accumulate(values, rows, k, end, g, t * g_step, batch, x, t * x_step + column * batch)


@kernel
def _sampled_product(thread, threads, pointers, columns, g, g_step, x, x_step, times, batch, parts, tile_times, out):
    # Rows are shared out by connections, so that threads finish together whatever the densities.
    start = np.searchsorted(pointers[:, 0], out.size * thread // threads)
    stop = pointers.shape[0]
    if thread < threads - 1:
        stop = np.searchsorted(pointers[:, 0], out.size * (thread + 1) // threads)
    width = VECTOR_BYTES // out.itemsize
    ranges = pointers.shape[1] - 1
    for t in range(0, times, tile_times):
        some = min(tile_times, times - t)
        for part in range(0, ranges, parts):
            for row in range(start, stop):
                k, end = pointers[row, part], pointers[row, min(part + parts, ranges)]
                g_0 = t * g_step + row * batch
                while k < end:
                    count = min(end - k, width)
                    if count > 4:
                        add_dots(g, g_0, g_step, x, t * x_step, x_step, batch, some, columns, k, count, out)
                    else:
                        add_few_dots(g, g_0, g_step, x, t * x_step, x_step, batch, some, columns, k, count, out)
                    k += count


@kernel
def _sum_by_symbol(thread, threads, g, g_step, tokens, table, batch):
    row_count = table.shape[0]
    start, stop = row_count * thread // threads, row_count * (thread + 1) // threads
    # A few rows of the table at a time, so that they stay in the cache while the text goes by.
    for low in range(start, stop, SYMBOL_ROWS):
        for t in range(tokens.shape[0]):
            for row in range(low, min(low + SYMBOL_ROWS, stop)):
                g_0 = t * g_step + row * batch
                for b in range(batch):
                    table[row, tokens[t, b]] += g[g_0 + b]


def flat(x_TFB: Tensor) -> NDArray[np.floating]:
    """Return the memory of a tensor whose last two dimensions are contiguous, from its first element on."""
    times, features, batch = x_TFB.shape
    # Where there is only one, a stride means nothing.
    if (batch != 1 and x_TFB.stride(2) != 1) or (features != 1 and x_TFB.stride(1) != batch):
        raise ValueError("activations must be batch-innermost")
    size = (times - 1) * x_TFB.stride(0) + features * batch
    return x_TFB.detach().as_strided((max(size, 0),), (1,)).numpy()


def add_product(matrix: Matrix, values: Tensor, x_TCB: Tensor, y_TRB: Tensor) -> None:
    """y += W x at every moment."""
    threads.run(
        _product, values.detach().numpy(), matrix.row_pointers, matrix.columns,
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
    # PyTorch takes positions of 32 bits as they are; NumPy would make a copy of 64.
    numbers: NDArray[np.floating] = values.detach().index_select(0, torch.from_numpy(matrix.order)).numpy()
    return numbers


def add_sampled_product(matrix: Matrix, g_TRB: Tensor, x_TCB: Tensor, out_N: Tensor) -> None:
    """out[k] += sum over moments and batch of g[row of k] * x[column of k]: the gradient of the connections alone."""
    if out_N.numel() == 0:
        return
    batch = x_TCB.shape[2]
    ranges = matrix.row_pointers.shape[1] - 1
    range_bytes = -(-matrix.column_count // ranges) * batch * x_TCB.element_size()
    # As wide as the second cache allows, so that a row's connections come in long runs; then as many moments as fit.
    parts = max(1, min(ranges, SECOND_CACHE_BYTES // range_bytes))
    tile_times = max(1, SECOND_CACHE_BYTES // (parts * range_bytes))
    threads.run(
        _sampled_product, matrix.row_pointers, matrix.columns, flat(g_TRB), g_TRB.stride(0),
        flat(x_TCB), x_TCB.stride(0), len(x_TCB), batch, parts, tile_times, out_N.numpy(),
    )  # fmt: skip


def sum_by_symbol(g_TRB: Tensor, tokens_TB: Tensor, table_RV: Tensor) -> None:
    """table[r, v] += sum of g[t, r, b] over all moments whose symbol tokens[t, b] is v."""
    threads.run(_sum_by_symbol, flat(g_TRB), g_TRB.stride(0), tokens_TB.numpy(), table_RV.numpy(), g_TRB.shape[2])
