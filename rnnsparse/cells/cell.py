"""What one recurrent cell computes, in every way in which it is computed here; and the registry of all cells.

A cell is one file here, and its compiled loops are one file in `kernels`. Everything else asks the cell.

Shape suffixes: T time, B batch, I input, H hidden, R rows of a weight (gates * H), S state tensors, K batch tiles,
G rows that the kernels keep per moment, N connections.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from rnnsparse.kernels.matrix import Matrix
    from rnnsparse.kernels.recurrence import LayerInput, OutputGradient


class FrozenProduct(Protocol):
    """x [C] -> W x + b [R] for one vector at a time."""

    def __call__(self, x_C: Tensor) -> Tensor: ...

    def add(self, x_C: Tensor, y_R: Tensor) -> Tensor:
        """Return y, to which W x has been added."""
        ...


class Cell(ABC):
    """The computations of a recurrent cell; nothing is kept here, so its methods are static.

    Attributes:
        gates: a letter for each, in the order in which PyTorch stacks their rows.
        states: how many state tensors there are; the first of them is the output.
        open_gate: the gate that starts open, with a bias of one, or "".
        sparse_wins_from: the sparsity from which sparse execution on a CPU is faster than the fused dense kernels
            (scripts/benchmark_cpu.py).
        kept_rows: how many tensors [H, B] the kernels keep for each moment until the backward pass.
        input_gradient_overwrites: whether `input_gradient` writes over what `recurrent_gradient` returned.
        module: PyTorch's module of dense layers of this cell, and the arguments that make it this cell.
    """

    name: ClassVar[str]
    gates: ClassVar[str]
    states: ClassVar[int]
    open_gate: ClassVar[str] = ""
    sparse_wins_from: ClassVar[float]
    kept_rows: ClassVar[int]
    input_gradient_overwrites: ClassVar[bool] = False
    module: ClassVar[type[nn.RNNBase]]

    # ---- dense

    @staticmethod
    @abstractmethod
    def textbook(x_BI: Tensor, state_SBH: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        """Return the next state [S, B, H] as slowly and as plainly as possible: the oracle of all others."""

    @staticmethod
    @abstractmethod
    def fused(x_TBI: Tensor, state_SBH: Tensor, dense: list[Tensor], training: bool) -> tuple[Tensor, Tensor]:
        """Return all outputs [T, B, H] and the last state [S, B, H] by the device's fused kernel.

        `dense` is w_ih, w_hh, b_ih, b_hh, adjacent in memory, as cuDNN wants them.
        """

    @staticmethod
    @abstractmethod
    def fused_step(x_BI: Tensor, state_SBH: Tensor, dense: list[Tensor]) -> Tensor:
        """Return the next state [S, B, H] by one call of a cell (a fused call with T=1 would repack its weights)."""

    # ---- sparse, batch innermost, over the kernels

    @staticmethod
    def input_bias(bias_ih: Tensor, bias_hh: Tensor) -> Tensor:
        """Return what of both biases [R] can be added to the product with the input: in most cells all."""
        return bias_ih + bias_hh

    @staticmethod
    @abstractmethod
    def forward(
        matrix: Matrix, values_N: Tensor, source: LayerInput, bias_hh: Tensor, kept_KTGB: Tensor, h_KTHB: Tensor,
        state_SKHB: Tensor,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Run all steps over the recurrent connections; h [K, T + 1, H, B] begins with the initial output.

        Returns the last state [S, K, H, B], and what `backward` needs besides `kept` and `h`.
        """

    @staticmethod
    @abstractmethod
    def backward(
        matrix: Matrix, values_N: Tensor, kept_KTGB: Tensor, h_KTHB: Tensor, more: Tensor | None, dy: OutputGradient,
        dstate_SKHB: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Turn `kept` into the gradients of what goes into the gates, and `dstate` into that of the initial state.

        Returns the gradients of both biases [R].
        """

    @staticmethod
    def recurrent_gradient(kept_KTGB: Tensor) -> Tensor:
        """Return after `backward` the gradient of the products with the state, a view [K, T, R, B]."""
        return kept_KTGB

    @staticmethod
    def input_gradient(kept_KTGB: Tensor) -> Tensor:
        """Return after `backward` the gradient of the products with the input, a view [K, T, R, B]."""
        return kept_KTGB

    @classmethod
    def input_gradient_parts(cls, kept_KTGB: Tensor) -> list[tuple[int, Tensor]]:
        """Return the same in parts, each with the number of the weight's row that it begins with."""
        return [(0, cls.input_gradient(kept_KTGB))]

    @classmethod
    def step_bias(cls, bias_ih: Tensor, bias_hh: Tensor) -> Tensor:
        """Return what of both biases [R] is in `from_input` when `step` gets it."""
        return cls.input_bias(bias_ih, bias_hh)

    @staticmethod
    @abstractmethod
    def step(from_input_R: Tensor, recurrent: FrozenProduct, state_SH: Tensor) -> Tensor:
        """Return the next state [S, H] of one text; `from_input` is its own to write to.

        `recurrent` is the product with the state; called, it includes the bias, and its `add` does not.
        """


CELLS: dict[str, type[Cell]] = {}
C = TypeVar("C", bound=type[Cell])


def register(name: str) -> Callable[[C], C]:
    """Make a cell available as `model.cell: name`."""

    def decorate(cell: C) -> C:
        if name in CELLS:
            raise ValueError(f"two cells are called {name}")
        cell.name = name
        CELLS[name] = cell
        return cell

    return decorate
