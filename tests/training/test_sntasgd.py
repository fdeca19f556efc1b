from __future__ import annotations

import io
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

from rnnsparse.nn.weight import SparseWeight
from rnnsparse.sparsity.selection import draw_positions, rewire
from rnnsparse.training.step.sntasgd import SNTASGD

POSITIONS = 60


def weight_of(indices: list[int] | Tensor, values: Tensor) -> SparseWeight:
    weight = SparseWeight("w", 6, POSITIONS // 6).to(values.dtype)
    weight.connect(torch.as_tensor(indices), values)
    return weight


def triggered(weight: SparseWeight, **options: Any) -> SNTASGD:
    """An optimizer whose averaging has just started."""
    optimizer = SNTASGD([weight.values], nonmonotone=0, **options)
    optimizer.after_evaluation(1.0)
    optimizer.after_evaluation(2.0)
    assert optimizer.averaging
    return optimizer


def step(weight: SparseWeight, optimizer: SNTASGD, gradient: Tensor) -> None:
    """One step by the gradient [POSITIONS] where connections are."""
    weight.values.grad = gradient[weight.indices].clone()
    optimizer.step()
    weight.values.grad = None


def averages(weight: SparseWeight, optimizer: SNTASGD) -> dict[int, float]:
    with optimizer.averages():
        return dict(zip(weight.indices.tolist(), weight.values.tolist(), strict=True))


@pytest.mark.parametrize(
    ("nonmonotone", "losses", "starts_after"),
    [
        # Worse than the best so far, the one just before included.
        (0, [5, 4, 3, 3, 4], 5),
        (0, [5, 6], 2),
        # The last two do not count: 4 is worse than 3, but that is one of them; then 3.5 is worse than 3.
        (2, [5, 3, 4, 3.5], None),
        (2, [5, 3, 4, 3.5, 3.5], 5),
        # Getting worse slowly counts against the best, not against the neighbour.
        (2, [1, 2, 3], None),
        (2, [1, 2, 3, 4], 4),
        (5, [9, 8, 7, 6, 5, 4, 3, 2, 1], None),
        (5, [9, 8, 7, 6, 5, 4, 10], 7),
        (5, [9, 8, 7, 6, 5, 4, 9], None),  # only the first counts, and equal is not worse
        # Once started it goes on.
        (1, [1, 2, 3, 0.5, 0.4], 3),
        (3, [], None),
    ],
)
def test_averaging_starts_when_validation_is_worse_than_the_best_but_the_last(
    nonmonotone: int, losses: list[float], starts_after: int | None
) -> None:
    optimizer = SNTASGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, nonmonotone=nonmonotone)
    seen = []
    for loss in losses:
        optimizer.after_evaluation(loss)
        seen.append(optimizer.averaging)
    first = len(losses) if starts_after is None else starts_after - 1
    assert seen == [number >= first for number in range(len(losses))]


def test_its_iterates_are_those_of_plain_sgd_with_l2_before_and_after_the_trigger() -> None:
    values = torch.randn(40)
    weight, plain = weight_of(torch.arange(40), values), weight_of(torch.arange(40), values)
    optimizer = SNTASGD([weight.values], lr=0.1, weight_decay=0.2, nonmonotone=0)
    textbook = torch.optim.SGD([plain.values], lr=0.1, weight_decay=0.2)
    for number in range(10):
        gradient = torch.randn(POSITIONS)
        optimizer.param_groups[0]["lr"] = textbook.param_groups[0]["lr"] = 0.1 / (1 + number)
        plain.values.grad = gradient[plain.indices]
        textbook.step()
        step(weight, optimizer, gradient)
        assert torch.equal(weight.values, plain.values)
        optimizer.after_evaluation(float(number))
        with optimizer.averages():
            assert torch.equal(weight.values, plain.values) == (number < 3)
        assert torch.equal(weight.values, plain.values)
        assert bool(optimizer.state[weight.values]) == (number > 1), "no memory before there are averages"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_the_average_of_each_connection_is_the_mean_of_its_own_values_since_it_was_grown(
    dtype: torch.dtype, tolerance: float
) -> None:
    """Connections come and go every four steps, also those that were there before, and their number changes."""
    generator = torch.Generator().manual_seed(0)
    weight = weight_of(draw_positions(40, POSITIONS, generator), torch.ones(40, dtype=dtype))
    optimizer = triggered(weight, lr=0.5)
    lives: dict[int, list[float]] = defaultdict(list)
    returned = 0
    known: set[int] = set()
    for number in range(40):
        step(weight, optimizer, torch.randn(POSITIONS, generator=generator).to(dtype))
        for place, value in zip(weight.indices.tolist(), weight.values.tolist(), strict=True):
            lives[place].append(value)
        found = averages(weight, optimizer)
        expected = {place: sum(values) / len(values) for place, values in lives.items()}
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance)
        if number % 4 == 3:
            kept = weight.indices[torch.rand(weight.connections, generator=generator) < 0.7]
            present = torch.cat([kept, draw_positions(12, POSITIONS, generator)]).unique()
            rewire(weight, present, optimizer)
            known |= set(lives)
            returned += len((set(present.tolist()) & known) - set(lives))
            lives = defaultdict(list, {place: lives[place] for place in present.tolist() if place in lives})
            grown = set(present.tolist()) - set(lives)
            found = averages(weight, optimizer)
            assert sorted(found) == present.tolist()
            assert {found[place] for place in grown} == {0.0}
    assert returned > 10, "connections that were dropped and grown again have been seen"


