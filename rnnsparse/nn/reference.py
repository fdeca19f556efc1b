"""The textbook recurrent cells, as slow and as plain as possible: the oracle for every execution.

Gates are stacked as PyTorch does: LSTM i f g o, GRU r z n. Shape suffixes: T time, B batch, I input, H hidden, G gates.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lstm_step(
    x_BI: Tensor, h_BH: Tensor, c_BH: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (h, c) after one step (Hochreiter & Schmidhuber 1997, with forget gates)."""
    i, f, g, o = (x_BI @ w_ih.T + b_ih + h_BH @ w_hh.T + b_hh).chunk(4, dim=1)
    c_BH = f.sigmoid() * c_BH + i.sigmoid() * g.tanh()
    return o.sigmoid() * c_BH.tanh(), c_BH


def gru_step(x_BI: Tensor, h_BH: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
    """Return h after one step (Cho et al. 2014; the reset gate acts after the product, as in cuDNN and PyTorch)."""
    input_r, input_z, input_n = (x_BI @ w_ih.T + b_ih).chunk(3, dim=1)
    state_r, state_z, state_n = (h_BH @ w_hh.T + b_hh).chunk(3, dim=1)
    z = (input_z + state_z).sigmoid()
    n = (input_n + (input_r + state_r).sigmoid() * state_n).tanh()
    return (1 - z) * n + z * h_BH


def run(
    cell: str, x_TBI: Tensor, state_SBH: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> tuple[Tensor, Tensor]:
    """Run one layer of `cell` ("lstm" or "gru") over time; return outputs [T, B, H] and the last state [S, B, H]."""
    outputs = []
    state = list(state_SBH)
    for x_BI in x_TBI:
        if cell == "lstm":
            state = list(lstm_step(x_BI, state[0], state[1], w_ih, w_hh, b_ih, b_hh))
        else:
            state = [gru_step(x_BI, state[0], w_ih, w_hh, b_ih, b_hh)]
        outputs.append(state[0])
    return torch.stack(outputs), torch.stack(state)
