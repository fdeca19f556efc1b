"""Growth by gradients summed over a window at a pool of positions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from rnnsparse.nn.gradients import DenseGradient
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.randomness import generator_for
from rnnsparse.settings.sparsity import BudgetConfig
from rnnsparse.sparsity.allocation import Budget
from rnnsparse.sparsity.group import Group, Part, make_groups
from rnnsparse.sparsity.method import StepContext
from rnnsparse.sparsity.methods.rigl import RigL
from rnnsparse.sparsity.methods.scout import Scout

every_cell = pytest.mark.parametrize("cell", ["lstm", "gru"])
OFTEN: dict[str, Any] = {"interval": 4, "drop_fraction": 0.5, "stop": 0.8}
STEPS = 20


def wide(seed: int = 1) -> SparseWeight:
    weight = SparseWeight("w", 40, 50, ["w.a", "w.b"])
    weight.connect(torch.randperm(2000, generator=torch.Generator().manual_seed(seed))[:100].sort().values)
    return weight


def test_the_best_sums_of_the_pool_grow_and_nothing_else() -> None:
    # values              summed gradient of the pool       kept K, grown +
    #  .   .5  -.1   .      3    .    .   -1                 +   K   .   .
    #  .2   .   .  -.9      .   -7    .    .                 .   +   .   K
    weight = SparseWeight("w", 2, 4)
    weight.connect(torch.tensor([1, 2, 4, 7]), torch.tensor([0.5, -0.1, 0.2, -0.9]))
    weight.start_pool(torch.tensor([0, 3, 5]))
    weight.pool.total = torch.tensor([3.0, -1.0, -7.0])
    group = Group("w", (Part(weight, 0, 2),))
    method = Scout(interval=1, drop_fraction=0.5, schedule="constant", stop=1.0)
    (chosen,) = method.update([Budget(group, 4)], StepContext(1, 10, 0))
    assert chosen.tolist() == [0, 1, 5, 7]


@every_cell
@pytest.mark.parametrize("skip", [True, False])
def test_a_window_of_one_step_over_all_positions_is_rigl_exactly(tiny_run: Any, cell: str, skip: bool) -> None:
    scout = tiny_run(Scout(**OFTEN, window=1, pool=None, skip_optimizer_step=skip), cell, total_steps=STEPS)
    rigl = tiny_run(RigL(**OFTEN, skip_optimizer_step=skip), cell, total_steps=STEPS)
    for step in range(1, STEPS + 1):
        scout.step(step)
        rigl.step(step)
        assert scout.snapshot() == rigl.snapshot(), step
    assert scout.sparsifier.connections_moved == rigl.sparsifier.connections_moved > 0


@every_cell
@pytest.mark.parametrize("window", [1, 3, 4, None])
def test_the_total_is_the_signed_sum_of_the_dense_gradients_of_the_window(
    tiny_run: Any, cell: str, window: int | None
) -> None:
    run = tiny_run(Scout(**OFTEN, window=window, pool=1.5), cell, total_steps=STEPS)
    sums: dict[str, torch.Tensor] = {}
    for step in range(1, 8):
        dense = dense_gradients(run, step)
        run.backward(step)
        steps = range(4 - (window or 4) + 1, 5) if step <= 4 else range(8 - (window or 4) + 1, 9)
        for name, weight in run.weights.items():
            assert (weight.pool is not None) == (step in steps), step
            if step in steps:
                sums[name] = dense[name] + (sums[name] if step > steps.start else 0)
        totals = {}
        run.sparsifier.after_backward(step)
        for name, weight in run.weights.items():
            if weight.pool:
                totals[name] = weight.pool.total
                expected = sums[name].flatten()[weight.pool.positions]
                torch.testing.assert_close(totals[name], expected, rtol=1e-5, atol=1e-8)
        run.optimizer.step()
        run.sparsifier.after_step(step)
    assert sums


def dense_gradients(run: Any, step: int) -> dict[str, torch.Tensor]:
    """Return this step's dense gradients, without leaving a trace."""
    weights = list(run.weights.values())
    pools = [weight.pool for weight in weights]
    for weight in weights:
        weight.pool = None
        weight.dense_gradient = DenseGradient()
    run.optimizer.zero_grad()
    run.loss(step).backward()
    gradients = {w.name: w.dense_gradient.rows(0, w.rows).clone() for w in weights}
    for weight, pool in zip(weights, pools, strict=True):
        weight.dense_gradient = None
        weight.pool = pool
    return gradients


