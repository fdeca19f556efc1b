"""Gated recurrent unit; gates r z n. Shape suffixes as in `cell.py`.

n = tanh(x_n + r * m), where m is the product with the state, its bias included, as in cuDNN and PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rnnsparse.cells.cell import Cell, FrozenProduct, register

if TYPE_CHECKING:
    from rnnsparse.kernels.matrix import Matrix
    from rnnsparse.kernels.recurrence import LayerInput, OutputGradient


@register("gru")
class GRUCell(Cell):
    """Cho et al. 2014; the reset gate acts after the product, as in cuDNN and PyTorch."""

    gates = "rzn"
    states = 1
    sparse_wins_from = 0.5
    kept_rows = 4  # n r z m; after the backward pass rows H to 4H are in the order of the weight's rows
    input_gradient_overwrites = True
    module = nn.GRU

    @staticmethod
    def textbook(x_BI: Tensor, state_SBH: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        h_BH = state_SBH[0]
        input_r, input_z, input_n = (x_BI @ w_ih.T + b_ih).chunk(3, dim=1)
        state_r, state_z, state_n = (h_BH @ w_hh.T + b_hh).chunk(3, dim=1)
        z = (input_z + state_z).sigmoid()
        n = (input_n + (input_r + state_r).sigmoid() * state_n).tanh()
        return ((1 - z) * n + z * h_BH)[None]

    @staticmethod
    def fused(x_TBI: Tensor, state_SBH: Tensor, dense: list[Tensor], training: bool) -> tuple[Tensor, Tensor]:
        y_TBH, state_SBH = torch.gru(x_TBI, state_SBH.contiguous(), dense, True, 1, 0.0, training, False, False)
        return y_TBH, state_SBH

    @staticmethod
    def fused_step(x_BI: Tensor, state_SBH: Tensor, dense: list[Tensor]) -> Tensor:
        return torch.gru_cell(x_BI, state_SBH[0], *dense).unsqueeze(0)

    @staticmethod
    def input_bias(bias_ih: Tensor, bias_hh: Tensor) -> Tensor:
        # That of n is multiplied by the reset gate.
        gated = 2 * len(bias_ih) // 3
        return torch.cat([bias_ih[:gated] + bias_hh[:gated], bias_ih[gated:]])

    @staticmethod
    def forward(
        matrix: Matrix, values_N: Tensor, source: LayerInput, bias_hh: Tensor, kept_KTGB: Tensor, h_KTHB: Tensor,
        state_SKHB: Tensor,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        from rnnsparse.kernels import gru

        hidden = h_KTHB.shape[2]
        gru.forward(matrix, values_N, source, bias_hh[2 * hidden :], kept_KTGB, h_KTHB)
        return h_KTHB[None, :, -1].clone(), None

    @staticmethod
    def backward(
        matrix: Matrix, values_N: Tensor, kept_KTGB: Tensor, h_KTHB: Tensor, more: Tensor | None, dy: OutputGradient,
        dstate_SKHB: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        from rnnsparse.kernels import gru

        hidden = h_KTHB.shape[2]
        sums_G = gru.backward(matrix, values_N, kept_KTGB, h_KTHB, dy, *dstate_SKHB)
        return torch.cat([sums_G[hidden : 3 * hidden], sums_G[:hidden]]), sums_G[hidden:]

    @staticmethod
    def recurrent_gradient(kept_KTGB: Tensor) -> Tensor:
        return kept_KTGB[:, :, kept_KTGB.shape[2] // 4 :]

    @staticmethod
    def input_gradient(kept_KTGB: Tensor) -> Tensor:
        hidden = kept_KTGB.shape[2] // 4
        # n's own gradient takes the place of that of m, so that rows are in the weight's order.
        kept_KTGB[:, :, 3 * hidden :] = kept_KTGB[:, :, :hidden]
        return kept_KTGB[:, :, hidden:]

    @classmethod
    def input_gradient_parts(cls, kept_KTGB: Tensor) -> list[tuple[int, Tensor]]:
        hidden = kept_KTGB.shape[2] // 4
        return [(0, kept_KTGB[:, :, hidden : 3 * hidden]), (2 * hidden, kept_KTGB[:, :, :hidden])]

    @classmethod
    def step_bias(cls, bias_ih: Tensor, bias_hh: Tensor) -> Tensor:
        return bias_ih

    @staticmethod
    def step(from_input_R: Tensor, recurrent: FrozenProduct, state_SH: Tensor) -> Tensor:
        from rnnsparse.kernels import gru

        return gru.step(from_input_R, recurrent(state_SH[0]), state_SH)
