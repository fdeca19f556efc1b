"""Where connections are: the one structure that weights, kernels, files and methods of growth share.

A connection is one entry of a matrix, or a block: b consecutive rows that share a column. Whatever is counted or
numbered here is blocks; with b = 1 these are entries. Shape suffixes: R rows, C columns, N connections, b rows of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rnnsparse.kernels.matrix import Matrix


@dataclass(frozen=True, eq=False)
class Topology:
    """Which positions of a matrix [R, C] are connections. It never changes: other connections are another topology.

    All else follows from the positions, is worked out where it is first asked for, and kept as long as the topology.

    Attributes:
        indices: sorted flat positions [N], int64: row of blocks * C + column, there being R/b rows of blocks.
        block_rows: b, which divides R.
    """

    rows: int
    cols: int
    indices: Tensor
    block_rows: int = 1

    @classmethod
    def from_rows(cls, cols: int, row_pointers: Tensor, columns: Tensor, block_rows: int = 1) -> Topology:
        """Return the topology of `row_pointers` [R/b + 1] and `columns` [N] as below, of any integer type."""
        counts_R = row_pointers.long().diff()
        row_N = torch.arange(len(counts_R), device=counts_R.device).repeat_interleave(counts_R)
        return cls(len(counts_R) * block_rows, cols, row_N * cols + columns.long(), block_rows)

    def check(self) -> None:
        """Make sure that these are sorted positions of the matrix; whoever got them from elsewhere calls this.

        Raises:
            ValueError: positions are no list, out of range, unsorted or repeated.
        """
        if self.indices.ndim != 1:
            raise ValueError("connections need one position each")
        if self.indices.numel() and (self.indices[0] < 0 or self.indices[-1] >= self.positions):
            raise ValueError(f"a connection lies outside {self.rows // self.block_rows} x {self.cols}")
        # Neighbours are compared, not subtracted: differences of arbitrary numbers could overflow.
        if not bool((self.indices[1:] > self.indices[:-1]).all()):
            raise ValueError("positions are not sorted or repeat")

    @property
    def positions(self) -> int:
        """How many connections there could be."""
        return self.rows // self.block_rows * self.cols

    @property
    def connections(self) -> int:
        return self.indices.numel()

    @property
    def is_full(self) -> bool:
        """Whether every position is a connection; `indices` is then 0, 1, 2, ..."""
        return self.connections == self.positions

    @cached_property
    def row_pointers(self) -> Tensor:
        """Where each row's connections start, and their number [R/b + 1]; int64 on the CPU, so that asking is free."""
        edges_R = torch.arange(self.rows // self.block_rows + 1, device=self.indices.device) * self.cols
        return torch.searchsorted(self.indices, edges_R).cpu()

    @cached_property
    def columns(self) -> Tensor:
        """The column of each connection [N], in the smallest type that numbers all (`column_type`), on the CPU."""
        return (self.indices.cpu() % self.cols).to(column_type(self.cols))

    def bounds(self, start_row: int, stop_row: int) -> tuple[int, int]:
        """Return the range of connection numbers that lie in a range of rows."""
        return int(self.row_pointers[start_row // self.block_rows]), int(self.row_pointers[stop_row // self.block_rows])

    @property
    def values_shape(self) -> tuple[int, ...]:
        """The shape of one number for each entry of the connections: [N], or [N, b] for blocks."""
        return (self.connections,) if self.block_rows == 1 else (self.connections, self.block_rows)

    @property
    def entries(self) -> Tensor:
        """The flat position in the matrix of each entry of the connections, int64, of `values_shape`."""
        if self.block_rows == 1:
            return self.indices
        return self._find_entries() if torch.compiler.is_compiling() else self._kept_entries  # which has a lock

    @cached_property
    def _kept_entries(self) -> Tensor:
        return self._find_entries()

    def _find_entries(self) -> Tensor:
        row_N = self.indices // self.cols * self.block_rows
        first_N = row_N * self.cols + self.indices % self.cols
        return first_N[:, None] + torch.arange(self.block_rows, device=self.indices.device) * self.cols

    def _find_ranks(self) -> Tensor:
        """Return the number that each entry has where all are sorted by row [N, b], int64, for blocks."""
        starts_R = self.row_pointers.to(self.indices.device)
        row_N = self.indices // self.cols
        start_N, count_N = starts_R[row_N], starts_R.diff()[row_N]
        # Each of the b rows of a row of blocks has all its entries before the next one.
        first_N = start_N * (self.block_rows - 1) + torch.arange(self.connections, device=self.indices.device)
        return first_N[:, None] + count_N[:, None] * torch.arange(self.block_rows, device=self.indices.device)

    def from_by_row(self, numbers: Tensor) -> Tensor:
        """Return numbers sorted by row [N * b] in `values_shape`."""
        if self.block_rows == 1:
            return numbers
        return numbers.index_select(0, self._find_ranks().view(-1)).view(self.values_shape)

    def scatter(self, values: Tensor, matrix: Tensor) -> None:
        """Write values into the zeros of a matrix [R * C], which may be of another type."""
        values = values.to(matrix.dtype)
        if not self.is_full:
            matrix.index_copy_(0, self.entries.view(-1), values.reshape(-1))
        elif self.block_rows == 1:
            matrix.copy_(values)
        else:
            blocks_RbC = matrix.view(-1, self.block_rows, self.cols)
            blocks_RbC.copy_(values.view(-1, self.cols, self.block_rows).mT)

    def gather(self, matrix: Tensor) -> Tensor:
        """Return what a matrix [R * C] has where connections are, of `values_shape`; it may share memory with it."""
        if not self.is_full:
            return matrix.index_select(0, self.entries.view(-1)).view(self.values_shape)
        if self.block_rows == 1:
            return matrix
        return matrix.view(-1, self.block_rows, self.cols).mT.reshape(self.values_shape)

    @cached_property
    def matrix(self) -> Matrix:
        """What the kernels make of it: by row and by column, in the order in which they read."""
        # Imported late: kernels take a second to load.
        from rnnsparse.kernels.matrix import build_matrix

        return build_matrix(self.indices, self.rows // self.block_rows, self.cols, self.block_rows)


def column_type(cols: int) -> torch.dtype:
    """Return the smallest type that can number `cols` columns and that safetensors can hold."""
    return torch.uint8 if cols <= 1 << 8 else torch.uint16 if cols <= 1 << 16 else torch.int32
