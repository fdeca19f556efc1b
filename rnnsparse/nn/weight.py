"""A sparse matrix that is its connections: values [N] and sorted flat positions [N], and its dense gradient by tiles.

Shape suffixes: R rows, C columns, N connections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from rnnsparse.kernels import memory
from rnnsparse.nn.basis import Basis
from rnnsparse.nn.topology import Topology
from rnnsparse.randomness import draw_positions, generator_for

if TYPE_CHECKING:
    from rnnsparse.kernels.matrix import Matrix

TILE_ROWS = 512
MANY = 1 << 18

# What first values are scaled for: each row's own connections, its block's on average, or all positions.
Scale = Literal["neuron", "layer", "dense"]


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
        self.topology = Topology(weight.rows, weight.cols, positions.to(weight.indices))
        self.gradient = weight.values.detach().new_zeros(positions.shape)
        self.total = self.gradient.clone()

    @property
    def positions(self) -> Tensor:
        return self.topology.indices

    def add_dense(self, gradient_RC: Tensor) -> None:
        """Add one backward pass's gradient, given at every position."""
        flat = gradient_RC.detach().reshape(-1)
        self.gradient += flat if self.topology.is_full else flat.index_select(0, self.positions)

    def start_step(self) -> None:
        """Forget what a step that came to nothing may have left."""
        self.gradient.zero_()

    def finish_step(self, scale: float) -> None:
        self.total.add_(self.gradient, alpha=scale)


