"""Gradients at positions without a connection, which growth asks for: all of them, or those of a pool.

A backward pass reports its gradient of a whole weight as a source (`SparseWeight.report`), which is either there as a
matrix (masked execution) or made on demand (sparse execution).

Shape suffixes: R rows, C columns, P positions in a pool, each with all gradients of a block there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rnnsparse.nn.topology import Topology

STRIP_ROWS = 512


class GradientSource(Protocol):
    """One backward pass's gradient at every position of a weight."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows `start` to `stop` [rows, C]; the caller does not write to them."""
        ...

    def add_at(self, places: Topology, out_P: Tensor) -> None:
        """Add the gradient at some positions to `out`, of their `values_shape`."""
        ...

    def kept(self) -> GradientSource:
        """Return the same gradient in memory that outlives the backward pass."""
        ...


class MatrixGradient:
    """A gradient that is there as a dense matrix; whoever keeps it does so in type `dtype`, by default its own."""

    def __init__(self, gradient_RC: Tensor, dtype: torch.dtype | None = None) -> None:
        self.gradient_RC, self.dtype = gradient_RC.detach(), dtype

    def rows(self, start: int, stop: int) -> Tensor:
        return self.gradient_RC[start:stop]

    def add_at(self, places: Topology, out_P: Tensor) -> None:
        out_P += places.gather(self.gradient_RC.reshape(-1))

    def kept(self) -> MatrixGradient:
        return MatrixGradient(self.gradient_RC.to(dtype=self.dtype, copy=True))


@dataclass(frozen=True)
class Strip:
    """Some consecutive rows of a dense gradient; `start` is the flat position of its first entry, or block."""

    start: int
    gradient_RC: Tensor


class DenseGradient:
    """The gradient at every position of a weight, existing or not: the sum of its sources, times `scale`.

    Growth reads it strip by strip and never asks for more, so the dense matrix need not exist.
    """

    def __init__(self, *sources: GradientSource) -> None:
        self.sources = list(sources)
        self.scale = 1.0
        # Sums a tensor over all ranks in place, where there are several.
        self.reduce: Callable[[Tensor], object] | None = None

    def add(self, source: GradientSource) -> None:
        """Add one backward pass's gradient: a growth score is that of the whole accumulated batch."""
        matrix = next((own for own in self.sources if isinstance(own, MatrixGradient)), None)
        if matrix is not None and isinstance(source, MatrixGradient):
            matrix.gradient_RC += source.gradient_RC
        else:
            self.sources.append(source.kept())

    def rows(self, start: int, stop: int) -> Tensor:
        """Return the gradient of some rows [rows, C]."""
        first, *others = (source.rows(start, stop) for source in self.sources)
        total = sum(others, first)
        if self.scale != 1 or self.reduce:
            total = total * self.scale
        if self.reduce:
            self.reduce(total)
        return total

    def strips(self, start_row: int, stop_row: int, cols: int) -> Iterator[Strip]:
        """Yield rows `start_row` to `stop_row`, at most STRIP_ROWS at a time, in order of position."""
        for row in range(start_row, stop_row, STRIP_ROWS):
            yield Strip(row * cols, self.rows(row, min(row + STRIP_ROWS, stop_row)))


class Pool:
    """Positions of a weight whose gradients are summed over steps, at the cost of as many connections.

    Args:
        places: the positions, as a topology of the same shape as the weight's own.
        like: a tensor on the device and of the type of the weight's values.

    Attributes:
        gradient: the sum over the backward passes of one step [P], or [P, b] for blocks of b rows.
        total: the signed sum over all finished steps, of the same shape.
    """

    def __init__(self, places: Topology, like: Tensor) -> None:
        self.places = places
        self.gradient = like.new_zeros(places.values_shape, requires_grad=False)
        self.total = self.gradient.clone()

    @property
    def positions(self) -> Tensor:
        """The sorted flat positions [P]."""
        return self.places.indices

    def to(self, like: Tensor) -> None:
        """Go to the type and the device of the weight's values."""
        shape = self.places.rows, self.places.cols, self.positions.to(like.device), self.places.block_rows
        self.places = Topology(*shape)
        self.gradient, self.total = self.gradient.to(like), self.total.to(like)

    def start_step(self) -> None:
        """Forget what a step that came to nothing may have left."""
        self.gradient.zero_()

    def add(self, source: GradientSource) -> None:
        """Add one backward pass's gradient."""
        source.add_at(self.places, self.gradient)

    def finish_step(self, scale: float) -> None:
        self.total.add_(self.gradient, alpha=scale)


class Marginals:
    """How large the two factors of a weight's gradient are, the sum over moments of g x^T.

    Attributes:
        rows_R, cols_C: for each row the sum of |g|, for each column that of |x|, over the moments that have any g.
    """

    def __init__(self, rows: int, cols: int, like: Tensor) -> None:
        self.rows_R = like.new_zeros(rows, requires_grad=False)
        self.cols_C = like.new_zeros(cols, requires_grad=False)

    def to(self, like: Tensor) -> None:
        """Go to the type and the device of the weight's values."""
        self.rows_R, self.cols_C = self.rows_R.to(like), self.cols_C.to(like)

    def add(self, g: Tensor, x: Tensor, dim: int) -> None:
        """Add one backward pass: g and x have rows and columns in dimension `dim`, and moments in all others."""
        moments = [d for d in range(g.dim()) if d != dim % g.dim()]
        self.rows_R += g.abs().sum(moments, dtype=self.rows_R.dtype)
        self.cols_C += (x.abs() * (g != 0).any(dim, keepdim=True)).sum(moments, dtype=self.cols_C.dtype)
