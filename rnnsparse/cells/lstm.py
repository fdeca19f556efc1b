"""Long short-term memory; gates i f g o, states h and c. Shape suffixes as in `cell.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rnnsparse.cells.cell import Cell, FrozenProduct, register

if TYPE_CHECKING:
    from rnnsparse.kernels.matrix import Matrix
    from rnnsparse.kernels.recurrence import LayerInput, OutputGradient


@register("lstm")
class LSTMCell(Cell):
    """Hochreiter & Schmidhuber 1997, with forget gates; these start open (Jozefowicz et al. 2015)."""

    gates = "ifgo"
    states = 2
    open_gate = "f"
    sparse_wins_from = 0.5
    kept_rows = 4  # i f g o
    module = nn.LSTM

    @staticmethod
    def textbook(x_BI: Tensor, state_SBH: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        h_BH, c_BH = state_SBH
        i, f, g, o = (x_BI @ w_ih.T + b_ih + h_BH @ w_hh.T + b_hh).chunk(4, dim=1)
        c_BH = f.sigmoid() * c_BH + i.sigmoid() * g.tanh()
        return torch.stack([o.sigmoid() * c_BH.tanh(), c_BH])

    @staticmethod
    def fused(x_TBI: Tensor, state_SBH: Tensor, dense: list[Tensor], training: bool) -> tuple[Tensor, Tensor]:
        h_1BH, c_1BH = state_SBH[0:1].contiguous(), state_SBH[1:2].contiguous()
        y_TBH, h_1BH, c_1BH = torch.lstm(x_TBI, (h_1BH, c_1BH), dense, True, 1, 0.0, training, False, False)
        return y_TBH, torch.cat([h_1BH, c_1BH])

    @staticmethod
    def fused_step(x_BI: Tensor, state_SBH: Tensor, dense: list[Tensor]) -> Tensor:
        return torch.stack(torch.lstm_cell(x_BI, (state_SBH[0], state_SBH[1]), *dense))

    @staticmethod
    def forward(
        matrix: Matrix, values_N: Tensor, source: LayerInput, bias_hh: Tensor, kept_KTGB: Tensor, h_KTHB: Tensor,
        state_SKHB: Tensor,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        from rnnsparse.kernels import lstm

        c_KHB = state_SKHB[1].clone()
        cells_KPHB = lstm.forward(matrix, values_N, source, kept_KTGB, h_KTHB, c_KHB)
        return torch.stack([h_KTHB[:, -1], c_KHB]), cells_KPHB

    @staticmethod
    def backward(
        matrix: Matrix, values_N: Tensor, kept_KTGB: Tensor, h_KTHB: Tensor, more: Tensor | None, dy: OutputGradient,
        dstate_SKHB: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        from rnnsparse.kernels import lstm

        assert more is not None
        sums_R = lstm.backward(matrix, values_N, kept_KTGB, more, dy, *dstate_SKHB)
        return sums_R, sums_R.clone()

    @staticmethod
    def step(from_input_R: Tensor, recurrent: FrozenProduct, state_SH: Tensor) -> Tensor:
        from rnnsparse.kernels import lstm

        return lstm.step(recurrent.add(state_SH[0], from_input_R), state_SH)
