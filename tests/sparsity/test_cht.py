"""Growth by paths of three connections: scores on graphs small enough to draw, and chances."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rnnsparse.kernels.paths import PathScores
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.randomness import generator_for
from rnnsparse.sparsity.allocation import Budget
from rnnsparse.sparsity.group import Group, Part
from rnnsparse.sparsity.method import StepContext
from rnnsparse.sparsity.methods.cht import CHT

HALF: dict[str, Any] = {"interval": 1, "drop_fraction": 0.5, "schedule": "constant", "stop": 1.0}


def group_of(weight: SparseWeight) -> Group:
    return Group(weight.name, (Part(weight, 0, weight.rows),))


def scores_of(picture: list[str]) -> Tensor:
    """Return the scores [R, C] of a picture in which x is a connection, with nan where there is one."""
    present = torch.tensor([[place == "x" for place in row] for row in picture])
    graph = PathScores(present.flatten().nonzero().squeeze(1), *present.shape)
    return graph.rows(0, len(picture)).masked_fill(present, torch.nan)


def test_scores_by_hand() -> None:
    # columns  0 1 2     Row 0 and column 2: the paths 0 - c0 - r1 - 2 and 0 - c1 - r1 - 2.
    #   row 0  x x .     c0 leads to rows 0 and 1: the first is an end, the second is on a path: nothing outside, e = 1.
    #   row 1  x x x     c1 also leads to row 2, which is on no path: e = 2. r1 leads to 0, 1 and the end 2: e = 1.
    #   row 2  . x .     1 / sqrt(1 * 1) + 1 / sqrt(2 * 1)
    scores = scores_of(["xx.", "xxx", ".x."])
    assert float(scores[0, 2]) == pytest.approx(1 + 0.5**0.5)
    # Row 2 and column 0: by c1 and r0 or r1. c1 leads to 0 and 1, both on paths: e = 1. r0 leads to c1: e = 1.
    # r1 leads to c1 and to column 2, which is on no path: e = 2.
    assert float(scores[2, 0]) == pytest.approx(1 + 0.5**0.5)
    # Row 2 and column 2: by c1 and r1. c1 leads to row 0, on no path: e = 2. r1 leads to column 0 as well: e = 2.
    assert float(scores[2, 2]) == pytest.approx(0.5)


def test_what_no_path_joins_has_no_score() -> None:
    scores = scores_of(["x..", ".x.", ".x."])
    assert scores.nan_to_num().tolist() == [[0.0] * 3] * 3
    assert scores_of(["...", "..."]).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_the_sums_over_all_paths(seed: int) -> None:
    present = torch.rand(7, 9, generator=generator_for(seed)) < 0.35
    graph = PathScores(present.flatten().nonzero().squeeze(1), 7, 9)
    found = torch.cat([graph.rows(0, 3), graph.rows(3, 7)])
    of_row = [set(row.nonzero().flatten().tolist()) for row in present]
    of_column = [set(column.nonzero().flatten().tolist()) for column in present.T]
    for u, v in (~present).nonzero().tolist():
        paths = [(c, r) for c in of_row[u] for r in of_column[v] if c in of_row[r]]
        on_rows, on_columns = {r for _, r in paths}, {c for c, _ in paths}
        expected = 0.0
        for c, r in paths:
            outside_c = 1 + len(of_column[c] - on_rows - {u})
            outside_r = 1 + len(of_row[r] - on_columns - {v})
            expected += (outside_c * outside_r) ** -0.5
        assert float(found[u, v]) == pytest.approx(expected), (u, v)


def test_only_what_paths_join_grows_while_there_is_enough_of_it() -> None:
    # All in the left half can be joined; of the right half nothing is connected.
    weight = SparseWeight("w", 4, 8)
    places = [0, 1, 8, 10, 17, 18, 24, 27]
    weight.connect(torch.tensor(places), torch.full((8,), 0.5))
    method = CHT(**HALF | {"drop_fraction": 0.25})
    for seed in range(30):
        (chosen,) = method.update([Budget(group_of(weight), 8)], StepContext(1, 10, seed))
        assert len(set(chosen.tolist())) == 8
        assert bool((chosen % 8 < 4).all())


def test_what_no_path_joins_grows_at_random_when_nothing_else_is_left() -> None:
    weight = SparseWeight("w", 2, 6)
    weight.connect(torch.tensor([0, 7]), torch.tensor([1.0, 1.0]))
    seen = set()
    for seed in range(80):
        (chosen,) = CHT(**HALF).update([Budget(group_of(weight), 2)], StepContext(1, 10, seed))
        seen.update(chosen.tolist())
    assert seen == set(range(12))


@pytest.mark.parametrize("step", [0, 10])
def test_chances_are_powers_of_scores(step: int) -> None:
    # Powers 1 / (1 - .5) = 2 at the start and 1 / (1 - .75) = 4 at the stop, after step 10.
    method, scores, seen = CHT(stop=1.0), torch.tensor([1.0, 2.0, 0.0, 3.0]), torch.zeros(4)
    context, numbers = StepContext(step, 10, 0), generator_for(step)
    for _ in range(4000):
        seen[method._drawn(scores, context, numbers).argmax()] += 1
    chances = scores ** (4 if step else 2) / (scores ** (4 if step else 2)).sum()
    assert seen[2] == 0
    # Chi-square with 2 degrees of freedom, 99.9 % point.
    assert float(((seen - 4000 * chances)[chances > 0] ** 2 / (4000 * chances[chances > 0])).sum()) < 13.8


@pytest.mark.parametrize("size", [1e-4, 1e4])
def test_the_sharpest_chances_take_the_largest(size: float) -> None:
    method = CHT(delta=0.9999, final_delta=0.9999)
    drawn = method._drawn(torch.arange(1.0, 9.0) * size, StepContext(1, 10, 0), generator_for(1))
    assert drawn.argsort().tolist() == list(range(8))


def test_large_weights_mostly_stay_and_small_ones_sometimes() -> None:
    weight = SparseWeight("w", 1, 40)
    weight.connect(torch.arange(10), torch.tensor([0.1, 1.0] * 5))
    stayed = torch.zeros(40)
    for seed in range(300):
        (chosen,) = CHT(**HALF).update([Budget(group_of(weight), 10)], StepContext(1, 10, seed))
        stayed[chosen] += 1
    assert float(stayed[1:10:2].mean()) > 290
    assert 10 < float(stayed[0:10:2].mean()) < 100
