"""LSTM and GRU over connections are the textbook cells, forward and backward.

Shape suffixes: K batch tiles, T time, I inputs, H hidden, B batch within a tile (whole vectors), G rows of `gates`,
R rows of a weight, V symbols, S state tensors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rnnsparse.nn import reference

F64, F32 = torch.float64, torch.float32
GATES = {"lstm": 4, "gru": 3}
STATES = {"lstm": 2, "gru": 1}


class Pass:
    """One pass through one layer: its input is a sequence, or symbols and a table of what each contributes."""

    def __init__(
        self, kernels: Any, make_weight: Any, cell: str, hidden: int = 6, times: int = 4, vectors: int = 1,
        tiles: int = 1, density: float = 0.4, is_table: bool = False, dtype: torch.dtype = F64, seed: int = 0,
        block_rows: int = 1,
    ) -> None:  # fmt: skip
        self.kernels, self.cell, self.hidden, self.is_table = kernels, cell, hidden, is_table
        rows, inputs, batch = GATES[cell] * hidden, 5, vectors * kernels.vector_width(dtype)
        blocks = rows // block_rows
        self.weight = weight = make_weight(
            kernels, blocks, hidden, round(density * blocks * hidden), dtype, seed, block_rows
        )
        self.input = make_weight(kernels, blocks, inputs, round(density * blocks * inputs), dtype, seed + 1, block_rows)
        self.x_KTIB, self.bias_R, self.q_bias_H = (
            weight.normal(tiles, times, inputs, batch), weight.normal(rows), weight.normal(hidden)
        )  # fmt: skip
        self.table_VR = weight.normal(7, rows)
        self.tokens_KTB = torch.randint(7, (tiles, times, batch), generator=weight.generator, dtype=torch.int32)
        self.state_SKHB = weight.normal(STATES[cell], tiles, hidden, batch) * 0.5
        self.dy_KTHB = weight.normal(tiles, times, hidden, batch)
        self.dstate_SKHB = weight.normal(STATES[cell], tiles, hidden, batch)

    def source(self) -> Any:
        if self.is_table:
            return self.kernels.LayerInput(self.bias_R, table_VR=self.table_VR, tokens_MB=self.tokens_KTB.flatten(0, 1))
        return self.kernels.LayerInput(self.bias_R, self.input.matrix, self.input.values, self.x_KTIB.flatten(0, 1))

    def dy(self, first: int, last: int) -> Tensor:
        return self.dy_KTHB[:, first:last].contiguous()

    def computed(self) -> dict[str, Tensor]:
        weight, hidden, (tiles, times, _, batch) = self.weight, self.hidden, self.dy_KTHB.shape
        # Whatever was in the memory must not matter.
        gates_KTGB = weight.normal(tiles, times, 4 * hidden, batch)
        h_KTHB = torch.full((tiles, times + 1, hidden, batch), torch.nan, dtype=weight.dtype)
        h_KTHB[:, 0] = self.state_SKHB[0]
        dstate_SKHB, kernel = self.dstate_SKHB.clone(), getattr(self.kernels, self.cell)
        arguments = (weight.matrix, weight.values, self.source())
        lasts = [h_KTHB[:, -1]]
        if self.cell == "lstm":
            c_KHB = self.state_SKHB[1].clone()
            kept = kernel.forward(*arguments, gates_KTGB, h_KTHB, c_KHB)
            lasts.append(c_KHB)
            sums_G = kernel.backward(weight.matrix, weight.values, gates_KTGB, kept, self.dy, *dstate_SKHB)
            inputs, recurrent = gates_KTGB, gates_KTGB
            input_sums, recurrent_sums = sums_G, sums_G
        else:
            kernel.forward(*arguments, self.q_bias_H, gates_KTGB, h_KTHB)
            sums_G = kernel.backward(weight.matrix, weight.values, gates_KTGB, h_KTHB, self.dy, *dstate_SKHB)
            n, r, z, q = gates_KTGB.chunk(4, dim=2)
            inputs, recurrent = torch.cat([r, z, n], dim=2), torch.cat([r, z, q], dim=2)
            n, r, z, q = sums_G.chunk(4)
            input_sums, recurrent_sums = torch.cat([r, z, n]), torch.cat([r, z, q])
        return {
            "outputs": h_KTHB[:, 1:], "last state": torch.stack(lasts),
            "inputs": inputs, "recurrent": recurrent, "initial state": dstate_SKHB,
            "input sums": input_sums, "recurrent sums": recurrent_sums,
        }  # fmt: skip

    def textbook(self) -> dict[str, Tensor]:
        if self.is_table:
            symbols = self.table_VR[self.tokens_KTB.long()].transpose(2, 3)
        else:
            symbols = self.input.dense() @ self.x_KTIB + self.bias_R[:, None]
        inputs, state = (x.double().requires_grad_() for x in (symbols, self.state_SKHB))
        b_hh = torch.zeros(GATES[self.cell] * self.hidden, dtype=F64)
        if self.cell == "gru":
            b_hh[2 * self.hidden :] = self.q_bias_H
        # A bias for every single moment and lane, whose gradient is that of the recurrent product there.
        bias = b_hh[:, None].expand(inputs.shape).contiguous().requires_grad_()
        w_hh, eye = self.weight.dense().double(), torch.eye(len(b_hh), dtype=F64)
        outputs, lasts = [], []
        for k, x_TGB in enumerate(inputs):
            # Through a unit matrix the reference takes the inputs as they are.
            h_SBH, y_T = state[:, k].transpose(1, 2), []
            for t, x_GB in enumerate(x_TGB):
                y_1BH, h_SBH = reference.run(
                    self.cell, x_GB.T[None], h_SBH, eye, w_hh, torch.zeros_like(b_hh), bias[k, t].T
                )  # fmt: skip
                y_T.append(y_1BH[0].T)
            outputs.append(torch.stack(y_T))
            lasts.append(h_SBH.transpose(1, 2))
        y, last = torch.stack(outputs), torch.stack(lasts, dim=1)
        ((y * self.dy_KTHB).sum() + (last * self.dstate_SKHB).sum()).backward()
        assert inputs.grad is not None
        assert bias.grad is not None
        assert state.grad is not None
        return {
            "outputs": y.detach(), "last state": last.detach(),
            "inputs": inputs.grad, "recurrent": bias.grad, "initial state": state.grad,
            "input sums": inputs.grad.sum((0, 1, 3)), "recurrent sums": bias.grad.sum((0, 1, 3)),
        }  # fmt: skip


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = (found[name].double() - value).norm() / max(1.0, float(value.norm()))
        assert error <= tolerance, (name, float(error))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@given(
    hidden=st.integers(1, 12),
    times=st.sampled_from([1, 2, 5, 16, 17, 33]),  # also several parts of a pass backward
    vectors=st.integers(1, 2),
    tiles=st.integers(1, 3),
    density=st.sampled_from([0, 0.05, 0.4, 1]),
    is_table=st.booleans(),
    seed=st.integers(0, 999),
)
def test_a_recurrence_over_connections_is_the_textbook_cell(
    kernels: Any, make_weight: Any, cell: str, hidden: int, times: int, vectors: int, tiles: int, density: float,
    is_table: bool, seed: int,
) -> None:  # fmt: skip
    one = Pass(kernels, make_weight, cell, hidden, times, vectors, tiles, density, is_table, F64, seed)
    assert_equal(one.computed(), one.textbook(), 1e-12)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("is_table", [True, False])
@pytest.mark.parametrize("tiles", [1, 2])
def test_float32_is_as_near_as_its_precision_allows(
    kernels: Any, make_weight: Any, cell: str, is_table: bool, tiles: int
) -> None:
    one = Pass(kernels, make_weight, cell, 40, 20, 1, tiles, 0.1, is_table, F32)
    assert_equal(one.computed(), one.textbook(), 1e-6)


@pytest.mark.parametrize(("cell", "hidden"), [("lstm", 300), ("gru", 400)])
@pytest.mark.parametrize("density", [0.2, 0.8])
def test_wide_layers_whose_matrices_are_cut_into_ranges_are_right(
    kernels: Any, make_weight: Any, cell: str, hidden: int, density: float
) -> None:
    one = Pass(kernels, make_weight, cell, hidden, times=2, density=density)
    if kernels.vector_width(F64) > 1:
        for order in (one.weight.matrix.by_row(GATES[cell]), one.weight.matrix.by_column):
            runs = np.diff(order.groups)
            assert runs.max() > order.units * GATES[cell], "several runs of a row"
    assert_equal(one.computed(), one.textbook(), 1e-12)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize(("block_rows", "hidden"), [(8, 24), (8, 200), (16, 16)])
def test_a_recurrence_over_blocks_is_the_textbook_cell(
    kernels: Any, make_weight: Any, cell: str, block_rows: int, hidden: int
) -> None:
    one = Pass(kernels, make_weight, cell, hidden, tiles=2, density=0.3, block_rows=block_rows)
    assert_equal(one.computed(), one.textbook(), 1e-12)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("is_table", [True, False])
def test_what_is_not_a_number_stays_in_its_lane(kernels: Any, make_weight: Any, cell: str, is_table: bool) -> None:
    one = Pass(kernels, make_weight, cell, vectors=2, is_table=is_table)
    lane = one.state_SKHB.shape[-1] // 2
    expected = one.computed()
    one.state_SKHB[0, 0, :, lane] = torch.nan
    found = one.computed()
    for name in ("outputs", "last state", "inputs", "recurrent", "initial state"):
        others = [b for b in range(found[name].shape[-1]) if b != lane]
        assert torch.equal(found[name][..., others], expected[name][..., others]), name
    # A loss that is not a number is seen at once.
    assert found["outputs"][0, :, :, lane].isnan().any()
    assert found["input sums"].isnan().any()
