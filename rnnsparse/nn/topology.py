"""Where connections are: the one structure that weights, kernels, files and methods of growth share.

Shape suffixes: R rows, C columns, N connections.
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
        indices: sorted flat positions (row * C + column) [N], int64.
    """

    rows: int
    cols: int
    indices: Tensor

    @classmethod
    def from_rows(cls, cols: int, row_pointers: Tensor, columns: Tensor) -> Topology:
        """Return the topology of `row_pointers` [R + 1] and `columns` [N] as below, of any integer type."""
        counts_R = row_pointers.long().diff()
        row_N = torch.arange(len(counts_R), device=counts_R.device).repeat_interleave(counts_R)
        return cls(len(counts_R), cols, row_N * cols + columns.long())

    def check(self) -> None:
        """Make sure that these are sorted positions of the matrix; whoever got them from elsewhere calls this.

        Raises:
            ValueError: positions are no list, out of range, unsorted or repeated.
        """
        if self.indices.ndim != 1:
            raise ValueError("connections need one position each")
        if self.indices.numel() and (self.indices[0] < 0 or self.indices[-1] >= self.positions):
            raise ValueError(f"a connection lies outside {self.rows} x {self.cols}")
        # Neighbours are compared, not subtracted: differences of arbitrary numbers could overflow.
        if not bool((self.indices[1:] > self.indices[:-1]).all()):
            raise ValueError("positions are not sorted or repeat")

    @property
    def positions(self) -> int:
        return self.rows * self.cols

    @property
    def connections(self) -> int:
        return self.indices.numel()

    @property
    def is_full(self) -> bool:
        """Whether every position is a connection; `indices` is then 0, 1, 2, ..."""
        return self.connections == self.positions

    @cached_property
    def row_pointers(self) -> Tensor:
        """Where each row's connections start, and their number [R + 1]; int64 on the CPU, so that asking is free."""
        edges_R = torch.arange(self.rows + 1, device=self.indices.device) * self.cols
        return torch.searchsorted(self.indices, edges_R).cpu()

    @cached_property
    def columns(self) -> Tensor:
        """The column of each connection [N], in the smallest type that numbers all (`column_type`), on the CPU."""
        return (self.indices.cpu() % self.cols).to(column_type(self.cols))

    def bounds(self, start_row: int, stop_row: int) -> tuple[int, int]:
        """Return the range of connection numbers that lie in a range of rows."""
        return int(self.row_pointers[start_row]), int(self.row_pointers[stop_row])

    @cached_property
    def matrix(self) -> Matrix:
        """What the kernels make of it: by row and by column, in the order in which they read."""
        # Imported late: kernels take a second to load.
        from rnnsparse.kernels.matrix import build_matrix

        return build_matrix(self.indices, self.rows, self.cols)


def column_type(cols: int) -> torch.dtype:
    """Return the smallest type that can number `cols` columns and that safetensors can hold."""
    return torch.uint8 if cols <= 1 << 8 else torch.uint16 if cols <= 1 << 16 else torch.int32
