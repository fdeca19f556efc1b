"""A group: the rows of one or several weights that own a fixed number of connections together.

With granularity `gate` a group is one gate's rows of one matrix, with `matrix` a whole matrix, with `cell` the input
and recurrent matrices of one layer. Its positions are numbered through its parts, so that methods see one flat range.
Where connections are blocks of rows, positions and connections are those of blocks; `entries` are numbers of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rnnsparse.errors import UserError
from rnnsparse.nn.gradients import DenseGradient, Strip
from rnnsparse.nn.weight import SparseWeight


@dataclass(frozen=True)
class Part:
    """Consecutive rows of one weight."""

    weight: SparseWeight
    start_row: int
    stop_row: int

    @property
    def rows(self) -> int:
        return self.stop_row - self.start_row

    @property
    def positions(self) -> int:
        return self.rows // self.weight.block_rows * self.weight.cols

    @property
    def first_position(self) -> int:
        return self.start_row // self.weight.block_rows * self.weight.cols

    def of(self, numbers_N: Tensor) -> Tensor:
        """Return what is of these rows in a tensor with an entry for each connection of the weight."""
        return numbers_N[slice(*self.weight.bounds(self.start_row, self.stop_row))]


@dataclass(frozen=True)
class Group:
    """Parts in a fixed order, numbered as one range of positions 0 .. positions - 1."""

    name: str
    parts: tuple[Part, ...]

    @property
    def positions(self) -> int:
        return sum(part.positions for part in self.parts)

    @property
    def connections(self) -> int:
        return sum(part.of(part.weight.indices).numel() for part in self.parts)

    @property
    def block_rows(self) -> int:
        return self.parts[0].weight.block_rows

    @property
    def entries(self) -> int:
        """How many numbers the connections have."""
        return self.connections * self.block_rows

    @property
    def matrix_entries(self) -> int:
        """How many numbers there would be with all connections."""
        return self.positions * self.block_rows

    def _offsets(self) -> Iterator[tuple[Part, int]]:
        """Yield each part with what turns a flat position of its weight into one of this group."""
        start = 0
        for part in self.parts:
            yield part, start - part.first_position
            start += part.positions

    def indices(self) -> Tensor:
        """Return the sorted group positions [n] of the connections that exist."""
        return torch.cat([part.of(part.weight.indices) + shift for part, shift in self._offsets()])

    def values(self) -> Tensor:
        """Return the values of the connections, in the order of `indices`: [n], or [n, b] for blocks of b rows."""
        return torch.cat([part.of(part.weight.values.detach()) for part in self.parts])

    def magnitudes(self) -> Tensor:
        """Return how large each connection is [n]: |w|, or the norm of a block."""
        return magnitudes(self.values())

    def gradients(self) -> Tensor:
        """Return the gradients of the values, of the same shape; they must have been computed."""
        pieces = []
        for part in self.parts:
            if part.weight.values.grad is None:
                raise ValueError(f"{part.weight.name}: its values have no gradient")
            pieces.append(part.of(part.weight.values.grad))
        return torch.cat(pieces)

    def pooled(self) -> tuple[Tensor, Tensor]:
        """Return the sorted group positions [p] in the pools of its weights, and the sums of their gradients.

        These are [p], or [p, b] for blocks of b rows.
        """
        positions, totals = [], []
        for part, shift in self._offsets():
            pool = part.weight.pool
            if pool is None:
                raise ValueError(f"{part.weight.name}: it has no pool")
            edges = torch.tensor([part.first_position, part.first_position + part.positions])
            start, stop = torch.searchsorted(pool.positions, edges.to(pool.positions)).tolist()
            positions.append(pool.positions[start:stop] + shift)
            totals.append(pool.total[start:stop])
        return torch.cat(positions), torch.cat(totals)

    def strips(self, gradient_of: Callable[[SparseWeight], DenseGradient]) -> Iterator[Strip]:
        """Yield the dense gradient of all parts, in order of group position, `start` counted in the group."""
        for part, shift in self._offsets():
            for strip in gradient_of(part.weight).strips(part.start_row, part.stop_row, part.weight.cols):
                yield Strip(strip.start // self.block_rows + shift, strip.gradient_RC)

    def split(self, indices: Tensor) -> Iterator[tuple[Part, Tensor]]:
        """Yield each part with its share of sorted group positions, as flat positions of its weight."""
        for part, shift in self._offsets():
            first = part.first_position + shift
            edges = torch.tensor([first, first + part.positions], device=indices.device)
            start, stop = torch.searchsorted(indices, edges).tolist()
            yield part, indices[start:stop] - shift


def magnitudes(numbers: Tensor) -> Tensor:
    """Return the size of each of some numbers [n], or the Euclidean norm of those of each block [n, b]."""
    return numbers.abs() if numbers.dim() == 1 else torch.linalg.vector_norm(numbers, dim=1)


def weight_topologies(chosen: Iterable[tuple[Group, Tensor]]) -> list[tuple[SparseWeight, Tensor]]:
    """Join the sorted positions chosen for groups into those of each weight; the groups must cover it."""
    pieces: dict[SparseWeight, list[tuple[Part, Tensor]]] = {}
    for group, indices in chosen:
        for part, flat in group.split(indices):
            pieces.setdefault(part.weight, []).append((part, flat))
    joined = []
    for weight, parts in pieces.items():
        parts.sort(key=lambda piece: piece[0].start_row)
        if sum(part.rows for part, _ in parts) != weight.rows:
            raise ValueError(f"{weight.name}: groups do not cover its rows")
        joined.append((weight, torch.cat([flat for _, flat in parts])))
    return joined


def make_groups(weights: Sequence[SparseWeight], granularity: str) -> list[Group]:
    """Divide all rows of all weights into groups; `granularity` is "gate", "matrix" or "cell".

    Raises:
        UserError: matrices of one cell have blocks of different height.
    """
    parts: dict[str, list[Part]] = {}
    for weight in weights:
        if granularity == "gate":
            for gate in weight.gates:
                parts[gate.name] = [Part(weight, gate.start_row, gate.stop_row)]
        else:
            # rnn.0.input and rnn.0.recurrent meet in the cell rnn.0; others are a group of their own name.
            recurrent = granularity == "cell" and weight.gates[0].name != weight.name
            name = weight.name.rpartition(".")[0] if recurrent else weight.name
            parts.setdefault(name, []).append(Part(weight, 0, weight.rows))
    for name, members in parts.items():
        if len(heights := sorted({part.weight.block_rows for part in members})) > 1:
            raise UserError(
                f"sparsity.block_rows: connections of {' and '.join(map(str, heights))} rows cannot share the budget "
                f"of {name}; give its matrices the same, or use sparsity.granularity=matrix"
            )
    return [Group(name, tuple(members)) for name, members in parts.items()]
