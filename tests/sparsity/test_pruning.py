"""Methods that take connections away: gradual pruning, GraNet and SNIP, on arrays small enough to draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from rnnsparse.errors import UserError
from rnnsparse.nn.gradients import DenseGradient, MatrixGradient
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.settings.sparsity import BudgetConfig
from rnnsparse.sparsity.allocation import Budget
from rnnsparse.sparsity.group import Group, Part, make_groups
from rnnsparse.sparsity.method import Method, StepContext
from rnnsparse.sparsity.methods.granet import GraNet
from rnnsparse.sparsity.methods.prune import Prune
from rnnsparse.sparsity.methods.snip import SNIP
from rnnsparse.sparsity.schedule import GradualPruning
from rnnsparse.sparsity.updater import Updater

o = math.nan  # an absent position in a picture


def weight_of(picture: list[list[float]], name: str = "w", blocks: tuple[str, ...] = ()) -> SparseWeight:
    dense = torch.tensor(picture)
    weight = SparseWeight(name, *dense.shape, blocks)
    indices = (~dense.isnan()).flatten().nonzero().squeeze(1)
    weight.connect(indices, dense.flatten()[indices])
    return weight


def budget_of(weight: SparseWeight, connections: int) -> Budget:
    return Budget(Group(weight.name, (Part(weight, 0, weight.rows),)), connections)


def updated(method: Method, weight: SparseWeight, connections: int, context: StepContext) -> list[int]:
    (indices,) = method.update([budget_of(weight, connections)], context)
    return indices.tolist()


def update_steps(method: Method, total_steps: int) -> list[int]:
    return [t for t in range(1, total_steps + 1) if method.updates_at(StepContext(t, total_steps, 0))]


# ---- gradual pruning


def test_the_smallest_magnitudes_go_whatever_their_sign() -> None:
    # values, full                 at the stop three stay
    #  .3   .5  -.1   .4            .   .5   .    .
    #  .2  -.6   0   -.9            .  -.6   .  -.9
    weight = weight_of([[0.3, 0.5, -0.1, 0.4], [0.2, -0.6, 0, -0.9]])
    assert updated(Prune(stop=0.5), weight, 3, StepContext(50, 100, 0)) == [1, 5, 7]


def test_of_equal_magnitudes_the_first_positions_go() -> None:
    #  .3  -.3   .3  .1            .   .   .   .
    #  .3  -.3  -.3  .9            .  -.3 -.3  .9
    weight = weight_of([[0.3, -0.3, 0.3, 0.1], [0.3, -0.3, -0.3, 0.9]])
    assert updated(Prune(stop=0.5), weight, 3, StepContext(50, 100, 0)) == [5, 6, 7]


def test_what_is_gone_stays_gone() -> None:
    # Half of the time is left, 1/8 of the way from 10 connections to 2 still to go: 3 stay, of the 4 there are.
    weight = weight_of([[0.5, o, o, o, 0.1], [o, 0.4, o, 0.3, o]])
    assert updated(Prune(start=0.0, stop=1.0, interval=5), weight, 2, StepContext(5, 10, 0)) == [0, 6, 8]


def test_counts_follow_the_cube_of_the_time_that_is_left() -> None:
    # 64 connections down to none, from step 20 to 60 of 80: 64 * (3/4)^3, 64 * (1/2)^3, 64 * (1/4)^3
    weight = weight_of([[float(i) for i in range(64)]])
    method = Prune(interval=10, start=0.25, stop=0.75)
    assert update_steps(method, 80) == [20, 30, 40, 50, 60]
    counts = [len(updated(method, weight, 0, StepContext(step, 80, 0))) for step in (20, 30, 40, 50, 60)]
    assert counts == [64, 27, 8, 1, 0]


@given(
    final=st.floats(0, 1),
    interval=st.integers(1, 50),
    first=st.integers(0, 20),
    updates=st.integers(1, 30),
    more=st.integers(0, 500),
)
def test_the_schedule_is_zhu_and_guptas_formula(
    final: float, interval: int, first: int, updates: int, more: int
) -> None:
    # Equation 1: s_t = s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3 at t in t0, t0 + dt, ..., t0 + n dt; here s_i = 0.
    begin, end = first * interval, (first + updates) * interval
    total = end + more
    schedule = GradualPruning(interval, begin / total, end / total, total)
    assume((schedule.first_step, schedule.last_step) == (begin, end))  # not where a share's decimals fall short
    for number in range(updates + 1):
        step = begin + number * interval
        sparsity = final + (0 - final) * (1 - (step - begin) / (updates * interval)) ** 3
        assert final * (1 - schedule.share_to_go(step)) == pytest.approx(sparsity, abs=1e-12)
        assert schedule.updates_at(step) or step == 0


@given(
    interval=st.integers(1, 40),
    total=st.integers(1, 300),
    shares=st.tuples(st.integers(0, 100), st.integers(0, 100)),
    taken=st.integers(1, 300),
)
def test_the_mean_that_is_left_is_the_mean_over_the_steps_taken(
    interval: int, total: int, shares: tuple[int, int], taken: int
) -> None:
    start, stop = sorted(share / 100 for share in shares)
    schedule = GradualPruning(interval, start, stop, total)
    left, before = 1.0, []
    for step in range(1, total + 1):
        before.append(left)  # a step is made with what the last update left, and then comes its own
        if schedule.updates_at(step):
            left = schedule.share_to_go(step)
    assert schedule.mean_share_to_go(total) == pytest.approx(sum(before) / total, rel=1e-9)
    taken = min(taken, total)
    assert schedule.mean_share_to_go(taken) == pytest.approx(sum(before[:taken]) / taken, rel=1e-9)
    assert left == 0


def test_the_mean_that_is_left_gives_the_published_costs() -> None:
    # RigL, appendix H, where pruning goes on at every step: from 50,000 to 150,000 of 200,000. With an update every
    # 1,000 connections stay for half an interval longer on average.
    for interval, difference in ((1, 1e-5), (1000, 1000 / 200_000 / 2)):
        left = GradualPruning(interval, 0.25, 0.75, 200_000).mean_share_to_go(200_000)
        assert left == pytest.approx(0.375 + difference, abs=2e-5)
        assert 0.25 + 0.75 * left == pytest.approx(0.531, abs=3e-4 + difference)
        assert 0.1 + 0.9 * left == pytest.approx(0.4375, abs=1e-5 + difference)


@pytest.mark.parametrize("method", [Prune, GraNet])
@pytest.mark.parametrize(
    ("interval", "stop", "total", "last"),
    [(7, 0.75, 100, 75), (100, 0.75, 100, 75), (10, 0.28, 25, 7), (3, 1.0, 10, 10), (4, 0.0, 10, 1)],
)
def test_the_last_update_is_at_the_stop_and_leaves_the_exact_count(
    method: Any, interval: int, stop: float, total: int, last: int
) -> None:
    pruning = method(interval=interval, start=0.0, stop=stop)
    assert update_steps(pruning, total)[-1] == last
    weight = weight_of([[float(i) for i in range(1, 20)]])
    weight.dense_gradient = DenseGradient(MatrixGradient(torch.ones(1, 19)))
    assert len(updated(pruning, weight, 5, StepContext(last, total, 0))) == 5


@pytest.mark.parametrize("method", [Prune, GraNet])
def test_a_start_after_the_stop_is_refused(method: Any) -> None:
    with pytest.raises(UserError) as error:
        method(start=0.8, stop=0.7)
    assert str(error.value) == ("sparsity.start: 0.8 comes after sparsity.stop, 0.7; lower it, or raise sparsity.stop")
    method(start=0.7, stop=0.7)


def test_a_start_at_the_stop_prunes_once(tiny_run: Any) -> None:
    run = tiny_run(Prune(start=0.5, stop=0.5), total_steps=12)
    for step in range(1, 13):
        assert all(b.group.connections == (b.group.positions if step <= 6 else b.connections) for b in run.budgets)
        run.step(step)
    assert run.sparsifier.updates == 1


# ---- GraNet


def test_granet_prunes_and_replaces_in_one_update() -> None:
    # With half of the time left, an eighth of four is still to go beyond four: .5 is rounded to 0. Of the four that
    # are left int(4 * .5) are replaced.
    # values                gradient              kept K, grown +
    #  .1   .8  -.2   .3     9   0  -1   2         +   K   .   .
    #  .4   .5   .6  -.9     3  -8   0   0         .   +   .   K
    weight = weight_of([[0.1, 0.8, -0.2, 0.3], [0.4, 0.5, 0.6, -0.9]])
    weight.dense_gradient = DenseGradient(MatrixGradient(torch.tensor([[9.0, 0, -1, 2], [3, -8, 0, 0]])))
    method = GraNet(interval=5, drop_fraction=0.5, schedule="constant", stop=1.0)
    assert updated(method, weight, 4, StepContext(5, 10, 0)) == [0, 1, 5, 7]


def test_granet_drops_and_regrows_as_many_as_its_schedule_says_and_ends_exactly(tiny_run: Any) -> None:
    class Watched(GraNet):
        def _update_group(self, group: Group, keep: int, grow: int, context: StepContext) -> torch.Tensor:
            seen.append((group.name, context.step, keep, grow))
            return super()._update_group(group, keep, grow, context)

    seen: list[tuple[str, int, int, int]] = []
    run = tiny_run(Watched(interval=2, drop_fraction=0.5, stop=0.8), total_steps=20)
    budgets = {budget.group.name: budget for budget in run.budgets}
    for step in range(1, 21):
        run.step(step)
    for name, step, keep, grow in seen:
        final, positions = budgets[name].connections, budgets[name].group.positions
        target = final + round((positions - final) * (1 - step / 16) ** 3)
        assert grow == int(target * 0.25 * (1 + math.cos(math.pi * step / 16)))
        assert keep + grow == target
    assert {step for _, step, _, _ in seen} == {2, 4, 6, 8, 10, 12, 14, 16}
    assert [b.group.connections for b in run.budgets] == [b.connections for b in run.budgets]


@pytest.mark.parametrize(("sparsity", "connections"), [(0.0, 100), (0.5, 50), (0.7, 30), (0.9, 12), (0.29, 71)])
def test_granet_starts_with_its_initial_sparsity_but_never_below_the_final_count(
    sparsity: float, connections: int
) -> None:
    assert (
        GraNet(initial_sparsity=sparsity).initial_connections(budget_of(SparseWeight("w", 10, 10), 12)) == connections
    )


def test_granet_rounds_its_initial_sparsity_as_budgets_are_rounded() -> None:
    # Half of five: two zeros, as floor(.5 * 5).
    assert GraNet(initial_sparsity=0.5).initial_connections(budget_of(SparseWeight("w", 1, 5), 1)) == 3


def test_granet_from_an_initial_sparsity_is_rigl_until_it_starts_to_prune(tiny_run: Any) -> None:
    run = tiny_run(GraNet(interval=2, initial_sparsity=0.4, start=0.5, stop=0.8), total_steps=20)
    initial = [run.method.initial_connections(b) for b in run.budgets]
    for step in range(1, 21):
        run.step(step)
        counts = [b.group.connections for b in run.budgets]
        if step < 12:
            assert counts == initial, step
    assert counts == [b.connections for b in run.budgets]
    assert run.sparsifier.connections_moved > 0


def test_an_update_of_granet_costs_a_dense_gradient() -> None:
    # Constant counts: RigL's formula.
    method = GraNet(interval=9, initial_sparsity=0.9)
    assert method.training_flops(100, 1000, steps=100) == pytest.approx((3 * 100 * 9 + 2 * 100 + 1000) / 10)


# ---- SNIP


def weight_with_gradient(values: list[list[float]], gradients: list[list[float]], **names: Any) -> SparseWeight:
    weight = weight_of(values, **names)
    weight.values.grad = torch.tensor(gradients).flatten()
    return weight


def kept(method: SNIP, groups: Sequence[Group], connections: Sequence[int]) -> list[list[int]]:
    budgets = [Budget(group, count) for group, count in zip(groups, connections, strict=True)]
    return [indices.tolist() for indices in method.update(budgets, StepContext(1, 10, 0))]


def two_gates() -> SparseWeight:
    # values        gradients       |g w|
    #  .5  -2        4   1           2    2        gate a
    #  .1  -.2       1  -9           .1   1.8
    #  .9   .8       0   .1          0    .08      gate b
    # -.1   .3       .5  .1          .05  .03
    return weight_with_gradient(
        [[0.5, -2], [0.1, -0.2], [0.9, 0.8], [-0.1, 0.3]],
        [[4, 1], [1, -9], [0, 0.1], [0.5, 0.1]],
        name="rnn.0.input",
        blocks=("a", "b"),
    )


def test_snip_keeps_the_largest_effects_on_the_loss_in_each_block() -> None:
    assert kept(SNIP(), make_groups([two_gates()], "gate"), [2, 2]) == [[0, 1], [1, 2]]


def test_snip_breaks_ties_by_position() -> None:
    weight = weight_with_gradient([[1.0, -1, 2, 0.5]], [[1.0, 1, -0.5, 1]])
    assert kept(SNIP(), [budget_of(weight, 2).group], [2]) == [[1, 2]]


def test_the_global_form_empties_a_gate_where_blocks_keep_it() -> None:
    groups = make_groups([two_gates()], "gate")
    assert kept(SNIP(scope="global"), groups, [2, 1]) == [[0, 1, 3], []]
    assert kept(SNIP(), groups, [2, 1]) == [[0, 1], [1]]


def test_the_global_form_keeps_the_exact_total_across_weights() -> None:
    first = two_gates()
    second = weight_with_gradient([[1.0, 1, 1]], [[1.5, 0.01, 0.19]], name="output")
    groups = make_groups([first, second], "gate")
    for total in range(12):
        chosen = kept(SNIP(scope="global"), groups, [total, 0, 0])
        assert sum(map(len, chosen)) == total
    assert kept(SNIP(scope="global"), groups, [3, 1, 1]) == [[0, 1, 3], [], [0, 2]]


@pytest.mark.parametrize("scope", ["block", "global"])
def test_snip_of_a_network_that_is_dense_by_name_prunes_nothing(tiny_run: Any, scope: Any) -> None:
    run = tiny_run(SNIP(scope=scope), budget=BudgetConfig(dense=("*",)))
    run.step(1)
    assert all(weight.is_full for weight in run.weights.values())


@pytest.mark.parametrize("scope", ["block", "global"])
@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_snip_prunes_once_by_the_first_batch_which_makes_no_step(tiny_run: Any, scope: Any, execution: Any) -> None:
    run = tiny_run(SNIP(scope=scope), "lstm", budget=BudgetConfig(sparsity=0.8, dense=("embedding",)))
    run.model.execution = execution
    initial = run.snapshot()
    run.loss(1).backward()
    effects = {n: (w.values * w.values.grad).abs().detach() for n, w in run.weights.items() if n != "embedding"}
    bias = run.model.rnn[0].bias_ih.detach().clone()
    run.step(1)
    assert torch.equal(run.model.rnn[0].bias_ih, bias), "the first batch makes no step"
    for name, entries in run.snapshot().items():
        assert all(entry == initial[name][position] for position, entry in entries.items())
    assert run.weights["embedding"].is_full
    counted = [b for b in run.budgets if not b.dense]
    assert sum(b.group.connections for b in counted) == sum(b.connections for b in counted)
    if scope == "block":
        assert [b.group.connections for b in counted] == [b.connections for b in counted]
    else:
        there = torch.cat([effects[n][run.weights[n].indices] for n in effects])
        gone = torch.cat([effects[n].index_fill(0, run.weights[n].indices, 0) for n in effects])
        assert there.min() >= gone.max()
    topology = run.topology()
    for step in range(2, 8):
        run.step(step)
    assert run.topology() == topology
    assert run.sparsifier.updates == 1


def test_a_gate_without_connections_trains_on_in_both_executions(tiny_run: Any) -> None:
    runs = [tiny_run(SNIP(scope="global"), total_steps=4) for _ in range(2)]
    for run, execution in zip(runs, ("masked", "sparse"), strict=True):
        run.model.double()
        run.model.execution = execution
        with torch.no_grad():
            for name, weight in run.weights.items():
                if name.startswith("rnn.0.recurrent"):
                    weight.values[: 8 * 8] = 0  # no effect on the loss: gate r goes as a whole
        for step in range(1, 5):
            run.step(step)
        assert run.weights["rnn.0.recurrent"].connections_in(run.weights["rnn.0.recurrent"].gates[0]) == 0
    assert runs[0].topology() == runs[1].topology()
    for ours, theirs in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


# ---- all of them in one sparsifier


def test_blocks_that_are_dense_by_name_are_never_pruned() -> None:
    weight = weight_of([[0.1, 0.2], [0.3, 0.4]], "rnn.0.input", ("a", "b"))
    gate, other = make_groups([weight], "gate")
    optimizer = torch.optim.SGD([weight.values], lr=1.0)
    budgets = [Budget(gate, 2, dense=True), Budget(other, 1)]
    sparsifier = Updater(Prune(stop=0.5), budgets, optimizer, seed=0, total_steps=10)
    for step in range(1, 11):
        sparsifier.before_backward(step)
        assert sparsifier.after_backward(step)
        sparsifier.after_step(step)
    assert weight.indices.tolist() == [0, 1, 3]
