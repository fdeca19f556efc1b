"""Connections that move between blocks: the division by hand and in properties, and in whole runs."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import Optimizer

from rnnsparse.config import parse_config
from rnnsparse.errors import UserError
from rnnsparse.nn.gradients import DenseGradient, MatrixGradient
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.settings.sparsity import BudgetConfig
from rnnsparse.sparsity.allocation import Budget, connect_randomly
from rnnsparse.sparsity.group import Group, Part
from rnnsparse.sparsity.method import METHODS, StepContext
from rnnsparse.sparsity.methods.rigl import RigL
from rnnsparse.sparsity.methods.set import SET
from rnnsparse.sparsity.methods.snfs import SNFS
from rnnsparse.sparsity.redistribution import fewer_drops, shared_out, with_fewer_in_all

HALF: dict[str, Any] = {"interval": 1, "drop_fraction": 0.5, "schedule": "constant", "stop": 1.0}
OFTEN: dict[str, Any] = {"interval": 2, "drop_fraction": 0.5, "stop": 0.8}
CONTEXT = StepContext(step=1, total_steps=10, seed=0)
STEPS = 12


def group_of(positions: int, connections: int, name: str = "w") -> Group:
    """One row whose first positions are connected, with values 1, 2, 3, ..."""
    weight = SparseWeight(name, 1, positions)
    weight.connect(torch.arange(connections), torch.arange(1.0, connections + 1))
    return Group(name, (Part(weight, 0, 1),))


# ---- dividing


@pytest.mark.parametrize(
    ("total", "activity", "limits", "counts"),
    [
        (10, [1, 4], [50, 50], [2, 8]),
        (10, [1, 1, 1], [50, 50, 50], [4, 3, 3]),  # 3 1/3 each: equal remainders favour the first
        (10, [1, 2, 3], [50, 50, 50], [2, 3, 5]),  # 1 2/3, 3 1/3, 5
        (10, [1, 4], [50, 6], [4, 6]),  # 8 do not fit, so the rest goes to the other
        (12, [1, 1, 10], [50, 2, 5], [5, 2, 5]),  # 10 do not fit; of the 7 left 3.5 each, of which 2 fit
        (9, [0, 3, 0], [50, 4, 25], [3, 4, 2]),  # what others would have to share without mattering: 50 to 25
        (6, [0, 0], [10, 20], [2, 4]),  # nothing matters: by the room there is
        (0, [1, 2], [5, 5], [0, 0]),
        (3, [1e-30, 1e30], [2, 2], [1, 2]),
        (7, [1, 2], [3, 4], [3, 4]),
        (0, [], [], []),
    ],
)
def test_the_division_by_hand(total: int, activity: list[float], limits: list[int], counts: list[int]) -> None:
    assert shared_out(total, activity, limits, [1] * len(limits)) == counts


blocks = st.lists(
    st.tuples(st.one_of(st.just(0.0), st.floats(0, 1e6)), st.integers(0, 10_000)), min_size=1, max_size=12
)


@given(blocks=blocks, share=st.floats(0, 1))
def test_the_division_is_exact_within_the_room_and_proportional_within_one(
    blocks: list[tuple[float, int]], share: float
) -> None:
    activity, limits = zip(*blocks, strict=True)
    total = int(share * sum(limits))
    counts = shared_out(total, activity, limits, [1] * len(limits))
    assert sum(counts) == total
    assert all(0 <= count <= limit for count, limit in zip(counts, limits, strict=True))
    # Where there is room, counts differ from one common multiple of the activity by less than one.
    roomy = [i for i, limit in enumerate(limits) if counts[i] < limit and activity[i] > 0]
    lowest = max((Fraction(counts[i] - 1) / Fraction(activity[i]) for i in roomy), default=Fraction(0))
    highest = min((Fraction(counts[i] + 1) / Fraction(activity[i]) for i in roomy), default=Fraction(1))
    assert not roomy or lowest < highest
    # A full block would have got more than there was room for; one that does not matter gets the leavings.
    for i in set(range(len(limits))) - set(roomy):
        if activity[i] == 0 and any(activity):
            assert counts[i] == 0 or not roomy
        elif roomy and limits[i]:
            assert limits[i] - 1 < highest * Fraction(activity[i])


def test_more_than_there_is_room_for_is_refused() -> None:
    with pytest.raises(ValueError, match="room"):
        shared_out(8, [1, 1], [3, 4], [1, 1])


@given(
    groups=st.lists(
        st.tuples(st.floats(0, 1e6), st.integers(0, 300), st.integers(0, 300), st.sampled_from([1, 2, 4, 8, 16])),
        min_size=1,
        max_size=8,
    )
)
def test_what_groups_of_blocks_give_up_they_regrow_to_the_last_entry(
    groups: list[tuple[float, int, int, int]],
) -> None:
    activity, dropped, absent, block_rows = zip(*groups, strict=True)
    room = [a + b for a, b in zip(dropped, absent, strict=True)]
    total = sum(n * rows for n, rows in zip(dropped, block_rows, strict=True))
    counts = shared_out(total, activity, room, block_rows)
    assert sum(n * rows for n, rows in zip(counts, block_rows, strict=True)) == total
    assert all(0 <= count <= limit for count, limit in zip(counts, room, strict=True))


# ---- nearly full blocks


@pytest.mark.parametrize(
    ("connections", "activity", "drop"),
    [
        (9, [2, 1], 0),  # sparsity .1, above average: int(.1 * 9)
        (9, [1, 2], 4),  # below average: as many as ever
        (9, [1, 1], 4),  # not above average
        (8, [2, 1], 4),  # sparsity .2 is not below 20 %
        (10, [2, 1], 0),  # full
    ],
)
def test_a_nearly_full_block_that_matters_drops_at_most_its_sparsity(
    connections: int, activity: list[float], drop: int
) -> None:
    groups = [group_of(10, connections), group_of(10, 4)]
    assert fewer_drops(groups, [4, 2], activity) == [drop, 2]


def test_the_share_that_a_nearly_full_block_drops_is_its_sparsity() -> None:
    #  85 of 100: sparsity .15, of which int(.15 * 85) may go; a smaller drop stays what it is
    groups = [group_of(100, 85), group_of(100, 10)]
    assert fewer_drops(groups, [42, 5], [2, 1]) == [12, 5]
    assert fewer_drops(groups, [11, 5], [2, 1]) == [11, 5]


# ---- an update


def test_blocks_regrow_in_proportion_to_their_mean_size() -> None:
    #  w: 1 2 3 4 . . . .    mean 2.5; drops 1 2          of the 4 dropped in all:
    #  v: 1 2 3 4 . . . .    here times 3: mean 7.5       w 1, v 3
    first, second = group_of(8, 4, "w"), group_of(8, 4, "v")
    second.parts[0].weight.values.data *= 3
    method = SET(**HALF, redistribute="weight")
    chosen = method.update([Budget(first, 4), Budget(second, 4)], CONTEXT)
    assert [len(indices) for indices in chosen] == [3, 5]
    assert all({2, 3} <= set(indices.tolist()) for indices in chosen)


def test_what_does_not_fit_goes_elsewhere() -> None:
    # v keeps 2 of 4 connections on 5 positions, so it has room for 3; 3.6 of 4 would be its part.
    first, second = group_of(8, 4, "w"), group_of(5, 4, "v")
    second.parts[0].weight.values.data *= 9
    chosen = SET(**HALF, redistribute="weight").update([Budget(first, 4), Budget(second, 4)], CONTEXT)
    assert [len(indices) for indices in chosen] == [3, 5]


def test_gradients_count_by_their_size_not_their_sign() -> None:
    first, second = group_of(8, 4, "w"), group_of(8, 4, "v")
    for group, gradients in ((first, [1.0, -1, 1, -1]), (second, [0, 0, -12.0, 0])):
        weight = group.parts[0].weight
        weight.values.grad = torch.tensor(gradients)
        weight.dense_gradient = DenseGradient(MatrixGradient(torch.ones(1, 8)))
    method = RigL(**HALF, redistribute="gradient")
    chosen = method.update([Budget(first, 4), Budget(second, 4)], CONTEXT)
    # The first positions that are free have gradient one as well as any.
    assert [indices.tolist() for indices in chosen] == [[0, 2, 3], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_momenta_are_those_of_the_optimizer(kind: str) -> None:
    first, second = group_of(8, 4, "w"), group_of(8, 4, "v")
    values = [group.parts[0].weight.values for group in (first, second)]
    optimizer: Optimizer = torch.optim.Adam(values) if kind == "adam" else torch.optim.SGD(values, 0.1, momentum=0.9)
    key = "exp_avg" if kind == "adam" else "momentum_buffer"
    optimizer.state[values[0]][key] = torch.tensor([1.0, -1, 1, -1])
    optimizer.state[values[1]][key] = torch.tensor([3.0, 3, -3, -3])
    context = StepContext(1, 10, 0, optimizer)
    chosen = SET(**HALF, redistribute="momentum").update([Budget(first, 4), Budget(second, 4)], context)
    assert [len(indices) for indices in chosen] == [3, 5]


def test_before_the_first_step_of_the_optimizer_room_decides() -> None:
    groups = [group_of(8, 4, "w"), group_of(20, 4, "v")]
    optimizer = torch.optim.Adam([group.parts[0].weight.values for group in groups])
    chosen = SET(**HALF, redistribute="momentum").update(
        [Budget(g, 4) for g in groups], StepContext(1, 10, 0, optimizer)
    )
    assert [len(indices) for indices in chosen] == [3, 5]  # room for 6 and 18


def test_the_momenta_of_snfs_are_its_own_at_the_connections() -> None:
    # One gradient 4, of which .1 enters the average: at the connections of w once, at those of v never, though its
    # absent positions have large ones; the optimizer has no momenta at all.
    first, second = group_of(8, 4, "w"), group_of(8, 4, "v")
    weights = [group.parts[0].weight for group in (first, second)]
    optimizer = torch.optim.SGD([weight.values for weight in weights], lr=0.1)
    weights[0].dense_gradient = DenseGradient(MatrixGradient(torch.tensor([[4.0, 0, 0, 0, 0, 0, 0, 0]])))
    weights[1].dense_gradient = DenseGradient(MatrixGradient(torch.tensor([[0.0, 0, 0, 0, 9, 9, 9, 9]])))
    method = SNFS(**HALF, redistribute="momentum")
    method.observe(weights)
    context = StepContext(1, 10, 0, optimizer)
    torch.testing.assert_close(method.momenta(first, context), torch.tensor([0.4, 0, 0, 0]))
    assert method.activity(first, context) == pytest.approx(0.1)
    assert method.activity(second, context) == 0
    chosen = method.update([Budget(first, 4), Budget(second, 4)], context)
    assert [len(indices) for indices in chosen] == [6, 2]


# ---- whole runs


def sgd(parameters: Any) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


every_kind = pytest.mark.parametrize("redistribute", ["gradient", "momentum", "weight"])
every_method = pytest.mark.parametrize(
    "name", ["set", "rigl", "snfs", "scout", "gse", "srigl", "mest", "cht", "granet"]
)


@every_method
@every_kind
def test_a_run_keeps_the_sum_exact_and_moves_connections_between_gates(
    tiny_run: Any, name: str, redistribute: Any
) -> None:
    run = tiny_run(METHODS[name](**OFTEN, redistribute=redistribute), "lstm", sgd, total_steps=STEPS)
    plain = tiny_run(METHODS[name](**OFTEN), "lstm", sgd, total_steps=STEPS)
    for step in range(1, STEPS + 1):
        run.step(step)
        plain.step(step)
        assert total(run) == total(plain), step
    assert total(run) == sum(budget.connections for budget in run.budgets)
    counts = [budget.group.connections - budget.connections for budget in run.budgets]
    assert sum(count != 0 for count in counts) > 3
    assert all(0 < budget.group.connections <= budget.group.positions for budget in run.budgets)


@every_method
@pytest.mark.parametrize(
    ("redistribute", "drop_fraction"), [("gradient", 1.0), ("momentum", 1.0), ("momentum", 0.3), ("weight", 1.0)]
)
def test_no_gate_is_ever_emptied(tiny_run: Any, name: str, redistribute: Any, drop_fraction: float) -> None:
    often = {"interval": 1, "drop_fraction": drop_fraction, "schedule": "constant", "stop": 0.9}
    method = METHODS[name](**often, redistribute=redistribute)
    run = tiny_run(method, "lstm", sgd, total_steps=STEPS, budget=BudgetConfig(sparsity=0.8))
    for step in range(1, STEPS + 1):
        run.step(step)
        assert all(budget.group.connections > 0 for budget in run.budgets), step


@every_method
@every_kind
def test_blocks_with_a_number_of_their_own_keep_it(tiny_run: Any, name: str, redistribute: Any) -> None:
    budget = BudgetConfig(sparsity=0.8, overrides={"rnn.0.recurrent.g": 0.5, "output": 0.25, "rnn.0.input.i": 1.0})
    method, plain = METHODS[name](**OFTEN, redistribute=redistribute), METHODS[name](**OFTEN)
    run, without = (tiny_run(m, "lstm", sgd, total_steps=STEPS, budget=budget) for m in (method, plain))
    for step in range(1, STEPS + 1):
        run.step(step)
        without.step(step)
        own = [b.group.name for b in run.budgets if b.overridden]
        assert own == ["rnn.0.input.i", "rnn.0.recurrent.g", "output"]
        counts, planned = ({b.group.name: b.group.connections for b in each.budgets} for each in (run, without))
        assert [counts[name] for name in own] == [planned[name] for name in own], step
        assert sum(counts.values()) == sum(planned.values())
    assert counts != planned


@pytest.mark.parametrize(
    ("present", "planned", "counts"),
    [
        ([10, 20], [5, 10], [5, 10]),
        ([20, 10], [5, 10], [10, 5]),  # half of each, wherever connections have moved
        ([29, 1], [14, 1], [14, 1]),  # 0.5 of the one is not taken: it is the last
        ([1, 1, 6], [1, 1, 1], [1, 1, 1]),
        ([4, 0, 6], [4, 1, 0], [2, 0, 3]),
        ([3, 3], [3, 3], [3, 3]),
        ([], [], []),
    ],
)
def test_shrinking_by_hand(present: list[int], planned: list[int], counts: list[int]) -> None:
    budgets = [Budget(group_of(30, count), 1) for count in present]
    assert with_fewer_in_all(budgets, planned) == counts
    own = Budget(group_of(30, 8), 4, overridden=True)
    assert with_fewer_in_all([own, *budgets], [6, *planned]) == [6, *counts]


def total(run: Any) -> int:
    return sum(int(budget.group.connections) for budget in run.budgets)


@pytest.mark.parametrize(
    ("name", "redistribute"),
    [("set", "weight"), ("rigl", "gradient"), ("rigl", "momentum"), ("snfs", "momentum"), ("scout", "gradient"),
     ("granet", "momentum")],
)  # fmt: skip
def test_a_run_reloaded_at_every_step_is_bitwise_the_run_that_went_through(
    tiny_run: Any, name: str, redistribute: Any
) -> None:
    def fresh() -> Any:
        return tiny_run(METHODS[name](**OFTEN, redistribute=redistribute), "gru", total_steps=STEPS)

    through, reloaded = fresh(), fresh()
    for step in range(1, STEPS + 1):
        file = io.BytesIO()
        torch.save(reloaded.state_dict(), file)
        file.seek(0)
        reloaded = fresh()
        connect_randomly(reloaded.budgets, seed=99)
        reloaded.load_state_dict(torch.load(file, weights_only=True))
        through.step(step)
        reloaded.step(step)
        assert through.snapshot() == reloaded.snapshot(), step


# ---- what cannot be


@pytest.mark.parametrize(
    ("method", "training", "refused"),
    [
        ("set", {"optimizer": "sgd", "momentum": 0.0}, True),
        ("rigl", {"optimizer": "sntasgd"}, True),
        ("set", {"optimizer": "sgd"}, False),
        ("set", {"optimizer": "adamw"}, False),
        ("snfs", {"optimizer": "sgd", "momentum": 0.0}, False),
        ("snfs", {"optimizer": "sntasgd"}, False),
    ],
)
def test_momenta_need_an_optimizer_that_keeps_them(method: str, training: dict[str, Any], refused: bool) -> None:
    data = {"sparsity": {"method": method, "redistribute": "momentum"}, "training": training}
    if not refused:
        parse_config(data, "c.yaml")
        return
    with pytest.raises(UserError) as error:
        parse_config(data, "c.yaml")
    assert str(error.value) == (
        f"c.yaml: sparsity.redistribute: momentum: training.optimizer={training['optimizer']} keeps none as it is set; "
        "use adam, adamw, or sgd with training.momentum above 0, or redistribute by gradient or weight"
    )
    data["sparsity"]["redistribute"] = "weight"
    parse_config(data, "c.yaml")


def test_an_optimizer_without_momenta_is_never_taken_for_one_whose_momenta_are_zero() -> None:
    group = group_of(8, 4)
    optimizer = torch.optim.SGD([group.parts[0].weight.values], lr=0.1)
    with pytest.raises(ValueError, match="keeps no momenta"):
        StepContext(1, 10, 0, optimizer).momentum(group)
