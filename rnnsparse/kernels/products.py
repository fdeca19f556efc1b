"""Products of a sparse matrix with sequences of batches, and their gradients.

Everything is batch-innermost: at each moment a matrix [features, batch], so that one connection is one number times
one contiguous row. Shape suffixes: T time, R rows of the matrix, C its columns, B batch (whole vectors), N
connections.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnnsparse.kernels import memory, threads
from rnnsparse.kernels.compiling import inlined, kernel
from rnnsparse.kernels.connections import add_connections, add_transposed_connections
from rnnsparse.kernels.dots import (
    MANY,
    MOMENTS,
    SIDE_BY_SIDE,
    add_few_dots,
    add_half_dots,
    add_many_dots,
    add_quarter_dots,
    lay_side_by_side,
)
from rnnsparse.kernels.emit import VECTOR_BYTES
from rnnsparse.kernels.matrix import ROW_BYTES, Matrix, share
from rnnsparse.kernels.vector import add_up, at, look_up, prefetch, store, zero

# Rows of a group come in no order that a processor could guess, so they are asked for some runs ahead.
AHEAD = 8
LINE_BYTES = 64
NO_TURN = 1 << 62, 0


def vector_width(dtype: torch.dtype) -> int:
    """Return how many numbers one vector holds."""
    return VECTOR_BYTES // dtype.itemsize


def tile_width(dtype: torch.dtype, batch: int) -> int:
    """Return the width of batch tiles: ROW_BYTES, or whole vectors where fewer are enough for the whole batch."""
    width = vector_width(dtype)
    return min(ROW_BYTES // dtype.itemsize, -(-batch // width) * width)


def row_of(x: Tensor) -> tuple[int, ...]:
    """Return how wide a row of x is, as kernels want to know it: a tuple of as many zeros as vectors."""
    vectors, rest = divmod(x.shape[-1], vector_width(x.dtype))
    if rest:
        raise ValueError(f"a batch of {x.shape[-1]} is not whole vectors")
    return (0,) * vectors


@inlined
def add_group(row, order, values, group, x, x_0, y, y_0, turn=NO_TURN):
    """Add to the rows of y in one group the products with x; rows from turn[0] on lie turn[1] numbers further back."""
    height, stop = len(order.adds) * len(order.reads), at(order.groups, group + 1)
    size = height * len(row) * (VECTOR_BYTES // y.itemsize)
    for run in range(at(order.groups, group), stop):
        ahead = np.int64(at(order.rows, min(run + AHEAD, stop - 1))) * size
        if len(order.reads) > 1:
            for b in range(0, size, LINE_BYTES // x.itemsize):
                prefetch(x, x_0 + ahead + b)
            add_transposed_connections(
                row, order.reads, values, order.neighbours, at(order.starts, run), at(order.starts, run + 1),
                x, x_0 + np.int64(at(order.rows, run)) * size, y, y_0,
            )  # fmt: skip
        else:
            for b in range(0, size, LINE_BYTES // y.itemsize):
                prefetch(y, y_0 + ahead + b)
            first = np.int64(at(order.rows, run))
            place = y_0 + first * size - (turn[1] if first * height >= turn[0] else 0)
            add_connections(
                row, order.adds, values, order.neighbours, at(order.starts, run), at(order.starts, run + 1),
                x, x_0, y, place,
            )  # fmt: skip


@kernel
def _product(thread, threads, row, order, values, x, x_step, y, y_step, times):
    first, last = share(thread, threads, order)
    for t in range(times):
        for group in range(first, last):
            add_group(row, order, values, group, x, t * x_step, y, t * y_step)


@kernel
def _new_product(thread, threads, row, order, values, x, x_step, y, size, times):
    """The same for one gate, where nothing is in y [T, size] yet."""
    first, last = share(thread, threads, order)
    width = VECTOR_BYTES // y.itemsize
    group_size = order.units * len(row) * width
    for t in range(times):
        for group in range(first, last):
            for place in range(t * size + group * group_size, t * size + min((group + 1) * group_size, size), width):
                store(y, place, zero(y))
            add_group(row, order, values, group, x, t * x_step, y, t * size)


@kernel
def _sampled_product(thread, threads, row, order, g, g_step, x, x_step, times, out, room):
    first, last = share(thread, threads, order)
    height, last_run = len(order.adds), order.groups[last] - 1
    size, vectors = height * len(row) * (VECTOR_BYTES // out.itemsize), height // min(height, SIDE_BY_SIDE)
    many, half = max(1, MANY // vectors), max(1, MANY // 2 // vectors)
    # Runs are multiples of `few`: see `padding`.
    quarter, few = max(1, MANY // 4 // vectors), max(1, 2 // vectors)
    for t in range(0, times, MOMENTS):
        x_0, moments = t * x_step, min(times - t, MOMENTS)
        for run in range(order.groups[first], last_run + 1):
            ahead = t * g_step + np.int64(at(order.rows, min(run + AHEAD, last_run))) * size
            for moment in range(MOMENTS):
                for b in range(0, size, LINE_BYTES // out.itemsize):
                    prefetch(g, ahead + moment * g_step + b)
            k, end = at(order.starts, run), at(order.starts, run + 1)
            rows, rows_0, rows_step = g, t * g_step + np.int64(at(order.rows, run)) * size, g_step
            if height > 1:
                lay_side_by_side(row, order.adds, g, rows_0, g_step, moments, room, thread * MOMENTS * size)
                rows, rows_0, rows_step = room, thread * MOMENTS * size, size
            while k + many <= end:
                add_many_dots(
                    row, order.adds, rows, rows_0, rows_step, x, x_0, x_step, moments, order.neighbours, k, out
                )
                k += many
            if k + half <= end:
                add_half_dots(
                    row, order.adds, rows, rows_0, rows_step, x, x_0, x_step, moments, order.neighbours, k, out
                )
                k += half
            if k + quarter <= end:
                add_quarter_dots(
                    row, order.adds, rows, rows_0, rows_step, x, x_0, x_step, moments, order.neighbours, k, out
                )
                k += quarter
            while k < end:
                add_few_dots(
                    row, order.adds, rows, rows_0, rows_step, x, x_0, x_step, moments, order.neighbours, k, out
                )
                k += few


@kernel
def _sum_by_symbol(thread, threads, g, g_step, rows, tokens, table, first, batch, room):
    tiles, _, tile_symbols = table.shape
    width, symbols = VECTOR_BYTES // g.itemsize, tiles * tile_symbols
    pieces, sums = -(-rows // width), thread * symbols * width
    # A vector of rows at a time, so that the sums of all symbols stay in the nearest cache while the text goes by.
    for piece in range(pieces * thread // threads, pieces * (thread + 1) // threads):
        low = piece * width
        high = min(low + width, rows)
        for place in range(sums, sums + symbols * width):
            room[place] = 0
        for t in range(tokens.shape[0]):
            g_0 = t * g_step + low * batch
            if high - low == width:
                for b in range(0, batch, width):
                    add_up(g, g_0 + b, batch, tokens, t * batch + b, room, sums)
            else:
                for i in range(high - low):
                    for b in range(batch):
                        room[sums + tokens[t, b] * width + i] += g[g_0 + i * batch + b]
        for tile in range(tiles):
            for row in range(low, high):
                place = sums + tile * tile_symbols * width + row - low
                for symbol in range(tile_symbols):
                    table[tile, first + row, symbol] = room[place + symbol * width]


@kernel
def _transpose(thread, threads, x, tiles, rows, batch, numbers, out):
    width = VECTOR_BYTES // x.itemsize
    pieces = -(-rows // width)
    first, last = pieces * thread // threads * width, min(pieces * (thread + 1) // threads * width, rows)
    whole = first + (last - first) // width * width
    for start in range(0, tiles * rows * batch, rows * batch):
        for b in range(0, batch, width):
            for row in range(first, whole, width):
                look_up(x, batch, start + b, numbers, row, out, start + b * rows + row, rows)
        for row in range(whole, last):
            for b in range(batch):
                out[start + b * rows + row] = x[start + row * batch + b]


def flat(x_TFB: Tensor) -> NDArray[np.floating]:
    """Return the memory of a tensor whose last two dimensions are contiguous, from its first element on."""
    times, features, batch = x_TFB.shape
    # Where there is only one, a stride means nothing.
    if (batch != 1 and x_TFB.stride(2) != 1) or (features != 1 and x_TFB.stride(1) != batch):
        raise ValueError("activations must be batch-innermost")
    size = (times - 1) * x_TFB.stride(0) + features * batch
    return x_TFB.detach().as_strided((max(size, 0),), (1,)).numpy()


def _require_alike(*tensors: Tensor) -> None:
    """Kernels take the width of a vector from one of them; of others they would read and write too much."""
    if len({tensor.dtype for tensor in tensors}) > 1:
        raise ValueError(f"numbers of different types: {', '.join(str(tensor.dtype) for tensor in tensors)}")


def add_product(matrix: Matrix, values: Tensor, x_TCB: Tensor, y_TRB: Tensor) -> None:
    """y += W x at every moment."""
    _require_alike(values, x_TCB, y_TRB)
    order = matrix.by_row_anyhow()
    threads.run(
        _product, row_of(x_TCB), order, order.arranged(values),
        flat(x_TCB), x_TCB.stride(0), flat(y_TRB), y_TRB.stride(0), len(x_TCB),
    )  # fmt: skip


def add_transposed_product(matrix: Matrix, values: Tensor, g_TRB: Tensor, x_TCB: Tensor) -> None:
    """x += W^T g at every moment."""
    _require_alike(values, g_TRB, x_TCB)
    order = matrix.by_column
    threads.run(
        _product, row_of(x_TCB), order, order.arranged(values),
        flat(g_TRB), g_TRB.stride(0), flat(x_TCB), x_TCB.stride(0), len(g_TRB),
    )  # fmt: skip


def transposed_product(matrix: Matrix, values: Tensor, g_TRB: Tensor) -> Tensor:
    """Return x = W^T g [T, C, B] at every moment."""
    _require_alike(values, g_TRB)
    order = matrix.by_column
    x_TCB = memory.empty((len(g_TRB), matrix.column_count, g_TRB.shape[2]), g_TRB.dtype)
    threads.run(
        _new_product, row_of(g_TRB), order, order.arranged(values),
        flat(g_TRB), g_TRB.stride(0), x_TCB.view(-1).numpy(), x_TCB.stride(0), len(x_TCB),
    )  # fmt: skip
    return x_TCB


def add_sampled_product(matrix: Matrix, g_TRB: Tensor, x_TCB: Tensor, out_N: Tensor) -> None:
    """out[k] += sum over moments and batch of g[row of k] * x[column of k]: the gradient of the connections alone."""
    _require_alike(g_TRB, x_TCB, out_N)
    if out_N.numel() == 0:
        return
    order = matrix.by_row_anyhow()
    sums = memory.zeros((int(order.starts[-1]) * order.height,), out_N.dtype).numpy()
    room = memory.zeros((threads.thread_count() * MOMENTS * order.height * x_TCB.shape[2],), out_N.dtype)
    threads.run(
        _sampled_product, row_of(x_TCB), order, flat(g_TRB), g_TRB.stride(0), flat(x_TCB), x_TCB.stride(0), len(x_TCB),
        sums, room.numpy(),
    )  # fmt: skip
    order.add_back(sums, out_N)


def sum_by_symbol(g_TRB: Tensor, tokens_TB: Tensor, table_QRS: Tensor, first: int = 0) -> None:
    """Set table[q, first + r, s] to the sum of g[t, r, b] over all moments whose symbol tokens[t, b] is q * S + s.

    The table is contiguous: Q tiles of S symbols.
    """
    symbols = table_QRS.shape[0] * table_QRS.shape[2]
    room = memory.empty((threads.thread_count() * vector_width(g_TRB.dtype) * symbols,), g_TRB.dtype)
    threads.run(
        _sum_by_symbol, flat(g_TRB), g_TRB.stride(0), g_TRB.shape[1], tokens_TB.numpy(), table_QRS.numpy(), first,
        g_TRB.shape[2], room.numpy(),
    )  # fmt: skip


def transposed(x_TRB: Tensor) -> Tensor:
    """Return contiguous [T, B, R] of contiguous [T, R, B]; B is whole vectors."""
    tiles, rows, batch = x_TRB.shape
    out_TBR = memory.empty((tiles, batch, rows), x_TRB.dtype)
    numbers = np.arange(rows, dtype=np.int32)
    threads.run(_transpose, x_TRB.view(-1).numpy(), tiles, rows, batch, numbers, out_TBR.view(-1).numpy())
    return out_TBR
