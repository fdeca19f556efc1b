"""Lottery tickets in a loop of one's own; tests/recipes/test_lottery.py compares them with the recipe's."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

import rnnsparse as rs
from rnnsparse.sparsity.methods.lottery import Lottery
from rnnsparse.sparsity.tickets import Tickets
from tests.sparsity.test_sparsify import STEPS, Net, adam, batch, connections, loss_of, require_same

REWIND = 3
SETTINGS: dict[str, Any] = {"sparsity": 0.7, "steps": STEPS, "prune_share": 0.4, "rewind": 0.25}
LAST = 3  # 0.6, 0.36 and 0.3 of the connections


def tickets(model: nn.Module, method: str = "lottery", **settings: Any) -> tuple[torch.optim.Optimizer, rs.Sparsifier]:
    optimizer = adam(model)
    return optimizer, rs.sparsify(model, method, optimizer, **SETTINGS | settings)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    sparsifier: rs.Sparsifier,
    *,
    after_round: Callable[[int], object] = lambda number: None,
    stops_after: tuple[int, int] | None = None,
) -> None:
    """What a user writes; `stops_after` is a round and a step in it."""
    for number in sparsifier.rounds():
        while sparsifier.steps_taken < sparsifier.total_steps:
            optimizer.zero_grad()
            loss = loss_of(model, sparsifier.steps_taken)
            if sparsifier.teacher:
                x_TBI, _ = batch(sparsifier.steps_taken)
                said, wanted = (log_softmax(each(x_TBI), -1) for each in (model, sparsifier.teacher))
                loss = loss + kl_div(said, wanted, reduction="batchmean", log_target=True)
            sparsifier.backward(loss)
            sparsifier.step()
            if (number, sparsifier.steps_taken) == stops_after:
                return
        after_round(number)


@cache
def undisturbed(method: str) -> nn.Module:
    model = Net()
    train(model, *tickets(model, method))
    return model


def dense_weights(model: nn.Module) -> dict[str, Tensor]:
    return {m.name: m.to_dense() for m in model.modules() if isinstance(m, rs.SparseWeight)}


def test_each_round_has_its_connections_and_the_last_one_the_budget() -> None:
    model = Net()
    optimizer, sparsifier = tickets(model)
    sizes: list[int] = []
    train(model, optimizer, sparsifier, after_round=lambda number: sizes.append(connections(model)))
    groups = [budget.group for budget in sparsifier.budgets]
    counts = Lottery(prune_share=0.4).rounds([g.positions for g in groups], [b.connections for b in sparsifier.budgets])
    assert sizes == [sum(each) for each in counts]
    assert len(sizes) == LAST + 1
    assert [g.connections for g in groups] == [b.connections for b in sparsifier.budgets]


def test_each_round_begins_with_the_largest_of_the_trained_weights_as_they_were_at_the_rewind_step() -> None:
    model = Net()
    optimizer, sparsifier = tickets(model)
    trained: list[dict[str, Tensor]] = []
    early: dict[str, Any] = {}
    for number in sparsifier.rounds():
        if number:
            assert sparsifier.steps_taken == REWIND
            for weight in [m for m in model.modules() if isinstance(m, rs.SparseWeight)]:
                now, before = weight.to_dense(), trained[-1][weight.name]
                kept = now != 0
                assert torch.equal(now[kept], early["weights"][weight.name][kept])
                for rows in [slice(block.start_row, block.stop_row) for block in weight.gates]:
                    assert before[rows][kept[rows]].abs().min() >= before[rows][~kept[rows]].abs().max()
            assert torch.equal(model.norm.weight, early["norm"])
            state = optimizer.state[model.head.values]
            assert torch.equal(state["exp_avg"], early["moments"][model.head.indices])
            assert state["step"] == REWIND
        while sparsifier.steps_taken < STEPS:
            if number == 0 and sparsifier.steps_taken == REWIND:
                early = {"weights": dense_weights(model), "norm": model.norm.weight.detach().clone()}
                early["moments"] = optimizer.state[model.head.values]["exp_avg"].clone()
            optimizer.zero_grad()
            sparsifier.backward(loss_of(model, sparsifier.steps_taken))
            sparsifier.step()
        trained.append(dense_weights(model))
    for one, next_one in pairwise(trained):
        assert all(((one[name] != 0) | (next_one[name] == 0)).all() for name in one)


STOPS = [(0, 2), (0, STEPS), (1, 5), (LAST, REWIND + 1)]


@pytest.mark.parametrize(("method", "stop"), [("lottery", (1, 5)), *(("kd_ticket", stop) for stop in STOPS)])
def test_a_loop_goes_on_in_any_round_as_if_it_had_not_stopped(method: str, stop: tuple[int, int]) -> None:
    model = Net()
    optimizer, sparsifier = tickets(model, method)
    train(model, optimizer, sparsifier, stops_after=stop)
    file = io.BytesIO()
    torch.save([each.state_dict() for each in (model, optimizer, sparsifier)], file)
    file.seek(0)
    other = Net(seed=8)
    optimizer, sparsifier = tickets(other, method)
    for each, state in zip((other, optimizer, sparsifier), torch.load(file, weights_only=True), strict=True):
        each.load_state_dict(state)
    train(other, optimizer, sparsifier)
    require_same(other, undisturbed(method))


def test_the_teacher_is_the_trained_dense_model_and_teaches_the_last_round_alone() -> None:
    model = Net()
    optimizer, sparsifier = tickets(model, "kd_ticket")
    seen: list[bool] = []
    dense: dict[str, Any] = {}

    def look(number: int) -> None:
        seen.append(sparsifier.teacher is not None)
        if number == 0:
            dense.update(copy.deepcopy(model.state_dict()))

    train(model, optimizer, sparsifier, after_round=look)
    assert seen == [False] * LAST + [True]
    teacher = sparsifier.teacher
    assert teacher is not None
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(value, dense[name]) for name, value in teacher.state_dict().items())
    assert not torch.equal(undisturbed("lottery").get_parameter("norm.weight"), model.norm.weight)


def test_what_is_left_out_or_dense_keeps_its_connections() -> None:
    model = Net()
    train(model, *tickets(model, exclude=["encoder.0"], dense=["head"]))
    assert [m.is_full for m in model.modules() if isinstance(m, rs.SparseWeight)] == [True, True, False, False, True]


def test_a_trained_network_is_where_a_ticket_without_rewinding_begins() -> None:
    dense = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))
    model = rs.convert(copy.deepcopy(dense))
    optimizer, sparsifier = tickets(model, rewind=0.0)
    for number in sparsifier.rounds():
        layer = model[0]
        assert torch.equal(layer.values, dense[0].weight.flatten()[layer.indices])
        assert sparsifier.steps_taken == 0
        while sparsifier.steps_taken < STEPS:
            optimizer.zero_grad()
            sparsifier.backward(model(torch.ones(6, 3)).square().sum() + number)
            sparsifier.step()


def test_a_scaler_goes_back_too() -> None:
    model = Net()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
    optimizer, sparsifier = tickets(model, scaler=scaler)
    scales: list[float] = []
    for _ in sparsifier.rounds():
        scales.append(scaler.get_scale())
        while sparsifier.steps_taken < STEPS:
            optimizer.zero_grad()
            sparsifier.backward(loss_of(model, sparsifier.steps_taken))
            sparsifier.step()
    assert scales == [8.0, *[16.0] * LAST]


# ---- mistakes


def test_a_loop_without_rounds_is_told_of_them() -> None:
    model = Net()
    _, sparsifier = tickets(model)
    sparsifier.backward(loss_of(model, 0))
    with pytest.raises(RuntimeError, match=r"lottery takes 4 rounds; train in `for number in sparsifier\.rounds\(\):`"):
        sparsifier.step()
    assert isinstance(sparsifier, Tickets)


@pytest.mark.parametrize("steps", [2, 5, STEPS + 1])
def test_a_round_of_too_few_or_too_many_steps_is_noticed(steps: int) -> None:
    model = Net()
    _, sparsifier = tickets(model)
    rounds = sparsifier.rounds()
    next(rounds)
    for step in range(steps):
        sparsifier.backward(loss_of(model, step))
        sparsifier.step()
    with pytest.raises(RuntimeError, match=rf"round 0: ended after step {steps}, but every round has to go on"):
        next(rounds)


def test_nothing_to_prune_is_refused() -> None:
    with pytest.raises(ValueError, match="sparsity: leaves nothing to prune"):
        tickets(Net(), sparsity=0.0)
