from __future__ import annotations

import io
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from rnnsparse.nn.weight import SparseWeight
from rnnsparse.settings.training import TrainingConfig
from rnnsparse.sparsity.selection import draw_positions, rewire
from rnnsparse.training.step.connection_adam import ConnectionAdam
from rnnsparse.training.step.optim import build_optimizer

KINDS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
POSITIONS = 60


def settings(kind: str) -> dict[str, Any]:
    return {"betas": (0.8, 0.97), "weight_decay": 0.1, "decoupled_weight_decay": kind == "adamw"}


def weight_of(indices: list[int] | Tensor, values: Tensor) -> SparseWeight:
    weight = SparseWeight("w", 6, POSITIONS // 6).to(values.dtype)
    weight.connect(torch.as_tensor(indices), values)
    return weight


def rate_of(step: int) -> float:
    return 0.03 / (1 + step)


def step_all(step: int, gradient: Tensor, *pairs: tuple[SparseWeight, torch.optim.Optimizer]) -> None:
    """One step of each optimizer, by the gradient [POSITIONS] where connections are."""
    for weight, optimizer in pairs:
        weight.values.grad = gradient[weight.indices].clone()
        optimizer.param_groups[0]["lr"] = rate_of(step)
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_bit_for_bit_the_optimizer_of_torch_while_no_connection_is_new(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    start = [torch.randn(shape, dtype=dtype) for shape in ((1003,), (7,), (3, 5), (0,))]
    ours, theirs = ([Parameter(values.clone()) for values in start] for _ in range(2))
    own = ConnectionAdam(ours, lr=1.0, connection_warmup=5, **settings(kind))
    other = KINDS[kind](theirs, lr=1.0, betas=(0.8, 0.97), weight_decay=0.1, fused=True)
    for step in range(200):
        own.param_groups[0]["lr"] = other.param_groups[0]["lr"] = rate_of(step)
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a) if step % 7 or a.numel() > 7 else None  # some have none at times
            b.grad = None if a.grad is None else a.grad.clone()
        own.step()
        other.step()
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), step
    for a, b in zip(ours, theirs, strict=True):
        for key, value in other.state[b].items():
            assert torch.equal(own.state[a][key], value), key


class FreshAdam:
    """One number and its Adam from its first step on, in Python's double precision."""

    def __init__(self, value: float, warmup: int = 0) -> None:
        self.value, self.m, self.v, self.t, self.warmup = value, 0.0, 0.0, 0, warmup

    def step(self, rate: float, gradient: float, kind: str) -> None:
        self.t += 1
        if kind == "adam":
            gradient += 0.1 * self.value
        else:
            self.value -= rate * 0.1 * self.value
        self.m = 0.8 * self.m + 0.2 * gradient
        self.v = 0.97 * self.v + 0.03 * gradient**2
        rate *= min(1.0, self.t / (self.warmup + 1))
        self.value -= rate * self.m / (1 - 0.8**self.t) / ((self.v / (1 - 0.97**self.t)) ** 0.5 + 1e-8)


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("kind", KINDS)
def test_each_grown_connection_follows_an_adam_of_its_own_and_the_others_that_of_torch(
    kind: str, dtype: torch.dtype, tolerance: float, warmup: int
) -> None:
    """Connections come and go every four steps, and their number changes."""
    generator = torch.Generator().manual_seed(0)
    first = draw_positions(40, POSITIONS, generator)
    values = torch.randn(40, generator=generator, dtype=torch.float64).to(dtype)
    ours, theirs = weight_of(first, values), weight_of(first, values)
    own = ConnectionAdam([ours.values], lr=1.0, connection_warmup=warmup, **settings(kind))
    other = KINDS[kind]([theirs.values], lr=1.0, betas=(0.8, 0.97), weight_decay=0.1, fused=True)
    alone = {place: FreshAdam(value) for place, value in zip(first.tolist(), values.tolist(), strict=True)}
    always = set(first.tolist())
    for step in range(40):
        gradient = torch.randn(POSITIONS, generator=generator, dtype=torch.float64).to(dtype)
        step_all(step, gradient, (ours, own), (theirs, other))
        for place, adam in alone.items():
            adam.step(rate_of(step), gradient[place].item(), kind)
        expected = torch.tensor([alone[place].value for place in ours.indices.tolist()], dtype=dtype)
        torch.testing.assert_close(ours.values.data, expected, rtol=tolerance, atol=tolerance)
        from_start = torch.tensor([place in always for place in ours.indices.tolist()])
        assert torch.equal(ours.values[from_start], theirs.values[from_start])
        if step % 4 == 3:
            kept = ours.indices[torch.rand(ours.connections, generator=generator) < 0.9]
            present = torch.cat([kept, draw_positions(6, POSITIONS, generator)]).unique()
            for weight, optimizer in ((ours, own), (theirs, other)):
                rewire(weight, present, optimizer)
            alone = {place: alone.get(place, FreshAdam(0.0, warmup)) for place in present.tolist()}
            always &= set(present.tolist())
    assert 0 < len(always) < len(alone) / 2


