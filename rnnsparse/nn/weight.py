"""A sparse matrix that is its connections: values [N] and their sorted flat positions [N].

Shape suffixes: R rows, C columns, N connections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rnnsparse.kernels import memory
from rnnsparse.nn.basis import Basis
from rnnsparse.nn.gradients import DenseGradient, GradientSource, Pool
from rnnsparse.nn.topology import Topology

if TYPE_CHECKING:
    from rnnsparse.kernels.matrix import Matrix

MANY = 1 << 18


@dataclass(frozen=True)
class Gate:
    """A named range of rows: those of one gate of a recurrent layer, or all rows of another weight."""

    name: str
    start_row: int
    stop_row: int


class SparseWeight(nn.Module):
    """A weight matrix of which only the connections exist.

    `values` [N] is its only parameter; `indices` [N] holds their sorted flat positions (row * cols + column), int64,
    and travels with it through `state_dict`, `copy.deepcopy` and `pickle`; all else about where they are is in
    `topology`. Its gates are row ranges, so sorted positions are grouped by gate. A new weight has no connections; see
    `connect`. With a `basis` the values are coefficients in it, and so are all gradients; else they are entries of the
    matrix.

    Args:
        name: full name in the model, such as "rnn.0.input".
        rows, cols: shape of the matrix.
        gate_names: names of equally tall gates, from the top; by default all rows are one, with the weight's name.
        fan: the number of inputs that first values are scaled for, by default `cols`.

    Attributes:
        dense_gradient, pool: what growth has set up for the backward passes to come, each None for nothing.
    """

    values: nn.Parameter
    indices: Tensor

    def __init__(self, name: str, rows: int, cols: int, gate_names: Sequence[str] = (), fan: int | None = None) -> None:
        super().__init__()
        names = list(gate_names) or [name]
        if rows % len(names):
            raise ValueError(f"{name}: {rows} rows do not split into {len(names)} equal gates")
        height = rows // len(names)
        self.name, self.rows, self.cols, self.fan = name, rows, cols, cols if fan is None else fan
        self.gates = tuple(Gate(n, i * height, (i + 1) * height) for i, n in enumerate(names))
        self.basis: Basis | None = None
        self.values = nn.Parameter(torch.empty(0))
        self.register_buffer("indices", torch.empty(0, dtype=torch.int64))
        self._drawn: Tensor | None = None  # some of the values as they were drawn at the start
        self.dense_gradient: DenseGradient | None = None
        self.pool: Pool | None = None
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
        """Take another full name; gates that begin with the old one follow."""
        names = [name + gate.name.removeprefix(self.name) for gate in self.gates]
        self.gates = tuple(replace(gate, name=n) for gate, n in zip(self.gates, names, strict=True))
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

    def connections_in(self, gate: Gate) -> int:
        start, stop = self.bounds(gate.start_row, gate.stop_row)
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

    def matrix(self) -> Matrix:
        """Return where the connections are, as kernels read it; made once per topology."""
        if self.basis is not None:
            raise ValueError(f"{self.name}: coefficients are no entries of the matrix to multiply with")
        return self.topology.matrix

    def start_pool(self, positions: Tensor) -> Pool:
        """Sum the gradients at sorted flat positions [P] from now on."""
        self.pool = Pool(Topology(self.rows, self.cols, positions.to(self.indices)), self.values)
        return self.pool

    def report(self, gradient: GradientSource) -> None:
        """Show one backward pass's gradient at every position to whoever watches; each such pass calls this."""
        for observer in (self.dense_gradient, self.pool):
            if observer is not None:
                observer.add(gradient)

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
