"""A sparse matrix that is its connections: values [N] and sorted flat positions [N], and its dense gradient by tiles.

Shape suffixes: R rows, C columns, N connections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from rnnsparse.kernels import memory
from rnnsparse.nn.basis import Basis

if TYPE_CHECKING:
    from rnnsparse.kernels.cpu import Matrix

TILE_ROWS = 512
MANY = 1 << 18


@dataclass(frozen=True)
class Block:
    """A named range of rows: one gate of a recurrent matrix, or a whole matrix."""

    name: str
    start_row: int
    stop_row: int


@dataclass(frozen=True)
class Tile:
    """Some consecutive rows of a dense gradient; `start` is the flat position of its first entry."""

    start: int
    gradient_RC: Tensor


class GradientSource(Protocol):
    """One backward pass's gradient at every position of a weight, by rows."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows `start` to `stop` [rows, C]; the caller does not write to them."""
        ...


class DenseRows:
    """A gradient that is there as a dense matrix."""

    def __init__(self, dense_RC: Tensor) -> None:
        self.dense_RC = dense_RC

    def rows(self, start: int, stop: int) -> Tensor:
        return self.dense_RC[start:stop]


class DenseGradient:
    """The gradient at every position of a weight, existing or not: the sum of its sources, times `scale`.

    Growth reads it tile by tile and never asks for more, so the dense matrix need not exist.
    """

    def __init__(self, *sources: GradientSource) -> None:
        self.sources = list(sources)
        self.scale = 1.0
        # Sums a tensor over all ranks in place, where there are several.
        self.reduce: Callable[[Tensor], object] | None = None

    def rows(self, start: int, stop: int) -> Tensor:
        """Return the gradient of some rows [rows, C]."""
        first, *others = (source.rows(start, stop) for source in self.sources)
        total = sum(others, first)
        if self.scale != 1 or self.reduce:
            total = total * self.scale
        if self.reduce:
            self.reduce(total)
        return total

    def tiles(self, start_row: int, stop_row: int, cols: int) -> Iterator[Tile]:
        """Yield rows `start_row` to `stop_row`, at most TILE_ROWS at a time, in order of position."""
        for row in range(start_row, stop_row, TILE_ROWS):
            yield Tile(row * cols, self.rows(row, min(row + TILE_ROWS, stop_row)))


class Probe:
    """Absent positions of a weight whose gradients are summed over steps, at the cost of as many connections.

    Attributes:
        positions: sorted flat positions [P].
        gradient: the sum over the backward passes of one step [P].
        total: the signed sum over all finished steps [P].
    """

    def __init__(self, weight: SparseWeight, positions: Tensor) -> None:
        self.positions = positions.to(weight.indices)
        self.gradient = weight.values.detach().new_zeros(positions.shape)
        self.total = self.gradient.clone()
        self._shape = weight.rows, weight.cols
        self._matrix: Matrix | None = None

    def matrix(self) -> Matrix:
        """Return where the positions are, for sparse execution."""
        if self._matrix is None:
            from rnnsparse.kernels.cpu import build_matrix

            self._matrix = build_matrix(self.positions, *self._shape)
        return self._matrix

    def add_dense(self, gradient_RC: Tensor) -> None:
        """Add one backward pass's gradient, given at every position."""
        flat = gradient_RC.detach().reshape(-1)
        everywhere = self.positions.numel() == flat.numel()
        self.gradient += flat if everywhere else flat.index_select(0, self.positions)

    def start_step(self) -> None:
        """Forget what a step that came to nothing may have left."""
        self.gradient.zero_()

    def finish_step(self, scale: float) -> None:
        self.total.add_(self.gradient, alpha=scale)


