"""RigL with a constant fan-in, on arrays small enough to draw (a dot is an absent position), and in whole runs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rnnsparse.config import parse_config
from rnnsparse.errors import UserError
from rnnsparse.nn.gradients import DenseGradient, MatrixGradient
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.randomness import generator_for
from rnnsparse.settings.sparsity import BudgetConfig
from rnnsparse.sparsity.allocation import Budget
from rnnsparse.sparsity.fan_in import constant_fan_in, count_in_rows, row_edges
from rnnsparse.sparsity.group import Group, Part, make_groups
from rnnsparse.sparsity.method import StepContext
from rnnsparse.sparsity.methods.srigl import SRigL
from rnnsparse.training.build import empty_model

o = math.nan
HALF: dict[str, Any] = {"interval": 1, "drop_fraction": 0.5, "schedule": "constant", "stop": 1.0}
OFTEN: dict[str, Any] = {"interval": 2, "drop_fraction": 0.5, "stop": 0.8}
STEPS = 12


def weight_of(picture: list[list[float]], gradient: list[list[float]], name: str = "w") -> SparseWeight:
    dense = torch.tensor(picture)
    weight = SparseWeight(name, *dense.shape)
    indices = (~dense.isnan()).flatten().nonzero().squeeze(1)
    weight.connect(indices, dense.flatten()[indices])
    weight.dense_gradient = DenseGradient(MatrixGradient(torch.tensor(gradient)))
    return weight


def updated(method: SRigL, weight: SparseWeight) -> list[int]:
    group = Group(weight.name, (Part(weight, 0, weight.rows),))
    (indices,) = method.update([Budget(group, group.connections)], StepContext(1, 10, 0))
    return indices.tolist()


def test_every_row_gets_as_many_as_the_others_by_the_best_of_its_own() -> None:
    # values                gradient              half of six stay: .9, .8, .7; each row is filled to two
    #  .9  .8  .1   .        0    0    9    8      K   K   .   .     its 9 and 8 have no room
    #  .2  .7   .   .        0    0    1    2      .   K   .   +
    #  .3   .   .   .        0    3    4    5      .   .   +   +
    weight = weight_of(
        [[0.9, 0.8, 0.1, o], [0.2, 0.7, o, o], [0.3, o, o, o]], [[0.0, 0, 9, 8], [0, 0, 1, 2], [0, 3, 4, 5]]
    )
    assert updated(SRigL(**HALF, ablation=0), weight) == [0, 1, 5, 7, 10, 11]


def test_a_row_in_which_too_few_matter_loses_all_and_the_others_share_them() -> None:
    # values                gradient              of six stay .9 .8 .7, the steepest three are 9, 8, 7
    #  .9  .8  .1   .        0    0    9    0      matter: 3, 2 and 1 of a fan-in of 2
    #  .2  .7   .   .        0    0    8    0
    #  .3   .   .   .        7    0    0    0
    picture = [[0.9, 0.8, 0.1, o], [0.2, 0.7, o, o], [0.3, o, o, o]]
    gradient = [[0.0, 0, 9, 1], [0, 0, 8, 2], [7, 0, 0, 0]]
    weight = weight_of(picture, gradient)
    assert updated(SRigL(**HALF, ablation=1.0), weight) == [0, 1, 2, 5, 6, 7]
    # With one of two enough, all rows stay in use.
    assert [p // 4 for p in updated(SRigL(**HALF, ablation=0.5), weight)] == [0, 0, 1, 1, 2, 2]
    weight = weight_of(picture, gradient, "output")
    assert [p // 4 for p in updated(SRigL(**HALF, ablation=1.0), weight)] == [0, 0, 1, 1, 2, 2]
    assert [p // 4 for p in updated(SRigL(**HALF, ablation=1.0, spared=("out*",)), weight)] == [0, 0, 1, 1, 2, 2]
    assert [p // 4 for p in updated(SRigL(**HALF, ablation=1.0, spared=()), weight)] == [0, 0, 0, 1, 1, 1]


def test_a_spared_group_is_there_as_a_whole() -> None:
    def model(spared: str) -> None:
        sections = {"model": {"embedding_dim": 4, "hidden_size": 6}, "sparsity": {"method": "srigl", "sparsity": 0.5}}
        overrides = [f"sparsity.spared=[{spared}]", "sparsity.granularity=matrix"]
        empty_model(parse_config(sections, "c.yaml", overrides), 9, torch.device("cpu"))

    model("rnn.0, out*, 'rnn.0.recurrent.*'")
    with pytest.raises(UserError, match=r"^sparsity\.spared: no group is called 'nosuch'; there are embedding, rnn"):
        model("nosuch")
    with pytest.raises(UserError, match=r"^sparsity\.spared: selects rnn\.0\.recurrent\.r but not all of"):
        model("rnn.0.recurrent.r")


def test_as_many_rows_stay_in_use_as_hold_all_connections() -> None:
    # Five of six positions exist: no row can go, though in the last one nothing matters.
    weight = weight_of([[0.9, 0.8], [0.7, 0.6], [0.1, o]], [[9.0, 8], [7, 0], [0, 0]])
    assert [p // 2 for p in updated(SRigL(**HALF, ablation=1.0), weight)] == [0, 0, 1, 1, 2]


def test_where_gradients_say_nothing_rows_are_filled_at_random_and_no_row_by_another() -> None:
    seen = set()
    for seed in range(60):
        weight = weight_of([[0.9, 0.8, 0.1, o], [0.2, o, o, o]], [[0.0] * 4, [0.0] * 4])
        group = Group("w", (Part(weight, 0, 2),))
        (indices,) = SRigL(**HALF, ablation=0).update([Budget(group, 4)], StepContext(1, 10, seed))
        assert indices[:2].tolist() == [0, 1]
        assert len(set(indices.tolist())) == 4
        assert bool((indices[2:] >= 4).all())
        seen.update(indices[2:].tolist())
    assert seen == {4, 5, 6, 7}


@pytest.mark.parametrize(
    ("total", "widths", "order", "fan_in"),
    [
        (6, [4, 4, 4], [0, 1, 2], [2, 2, 2]),
        (7, [4, 4, 4], [2, 0, 1], [2, 2, 3]),
        (8, [4, 4, 4], [2, 0, 1], [3, 2, 3]),
        (12, [4, 4, 4], [0, 1, 2], [4, 4, 4]),
        (9, [2, 9, 9], [0, 1, 2], [2, 4, 3]),
        (5, [0, 4, 4], [0, 1, 2], [0, 3, 2]),
        (0, [4, 4], [0, 1], [0, 0]),
    ],
)
def test_fan_ins_by_hand(total: int, widths: list[int], order: list[int], fan_in: list[int]) -> None:
    assert constant_fan_in(total, torch.tensor(widths), torch.tensor(order)).tolist() == fan_in


@pytest.mark.parametrize("block_rows", [1, 4])
@pytest.mark.parametrize("granularity", ["gate", "matrix", "cell"])
@pytest.mark.parametrize("ablation", [0.0, 0.9])
def test_fan_ins_of_the_rows_in_use_differ_by_one_at_most_from_the_first_step_on(
    tiny_run: Any, block_rows: int, granularity: Any, ablation: float
) -> None:
    budget = BudgetConfig(sparsity=0.7, granularity=granularity)
    method = SRigL(**OFTEN, ablation=ablation)
    run = tiny_run(method, "lstm", total_steps=STEPS, budget=budget, block_rows=block_rows, num_layers=2)
    empty = 0
    for step in range(STEPS + 1):
        if step:
            run.step(step)
        for each in run.budgets:
            edges = row_edges(each.group)
            counts, widths = count_in_rows(each.group.indices(), edges), edges.diff()
            used = counts[counts > 0]
            open_ones = counts[(counts > 0) & (counts < widths)]
            assert int(used.max()) - int(open_ones.min() if len(open_ones) else used.max()) <= 1, (
                step,
                each.group.name,
            )
            empty += int((counts == 0).sum()) if each.group.name not in ("embedding", "output") and step else 0
    assert (empty > 0) == (ablation > 0)


def test_the_first_connections_have_a_constant_fan_in_and_are_drawn_uniformly_in_each_row() -> None:
    weight = SparseWeight("w", 6, 5, ["w.a", "w.b"])
    group = make_groups([weight], "gate")[1]
    seen = torch.zeros(3, 5)
    for seed in range(600):
        drawn = SRigL().draw_connections(group, 6, generator_for(seed))
        assert drawn.tolist() == sorted(set(drawn.tolist()))
        picture = torch.zeros(15).index_fill(0, drawn, 1).view(3, 5)
        assert picture.sum(1).tolist() == [2, 2, 2]
        seen += picture
    # Two of five in each row: chi-square with 12 degrees of freedom, 99.9 % point.
    assert float(((seen - 240) ** 2 / (240 * 3 / 5)).sum()) * 4 / 5 < 32.9
