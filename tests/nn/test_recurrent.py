"""Masked execution is the textbook cell: outputs, states, and gradients at existing and at absent positions.

Shape suffixes: T time, B batch, I input, H hidden, S state tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rnnsparse.cells.cell import CELLS
from rnnsparse.nn import reference
from rnnsparse.nn.gradients import DenseGradient
from rnnsparse.nn.recurrent import RecurrentLayer

CELL_NAMES = list(CELLS)


@dataclass
class Case:
    """One layer and everything that goes into one pass through it."""

    cell: str
    layer: RecurrentLayer
    x_TBI: Tensor
    state_SBH: Tensor
    upstream_y_TBH: Tensor
    upstream_state_SBH: Tensor


def case(
    cell: str,
    density: float = 0.4,
    T: int = 4,
    B: int = 3,
    inputs: int = 5,
    H: int = 6,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, generator=generator)

    layer = RecurrentLayer(CELLS[cell], "rnn.0", inputs, H).to(dtype)
    for weight in (layer.input, layer.recurrent):
        count = round(density * weight.positions)
        indices = torch.randperm(weight.positions, generator=generator)[:count].sort().values
        weight.connect(indices, normal(count))
    for bias in (layer.bias_ih, layer.bias_hh):
        bias.data = normal(bias.numel())
    S = layer.cell.states
    return Case(cell, layer, normal(T, B, inputs), normal(S, B, H) * 0.5, normal(T, B, H), normal(S, B, H))


def masked(case: Case) -> dict[str, Tensor]:
    layer = case.layer
    x, state = case.x_TBI.clone().requires_grad_(), case.state_SBH.clone().requires_grad_()
    weights = (layer.input, layer.recurrent)
    for weight in weights:
        weight.dense_gradient = DenseGradient()
    y, last = layer(x, state)
    ((y * case.upstream_y_TBH).sum() + (last * case.upstream_state_SBH).sum()).backward()
    found = {"outputs": y.detach(), "last state": last.detach(), "input": x.grad, "initial state": state.grad}
    for name, weight in zip(("w_ih", "w_hh"), weights, strict=True):
        found[f"{name} values"] = weight.values.grad
        found[f"{name} everywhere"] = weight.dense_gradient.rows(0, weight.rows)
    return found | {"bias_ih": layer.bias_ih.grad, "bias_hh": layer.bias_hh.grad}


def textbook(case: Case) -> dict[str, Tensor]:
    layer = case.layer
    x, state = case.x_TBI.clone().requires_grad_(), case.state_SBH.clone().requires_grad_()
    w_ih, w_hh = layer.input.to_dense().requires_grad_(), layer.recurrent.to_dense().requires_grad_()
    b_ih, b_hh = (b.detach().clone().requires_grad_() for b in (layer.bias_ih, layer.bias_hh))
    y, last = reference.run(case.cell, x, state, w_ih, w_hh, b_ih, b_hh)
    ((y * case.upstream_y_TBH).sum() + (last * case.upstream_state_SBH).sum()).backward()
    return {
        "outputs": y.detach(),
        "last state": last.detach(),
        "input": x.grad,
        "initial state": state.grad,
        "w_ih values": w_ih.grad.flatten()[layer.input.indices],
        "w_ih everywhere": w_ih.grad,
        "w_hh values": w_hh.grad.flatten()[layer.recurrent.indices],
        "w_hh everywhere": w_hh.grad,
        "bias_ih": b_ih.grad,
        "bias_hh": b_hh.grad,
    }


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("cell", CELL_NAMES)
@pytest.mark.parametrize("density", [0, 0.05, 0.5, 1])
def test_masked_execution_is_the_textbook_cell(cell: str, density: float) -> None:
    one = case(cell, density)
    assert_equal(masked(one), textbook(one), 1e-10)


@given(
    cell=st.sampled_from(CELL_NAMES),
    density=st.floats(0, 1),
    T=st.integers(1, 5),
    B=st.integers(1, 4),
    inputs=st.integers(1, 7),
    H=st.integers(1, 7),
    seed=st.integers(0, 999),
)
def test_masked_execution_is_the_textbook_cell_for_any_shape(
    cell: str,
    density: float,
    T: int,
    B: int,
    inputs: int,
    H: int,
    seed: int,
) -> None:
    one = case(cell, density, T, B, inputs, H, seed)
    assert_equal(masked(one), textbook(one), 1e-10)


@pytest.mark.parametrize("cell", CELL_NAMES)
def test_an_empty_gate_is_a_gate_of_zeros(cell: str) -> None:
    one = case(cell, 0.5)
    weight = one.layer.recurrent
    first = weight.gates[0]
    kept = weight.indices >= first.stop_row * weight.cols
    weight.connect(weight.indices[kept], weight.values[kept])
    assert weight.connections_in(first) == 0
    found = masked(one)
    assert_equal(found, textbook(one), 1e-10)
    assert found["w_hh everywhere"][: first.stop_row].abs().min() > 0, "an empty gate must see its gradient"


@pytest.mark.parametrize("cell", CELL_NAMES)
def test_the_fused_float32_kernel_is_the_textbook_cell_too(cell: str) -> None:
    one = case(cell, 0.3, T=12, B=8, inputs=16, H=32, dtype=torch.float32)
    assert_equal(masked(one), textbook(one), 2e-4)


@pytest.mark.parametrize("cell", CELL_NAMES)
def test_inference_without_gradients_gives_the_same_outputs(cell: str) -> None:
    one = case(cell)
    with torch.no_grad():
        y, last = one.layer.eval()(one.x_TBI, one.state_SBH)
    expected = textbook(one)
    assert_equal({"y": y, "s": last}, {"y": expected["outputs"], "s": expected["last state"]}, 1e-10)


@pytest.mark.parametrize("cell", CELL_NAMES)
def test_one_step_is_the_textbook_step(cell: str) -> None:
    one = case(cell, T=1)
    with torch.no_grad():
        state = one.layer.cell.fused_step(one.x_TBI[0], one.state_SBH, one.layer.dense())
    torch.testing.assert_close(state, textbook(one)["last state"], rtol=1e-10, atol=1e-10)


def test_gates_are_named_in_the_order_of_pytorch() -> None:
    names = {cell: [b.name for b in RecurrentLayer(CELLS[cell], "rnn.3", 2, 5).input.gates] for cell in CELL_NAMES}
    assert names == {
        "lstm": ["rnn.3.input.i", "rnn.3.input.f", "rnn.3.input.g", "rnn.3.input.o"],
        "gru": ["rnn.3.input.r", "rnn.3.input.z", "rnn.3.input.n"],
        "rnn": ["rnn.3.input.h"],
    }
    assert RecurrentLayer(CELLS["gru"], "rnn.3", 2, 5).recurrent.gates[2].start_row == 10


@pytest.mark.parametrize(("cell", "module"), [("lstm", nn.LSTMCell), ("gru", nn.GRUCell)])
def test_the_reference_is_the_cell_of_pytorch(cell: str, module: type[nn.LSTMCell] | type[nn.GRUCell]) -> None:
    torch.manual_seed(0)
    oracle = module(5, 6).double()
    S = 2 if cell == "lstm" else 1
    x_TBI, state_SBH = torch.randn(4, 3, 5).double(), torch.randn(S, 3, 6).double()
    y_TBH, last_SBH = reference.run(
        cell, x_TBI, state_SBH, oracle.weight_ih, oracle.weight_hh, oracle.bias_ih, oracle.bias_hh
    )
    state = tuple(state_SBH) if cell == "lstm" else state_SBH[0]
    for x_BI, y_BH in zip(x_TBI, y_TBH, strict=True):
        state = oracle(x_BI, state)
        torch.testing.assert_close(y_BH, state[0] if cell == "lstm" else state, rtol=1e-12, atol=1e-12)
    expected = torch.stack(state) if cell == "lstm" else state.unsqueeze(0)
    torch.testing.assert_close(last_SBH, expected, rtol=1e-12, atol=1e-12)
