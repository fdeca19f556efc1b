"""Where the connections of a weight lie in memory: in the order in which the kernels come to them.

A product adds up one run of connections after the other: those of one row of the matrix in one range of its columns.
The runs of a group of rows (the same units of every gate) in one range come one after the other, the longest first: a
processor that predicts branches is then nearly always right. Range by range their activations stay in the first-level
cache. A group goes from the first sum to the last before the next, and threads share a matrix by groups, so that the
sum of a row is the same for any number of threads. The transposed product has an order of its own, by column. That of
blocks reads far more rows than it adds to, so its groups are ranges of columns, and a run those connections of one row
that lie there: what is read stays in registers during a run, and what is added to in the first-level cache.

Shape suffixes: N connections, b rows of a block, R rows and C columns of connections (a matrix has R * b rows), S slots
of an order (connections and padding), Q runs, P groups.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rnnsparse.kernels import memory, threads
from rnnsparse.kernels.compiling import inlined, kernel
from rnnsparse.kernels.connections import padding

ROW_BYTES = 128  # of activations: two AVX-512 registers; a wider batch is several tiles
# A range of activations that is read again and again should stay in the first-level cache, unless that leaves too few
# connections of a row in it.
FIRST_CACHE_BYTES = 32 * 1024
FEWEST_CONNECTIONS = 40
GROUP_ROWS = 128
FEWEST_GROUPS = 8  # for threads to share, as long as a group is not smaller than the tallest block or these columns
TALLEST_BLOCK = 16
FEWEST_COLUMNS = 64
READ_BEYOND = 16  # places behind the last slot that kernels may read
GROUP_COST = 10 * GROUP_ROWS  # what a group costs beside its connections, in connections


class Order(NamedTuple):
    """One order of connections, as kernels take it.

    Attributes:
        adds, reads: tuples of as many zeros as a connection adds to rows, and reads rows: its block's, or one.
        groups: runs groups[p] to groups[p + 1] are those of group p [P + 1].
        rows: which row (of connections) a run adds to; where connections read several, which one it reads [Q].
        starts: the slots of run q are starts[q] to starts[q + 1] [Q + 1].
        neighbours: the other end of the connection in each slot, and READ_BEYOND more places [S].
        slots: where connection n is [N].
        units: a group adds to so many consecutive rows of each gate.
    """

    adds: tuple[int, ...]
    reads: tuple[int, ...]
    groups: NDArray[np.int64]
    rows: NDArray[np.int32]
    starts: NDArray[np.int64]
    neighbours: NDArray[np.unsignedinteger]
    slots: NDArray[np.signedinteger]
    units: int

    @property
    def height(self) -> int:
        """b, how many values a connection has."""
        return len(self.adds) * len(self.reads)

    def arranged(self, values: Tensor) -> NDArray[np.floating]:
        """Return values [N] or [N, b] in this order [S * b]; what fills up runs is zero."""
        numbers = values.detach().numpy()
        arranged: NDArray[np.floating] = memory.zeros((int(self.starts[-1]) * self.height,), values.dtype).numpy()
        threads.run(_arrange, self.slots, self.height, numbers.reshape(-1), arranged)
        return arranged

    def add_back(self, arranged: NDArray[np.floating], values: Tensor) -> None:
        """Add numbers in this order [S * b] to values [N] or [N, b]."""
        threads.run(_add_back, self.slots, self.height, arranged, values.view(-1).numpy())


@dataclass(frozen=True, eq=False)
class Matrix:
    """The connections of one weight, and the orders in which kernels want them; made when they are first asked for.

    Attributes:
        row_starts: connections row_starts[r] to row_starts[r + 1] are those of row r [R + 1].
        columns: of each connection [N].
    """

    column_count: int
    row_starts: NDArray[np.int64]
    columns: NDArray[np.unsignedinteger]
    block_rows: int
    _by_row: dict[int, Order] = field(default_factory=dict)

    @property
    def row_count(self) -> int:
        """R, rows of connections."""
        return len(self.row_starts) - 1

    def by_row(self, gates: int) -> Order:
        """Return the order for a product whose rows are those of `gates` gates, one below the other."""
        if gates not in self._by_row:
            numbers = np.arange(len(self.columns), dtype=self._number_type)
            self._by_row[gates] = _order(
                self.row_starts, self.columns, numbers, self.column_count, gates, (0,) * self.block_rows, (0,)
            )
        return self._by_row[gates]

    def by_row_anyhow(self) -> Order:
        """Return the order for any number of gates: one that is there already, if any."""
        return next(iter(self._by_row.values()), None) or self.by_row(1)

    @cached_property
    def by_column(self) -> Order:
        numbers = np.arange(len(self.columns), dtype=self._number_type)
        if self.block_rows > 1:
            reads = (0,) * self.block_rows
            return _order(self.row_starts, self.columns, numbers, self.column_count, 1, (0,), reads)
        starts = np.zeros(self.column_count + 1, np.int64)
        rows = np.empty(len(self.columns), _index_type(self.row_count))
        _transpose(self.row_starts, self.columns, starts, starts.copy(), rows, numbers)
        return _order(starts, rows, numbers, self.row_count, 1, (0,), (0,))

    @property
    def _number_type(self) -> type[np.signedinteger]:
        return np.int32 if len(self.columns) < 1 << 30 else np.int64


def build_matrix(positions: Tensor, row_count: int, column_count: int, block_rows: int = 1) -> Matrix:
    """Return the structure of a weight with connections at sorted flat positions [N] in [R, C]; O(N) time and memory.

    Each connection is a block of `block_rows` rows of the weight.
    """
    flat = positions.numpy()
    row_starts, columns = np.empty(row_count + 1, np.int64), np.empty(len(flat), _index_type(column_count))
    _split(flat, column_count, row_starts, columns)
    return Matrix(column_count, row_starts, columns, block_rows)


def _group_units(unit_count: int, gates: int) -> int:
    """Return how many of the units a group has."""
    largest = GROUP_ROWS // gates // TALLEST_BLOCK * TALLEST_BLOCK
    return max(TALLEST_BLOCK, min(_fair(unit_count), largest))


def _fair(unit_count: int) -> int:
    """Return how many units a group has at most for there to be FEWEST_GROUPS; whole blocks."""
    return -(-unit_count // (FEWEST_GROUPS * TALLEST_BLOCK)) * TALLEST_BLOCK


def _index_type(size: int) -> type[np.unsignedinteger]:
    return np.uint16 if size <= 1 << 16 else np.uint32


def _order(
    row_starts: NDArray[np.int64], columns: NDArray[np.unsignedinteger], numbers: NDArray[np.signedinteger],
    column_count: int, gates: int, adds: tuple[int, ...], reads: tuple[int, ...],
) -> Order:  # fmt: skip
    """Return the order of connections given by row and column; the k-th of them is connection numbers[k]."""
    row_count, count, is_transposed = len(row_starts) - 1, len(columns), len(reads) > 1
    pad = 1 if is_transposed else padding(len(adds))
    gate_rows = row_count // gates
    if is_transposed:
        width = units = max(FEWEST_COLUMNS, _fair(column_count))
        group_rows = GROUP_ROWS  # as many are sorted at a time
    else:
        density = max(count, 1) / (row_count * column_count)
        width = max(FIRST_CACHE_BYTES // ROW_BYTES, int(FEWEST_CONNECTIONS / density))
        units = _group_units(gate_rows * len(adds), gates)
        group_rows = units // len(adds)
    row_parts, column_parts = -(-gate_rows // group_rows), -(-column_count // width)
    group_count, parts = (column_parts, row_parts) if is_transposed else (row_parts, column_parts)
    runs, groups = min(count, row_count * column_parts), np.zeros(group_count + 1, np.int64)
    rows, starts = np.empty(runs, np.int32), np.zeros(runs + 1, np.int64)
    neighbours, slots = np.zeros(count + runs * (pad - 1) + READ_BEYOND, columns.dtype), np.empty_like(numbers)
    room = np.empty((2, gates * group_rows), np.int64)
    _fill(
        row_starts, row_starts.copy(), columns, numbers, is_transposed, parts, width, gate_rows, group_rows, pad, room,
        groups, rows, starts, neighbours, slots,
    )  # fmt: skip
    runs = groups[-1]
    used = starts[runs] + READ_BEYOND
    return Order(adds, reads, groups, rows[:runs].copy(), starts[: runs + 1].copy(), neighbours[:used], slots, units)


@kernel
def _split(flat, column_count, row_starts, columns):
    k = 0
    for row in range(row_starts.size - 1):
        row_starts[row] = k
        first = row * column_count
        while k < flat.size and flat[k] < first + column_count:
            columns[k] = flat[k] - first
            k += 1
    row_starts[-1] = k


@kernel
def _transpose(row_starts, columns, starts, place, rows, numbers):
    """A counting sort by column, in which rows come in order."""
    for k in range(columns.size):
        starts[np.int64(columns[k]) + 1] += 1
    for column in range(starts.size - 1):
        starts[column + 1] += starts[column]
        place[column] = starts[column]
    for row in range(row_starts.size - 1):
        for k in range(row_starts[row], row_starts[row + 1]):
            column = columns[k]
            rows[place[column]], numbers[place[column]] = row, k
            place[column] += 1


@kernel
def _fill(
    row_starts, cursor, columns, numbers, is_transposed, parts, width, gate_rows, group_rows, pad, room, groups, rows,
    starts, neighbours, slots,
):  # fmt: skip
    """`cursor` [R] starts where rows start; `room` [2, rows of a group] is for the runs of a group in one range."""
    run, slot = 0, 0
    for group in range(groups.size - 1):
        for part in range(parts):
            row_part, column_part = (part, group) if is_transposed else (group, part)
            low, high = row_part * group_rows, min((row_part + 1) * group_rows, gate_rows)
            found = 0
            for gate in range((row_starts.size - 1) // gate_rows):
                for row in range(gate * gate_rows + low, gate * gate_rows + high):
                    k = cursor[row]
                    while k < row_starts[row + 1] and columns[k] < (column_part + 1) * width:
                        k += 1
                    count = k - cursor[row]
                    if count == 0:
                        continue
                    # An insertion sort, the longest first and rows of equal length in order.
                    place = found
                    while place > 0 and room[1, place - 1] < count:
                        room[0, place], room[1, place] = room[0, place - 1], room[1, place - 1]
                        place -= 1
                    room[0, place], room[1, place] = row, count
                    found += 1
            for place in range(found):
                row, count = room[0, place], room[1, place]
                rows[run], starts[run] = row, slot
                begin = cursor[row]
                for k in range(begin, begin + count):
                    neighbours[slot], slots[numbers[k]] = columns[k], slot
                    slot += 1
                # What fills up a run is its first connection again, times zero.
                while slot % pad != 0:
                    neighbours[slot] = columns[begin]
                    slot += 1
                cursor[row] = begin + count
                run += 1
        groups[group + 1] = run
    starts[run] = slot


@kernel
def _arrange(thread, threads, slots, height, values, arranged):
    for k in range(slots.size * thread // threads, slots.size * (thread + 1) // threads):
        place = np.int64(slots[k]) * height
        for i in range(height):
            arranged[place + i] = values[k * height + i]


@kernel
def _add_back(thread, threads, slots, height, arranged, values):
    for k in range(slots.size * thread // threads, slots.size * (thread + 1) // threads):
        place = np.int64(slots[k]) * height
        for i in range(height):
            values[k * height + i] += arranged[place + i]


@inlined
def share(thread, threads, order):
    """Return the first and the last group of a thread: groups are shared out by connections."""
    count = order.groups.size - 1
    first, last = count, count
    whole = order.starts[order.groups[count]] + count * GROUP_COST
    for group in range(count - 1, -1, -1):
        before = order.starts[order.groups[group]] + group * GROUP_COST
        if before * threads >= whole * thread:
            first = group
        if before * threads >= whole * (thread + 1):
            last = group
    return first, last