def test_a_connection_without_a_step_has_its_value_as_average() -> None:
    weight = weight_of([3, 7], torch.tensor([0.25, -4.0]))
    optimizer = triggered(weight, lr=1.0)
    assert averages(weight, optimizer) == {3: 0.25, 7: -4.0}
    step(weight, optimizer, torch.ones(POSITIONS))
    rewire(weight, torch.tensor([3, 5]), optimizer)
    with torch.no_grad():
        weight.values[1] = 9.0  # as if connections were grown with a value
    assert averages(weight, optimizer) == {3: -0.75, 5: 9.0}
    step(weight, optimizer, torch.ones(POSITIONS))
    assert averages(weight, optimizer) == {3: -1.25, 5: 8.0}


def test_iterates_come_back_when_an_evaluation_fails() -> None:
    weight = weight_of([3], torch.tensor([1.0]))
    optimizer = triggered(weight, lr=1.0)
    step(weight, optimizer, torch.ones(POSITIONS))
    step(weight, optimizer, torch.ones(POSITIONS))
    with pytest.raises(RuntimeError, match="lost"), optimizer.averages():
        raise RuntimeError(f"lost at {weight.values.item()}")
    assert weight.values.item() == -1.0


@pytest.mark.parametrize("inside", [True, False])
def test_saved_and_loaded_at_every_step_it_continues_bit_exactly(inside: bool) -> None:
    """With the averages in the model and the iterates in the state, or the other way round."""
    generator = torch.Generator().manual_seed(0)
    first = draw_positions(30, POSITIONS, generator)
    straight, stopped = weight_of(first, torch.ones(30)), weight_of(first, torch.ones(30))
    options: dict[str, Any] = {"lr": 0.3, "weight_decay": 0.01, "nonmonotone": 2}
    ahead, behind = SNTASGD([straight.values], **options), SNTASGD([stopped.values], **options)
    for number in range(20):
        gradient = torch.randn(POSITIONS, generator=generator)
        step(straight, ahead, gradient)
        step(stopped, behind, gradient)
        if number % 3 == 2:
            present = torch.cat([straight.indices[::2], draw_positions(20, POSITIONS, generator)]).unique()
            rewire(straight, present, ahead)
            rewire(stopped, present, behind)
        for optimizer in (ahead, behind):
            optimizer.after_evaluation(abs(number - 4.0))
        file = io.BytesIO()
        if inside:
            with behind.averages():
                torch.save((stopped.indices, stopped.values.data, behind.state_dict()), file)
        else:
            torch.save((stopped.indices, stopped.values.data, behind.state_dict()), file)
        file.seek(0)
        indices, values, state = torch.load(file, weights_only=True)
        stopped = weight_of(indices, values)
        behind = SNTASGD([stopped.values], **options)
        behind.load_state_dict(state)
        assert torch.equal(straight.values, stopped.values), number
        assert averages(straight, ahead) == averages(stopped, behind), number
    assert ahead.averaging
    assert behind.averaging