class SparseWeight(nn.Module):
    """A weight matrix of which only the connections exist.

    `values` [N] is its only parameter; `indices` [N] holds their sorted flat positions (row * cols + column), int64.
    Its blocks are row ranges, so sorted positions are grouped by block. A new weight has no connections; see `connect`.
    With a `basis` the values are coefficients in it, and so are all gradients; else they are entries of the matrix.

    Args:
        name: full name in the model, such as "rnn.0.input".
        rows, cols: shape of the matrix.
        block_names: names of equally tall blocks, from the top; by default the matrix is one block with its own name.
    """

    values: nn.Parameter
    indices: Tensor

    def __init__(self, name: str, rows: int, cols: int, block_names: Sequence[str] = ()) -> None:
        super().__init__()
        names = list(block_names) or [name]
        if rows % len(names):
            raise ValueError(f"{name}: {rows} rows do not split into {len(names)} equal blocks")
        height = rows // len(names)
        self.name, self.rows, self.cols = name, rows, cols
        self.blocks = tuple(Block(n, i * height, (i + 1) * height) for i, n in enumerate(names))
        self.basis: Basis | None = None
        self.values = nn.Parameter(torch.empty(0))
        self.register_buffer("indices", torch.empty(0, dtype=torch.int64), persistent=False)
        # Growth by gradient sets the first and finds the sum over all backward passes since in the second.
        self.collects_dense_gradient = False
        self.dense_gradient: DenseGradient | None = None
        # Growth by probing sets this, and backward passes add to it.
        self.probe: Probe | None = None
        self._matrix: Matrix | None = None
        self._bounds: dict[tuple[int, int], tuple[int, int]] = {}

    @property
    def positions(self) -> int:
        return self.rows * self.cols

    @property
    def connections(self) -> int:
        return self.values.numel()

    @property
    def is_full(self) -> bool:
        """Whether every position is a connection; `indices` is then 0, 1, 2, ... and `values` is the matrix."""
        return self.connections == self.positions

    def connect(self, indices: Tensor, values: Tensor | None = None) -> None:
        """Replace the topology; without `values` all connections get the value zero.

        The Parameter object stays the same, so its name and its place in an optimizer stay too.

        Raises:
            ValueError: positions out of range, unsorted or repeated, or not as many values as positions.
        """
        indices = indices.to(device=self.values.device, dtype=torch.int64)
        if indices.ndim != 1 or (values is not None and values.shape != indices.shape):
            raise ValueError(f"{self.name}: connections need one position and one value each")
        if indices.numel() and (indices[0] < 0 or indices[-1] >= self.positions):
            raise ValueError(f"{self.name}: a connection lies outside {self.rows} x {self.cols}")
        if not bool((indices[1:] > indices[:-1]).all()):
            raise ValueError(f"{self.name}: positions are not sorted or repeat")
        if values is None:
            values = torch.zeros(indices.shape)
        # Copies: whoever passed them may go on using theirs.
        self.indices = indices.clone()
        self.values.data = values.detach().to(self.values, copy=True)
        self.values.grad = None
        self._matrix = None
        self._bounds = {}
        if indices.numel() >= MANY:
            memory.trim()  # choosing so many leaves as much free memory behind, and happens rarely

    def bounds(self, start_row: int, stop_row: int) -> tuple[int, int]:
        """Return the range of connection numbers that lie in a range of rows."""
        rows = start_row, stop_row
        # Looked up once per topology: a GPU would have to finish all its work before it could answer.
        if rows not in self._bounds:
            edges = torch.tensor(rows, device=self.indices.device) * self.cols
            start, stop = torch.searchsorted(self.indices, edges).tolist()
            self._bounds[rows] = start, stop
        return self._bounds[rows]

    def block_connections(self, block: Block) -> int:
        start, stop = self.bounds(block.start_row, block.stop_row)
        return stop - start

    def to_dense(self) -> Tensor:
        """Return the matrix [R, C] as a new tensor without gradient."""
        dense = self.values.detach().new_zeros(self.positions)
        dense[self.indices] = self.values.detach()
        dense = dense.view(self.rows, self.cols)
        return self.basis.to_matrix(dense) if self.basis else dense

    def express(self, matrix_RC: Tensor, basis: Basis | None) -> None:
        """Become a matrix, written in a basis with every position as a connection."""
        self.basis = basis and basis.to(self.values)
        coefficients_RC = self.basis.to_coefficients(matrix_RC) if self.basis else matrix_RC
        self.connect(torch.arange(self.positions), coefficients_RC.flatten())

    def start_dense_gradient(self, collect: bool) -> None:
        """Forget the last dense gradient; with `collect`, the following backward passes make a new one."""
        self.collects_dense_gradient = collect
        self.dense_gradient = None

    def add_gradient_source(self, source: GradientSource) -> None:
        """Add one backward pass's dense gradient: a growth score is that of the whole accumulated batch."""
        if self.dense_gradient is None:
            self.dense_gradient = DenseGradient()
        self.dense_gradient.sources.append(source)

    def add_dense_gradient(self, gradient_RC: Tensor) -> None:
        """Add a dense gradient [R, C], copied in the parameter's precision; all such are summed in one matrix."""
        gradient_RC = gradient_RC.detach()
        for source in self.dense_gradient.sources if self.dense_gradient else []:
            if isinstance(source, DenseRows):
                source.dense_RC += gradient_RC
                return
        self.add_gradient_source(DenseRows(gradient_RC.to(self.values.dtype, copy=True)))

    def matrix(self) -> Matrix:
        """Return where the connections are, by row and by column, for sparse execution; made once per topology."""
        if self.basis is not None:
            raise ValueError(f"{self.name}: coefficients are no entries of the matrix to multiply with")
        if self._matrix is None:
            from rnnsparse.kernels.cpu import build_matrix

            self._matrix = build_matrix(self.indices, self.rows, self.cols)
        return self._matrix

    def extra_repr(self) -> str:
        return f"{self.name}: {self.connections} of {self.rows} x {self.cols}"


