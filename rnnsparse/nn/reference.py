"""The textbook recurrence, as slow and as plain as possible: the oracle for every execution.

Shape suffixes: T time, B batch, I input, H hidden, S state tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rnnsparse.cells.cell import CELLS


def run(
    cell: str, x_TBI: Tensor, state_SBH: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> tuple[Tensor, Tensor]:
    """Run one layer of a cell (by its name) over time; return outputs [T, B, H] and the last state [S, B, H]."""
    outputs = []
    for x_BI in x_TBI:
        state_SBH = CELLS[cell].textbook(x_BI, state_SBH, w_ih, w_hh, b_ih, b_hh)
        outputs.append(state_SBH[0])
    return torch.stack(outputs), state_SBH