def moves_of_a_grown_connection(optimizer_class: type[torch.optim.Adam], steps: int, **options: Any) -> list[float]:
    """How far each of its first steps moves a connection grown after 20,000 steps, in learning rates."""
    weight = weight_of([1], torch.ones(1, dtype=torch.float64))
    optimizer = optimizer_class([weight.values], lr=0.01, **options)
    weight.values.grad = torch.full((1,), -3.0, dtype=torch.float64)
    optimizer.step()
    optimizer.state[weight.values]["step"].fill_(20_000.0)
    if "connection_steps" in optimizer.state[weight.values]:
        optimizer.state[weight.values]["connection_steps"].fill_(20_000.0)
    rewire(weight, torch.tensor([1, 5]), optimizer)
    path = [0.0]
    for _ in range(steps):
        weight.values.grad = torch.full((2,), -3.0, dtype=torch.float64)
        optimizer.step()
        path.append(weight.values[1].item() / 0.01)
    return [after - before for before, after in itertools.pairwise(path)]


def test_the_cold_start_of_adam_is_cured() -> None:
    cold = moves_of_a_grown_connection(torch.optim.Adam, 30, fused=True)
    assert cold[0] == pytest.approx(3.16, abs=0.01)
    assert max(cold) == pytest.approx(6.5, abs=0.1)
    assert 8 <= cold.index(max(cold)) <= 14
    assert moves_of_a_grown_connection(ConnectionAdam, 30) == pytest.approx([1.0] * 30)


def test_a_grown_connection_rises_linearly_to_its_full_step() -> None:
    moves = moves_of_a_grown_connection(ConnectionAdam, 6, connection_warmup=3)
    assert moves == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_at_every_step_it_continues_bit_exactly(kind: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    first = draw_positions(30, POSITIONS, generator)
    straight, stopped = weight_of(first, torch.ones(30)), weight_of(first, torch.ones(30))
    c = TrainingConfig(optimizer=kind, weight_decay=0.1, connection_steps=True, connection_warmup=2)
    ahead, behind = build_optimizer(c, [straight.values]), build_optimizer(c, [stopped.values])
    assert isinstance(ahead, ConnectionAdam)
    for step in range(20):
        step_all(step, torch.randn(POSITIONS, generator=generator), (straight, ahead), (stopped, behind))
        if step % 3 == 2:
            present = torch.cat([straight.indices[::2], draw_positions(20, POSITIONS, generator)]).unique()
            rewire(straight, present, ahead)
            rewire(stopped, present, behind)
        file = io.BytesIO()
        torch.save(behind.state_dict(), file)
        file.seek(0)
        behind = build_optimizer(c, [stopped.values])
        behind.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(straight.values, stopped.values), step


def test_an_overflow_in_half_precision_changes_nothing() -> None:
    weight = weight_of([1, 2], torch.ones(2))
    optimizer = ConnectionAdam([weight.values], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for gradient in ([4.0, 4.0], [float("inf"), 4.0]):
        scaler.scale(torch.ones(()))
        weight.values.grad = torch.tensor(gradient)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    torch.testing.assert_close(weight.values.data, torch.full((2,), 0.9))
    state = optimizer.state[weight.values]
    assert state["step"] == 1
    assert state["connection_steps"].tolist() == [1, 1]