class SparseWeight(nn.Module):
    """A weight matrix of which only the connections exist.

    `values` [N] is its only parameter; `indices` [N] holds their sorted flat positions (row * cols + column), int64,
    and travels with it through `state_dict`, `copy.deepcopy` and `pickle`. Its blocks are row ranges, so sorted
    positions are grouped by block. A new weight has no connections; see `connect`. With a `basis` the values are
    coefficients in it, and so are all gradients; else they are entries of the matrix.

    Args:
        name: full name in the model, such as "rnn.0.input".
        rows, cols: shape of the matrix.
        block_names: names of equally tall blocks, from the top; by default the matrix is one block with its own name.
        fan: the number of inputs that first values are scaled for, by default `cols`.
    """

    values: nn.Parameter
    indices: Tensor

    def __init__(
        self, name: str, rows: int, cols: int, block_names: Sequence[str] = (), fan: int | None = None
    ) -> None:
        super().__init__()
        names = list(block_names) or [name]
        if rows % len(names):
            raise ValueError(f"{name}: {rows} rows do not split into {len(names)} equal blocks")
        height = rows // len(names)
        self.name, self.rows, self.cols, self.fan = name, rows, cols, cols if fan is None else fan
        self.blocks = tuple(Block(n, i * height, (i + 1) * height) for i, n in enumerate(names))
        self.basis: Basis | None = None
        self.values = nn.Parameter(torch.empty(0))
        self.register_buffer("indices", torch.empty(0, dtype=torch.int64))
        self._drawn: Tensor | None = None  # some of the values as they were drawn at the start
        # Growth by gradient sets the first and finds the sum over all backward passes since in the second.
        self.collects_dense_gradient = False
        self.dense_gradient: DenseGradient | None = None
        # Growth by probing sets this, and backward passes add to it.
        self.probe: Probe | None = None
        self._topology: Topology | None = None
        self._version = -1  # of the buffer that it was made of

    @property
    def topology(self) -> Topology:
        """Where the connections are; another object after every change."""
        known, version = self._topology, self.indices._version
        # Others may change the buffer, by `to`, or in place, as averages of models do.
        if known is None or known.indices is not self.indices or version != self._version:
            known = self._topology = Topology(self.rows, self.cols, self.indices)
            self._version = version
        return known

    def rename(self, name: str) -> None:
        """Take another full name; blocks that begin with the old one follow."""
        names = [name + block.name.removeprefix(self.name) for block in self.blocks]
        self.blocks = tuple(replace(block, name=n) for block, n in zip(self.blocks, names, strict=True))
        self.name = name

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
        # Copies: whoever passed them may go on using theirs.
        indices = indices.to(device=self.values.device, dtype=torch.int64, copy=True)
        try:
            Topology(self.rows, self.cols, indices).check()
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None
        if values is None:
            values = torch.zeros(indices.shape)
        if values.shape != indices.shape:
            raise ValueError(f"{self.name}: connections need one value each")
        self.indices = indices
        fresh = values.detach().to(self.values, copy=True)
        self.values.grad = None
        # PyTorch keeps what it knows of a parameter's shape as long as any graph that used it is alive, unless its type
        # changes: without this, a loss or an output that somebody still holds would make the next backward pass fail.
        self.values.data = fresh.new_empty(0, dtype=torch.float16 if fresh.dtype != torch.float16 else torch.float32)
        self.values.data = fresh
        self._drawn = None
        # A pass that still needs the old values must fail, and not use the new ones.
        torch.autograd.graph.increment_version(self.values)
        if indices.numel() >= MANY:
            memory.trim()  # choosing so many leaves as much free memory behind, and happens rarely

    def bounds(self, start_row: int, stop_row: int) -> tuple[int, int]:
        """Return the range of connection numbers that lie in a range of rows."""
        return self.topology.bounds(start_row, stop_row)

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
        """Return where the connections are, as kernels read it; made once per topology."""
        if self.basis is not None:
            raise ValueError(f"{self.name}: coefficients are no entries of the matrix to multiply with")
        return self.topology.matrix

    def reset_values(self, seed: int, scale: Scale = "neuron") -> None:
        """Draw values for the connections that exist by a generator that depends on the seed and the name alone.

        They are uniform in +-1/sqrt(fan), as in PyTorch's LSTM, GRU and Linear. By `scale` the fan counts for as much
        of it as exists, so that sparse neurons start with the signal of dense ones: "neuron", of each row (Evci et al.
        2022, section 4); "layer", of the row's block on average. With "dense" all of it counts. The numbers drawn are
        the same for each, up to these factors.
        """
        # On the CPU: a GPU rounds quotients and roots in another way, and the first values would depend on it.
        row_N = (self.indices // self.cols).cpu()
        bound_N = (self.fan * self._density(row_N, scale)[row_N]).rsqrt()
        draw_uniform(self.values, self.name, seed, bound_N)
        self.mark_untrained()

    def mark_untrained(self) -> None:
        """Remember the values as those that were drawn at the start."""
        self._drawn = self._some_values()

    @property
    def is_untrained(self) -> bool:
        """Whether values are still those that were drawn at the start; a change of none but a few may go unnoticed."""
        if self._drawn is None:
            return False
        return torch.equal(self._drawn.to(self.values.dtype), self._some_values().to(self.values.dtype))

    def _some_values(self) -> Tensor:
        return self.values.detach()[:: max(1, self.connections // 64)].to("cpu", torch.float64, copy=True)

    def _density(self, row_N: Tensor, scale: Scale) -> Tensor:
        """Return for each row [R] what share of its positions counts as existing: its own, its block's, or all."""
        if scale == "dense":
            return torch.ones(self.rows)
        count_R = row_N.bincount(minlength=self.rows)
        if scale == "neuron":
            return count_R / self.cols
        height = self.rows // len(self.blocks)
        return (count_R.view(-1, height).sum(1) / (height * self.cols)).repeat_interleave(height)

    def connect_randomly(self, sparsity: float, seed: int) -> None:
        """Give every block exactly as many random connections as a sparsity leaves, with values of zero.

        Raises:
            ValueError: the sparsity is not in [0, 1).
        """
        if not 0 <= sparsity < 1:
            raise ValueError(f"{self.name}: sparsity={sparsity}: must be at least 0 and below 1")
        size = self.positions // len(self.blocks)
        count = connections_at(sparsity, size)
        pieces = [
            i * size + draw_positions(count, size, generator_for(seed, "topology", block.name))
            for i, block in enumerate(self.blocks)
        ]
        self.connect(torch.cat(pieces) if sparsity else torch.arange(self.positions))

    # ---- copies and files

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}shape"] = torch.tensor([self.rows, self.cols])
        if self.basis:
            destination[f"{prefix}left_basis"], destination[f"{prefix}right_basis"] = (
                self.basis.left_KRR,
                self.basis.right_KCC,
            )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, missing_keys: list[str],
        unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        indices, values = state_dict.get(f"{prefix}indices"), state_dict.get(f"{prefix}values")
        left, right, shape = (state_dict.pop(prefix + key, None) for key in ("left_basis", "right_basis", "shape"))
        if shape is not None and shape.tolist() != [self.rows, self.cols]:
            error_msgs.append(f"{self.name}: is {self.rows} x {self.cols}, not {' x '.join(map(str, shape.tolist()))}")
            return
        if indices is not None and values is not None:
            try:
                self.connect(indices, values)
            except ValueError as error:
                error_msgs.append(str(error))
                return
            self.basis = None
            if left is not None and right is not None:
                self.basis = Basis(left, right).to(self.values)
        elif values is not None and not (self.is_full and values.shape == self.values.shape):
            missing_keys.append(f"{prefix}indices")
            error_msgs.append(f"{self.name}: values without indices say nothing; take the whole state_dict")
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_topology": None, "dense_gradient": None}

    def extra_repr(self) -> str:
        return f"{self.rows} x {self.cols}, {self.connections:,} connections"


def connections_at(sparsity: float, positions: int) -> int:
    """Return how many of `positions` are connections at a sparsity."""
    # Through the decimal the user wrote: 0.9 as a binary fraction would lose a connection here and there.
    return positions - floor(Fraction(str(sparsity)) * positions)


def draw_uniform(parameter: nn.Parameter, name: str, seed: int, bound: Tensor | float) -> None:
    """Fill a parameter with uniform numbers in +-bound (one for all, or one each), by a generator for its name."""
    unit = torch.rand(parameter.shape, generator=generator_for(seed, "initial", name), dtype=parameter.dtype)
    parameter.data.copy_((2 * unit - 1) * bound)


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
                if indices is not weight.indices:
                    raise RuntimeError(f"{weight.name}: its connections have changed since this forward pass")
                gradient = gradient.contiguous()  # a batched product leaves it transposed
                if weight.basis:
                    gradient = weight.basis.to_coefficients(gradient.to(ctx.dtypes[i]))
                if weight.collects_dense_gradient:
                    weight.add_dense_gradient(gradient)
                if weight.probe:
                    weight.probe.add_dense(gradient)
                flat = gradient.reshape(-1)
                gradient = flat if weight.is_full else flat.index_select(0, indices)
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
