"""The plain recurrent cell with tanh; one gate, h, which is the state. Shape suffixes as in `cell.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rnnsparse.cells.cell import Cell, FrozenProduct, register

if TYPE_CHECKING:
    from rnnsparse.kernels.matrix import Matrix
    from rnnsparse.kernels.recurrence import LayerInput, OutputGradient


@register("rnn")
class RNNCell(Cell):
    """Elman 1990."""

    gates = "h"
    states = 1
    sparse_wins_from = 0.5
    kept_rows = 1
    module = nn.RNN

    @staticmethod
    def textbook(x_BI: Tensor, state_SBH: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        return (x_BI @ w_ih.T + b_ih + state_SBH[0] @ w_hh.T + b_hh).tanh()[None]

    @staticmethod
    def fused(x_TBI: Tensor, state_SBH: Tensor, dense: list[Tensor], training: bool) -> tuple[Tensor, Tensor]:
        y_TBH, state_SBH = torch.rnn_tanh(x_TBI, state_SBH.contiguous(), dense, True, 1, 0.0, training, False, False)
        return y_TBH, state_SBH

    @staticmethod
    def fused_step(x_BI: Tensor, state_SBH: Tensor, dense: list[Tensor]) -> Tensor:
        return torch.rnn_tanh_cell(x_BI, state_SBH[0], *dense).unsqueeze(0)

    @staticmethod
    def forward(
        matrix: Matrix, values_N: Tensor, source: LayerInput, bias_hh: Tensor, kept_KTGB: Tensor, h_KTHB: Tensor,
        state_SKHB: Tensor,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        from rnnsparse.kernels import rnn

        rnn.forward(matrix, values_N, source, kept_KTGB, h_KTHB)
        return h_KTHB[None, :, -1].clone(), None

    @staticmethod
    def backward(
        matrix: Matrix, values_N: Tensor, kept_KTGB: Tensor, h_KTHB: Tensor, more: Tensor | None, dy: OutputGradient,
        dstate_SKHB: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        from rnnsparse.kernels import rnn

        sums_H = rnn.backward(matrix, values_N, kept_KTGB, dy, *dstate_SKHB)
        return sums_H, sums_H.clone()

    @staticmethod
    def step(from_input_R: Tensor, recurrent: FrozenProduct, state_SH: Tensor) -> Tensor:
        return recurrent.add(state_SH[0], from_input_R).tanh()[None]
