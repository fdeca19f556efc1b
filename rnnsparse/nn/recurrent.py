"""LSTM and GRU layers over sparse weights, in masked execution.

Masked execution scatters the connections into one contiguous buffer and runs the fused dense kernel of the device
(cuDNN, oneDNN). Shape suffixes: T time, B batch, I input, H hidden, G gates, S state tensors (LSTM h and c, GRU h).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from rnnsparse.nn.weight import SparseWeight, materialise


class RecurrentLayer(nn.Module):
    """One recurrent layer: weights `input` [G*H, I] and `recurrent` [G*H, H], each with one block per gate.

    Args:
        name: full name in the model, such as "rnn.0".
    """

    gates: ClassVar[str]
    states: ClassVar[int]

    def __init__(self, name: str, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        rows = len(self.gates) * hidden_size
        self.input = SparseWeight(f"{name}.input", rows, input_size, [f"{name}.input.{g}" for g in self.gates])
        self.recurrent = SparseWeight(
            f"{name}.recurrent", rows, hidden_size, [f"{name}.recurrent.{g}" for g in self.gates]
        )
        self.bias_ih = nn.Parameter(torch.zeros(rows))
        self.bias_hh = nn.Parameter(torch.zeros(rows))

    def dense(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Return w_ih, w_hh, b_ih, b_hh adjacent in the order of cuDNN."""
        return materialise([self.input, self.recurrent], [self.bias_ih, self.bias_hh], dtype)

    def forward(self, x_TBI: Tensor, state_SBH: Tensor) -> tuple[Tensor, Tensor]:
        """Return all outputs [T, B, H] and the state [S, B, H] after the last."""
        raise NotImplementedError

    @staticmethod
    def step(x_BI: Tensor, state_SBH: Tensor, dense: list[Tensor]) -> Tensor:
        """Return the next state [S, B, H] by one call of a cell (a fused call with T=1 would repack its weights)."""
        raise NotImplementedError


class LSTM(RecurrentLayer):
    """Long short-term memory; gates i f g o."""

    gates = "ifgo"
    states = 2

    def forward(self, x_TBI: Tensor, state_SBH: Tensor) -> tuple[Tensor, Tensor]:
        h_1BH, c_1BH = state_SBH[0:1].contiguous(), state_SBH[1:2].contiguous()
        y_TBH, h_1BH, c_1BH = torch.lstm(
            x_TBI, (h_1BH, c_1BH), self.dense(x_TBI.dtype), True, 1, 0.0, self.training, False, False
        )
        return y_TBH, torch.cat([h_1BH, c_1BH])

    @staticmethod
    def step(x_BI: Tensor, state_SBH: Tensor, dense: list[Tensor]) -> Tensor:
        return torch.stack(torch.lstm_cell(x_BI, (state_SBH[0], state_SBH[1]), *dense))


class GRU(RecurrentLayer):
    """Gated recurrent unit; gates r z n."""

    gates = "rzn"
    states = 1

    def forward(self, x_TBI: Tensor, state_SBH: Tensor) -> tuple[Tensor, Tensor]:
        return torch.gru(
            x_TBI, state_SBH.contiguous(), self.dense(x_TBI.dtype), True, 1, 0.0, self.training, False, False
        )

    @staticmethod
    def step(x_BI: Tensor, state_SBH: Tensor, dense: list[Tensor]) -> Tensor:
        return torch.gru_cell(x_BI, state_SBH[0], *dense).unsqueeze(0)


CELLS: dict[str, type[RecurrentLayer]] = {"lstm": LSTM, "gru": GRU}
