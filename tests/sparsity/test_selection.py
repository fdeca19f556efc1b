"""Sets of positions: drawn uniformly, chosen as by one big sort, exchanged without losing state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from math import comb
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer

from rnnsparse.nn.gradients import Strip
from rnnsparse.nn.materialise import materialise
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.randomness import generator_for
from rnnsparse.sparsity.selection import best_absent, contains, draw_absent, draw_positions, rewire


@given(positions=st.integers(0, 200), share=st.floats(0, 1), seed=st.integers(0, 999))
def test_drawn_positions_are_sorted_distinct_and_exactly_as_many(positions: int, share: float, seed: int) -> None:
    count = int(positions * share)
    drawn = draw_positions(count, positions, generator_for(seed))
    assert drawn.dtype == torch.int64
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    assert drawn.numel() == count
    assert set(drawn.tolist()) <= set(range(positions))


@pytest.mark.parametrize("count", [2, 60])  # few and most of all positions
def test_what_is_drawn_does_not_depend_on_the_default_device(count: int) -> None:
    expected = draw_positions(count, 100, generator_for(1, "test"))
    with torch.device("meta"):
        assert torch.equal(draw_positions(count, 100, generator_for(1, "test")), expected)


# The two ways of drawing: few of many, and many of few.
@pytest.mark.parametrize(("count", "positions", "limit"), [(2, 9, 66.6), (3, 6, 43.8)])
def test_every_subset_is_drawn_equally_often(count: int, positions: int, limit: float) -> None:
    subsets = comb(positions, count)
    draws = 200 * subsets
    seen = Counter(tuple(draw_positions(count, positions, generator_for(0, "draw", i)).tolist()) for i in range(draws))
    assert len(seen) == subsets
    # Chi-square with 35 and 19 degrees of freedom; the limits are the 99.9 % points.
    assert sum((n - 200) ** 2 / 200 for n in seen.values()) < limit


def test_few_positions_of_very_many_are_drawn_without_a_permutation() -> None:
    drawn = draw_positions(1000, 10**12, generator_for(1))
    assert drawn.numel() == 1000
    assert drawn.max() > 9 * 10**11


@given(
    positions=st.integers(1, 120),
    seed=st.integers(0, 999),
    density=st.floats(0, 1),
    share=st.floats(0, 1),
)
def test_drawn_absent_positions_are_distinct_and_absent(
    positions: int, seed: int, density: float, share: float
) -> None:
    generator = generator_for(seed)
    present = draw_positions(int(density * positions), positions, generator)
    count = int(share * (positions - present.numel()))
    drawn = draw_absent(count, present, positions, generator).tolist()
    assert drawn == sorted(set(drawn))
    assert len(drawn) == count
    assert not set(drawn) & set(present.tolist())
    assert set(drawn) <= set(range(positions))


def test_absent_positions_are_drawn_equally_often() -> None:
    # present:  x x . x . . . . x . . x . .   (nine absent, runs at both ends and none)
    present = torch.tensor([0, 1, 3, 8, 11])
    seen = Counter(tuple(draw_absent(2, present, 14, generator_for(0, "absent", i)).tolist()) for i in range(7200))
    assert len(seen) == comb(9, 2)
    assert sum((n - 200) ** 2 / 200 for n in seen.values()) < 66.6


def test_all_absent_positions_can_be_drawn() -> None:
    assert draw_absent(3, torch.tensor([1, 3]), 5, generator_for(0)).tolist() == [0, 2, 4]
    assert draw_absent(2, torch.tensor([], dtype=torch.int64), 2, generator_for(0)).tolist() == [0, 1]
    assert draw_absent(0, torch.tensor([0, 1]), 2, generator_for(0)).tolist() == []


def test_contains_tells_which_and_where() -> None:
    found, place = contains(torch.tensor([2, 5, 9]), torch.tensor([0, 2, 6, 9, 11]))
    assert found.tolist() == [False, True, False, True, False]
    assert place[found].tolist() == [0, 2]
    nothing, _ = contains(torch.tensor([], dtype=torch.int64), torch.tensor([0, 2]))
    assert nothing.tolist() == [False, False]


def cut(gradient_RC: Tensor, heights: Iterable[int]) -> list[Strip]:
    """Cut a matrix into strips of these heights, repeated."""
    strips, row, sizes = [], 0, list(heights)
    while row < gradient_RC.shape[0]:
        height = sizes[len(strips) % len(sizes)]
        strips.append(Strip(row * gradient_RC.shape[1], gradient_RC[row : row + height]))
        row += height
    return strips


@given(
    rows=st.integers(1, 12),
    cols=st.integers(1, 8),
    levels=st.integers(1, 4),
    heights=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    density=st.floats(0, 1),
    share=st.floats(0, 1),
    seed=st.integers(0, 999),
)
def test_the_best_absent_are_those_of_one_stable_sort_whatever_the_tiles(
    rows: int, cols: int, levels: int, heights: list[int], density: float, share: float, seed: int
) -> None:
    generator = generator_for(seed)
    # Few levels: many ties, many zeros, both signs.
    gradient = torch.randint(-levels, levels + 1, (rows, cols), generator=generator).float()
    present = draw_positions(int(density * rows * cols), rows * cols, generator)
    count = int(share * (rows * cols - present.numel()))
    found = best_absent(cut(gradient, heights), torch.abs, present, count)

    scores = gradient.abs().flatten()
    scores[present] = 0
    order = scores.argsort(descending=True, stable=True)
    expected = [int(p) for p in order[:count] if scores[p] > 0]
    assert found.tolist() == sorted(expected)


def test_the_best_absent_keep_the_precision_of_their_scores() -> None:
    gradient = torch.tensor([[1.0, 1 + 1e-12], [1 + 2e-12, 1]], dtype=torch.float64)
    none = torch.tensor([], dtype=torch.int64)
    assert best_absent(cut(gradient, [1]), torch.abs, none, 2).tolist() == [1, 2]
    assert best_absent(cut(gradient, [1]), torch.abs, none, 1).tolist() == [2]


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "adam fused": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "adam amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "adamw fused amsgrad": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True, amsgrad=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, centered=True),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.1, t0=0),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}


def train(weight: SparseWeight, bias: nn.Parameter, optimizer: Optimizer, seed: int) -> None:
    upstream = torch.randn(weight.rows, weight.cols, generator=generator_for(seed))
    optimizer.zero_grad()
    (dense,) = materialise([weight])
    ((dense * upstream).sum() + (bias * upstream[:, 0]).sum()).backward()
    optimizer.step()


def per_position(weight: SparseWeight, optimizer: Optimizer) -> dict[str, dict[int, float]]:
    """Return values and every per-connection state tensor, by flat position."""
    state = optimizer.state.get(weight.values, {})
    moving = {k: v for k, v in state.items() if isinstance(v, Tensor) and v.ndim == 1}
    assert all(v.shape == weight.values.shape for v in moving.values())
    moving["value"] = weight.values.detach()
    return {k: dict(zip(weight.indices.tolist(), v.tolist(), strict=True)) for k, v in moving.items()}


# As many connections, fewer, more, one, none, and all of 4 x 4; before: 1 4 5 10 15.
@pytest.mark.parametrize("after", [[0, 4, 6, 10, 15], [4, 15], [0, 1, 2, 3, 4, 5, 10, 15], [5], [], list(range(16))])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rewiring_keeps_survivors_exactly_and_starts_the_new_from_zero(name: str, after: list[int]) -> None:
    weight, bias = SparseWeight("w", 4, 4), nn.Parameter(torch.ones(4))
    weight.connect(torch.tensor([1, 4, 5, 10, 15]), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    optimizer = OPTIMIZERS[name]([weight.values, bias])
    for seed in range(3):
        train(weight, bias, optimizer, seed)
    parameter, group = weight.values, optimizer.param_groups[0]["params"]
    before = per_position(weight, optimizer)
    steps = optimizer.state[parameter].get("step")
    bias_before = bias.detach().clone()
    bias_state = {k: torch.as_tensor(v).clone() for k, v in optimizer.state[bias].items() if v is not None}

    grown = rewire(weight, torch.tensor(after, dtype=torch.int64), optimizer)

    assert grown == len(set(after) - {1, 4, 5, 10, 15})
    assert weight.indices.tolist() == after
    assert weight.values is parameter
    assert group[0] is parameter
    assert weight.values.grad is None
    moved = per_position(weight, optimizer)
    assert moved.keys() == before.keys()
    for key, old in before.items():
        assert moved[key] == {p: old.get(p, 0.0) for p in after}, key
    assert optimizer.state[parameter].get("step") == steps
    assert torch.equal(bias, bias_before)
    for key, old in bias_state.items():
        assert torch.equal(torch.as_tensor(optimizer.state[bias][key]), old)

    train(weight, bias, optimizer, seed=9)
    trained = per_position(weight, optimizer)
    assert all(trained["value"][p] != moved["value"][p] for p in after), "training goes on"
    assert torch.isfinite(weight.values).all()


def test_survivors_train_on_as_if_nothing_had_happened_and_new_ones_as_if_held_at_zero() -> None:
    # Momentum is linear in the past, so an untouched copy is the oracle.
    def fresh(indices: list[int]) -> tuple[SparseWeight, nn.Parameter, Optimizer]:
        weight, bias = SparseWeight("w", 3, 3), nn.Parameter(torch.ones(3))
        weight.connect(torch.tensor(indices), torch.tensor([float(i + 1) for i in indices]))
        return weight, bias, OPTIMIZERS["sgd momentum"]([weight.values, bias])

    rewired, untouched = fresh([0, 4, 8]), fresh([0, 4, 8])
    for seed in range(2):
        train(*rewired, seed)
        train(*untouched, seed)
    rewire(rewired[0], torch.tensor([0, 2, 8]), rewired[2])
    for seed in range(2, 5):
        train(*rewired, seed)
        train(*untouched, seed)
    ours, theirs = rewired[0].to_dense().flatten(), untouched[0].to_dense().flatten()
    assert torch.equal(ours[[0, 8]], theirs[[0, 8]])
    new = SparseWeight("w", 3, 3)
    new.connect(torch.tensor([2]))
    bias = nn.Parameter(torch.ones(3))
    optimizer = OPTIMIZERS["sgd momentum"]([new.values, bias])
    for seed in range(2, 5):
        train(new, bias, optimizer, seed)
    assert torch.equal(ours[2], new.values[0])
    assert ours[4] == 0


def test_rewiring_needs_no_optimizer_and_none_that_has_stepped() -> None:
    for optimizer in (None, OPTIMIZERS["adam"]([SparseWeight("other", 1, 1).values])):
        weight = SparseWeight("w", 2, 2)
        weight.connect(torch.tensor([0, 3]), torch.tensor([1.0, 2.0]))
        assert rewire(weight, torch.tensor([1, 3]), optimizer) == 1
        assert weight.to_dense().tolist() == [[0, 0], [0, 2]]
