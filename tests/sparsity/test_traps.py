"""Mistakes that published code made, each with a test that fails if it is made here."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from rnnsparse.nn.language_model import CharLM
from rnnsparse.settings.model import ModelConfig
from rnnsparse.settings.sparsity import BudgetConfig
from rnnsparse.sparsity.allocation import allocate
from rnnsparse.sparsity.method import StepContext
from rnnsparse.sparsity.methods.granet import GraNet
from rnnsparse.sparsity.methods.low_rank import LowRank
from rnnsparse.sparsity.methods.prune import Prune
from rnnsparse.sparsity.methods.rigl import RigL
from rnnsparse.sparsity.methods.set import SET
from rnnsparse.sparsity.methods.snfs import SNFS
from rnnsparse.sparsity.methods.snip import SNIP
from rnnsparse.sparsity.methods.static import Static

OFTEN: dict[str, Any] = {"interval": 3, "drop_fraction": 0.5, "stop": 1.0}


def adam(parameters: Any) -> Optimizer:
    return torch.optim.Adam(parameters, lr=0.01, betas=(0.9, 0.99))


def moments(run: Any) -> dict[str, list[Tensor]]:
    return {
        name: [v.clone() for v in run.optimizer.state[w.values].values() if torch.is_tensor(v) and v.ndim]
        for name, w in run.weights.items()
    }


def dense_gradients(run: Any) -> dict[str, Tensor]:
    return {name: w.dense_gradient.rows(0, w.rows).clone() for name, w in run.weights.items()}


def absent(run: Any, name: str) -> Tensor:
    """Return a mask [R, C] of where the weight has no connection."""
    weight = run.weights[name]
    mask = torch.ones(weight.positions, dtype=torch.bool)
    mask[weight.indices] = False
    return mask.view(weight.rows, weight.cols)


# Trap: pruning stays above its target, because the step of its last update overflowed.


@pytest.mark.parametrize(
    ("method", "step"),
    [
        (SNIP(), 1),
        (LowRank(), 1),
        (Prune(interval=4, stop=0.7), 8),
        (GraNet(interval=4, stop=0.7), 8),
        (Prune(interval=1, stop=0.5), 6),
    ],
)
def test_an_update_whose_step_overflowed_is_made_up_for(tiny_run: Any, method: Any, step: int) -> None:
    run = tiny_run(method, total_steps=12)
    for before in range(1, step):
        run.step(before)
    assert any(b.group.connections > b.connections for b in run.budgets)
    run.backward(step)  # overflows
    state = copy.deepcopy(run.state_dict())
    resumed = tiny_run(method, total_steps=12, seed=2)
    resumed.load_state_dict(state)
    for after in range(step + 1, 13):
        run.step(after)
        resumed.step(after)
        assert [b.group.connections for b in run.budgets] == [b.connections for b in run.budgets]
    assert run.snapshot() == resumed.snapshot()
    assert (
        run.sparsifier.updates
        == resumed.sparsifier.updates
        == sum(run.method.updates_at(StepContext(t, 12, 1)) for t in range(1, 13))
    )


@pytest.mark.parametrize("overflowed", [{8}, {9}, {4, 5, 6, 7, 8}, {8, 9}, {8, 9, 10}])
@pytest.mark.parametrize("method", [Prune(interval=4, stop=0.75), GraNet(interval=4, stop=0.75)])
def test_an_update_that_is_due_while_another_is_made_up_for_is_not_lost(
    tiny_run: Any, method: Any, overflowed: set[int]
) -> None:
    run = tiny_run(method, total_steps=12)
    assert [t for t in range(1, 13) if run.method.updates_at(StepContext(t, 12, 1))][-2:] == [8, 9]
    for step in range(1, 13):
        if step in overflowed:
            run.backward(step)
        else:
            run.step(step)
    assert [b.group.connections for b in run.budgets] == [b.connections for b in run.budgets]


@pytest.mark.parametrize("overflowed", [{12}, {8, 9, 10, 11, 12}])
@pytest.mark.parametrize(
    "method",
    [
        Prune(interval=4, stop=1.0),
        GraNet(interval=4, stop=1.0),
        GraNet(interval=4, stop=1.0, schedule="constant"),
        GraNet(interval=4, stop=1.0, redistribute="weight"),
        Prune(interval=4, stop=0.75),
    ],
)
def test_an_update_that_no_step_is_left_for_is_made_up_for_at_the_end(
    tiny_run: Any, method: Any, overflowed: set[int]
) -> None:
    run = tiny_run(method, total_steps=12)
    for step in range(1, 13):
        if step in overflowed:
            run.backward(step)
        else:
            run.step(step)
    updates, before = run.sparsifier.updates, run.snapshot()
    run.optimizer.zero_grad()
    run.sparsifier.finish()
    assert run.sparsifier.updates == updates + (method.stop == 1 or 9 in overflowed)
    assert sum(b.group.connections for b in run.budgets) == sum(b.connections for b in run.budgets)
    if method.name == "prune" or method.redistribute == "none":
        assert [b.group.connections for b in run.budgets] == [b.connections for b in run.budgets]
    after = run.snapshot()
    assert all(after[name].items() <= before[name].items() for name in after), "nothing grows without a gradient"
    run.sparsifier.finish()
    assert run.snapshot() == after


# Trap: dense gradients leak into the optimizer's moments of inactive weights.


def test_collecting_dense_gradients_changes_no_context(tiny_run: Any) -> None:
    # SNFS that never updates sees every dense gradient; its training is bitwise that of a static net.
    watching = tiny_run(SNFS(interval=100, stop=1.0), optimizer=adam, total_steps=12)
    static = tiny_run(Static(), optimizer=adam, total_steps=12)
    for step in range(1, 7):
        watching.step(step)
        static.step(step)
    assert watching.snapshot() == static.snapshot()
    for name, (first, second) in moments(watching).items():
        assert first.shape == second.shape == (watching.weights[name].connections,)


def test_the_first_moments_of_a_grown_connection_hold_its_first_gradient_only(tiny_run: Any) -> None:
    run = tiny_run(RigL(**OFTEN), optimizer=adam, total_steps=12)
    before = [run.step(step) for step in (1, 2, 3)][-1]
    grown = {name: sorted(set(w.indices.tolist()) - before[name].keys()) for name, w in run.weights.items()}
    assert all(grown.values())
    run.backward(4)
    gradients = {name: w.values.grad.clone() for name, w in run.weights.items()}
    run.optimizer.step()
    for name, weight in run.weights.items():
        first, second = moments(run)[name]
        new = torch.isin(weight.indices, torch.tensor(grown[name]))
        gradient = gradients[name][new]
        torch.testing.assert_close(first[new], 0.1 * gradient)
        torch.testing.assert_close(second[new], 0.01 * gradient**2)


# Trap: the gradient norm is clipped while it still contains inactive positions.


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_the_gradient_norm_is_that_of_existing_connections_and_biases(tiny_run: Any, cell: str) -> None:
    run = tiny_run(RigL(**OFTEN), cell)
    run.backward(3)
    dense = dense_gradients(run)
    everything = sum(float(g.double().square().sum()) for g in dense.values())
    inactive = sum(float(g[absent(run, name)].double().square().sum()) for name, g in dense.items())
    biases = [p for name, p in run.model.named_parameters() if not name.endswith("values")]
    bias_part = sum(float(p.grad.double().square().sum()) for p in biases)
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1e9)
    assert float(norm) == pytest.approx((everything - inactive + bias_part) ** 0.5, rel=1e-5)
    assert inactive > 0.1 * everything, "the trap has to show"


# Trap: weight decay, L2 or averages touch or resurrect inactive weights.


DECAYING: dict[str, Callable[[Any], Optimizer]] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5),
    "adam with L2": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.5),
    "sgd with L2": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.5),
    "averaged sgd": lambda p: torch.optim.ASGD(p, lr=0.1, t0=0, weight_decay=0.5),
}


@pytest.mark.parametrize("name", DECAYING)
def test_decay_and_averages_touch_no_absent_position(tiny_run: Any, name: str) -> None:
    run = tiny_run(SET(**OFTEN), optimizer=DECAYING[name], total_steps=12)
    for step in range(1, 13):
        before = run.step(step)
        after = run.snapshot()
        for weight_name, weight in run.weights.items():
            assert not weight.to_dense()[absent(run, weight_name)].any()
            # A position that was absent until now brings nothing with it: no value, no context, no average.
            new = after[weight_name].keys() - before[weight_name].keys()
            assert all(not any(after[weight_name][p]) for p in new)
    assert run.sparsifier.connections_moved > 0


# Trap: the growth score is the gradient of the last micro-batch, or of scaled losses.


def test_the_growth_score_is_the_gradient_of_the_whole_accumulated_batch(tiny_run: Any) -> None:
    whole, parts = (tiny_run(RigL(**OFTEN), total_steps=12) for _ in range(2))
    whole.model.double()
    parts.model.double()
    whole.sparsifier.before_backward(3)
    whole.loss(3).backward()
    parts.sparsifier.before_backward(3)
    for lanes in (slice(0, 2), slice(2, 4), slice(4, 8)):
        lane_share = (lanes.stop - lanes.start) / 8
        (parts.loss(3, lanes) * lane_share).backward()
    for name, gradient in dense_gradients(whole).items():
        torch.testing.assert_close(dense_gradients(parts)[name], gradient, rtol=1e-9, atol=1e-12)
    whole.sparsifier.after_backward(3)
    parts.sparsifier.after_backward(3)
    assert whole.topology() == parts.topology()

    last = tiny_run(RigL(**OFTEN), total_steps=12)
    last.model.double()
    last.sparsifier.before_backward(3)
    last.loss(3, slice(4, 8)).backward()
    last.sparsifier.after_backward(3)
    assert last.topology() != whole.topology(), "the trap has to show"


def test_scores_are_freed_from_the_loss_scale_before_they_are_averaged(tiny_run: Any) -> None:
    plain, scaled = (tiny_run(SNFS(**OFTEN), total_steps=12) for _ in range(2))
    for step, scale in enumerate((1024.0, 2.0, 65536.0, 1.0), start=1):
        plain.step(step)
        scaled.optimizer.zero_grad()
        scaled.sparsifier.before_backward(step)
        (scaled.loss(step) * scale).backward()
        for parameter in scaled.model.parameters():
            parameter.grad /= scale
        if scaled.sparsifier.after_backward(step, scale):
            scaled.optimizer.step()
        scaled.sparsifier.after_step(step)
        ours, theirs = (run.sparsifier.state_dict()["method"]["average"] for run in (plain, scaled))
        # Powers of two leave every digit alone.
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert plain.snapshot() == scaled.snapshot()


@pytest.mark.parametrize("method", [RigL, SNFS])
def test_a_step_given_up_for_overflow_leaves_nothing_behind(tiny_run: Any, method: Any) -> None:
    # What a trainer does on overflow: neither after_backward nor the optimizer, on with the next step.
    run, clean = (tiny_run(method(**OFTEN), total_steps=12) for _ in range(2))
    for step in (1, 2, 3):
        if step == 3:
            run.optimizer.zero_grad()
            run.sparsifier.before_backward(step)
            (run.loss(step) * torch.inf).backward()
        run.step(step)
        clean.step(step)
    assert run.snapshot() == clean.snapshot()
    assert run.sparsifier.updates == clean.sparsifier.updates == 1


# Trap: a resume that guesses the topology from weight != 0 loses what has grown and is still zero.


def test_connections_that_are_still_zero_survive_a_resume(tiny_run: Any) -> None:
    run = tiny_run(RigL(**OFTEN), total_steps=12)
    for step in (1, 2, 3):
        run.step(step)
    zeros = sum(int((w.values == 0).sum()) for w in run.weights.values())
    assert zeros > 20, "the trap has to show"
    other = tiny_run(RigL(**OFTEN), total_steps=12, seed=1)
    other.load_state_dict(run.state_dict())
    assert other.topology() == run.topology()
    assert other.snapshot() == run.snapshot()


# Trap: SNFS with masked gradients has zero momentum everywhere it could grow.


def test_snfs_knows_the_momentum_of_absent_positions_and_grows_the_largest(tiny_run: Any) -> None:
    run = tiny_run(SNFS(**OFTEN), total_steps=12)
    by_hand: dict[str, Tensor] = {}
    for step in (1, 2, 3):
        run.backward(step)
        for name, gradient in dense_gradients(run).items():
            by_hand[name] = 0.9 * by_hand.get(name, torch.zeros_like(gradient)) + 0.1 * gradient
        run.sparsifier.after_backward(step)
        run.optimizer.step()
        before = run.snapshot()
        run.sparsifier.after_step(step)
    average = run.sparsifier.state_dict()["method"]["average"]
    after = run.snapshot()
    for name, weight in run.weights.items():
        torch.testing.assert_close(average[name], by_hand[name])
        assert average[name][absent(run, name)].abs().max() > 0
        scores = by_hand[name].abs().flatten()
        for block in weight.gates:
            rows = range(block.start_row * weight.cols, block.stop_row * weight.cols)
            grown = [p for p in after[name].keys() - before[name].keys() if p in rows]
            left_out = [p for p in rows if p not in after[name]]
            assert grown
            assert scores[grown].min() >= scores[left_out].max()


# Trap: name filters that skip nn.LSTM altogether, or sweep in what was not asked for.


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_weight_matrix_is_sparse_and_no_bias(cell: Any, tied: bool) -> None:
    config = ModelConfig(
        cell=cell, embedding_dim=12, hidden_size=16, num_layers=2, readout_dims=(12,), tie_embeddings=tied
    )
    model = CharLM(config, 20)
    budgets = allocate(list(model.sparse_weights().values()), BudgetConfig(sparsity=0.75, distribution="uniform"))
    gates = 4 if cell == "lstm" else 3
    matrices = 20 * 12 * (1 if tied else 2) + gates * 16 * (12 + 16 + 16 + 16) + 16 * 12
    assert sum(b.group.positions for b in budgets) == matrices
    assert sum(b.connections for b in budgets) == matrices // 4
    dense_only = [name for name, _ in model.named_parameters() if not name.endswith(".values")]
    assert all(name.split(".")[-1].startswith("bias") for name in dense_only)


def test_only_what_is_named_stays_dense(tiny_run: Any) -> None:
    run = tiny_run(SET(**OFTEN), budget=BudgetConfig(sparsity=0.7, dense=("output",)))
    assert [name for name, weight in run.weights.items() if weight.is_full] == ["output"]


# Trap: random growth, or densities kept as floats, drift.


@pytest.mark.parametrize("method", [SET, RigL, SNFS])
def test_counts_do_not_drift_over_a_hundred_updates(tiny_run: Any, method: Any) -> None:
    # Odd sizes and a share that is no whole number anywhere.
    budget = BudgetConfig(sparsity=0.613, overrides={"rnn.0.input.z": 0.37})
    one = method(interval=1, drop_fraction=0.37, schedule="constant", stop=1.0)
    run = tiny_run(one, total_steps=101, budget=budget, hidden_size=7, embedding_dim=5)
    for step in range(1, 101):
        run.step(step)
        for b in run.budgets:
            assert b.group.connections == b.connections
    assert run.sparsifier.updates == 100
