"""Paths of three connections in the bipartite graph of a matrix, for growth by link prediction."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rnnsparse.kernels.compiling import kernel


@kernel
def _add_scores(row_pointers, columns, column_pointers, rows, first, shared, sums, counts, scores):
    """Fill the scores of rows `first` on, one row of `scores` after the other; the others are room to work in."""
    for i in range(scores.shape[0]):
        u = first + i
        shared[:] = 0
        for e in range(row_pointers[u], row_pointers[u + 1]):
            c = columns[e]
            for f in range(column_pointers[c], column_pointers[c + 1]):
                shared[rows[f]] += 1
        for e in range(row_pointers[u], row_pointers[u + 1]):
            c = columns[e]
            sums[:] = 0
            counts[:] = 0
            for f in range(column_pointers[c], column_pointers[c + 1]):
                r = rows[f]
                outside = row_pointers[r + 1] - row_pointers[r] - shared[r]
                if r == u or outside == 0:
                    continue  # a row all of whose columns are u's leads to no absent position of u
                weight = 1 / np.sqrt(outside)
                for g in range(row_pointers[r], row_pointers[r + 1]):
                    sums[columns[g]] += weight
                    counts[columns[g]] += 1
            degree = column_pointers[c + 1] - column_pointers[c]
            for v in range(scores.shape[1]):
                if counts[v] > 0:
                    scores[i, v] += sums[v] / np.sqrt(degree - counts[v])


class PathScores:
    """The scores CH3-L3p (Muscoloni & Cannistraci) of a matrix's absent positions, from where connections are alone.

    That of row u and column v is the sum, over all paths u - c - r - v, of 1 / sqrt(e_c e_r): e_c is 1 more than the
    number of connections of column c that lead to a row on no such path (but u), e_r the same of row r. Time is that of
    all paths of three connections. At positions that are connections the numbers mean nothing.

    Args:
        positions: the sorted flat positions of the connections.
    """

    def __init__(self, positions: Tensor, rows: int, cols: int) -> None:
        self._cols = cols
        row_N, column_N = (positions // cols).numpy(), (positions % cols).numpy()
        self._row_pointers = np.searchsorted(row_N, np.arange(rows + 1))
        self._columns = column_N
        by_column = np.argsort(column_N, kind="stable")
        self._rows = row_N[by_column]
        self._column_pointers = np.searchsorted(column_N[by_column], np.arange(cols + 1))
        self._room = np.zeros(rows, np.int64), np.zeros(cols), np.zeros(cols, np.int64)

    def rows(self, start: int, stop: int) -> Tensor:
        """Return the scores of some rows [rows, C], float64, on the CPU."""
        scores = np.zeros((stop - start, self._cols))
        graph = self._row_pointers, self._columns, self._column_pointers, self._rows
        _add_scores(*graph, start, *self._room, scores)
        return torch.from_numpy(scores)
