"""Long short-term memory; gates i f g o, states h and c. Shape suffixes as in `cell.py`, and M packed models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rnnsparse.cells.cell import Cell, FrozenProduct, packed_gradients, packed_result, register, room_for_states

if TYPE_CHECKING:
    from rnnsparse.kernels.matrix import Matrix
    from rnnsparse.kernels.recurrence import LayerInput, OutputGradient


class _Packed(torch.autograd.Function):
    """(products with the input [M, T, B, G], w_hh, b_hh, state) -> (outputs [M, T, B, H], state)."""

    @staticmethod
    def forward(ctx: Any, x_MTBG: Tensor, w_MGH: Tensor, b_MG: Tensor, state_MSBH: Tensor) -> tuple[Tensor, Tensor]:
        gates = x_MTBG + b_MG[:, None, None]
        h, c = room_for_states(gates, state_MSBH)
        tanh_c = torch.empty_like(h[:, 1:])
        w_MHG = w_MGH.mT
        for t in range(gates.shape[1]):
            i, f, g, o = gates[:, t].baddbmm_(h[:, t], w_MHG).chunk(4, dim=-1)
            for sigmoidal in (i, f, o):
                sigmoidal.sigmoid_()
            g.tanh_()
            torch.mul(f, c[:, t], out=c[:, t + 1]).addcmul_(i, g)
            torch.tanh(c[:, t + 1], out=tanh_c[:, t])
            torch.mul(o, tanh_c[:, t], out=h[:, t + 1])
        ctx.save_for_backward(w_MGH, gates, h, c, tanh_c)
        return packed_result(ctx, h, c)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        w_MGH, gates, h, c, tanh_c = ctx.saved_tensors
        i, f, g, o = gates.chunk(4, dim=-1)
        # What one unit of gradient of c, or of h for the output gate, is to each gate; then times that gradient.
        d_MTBGH = torch.stack([g * i * (1 - i), c[:, :-1] * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o)], dim=-2)
        h_to_c = o * (1 - tanh_c * tanh_c)
        dh = gradients[0].clone()
        dc = torch.zeros_like(h[:, 0])
        for t in reversed(range(gates.shape[1])):
            d_MBGH = d_MTBGH[:, t]
            dc.addcmul_(dh[:, t], h_to_c[:, t])
            d_MBGH[..., :3, :].mul_(dc.unsqueeze(-2))
            d_MBGH[..., 3, :].mul_(dh[:, t])
            dc.mul_(f[:, t])
            if t > 0:
                dh[:, t - 1].baddbmm_(d_MBGH.flatten(-2), w_MGH)
        d_MTBG = d_MTBGH.flatten(-2)
        return d_MTBG, *packed_gradients(d_MTBG, h), None


@register("lstm")
class LSTMCell(Cell):
    """Hochreiter & Schmidhuber 1997, with forget gates; these start open (Jozefowicz et al. 2015)."""

    gates = "ifgo"
    states = 2
    open_gate = "f"
    sparse_wins_from = 0.5
    kept_rows = 4  # i f g o
    module = nn.LSTM
    packed = _Packed

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
