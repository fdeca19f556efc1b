"""A sparse matrix that is its connections: values [N] and their sorted flat positions [N].

Shape suffixes: R rows, C columns, N connections, b rows of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rnnsparse.kernels import memory
from rnnsparse.nn.basis import Basis
from rnnsparse.nn.gradients import DenseGradient, GradientSource, Marginals, Pool
from rnnsparse.nn.topology import Topology

if TYPE_CHECKING:
    from rnnsparse.kernels.matrix import Matrix

MANY = 1 << 18
BLOCK_ROWS = (1, 2, 4, 8, 16)


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

    A connection may be a block, `block_rows` b consecutive rows that share a column. Then `values` is [N, b], and
    `indices` are positions in [R/b, C]. Its `positions` and `connections` are still entries of the matrix, b for each
    block; those of its `topology` are blocks.

    Args:
        name: full name in the model, such as "rnn.0.input".
        rows, cols: shape of the matrix.
        gate_names: names of equally tall gates, from the top; by default all rows are one, with the weight's name.
        fan: the number of inputs that first values are scaled for, by default `cols`.
        block_rows: 1, 2, 4, 8 or 16.

    Attributes:
        dense_gradient, pool, marginals: what growth has set up for the backward passes to come, each None for nothing.

    Raises:
        ValueError: gates of unequal height, or blocks that do not fit into them.
    """

    values: nn.Parameter
    indices: Tensor

    def __init__(
        self,
        name: str,
        rows: int,
        cols: int,
        gate_names: Sequence[str] = (),
        fan: int | None = None,
        block_rows: int = 1,
    ) -> None:
        super().__init__()
        names = list(gate_names) or [name]
        if rows % len(names):
            raise ValueError(f"{name}: {rows} rows do not split into {len(names)} equal gates")
        height = rows // len(names)
        self.name, self.rows, self.cols, self.fan = name, rows, cols, cols if fan is None else fan
        self.gates = tuple(Gate(n, i * height, (i + 1) * height) for i, n in enumerate(names))
        self.basis: Basis | None = None
        self.block_rows = 1
        self.values = nn.Parameter(torch.empty(0))
        self.register_buffer("indices", torch.empty(0, dtype=torch.int64))
        self._drawn: Tensor | None = None  # some of the values as they were drawn at the start
        self.dense_gradient: DenseGradient | None = None
        self.pool: Pool | None = None
        self.marginals: Marginals | None = None
        self._topology: Topology | None = None
        self._version = -1  # of the buffer that it was made of
        self.set_block_rows(block_rows)

    @property
    def topology(self) -> Topology:
        """Where the connections are; another object after every change."""
        if torch.compiler.is_compiling():  # which knows no versions
            return Topology(self.rows, self.cols, self.indices, self.block_rows)
        known, version = self._topology, 0 if self.indices.is_inference() else self.indices._version
        # Others may change the buffer, by `to`, or in place, as averages of models do.
        if known is None or known.indices is not self.indices or version != self._version:
            known = self._topology = Topology(self.rows, self.cols, self.indices, self.block_rows)
            self._version = version
        return known

    def rename(self, name: str) -> None:
        """Take another full name; gates that begin with the old one follow."""
        names = [name + gate.name.removeprefix(self.name) for gate in self.gates]
        self.gates = tuple(replace(gate, name=n) for gate, n in zip(self.gates, names, strict=True))
        self.name = name

    def set_block_rows(self, block_rows: int) -> None:
        """Let connections be blocks of another height; a full matrix stays what it is.

        Raises:
            ValueError: such blocks do not fit into the gates, or there are connections but not all.
        """
        if type(block_rows) is not int or block_rows not in BLOCK_ROWS:
            raise ValueError(f"{self.name}: block_rows={block_rows}: must be one of {', '.join(map(str, BLOCK_ROWS))}")
        height = self.rows // len(self.gates)
        if height % block_rows:
            fitting = [str(b) for b in BLOCK_ROWS if height % b == 0]
            raise ValueError(
                f"{self.name}: block_rows={block_rows}: does not divide {height}, the rows of a gate; "
                f"{' or '.join(filter(None, [', '.join(fitting[:-1]), fitting[-1]]))} would"
            )
        if block_rows == self.block_rows:
            return
        if self.connections and not self.is_full:
            raise ValueError(
                f"{self.name}: its connections are blocks of {self.block_rows} rows, and cannot become {block_rows}"
            )
        old, was_untrained = self.topology, self.is_untrained
        self.block_rows, self._topology = block_rows, None
        if old.connections:
            new = Topology(self.rows, self.cols, torch.arange(self.positions // block_rows), block_rows)
            matrix = self.values.detach().new_empty(self.positions)
            old.scatter(self.values.detach(), matrix)
            self.connect(new.indices, new.gather(matrix))
            if was_untrained:
                self.mark_untrained()
        else:
            empty = Topology(self.rows, self.cols, self.indices, block_rows)
            self.values.data = self.values.detach().new_empty(empty.values_shape)

    @property
    def positions(self) -> int:
        return self.rows * self.cols

    @property
    def connections(self) -> int:
        return self.values.numel()

    @property
    def is_full(self) -> bool:
        """Whether every position is a connection; `indices` is then 0, 1, 2, ..."""
        return self.connections == self.positions

    def connect(self, indices: Tensor, values: Tensor | None = None) -> None:
        """Replace the topology; without `values` all connections get the value zero.

        Blocks have values [N, b], others [N]. The Parameter object stays the same, so its name and its place in an
        optimizer stay too.

        Raises:
            ValueError: positions out of range, unsorted or repeated, or not as many values as positions.
        """
        # A weight that was made to be trained stays so, whatever mode its connections come in.
        with torch.inference_mode(self.values.is_inference()):
            self._connect(indices, values)

    def _connect(self, indices: Tensor, values: Tensor | None) -> None:
        # Copies: whoever passed them may go on using theirs.
        indices = indices.to(device=self.values.device, dtype=torch.int64, copy=True)
        topology = Topology(self.rows, self.cols, indices, self.block_rows)
        try:
            topology.check()
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None
        if values is None:
            values = torch.zeros(topology.values_shape)
        if values.shape != topology.values_shape:
            each = "one value" if self.block_rows == 1 else f"{self.block_rows} values"
            raise ValueError(f"{self.name}: connections need {each} each")
        self.indices = indices
        fresh = values.detach().to(self.values, copy=True, memory_format=torch.contiguous_format)
        self.values.grad = None
        # PyTorch keeps what it knows of a parameter's shape as long as any graph that used it is alive, unless its type
        # changes: without this, a loss or an output that somebody still holds would make the next backward pass fail.
        self.values.data = fresh.new_empty(0, dtype=torch.float16 if fresh.dtype != torch.float16 else torch.float32)
        self.values.data = fresh
        self._drawn = None
        # A pass that still needs the old values must fail, and not use the new ones.
        if not fresh.is_inference():  # of which there are no passes
            torch.autograd.graph.increment_version(self.values)
        if indices.numel() >= MANY:
            memory.trim()  # choosing so many leaves as much free memory behind, and happens rarely

    def bounds(self, start_row: int, stop_row: int) -> tuple[int, int]:
        """Return the range of connection numbers that lie in a range of rows."""
        return self.topology.bounds(start_row, stop_row)

    def connections_in(self, gate: Gate) -> int:
        start, stop = self.bounds(gate.start_row, gate.stop_row)
        return (stop - start) * self.block_rows

    def to_dense(self) -> Tensor:
        """Return the matrix [R, C] as a new tensor without gradient."""
        dense = self.values.detach().new_zeros(self.positions)
        self.topology.scatter(self.values.detach(), dense)
        dense = dense.view(self.rows, self.cols)
        return self.basis.to_matrix(dense) if self.basis else dense

    def express(self, matrix_RC: Tensor, basis: Basis | None) -> None:
        """Become a matrix, written in a basis with every position as a connection."""
        self.basis = basis and basis.to(self.values)
        coefficients_RC = self.basis.to_coefficients(matrix_RC) if self.basis else matrix_RC
        full = Topology(self.rows, self.cols, torch.arange(self.positions // self.block_rows), self.block_rows)
        self.connect(full.indices, full.gather(coefficients_RC.flatten()))

    def matrix(self) -> Matrix:
        """Return where the connections are, as kernels read it; made once per topology."""
        if self.basis is not None:
            raise ValueError(f"{self.name}: coefficients are no entries of the matrix to multiply with")
        return self.topology.matrix

    def start_pool(self, positions: Tensor) -> Pool:
        """Sum the gradients at sorted flat positions [P] from now on."""
        self.pool = Pool(Topology(self.rows, self.cols, positions.to(self.indices), self.block_rows), self.values)
        return self.pool

    def report(self, gradient: GradientSource) -> None:
        """Show one backward pass's gradient at every position to whoever watches; each such pass calls this."""
        for observer in (self.dense_gradient, self.pool):
            if observer is not None:
                observer.add(gradient)

    def report_factors(self, g: Tensor, x: Tensor, dim: int) -> None:
        """Show the factors of one backward pass's gradient to whoever watches (`Marginals.add`)."""
        if self.marginals is not None:
            self.marginals.add(g.detach(), x.detach(), dim)

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
        return self.values.detach()[:: max(1, len(self.values) // 64)].to("cpu", torch.float64, copy=True)

    # ---- copies and files

    def _apply(self, fn: Any, recurse: bool = True) -> SparseWeight:
        """Let what watches gradients, and the basis, follow the values to another type or device."""
        super()._apply(fn, recurse)
        self.basis = self.basis and self.basis.to(self.values)
        for watching in (self.pool, self.marginals):
            if watching is not None:
                watching.to(self.values)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}shape"] = torch.tensor([self.rows, self.cols])
        if self.block_rows > 1:
            destination[f"{prefix}block_rows"] = torch.tensor(self.block_rows)
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
        left, right, shape, block_rows = (
            state_dict.pop(prefix + key, None) for key in ("left_basis", "right_basis", "shape", "block_rows")
        )
        if shape is not None and shape.tolist() != [self.rows, self.cols]:
            error_msgs.append(f"{self.name}: is {self.rows} x {self.cols}, not {' x '.join(map(str, shape.tolist()))}")
            return
        if indices is not None and values is not None:
            try:
                self._become(indices, values, 1 if block_rows is None else int(block_rows))
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

    def _become(self, indices: Tensor, values: Tensor, block_rows: int) -> None:
        """Connect with blocks of whatever height; what does not fit leaves all as it was."""
        if block_rows != self.block_rows:
            new = SparseWeight(self.name, self.rows, self.cols, [g.name for g in self.gates], block_rows=block_rows)
            new.connect(indices, values)  # raises what is wrong
            self.connect(self.indices[:0])
            self.set_block_rows(block_rows)
        self.connect(indices, values)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_topology": None, "dense_gradient": None, "marginals": None}

    def extra_repr(self) -> str:
        blocks = f" in blocks of {self.block_rows} rows" if self.block_rows > 1 else ""
        return f"{self.rows} x {self.cols}, {self.connections:,} connections{blocks}"