class _Materialise(torch.autograd.Function):
    """Values and biases -> dense matrices and biases, all views of one contiguous buffer, in the order given."""

    @staticmethod
    def forward(
        ctx: Any, weights: Sequence[SparseWeight], dtype: torch.dtype, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        sizes = [w.positions for w in weights] + [b.numel() for b in parameters[len(weights) :]]
        buffer = torch.zeros(sum(sizes), dtype=dtype, device=parameters[0].device)
        pieces = list(buffer.split(sizes))
        ctx.weights = weights
        ctx.indices = [w.indices for w in weights]
        ctx.dtypes = [p.dtype for p in parameters]
        for i, parameter in enumerate(parameters):
            if i < len(weights) and weights[i].basis:
                pieces[i].copy_(weights[i].to_dense().view(-1))
            elif i < len(weights) and not weights[i].is_full:
                pieces[i].index_copy_(0, weights[i].indices, parameter.to(dtype))
            else:
                pieces[i].copy_(parameter)
            if i < len(weights):
                pieces[i] = pieces[i].view(weights[i].rows, weights[i].cols)
        return tuple(pieces)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        result: list[Tensor | None] = []
        for i, gradient in enumerate(gradients):
            if i < len(ctx.weights):
                weight, indices = ctx.weights[i], ctx.indices[i]
                gradient = gradient.contiguous()  # a batched product leaves it transposed
                if weight.basis:
                    gradient = weight.basis.to_coefficients(gradient.to(ctx.dtypes[i]))
                if weight.collects_dense_gradient:
                    weight.add_dense_gradient(gradient)
                if weight.probe:
                    weight.probe.add_dense(gradient)
                flat = gradient.reshape(-1)
                gradient = flat if indices.numel() == weight.positions else flat.index_select(0, indices)
            result.append(gradient.to(ctx.dtypes[i]))
        return (None, None, *result)


def materialise(
    weights: Sequence[SparseWeight], biases: Sequence[Tensor] = (), dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Return `weights` as dense matrices [R, C] and `biases`, adjacent in one buffer of `dtype`, with autograd.

    cuDNN reads recurrent weights in place only if they are adjacent (otherwise it copies them at every call). The
    gradient of `values` is a gather of the dense one, which is also kept for those weights that collect it.
    """
    dtype = dtype or weights[0].values.dtype
    return list(_Materialise.apply(weights, dtype, *(w.values for w in weights), *biases))
