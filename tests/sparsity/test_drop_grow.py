"""The update of SET, RigL and SNFS, on arrays small enough to draw. A dot is an absent position."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import rnnsparse as rs
from rnnsparse.config import parse_config
from rnnsparse.errors import UserError
from rnnsparse.nn.gradients import DenseGradient, MatrixGradient
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.sparsity.allocation import Budget
from rnnsparse.sparsity.drop_grow import DropGrow
from rnnsparse.sparsity.group import Group, Part, make_groups
from rnnsparse.sparsity.method import METHODS, StepContext
from rnnsparse.sparsity.methods.rigl import RigL
from rnnsparse.sparsity.methods.set import SET
from rnnsparse.sparsity.methods.snfs import SNFS
from rnnsparse.sparsity.schedule import annealed
from rnnsparse.sparsity.updater import Updater

o = math.nan  # an absent position in a picture
HALF = {"interval": 1, "drop_fraction": 0.5, "schedule": "constant", "stop": 1.0}
CONTEXT = StepContext(step=1, total_steps=10, seed=0)


def dense_gradient(dense_RC: torch.Tensor) -> DenseGradient:
    return DenseGradient(MatrixGradient(dense_RC))


def weight_of(picture: list[list[float]], name: str = "w", blocks: tuple[str, ...] = ()) -> SparseWeight:
    dense = torch.tensor(picture)
    weight = SparseWeight(name, *dense.shape, blocks)
    indices = (~dense.isnan()).flatten().nonzero().squeeze(1)
    weight.connect(indices, dense.flatten()[indices])
    return weight


def group_of(weight: SparseWeight) -> Group:
    return Group(weight.name, (Part(weight, 0, weight.rows),))


def budgets_of(*groups: Group) -> list[Budget]:
    return [Budget(group, group.connections) for group in groups]


def updated(method: DropGrow, weight: SparseWeight, context: StepContext = CONTEXT) -> list[int]:
    (indices,) = method.update(budgets_of(group_of(weight)), context)
    return indices.tolist()


@dataclass(kw_only=True)
class GrowFirst(DropGrow):
    """Grows the first free positions: makes visible what was dropped."""

    def best(self, group: Group, kept: torch.Tensor, count: int, context: StepContext) -> torch.Tensor:
        return torch.ones(group.positions).index_fill(0, kept, 0).nonzero().squeeze(1)[:count]


def test_the_smallest_magnitudes_are_dropped() -> None:
    # values                 kept                  the first two free positions grown
    #  .   .5  -.1   .        .   .5   .   .        +   .5   +   .
    #  .2   .   .  -.9        .    .   .  -.9       .    .   .  -.9
    weight = weight_of([[o, 0.5, -0.1, o], [0.2, o, o, -0.9]])
    assert updated(GrowFirst(**HALF), weight) == [0, 1, 2, 7]


def test_equal_magnitudes_are_dropped_in_order_of_position() -> None:
    # All of magnitude .3: of four the first two go, positions 2 and 3; grown are 0 and 1.
    #  .   .  .3 -.3         +   +   .   .
    # .3   .   . -.3        .3   .   . -.3
    weight = weight_of([[o, o, 0.3, -0.3], [0.3, o, o, -0.3]])
    assert updated(GrowFirst(**HALF), weight) == [0, 1, 4, 7]


def test_a_zero_that_exists_is_dropped_like_any_small_value() -> None:
    weight = weight_of([[o, o, 0.5, 0.0], [0.1, o, o, 0.7]])
    assert updated(GrowFirst(**HALF | {"drop_fraction": 0.25}), weight) == [0, 2, 4, 7]


@pytest.mark.parametrize(("share", "dropped"), [(0, 0), (0.19, 0), (0.2, 1), (0.39, 1), (0.4, 2), (1, 5)])
def test_the_number_dropped_is_rounded_down(share: float, dropped: int) -> None:
    # Connections at 5..9 of 10, grown from the front.
    weight = weight_of([[o, o, o, o, o, 0.1, 0.2, 0.3, 0.4, 0.5]])
    found = updated(GrowFirst(**HALF | {"drop_fraction": share}), weight)
    assert found == list(range(dropped)) + list(range(5 + dropped, 10))


def test_the_share_follows_the_schedule_at_the_step() -> None:
    # Half way to the stop at step 50 of 100, cosine: .8 / 2 * (1 + cos(pi / 2)) = .4 of 5 connections.
    weight = weight_of([[o, o, o, o, o, 0.1, 0.2, 0.3, 0.4, 0.5]])
    method = GrowFirst(interval=25, drop_fraction=0.8, schedule="cosine", stop=0.5)
    assert updated(method, weight, StepContext(25, 100, 0)) == [0, 1, 7, 8, 9]


def test_rigl_grows_the_largest_gradient_of_either_sign() -> None:
    # values                gradient              kept K, grown +
    #  .   .5  -.1   .       3    9    0    4      .   K   .   +
    #  .2   .   .  -.9       1   -7    2    8      .   +   .   K
    weight = weight_of([[o, 0.5, -0.1, o], [0.2, o, o, -0.9]])
    weight.dense_gradient = dense_gradient(torch.tensor([[3.0, 9, 0, 4], [1, -7, 2, 8]]))
    assert updated(RigL(**HALF), weight) == [1, 3, 5, 7]


def test_rigl_breaks_ties_in_order_of_position() -> None:
    # Gradient 2 at five free positions and at one just dropped (4): the first two grow.
    weight = weight_of([[o, 0.5, -0.1, o], [0.2, o, o, -0.9]])
    weight.dense_gradient = dense_gradient(torch.tensor([[0.0, 9, 0, -2], [2, 2, -2, 8]]))
    assert updated(RigL(**HALF), weight) == [1, 3, 4, 7]


def test_a_just_dropped_connection_may_grow_again() -> None:
    #  .   .5  -.1   .       0    0    6    1      .   K   +   .
    #  .2   .   .  -.9       5    0    2    0      +   .   .   K
    weight = weight_of([[o, 0.5, -0.1, o], [0.2, o, o, -0.9]])
    weight.dense_gradient = dense_gradient(torch.tensor([[0.0, 0, 6, 1], [5, 0, 2, 0]]))
    assert updated(RigL(**HALF), weight) == [1, 2, 4, 7]


@pytest.mark.parametrize("method", ["set", "rigl", "snfs"])
def test_growth_without_any_score_is_uniform_over_all_that_is_not_kept(method: str) -> None:
    # Kept are 1 and 7; two of the six others are drawn, the just dropped 2 and 4 among them.
    weight = weight_of([[o, 0.5, -0.1, o], [0.2, o, o, -0.9]])
    weight.dense_gradient = dense_gradient(torch.zeros(2, 4))
    seen = torch.zeros(8)
    for seed in range(900):
        one = METHODS[method](**HALF)
        one.observe([weight])
        (indices,) = one.update(budgets_of(group_of(weight)), StepContext(1, 10, seed))
        assert indices.numel() == 4
        seen[indices] += 1
    assert seen[[1, 7]].tolist() == [900, 900]
    rest = seen[[0, 2, 3, 4, 5, 6]]
    # Two of six without replacement; chi-square with 5 degrees of freedom, 99.9 % point.
    assert ((rest - 300) ** 2 / (900 / 3 * 2 / 3)).sum() * 5 / 6 < 20.5


def test_too_few_scores_are_filled_at_random_and_never_from_the_kept() -> None:
    # One score only, at 6, and large ones at the kept 1 and 7: 6 always grows, one more is drawn.
    weight = weight_of([[o, 0.5, -0.1, o], [0.2, o, o, -0.9]])
    weight.dense_gradient = dense_gradient(torch.tensor([[0.0, 9, 0, 0], [0, 0, 1, 9]]))
    seen = set()
    for seed in range(100):
        indices = updated(RigL(**HALF), weight, StepContext(1, 10, seed))
        assert len(indices) == 4
        assert {1, 6, 7} <= set(indices)
        seen |= set(indices) - {1, 6, 7}
    assert seen == {0, 2, 3, 4, 5}


def test_set_draws_anew_at_every_step_and_in_every_group_and_again_from_the_seed() -> None:
    weight = weight_of([[o] * 20 + [1.0] * 20])
    first = updated(SET(**HALF), weight)
    assert updated(SET(**HALF), weight) == first
    assert updated(SET(**HALF), weight, StepContext(2, 10, 0)) != first
    assert updated(SET(**HALF), weight, StepContext(1, 10, 1)) != first
    weight.name = "another"
    assert updated(SET(**HALF), weight) != first


def test_set_needs_no_gradient_at_all() -> None:
    weight = weight_of([[o, 1.0, 2.0]])
    assert not SET(**HALF).needs_dense_gradient(CONTEXT)
    assert len(updated(SET(**HALF), weight)) == 2


def test_snfs_grows_by_the_average_of_all_steps_not_by_the_last() -> None:
    # values           three gradients                    average: left .9 * (.9 * .4 + .4) = .684, right .5
    #  .   1   2   .    4 . . 0   4 . . 0   0 . . 5
    weight = weight_of([[o, 1.0, 2.0, o]])
    method = SNFS(**HALF | {"drop_fraction": 0.5})
    for gradient in ([4.0, 0, 0, 0], [4.0, 0, 0, 0], [0, 0, 0, 5.0]):
        weight.dense_gradient = dense_gradient(torch.tensor([gradient]))
        method.observe([weight])
    average = method.growth_gradient(weight).rows(0, weight.rows)
    torch.testing.assert_close(average, torch.tensor([[0.684, 0, 0, 0.5]]))
    assert updated(method, weight) == [0, 2]


def test_snfs_averages_signed_gradients() -> None:
    # The left one alternates and cancels, the right one is smaller but steady.
    weight = weight_of([[o, 1.0, 2.0, o]])
    method = SNFS(**HALF)
    for sign in (1, -1, 1, -1):
        weight.dense_gradient = dense_gradient(torch.tensor([[sign * 4.0, 0, 0, 1.0]]))
        method.observe([weight])
    assert updated(method, weight) == [2, 3]


def test_gates_and_matrices_of_a_cell_compete() -> None:
    # input (4 x 2)   recurrent (4 x 2)    gradients              kept K, grown +
    #  .1  .            .9  .               0  0     0  0          .  .      K  .
    #  .2  .            .8  .               0  0     0  0          .  .      K  .
    #   .  .             .  .               0  0     7  0          .  .      +  .
    #   .  .             .  .               0  0     0  6          .  .      .  +
    # The two smallest of the four are all of the input; both grow in the recurrent matrix, in other gates.
    left = weight_of([[0.1, o], [0.2, o], [o, o], [o, o]], "rnn.0.input", ("a", "b"))
    right = weight_of([[0.9, o], [0.8, o], [o, o], [o, o]], "rnn.0.recurrent", ("c", "d"))
    (cell,) = make_groups([left, right], "cell")
    optimizer = torch.optim.SGD([left.values, right.values], lr=1.0)
    sparsifier = Updater(RigL(**HALF), [Budget(cell, 4)], optimizer, seed=0, total_steps=10)
    sparsifier.before_backward(1)
    left.dense_gradient = DenseGradient(MatrixGradient(torch.zeros(4, 2)))
    right.dense_gradient = DenseGradient(MatrixGradient(torch.tensor([[0.0, 0], [0, 0], [7, 0], [0, 6]])))
    sparsifier.after_backward(1)
    assert (left.connections, right.connections, cell.connections) == (0, 4, 4)
    torch.testing.assert_close(right.to_dense(), torch.tensor([[0.9, 0], [0.8, 0], [0, 0], [0, 0]]))
    assert right.indices.tolist() == [0, 2, 4, 7]


def test_gates_with_budgets_of_their_own_do_not_compete() -> None:
    # The same weights and gradients gate by gate: every gate keeps its count.
    left = weight_of([[0.1, o], [0.2, o], [0.3, o], [o, 0.9]], "rnn.0.input", ("a", "b"))
    left.dense_gradient = dense_gradient(torch.tensor([[0.0, 0], [0, 1], [9, 9], [9, 0]]))
    chosen = RigL(**HALF).update(budgets_of(*make_groups([left], "gate")), CONTEXT)
    # a: .1 dropped, grown at (1, 1); b: .3 dropped, of its three gradients 9 the first, itself, grows again
    assert [c.tolist() for c in chosen] == [[2, 3], [0, 3]]


def test_a_regrown_connection_keeps_value_and_state_and_is_not_counted_as_moved() -> None:
    weight = weight_of([[o, 0.5, -0.1, o], [0.2, o, o, -0.9]])
    optimizer = torch.optim.Adam([weight.values], lr=0.0)
    weight.values.grad = torch.tensor([1.0, 2.0, 3.0, 4.0])
    optimizer.step()
    sparsifier = Updater(RigL(**HALF), [Budget(group_of(weight), 4)], optimizer, seed=0, total_steps=10)
    sparsifier.before_backward(1)
    # -.1 and .2 are dropped; -.1 has a gradient and returns, .2 is replaced by position 0.
    weight.dense_gradient = DenseGradient(MatrixGradient(torch.tensor([[1.0, 0, 6, 0], [0, 0, 0, 0]])))
    assert sparsifier.after_backward(1) is False
    assert weight.indices.tolist() == [0, 1, 2, 7]
    torch.testing.assert_close(weight.values.detach(), torch.tensor([0, 0.5, -0.1, -0.9]))
    moments = optimizer.state[weight.values]["exp_avg"]
    torch.testing.assert_close(moments, torch.tensor([0, 0.1, 0.2, 0.4]))
    assert (sparsifier.updates, sparsifier.connections_moved, sparsifier.last_moved_share) == (1, 1, 0.25)


@pytest.mark.parametrize(
    ("kind", "step", "share"),
    [
        ("cosine", 0, 0.4),
        ("cosine", 25, 0.2 * (1 + math.sqrt(0.5))),
        ("cosine", 50, 0.2),
        ("cosine", 75, 0.2 * (1 - math.sqrt(0.5))),
        ("cosine", 100, 0),
        ("linear", 0, 0.4),
        ("linear", 25, 0.3),
        ("linear", 75, 0.1),
        ("linear", 100, 0),
        ("stages", 0, 0.4),
        ("stages", 74, 0.4),
        ("stages", 75, 0.2),
        ("stages", 99, 0.2),
        ("stages", 100, 0),
        ("constant", 99, 0.4),
        ("constant", 100, 0),
        ("cosine", 150, 0),
    ],
)
def test_the_schedule_by_hand(kind: str, step: int, share: float) -> None:
    assert annealed(kind, 0.4, step, 100) == pytest.approx(share, abs=1e-12)


def update_steps(method: DropGrow, total_steps: int) -> list[int]:
    return [t for t in range(1, total_steps + 1) if method.updates_at(StepContext(t, total_steps, 0))]


@pytest.mark.parametrize("kind", ["set", "rigl", "snfs"])
def test_updates_come_at_multiples_of_the_interval_before_the_stop_step(kind: str) -> None:
    method = METHODS[kind]
    assert update_steps(method(interval=10, stop=0.5), 100) == [10, 20, 30, 40]
    assert update_steps(method(interval=10, stop=0.51), 100) == [10, 20, 30, 40, 50]
    assert update_steps(method(interval=7, stop=1.0), 21) == [7, 14]
    assert update_steps(method(interval=3, stop=0.0), 9) == []
    assert update_steps(method(interval=100, stop=1.0), 99) == []


def test_no_update_at_the_stop_step_and_one_right_before_it() -> None:
    # stop is a decimal: .28 of 25 steps is 7, although .28 * 25 in binary is a little more.
    for percent in range(1, 101):
        method = RigL(interval=1, stop=percent / 100)
        for total_steps in range(1, 301):
            stop_step, rest = divmod(percent * total_steps, 100)
            if rest == 0:
                assert not method.updates_at(StepContext(stop_step, total_steps, 0)), (percent, total_steps)
                assert method.updates_at(StepContext(stop_step - 1, total_steps, 0)), (percent, total_steps)


def test_snfs_stops_asking_for_gradients_at_the_stop_step() -> None:
    assert SNFS(stop=0.28).needs_dense_gradient(StepContext(6, 25, 0))
    assert not SNFS(stop=0.28).needs_dense_gradient(StepContext(7, 25, 0))


def test_only_rigl_replaces_the_optimizer_step_unless_told_otherwise() -> None:
    assert RigL().replaces_optimizer_step
    assert not SET().replaces_optimizer_step
    assert not SNFS().replaces_optimizer_step
    assert not RigL(skip_optimizer_step=False).replaces_optimizer_step


def test_dense_gradients_are_asked_for_only_when_a_method_uses_them() -> None:
    def needs(method: DropGrow) -> list[int]:
        return [t for t in range(1, 11) if method.needs_dense_gradient(StepContext(t, 10, 0))]

    assert needs(SET(interval=3, stop=0.8)) == []
    assert needs(RigL(interval=3, stop=0.8)) == [3, 6]
    assert needs(SNFS(interval=3, stop=0.8)) == [1, 2, 3, 4, 5, 6, 7]


# ---- dropping by saliency


def with_second_moments(weight: SparseWeight, moments: list[float]) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam([weight.values])
    optimizer.state[weight.values]["exp_avg_sq"] = torch.tensor(moments).view_as(weight.values)
    return optimizer


def test_saliency_drops_by_the_value_times_the_root_of_its_second_moment() -> None:
    # values                second moments       products             kept, and the first two free positions grown
    #  .   .5  -.1   .       .   .01  4.   .      .  .05  .2   .       +   +   K   .
    #  .2   .   .  -.9       1.   .   .  .0001    .2  .   .  .009      K   .   .   .
    weight = weight_of([[o, 0.5, -0.1, o], [0.21, o, o, -0.9]])
    context = StepContext(1, 10, 0, with_second_moments(weight, [0.01, 4.0, 1.0, 0.0001]))
    assert updated(GrowFirst(**HALF, drop_score="saliency"), weight, context) == [0, 1, 2, 4]
    assert updated(GrowFirst(**HALF), weight, context) == [0, 1, 2, 7]


def test_the_saliency_of_a_block_is_the_norm_of_those_of_its_entries() -> None:
    # Two blocks of two rows, at columns 1 and 2: products 3 and 4 against 0 and 4.9.
    weight = SparseWeight("w", 2, 4, block_rows=2)
    weight.connect(torch.tensor([1, 2]), torch.tensor([[3.0, 2.0], [9.0, 4.9]]))
    context = StepContext(1, 10, 0, with_second_moments(weight, [1.0, 4.0, 0.0, 1.0]))
    method = GrowFirst(**HALF, drop_score="saliency")
    torch.testing.assert_close(method.keep_score(group_of(weight), context), torch.tensor([5.0, 4.9]))
    assert updated(method, weight, context) == [0, 1]


@pytest.mark.parametrize("kind", ["set", "rigl", "granet"])
def test_a_run_that_drops_by_saliency_differs_and_goes_on_from_any_step(tiny_run: Any, kind: str) -> None:
    def fresh(drop_score: str) -> Any:
        return tiny_run(METHODS[kind](interval=2, stop=0.8, drop_score=drop_score), total_steps=12)

    through, reloaded, plain = fresh("saliency"), fresh("saliency"), fresh("magnitude")
    for step in range(1, 13):
        state = copy.deepcopy(reloaded.state_dict())
        reloaded = fresh("saliency")
        reloaded.load_state_dict(state)
        for run in (through, reloaded, plain):
            run.step(step)
        assert through.snapshot() == reloaded.snapshot(), step
    assert through.topology() != plain.topology()


def test_saliency_is_refused_in_a_line_where_the_optimizer_keeps_no_second_moments() -> None:
    for optimizer in ("sgd", "sntasgd"):
        data = {"sparsity": {"method": "set", "drop_score": "saliency"}, "training": {"optimizer": optimizer}}
        with pytest.raises(UserError) as error:
            parse_config(data, "c.yaml")
        assert str(error.value) == (
            f"c.yaml: sparsity.drop_score: saliency: training.optimizer={optimizer} keeps no second moments; use adam "
            "or adamw, or drop by magnitude"
        )
    model = torch.nn.ModuleList([rs.Linear(4, 3)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match=r"^drop_score='saliency': SGD keeps no second moments; use Adam, or"):
        rs.sparsify(model, SET(drop_score="saliency"), optimizer, steps=3)
    context = StepContext(1, 10, 0, optimizer)
    with pytest.raises(ValueError, match="keeps no second moments"):
        context.second_moment(group_of(SparseWeight("w", 1, 1)))
    model = rs.Linear(4, 4)
    adamax = torch.optim.Adamax(model.parameters())  # which has betas, and keeps largest gradients in their place
    sparsifier = rs.sparsify(model, SET(drop_score="saliency", interval=1), adamax, steps=3)
    sparsifier.backward(model(torch.ones(1, 4)).sum())
    with pytest.raises(ValueError, match="keeps no second moments, but step, exp_avg, exp_inf"):
        sparsifier.step()