@every_cell
def test_both_executions_have_the_same_pools_and_find_the_same_topologies(tiny_run: Any, cell: str) -> None:
    runs = [tiny_run(Scout(**OFTEN, pool=2.0), cell, total_steps=STEPS, num_layers=2) for _ in range(2)]
    for run, execution in zip(runs, ("masked", "sparse"), strict=True):
        run.model.double()
        run.model.execution = execution
    for step in range(1, STEPS + 1):
        for run in runs:
            run.step(step)
        assert runs[0].topology() == runs[1].topology(), step
        for ours, theirs in zip(*(run.weights.values() for run in runs), strict=True):
            torch.testing.assert_close(ours.values, theirs.values, rtol=1e-9, atol=1e-10)
            if ours.pool:
                assert torch.equal(ours.pool.positions, theirs.pool.positions)
                torch.testing.assert_close(ours.pool.total, theirs.pool.total, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("pool", [0.0, 0.5, 3.0, 1000.0])
def test_the_pool_is_absent_and_grows_with_the_connections_of_each_group(pool: float) -> None:
    weight = wide()
    groups = make_groups([weight], "gate")
    pools = Scout(pool=pool).draw_pools(groups, StepContext(1, 1000, 3))
    assert pools is not None
    for group, positions in zip(groups, pools, strict=True):
        absent = set(range(group.positions)) - set(group.indices().tolist())
        assert set(positions.tolist()) <= absent
        assert positions.tolist() == sorted(set(positions.tolist()))
        assert len(positions) == min(round(pool * group.connections), len(absent))


def test_each_window_draws_another_pool_and_the_seed_the_same_one() -> None:
    groups = make_groups([wide()], "matrix")

    def pool(step: int, seed: int) -> list[int]:
        drawn = Scout().draw_pools(groups, StepContext(step, 1000, seed))
        assert drawn is not None
        return drawn[0].tolist()

    assert pool(1, 7) == pool(1, 7)
    assert pool(1, 7) != pool(101, 7)
    assert pool(1, 7) != pool(1, 8)


def test_there_is_no_pool_that_no_update_will_use() -> None:
    weight = wide()
    groups = make_groups([weight], "matrix")
    method = Scout(interval=10, window=4, stop=0.5)  # updates at 10, 20, 30 and 40 of 100 steps
    starts = []
    for step in range(1, 101):
        if (chosen := method.draw_pools(groups, StepContext(step, 100, 0))) is not None:
            starts.append(step)
            weight.start_pool(chosen[0])
        if step % 10 == 0:
            weight.pool = None
    assert starts == [7, 17, 27, 37]


def test_an_overflowed_step_leaves_nothing_in_the_total(tiny_run: Any) -> None:
    run = tiny_run(Scout(**OFTEN), total_steps=STEPS)
    run.step(1)
    before = {name: weight.pool.total.clone() for name, weight in run.weights.items()}
    run.backward(2)  # its gradients overflow: nothing else of this step happens
    run.optimizer.zero_grad()
    run.sparsifier.before_backward(3)
    for name, weight in run.weights.items():
        assert torch.equal(weight.pool.total, before[name])
        assert not weight.pool.gradient.any()


def test_micro_batches_and_a_loss_scale_change_nothing(tiny_run: Any) -> None:
    plain, parted = (tiny_run(Scout(**OFTEN), total_steps=STEPS) for _ in range(2))
    for run in (plain, parted):
        run.model.double()
    for step in range(1, 4):
        plain.step(step)
        parted.optimizer.zero_grad()
        parted.sparsifier.before_backward(step)
        for lanes in (slice(0, 4), slice(4, 8)):
            (parted.loss(step, lanes) * 0.5 * 1024).backward()
        for parameter in parted.model.parameters():
            parameter.grad /= 1024
        parted.sparsifier.after_backward(step, gradient_scale=1024)
        parted.optimizer.step()
        parted.sparsifier.after_step(step)
        for ours, theirs in zip(plain.weights.values(), parted.weights.values(), strict=True):
            torch.testing.assert_close(ours.pool.total, theirs.pool.total)


def test_blocks_that_are_dense_by_name_have_no_pool(tiny_run: Any) -> None:
    run = tiny_run(Scout(**OFTEN), budget=BudgetConfig(sparsity=0.7, dense=("embedding", "rnn.0.recurrent.n")))
    run.step(1)
    assert run.weights["embedding"].pool is None
    recurrent = run.weights["rnn.0.recurrent"]
    assert bool((recurrent.pool.positions < 2 * 8 * 8).all())  # the first two gates of three
    assert recurrent.pool.positions.numel() > 0


def test_a_state_saved_inside_a_window_is_the_same_after_loading(tiny_run: Any) -> None:
    run, other = tiny_run(Scout(**OFTEN), total_steps=STEPS), tiny_run(Scout(**OFTEN), total_steps=STEPS)
    for step in range(1, 7):
        run.step(step)
    state = copy.deepcopy(run.state_dict())
    other.load_state_dict(state)
    for step in range(7, STEPS + 1):
        run.step(step)
        other.step(step)
    assert run.snapshot() == other.snapshot()
    assert generator_for(1, "pool", 1, "w").initial_seed() != generator_for(1, "update", 1, "w").initial_seed()
