"""Guided stochastic exploration: what candidates are drawn by."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rnnsparse.nn.gradients import DenseGradient, Marginals
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.randomness import generator_for
from rnnsparse.settings.sparsity import BudgetConfig
from rnnsparse.sparsity.group import Group, Part, make_groups
from rnnsparse.sparsity.methods.gse import GSE
from rnnsparse.sparsity.methods.scout import Scout

OFTEN: dict[str, Any] = {"interval": 4, "drop_fraction": 0.5, "stop": 0.8}
STEPS = 14
every_cell = pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])


def watched_pass(run: Any, step: int = 1) -> dict[str, Marginals]:
    """Return the marginals of a step's gradients, and leave dense gradients in the weights."""
    for weight in run.weights.values():
        weight.marginals = Marginals(weight.rows, weight.cols, weight.values)
        weight.dense_gradient = DenseGradient()
    run.optimizer.zero_grad()
    run.loss(step).backward()
    return {name: weight.marginals for name, weight in run.weights.items()}


@every_cell
def test_uniform_candidates_are_those_of_scout_with_a_window_of_one_step(tiny_run: Any, cell: str) -> None:
    gse = tiny_run(GSE(**OFTEN, pool=1.5), cell, total_steps=STEPS)
    scout = tiny_run(Scout(**OFTEN, window=1, pool=1.5), cell, total_steps=STEPS)
    for step in range(1, STEPS + 1):
        gse.step(step)
        scout.step(step)
        assert gse.snapshot() == scout.snapshot(), step


@every_cell
@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_at_a_single_moment_the_product_of_the_marginals_is_the_gradient(
    tiny_run: Any, cell: str, execution: str
) -> None:
    run = tiny_run(GSE(), cell, num_layers=2, readout_dims=(5,))
    run.model.double()
    run.model.execution = execution
    state_LSBH = torch.randn(run.model.initial_state(1).shape, generator=generator_for(1), dtype=torch.float64)
    for weight in run.weights.values():
        weight.marginals = Marginals(weight.rows, weight.cols, weight.values)
        weight.dense_gradient = DenseGradient()
    logits_TBV, _ = run.model(torch.tensor([[3]]), state_LSBH)
    logits_TBV.log_softmax(-1)[0, 0, 4].backward()
    for name, weight in run.weights.items():
        product_RC = weight.marginals.rows_R[:, None] * weight.marginals.cols_C
        if name != "embedding":
            assert bool(product_RC.any())
            torch.testing.assert_close(product_RC, weight.dense_gradient.rows(0, weight.rows).abs())


@every_cell
@pytest.mark.parametrize("shape", [{}, {"tie_embeddings": True, "readout_dims": (6,)}, {"num_layers": 2}])
def test_both_executions_have_the_same_marginals_and_they_bound_the_gradient(
    tiny_run: Any, cell: str, shape: dict[str, Any]
) -> None:
    masked, sparse = (tiny_run(GSE(), cell, **shape) for _ in range(2))
    for run, execution in ((masked, "masked"), (sparse, "sparse")):
        run.model.double()
        run.model.execution = execution
    ours, theirs = watched_pass(masked), watched_pass(sparse)
    for name, weight in masked.weights.items():
        if name == "embedding":
            continue
        torch.testing.assert_close(ours[name].rows_R, theirs[name].rows_R)
        torch.testing.assert_close(ours[name].cols_C, theirs[name].cols_C)
        bound_RC = ours[name].rows_R[:, None] * ours[name].cols_C
        assert bool((weight.dense_gradient.rows(0, weight.rows).abs() <= bound_RC + 1e-12).all())


def test_the_textbook_step_that_watches_has_the_gradients_of_the_fused_one(tiny_run: Any) -> None:
    for cell in ("lstm", "gru", "rnn"):
        watched, plain = (tiny_run(GSE(), cell, num_layers=2) for _ in range(2))
        for run in (watched, plain):
            run.model.double()
        watched_pass(watched)
        plain.loss(1).backward()
        for ours, theirs in zip(watched.model.parameters(), plain.model.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("block_rows", [1, 2])
def test_chances_are_the_products_of_the_marginals(block_rows: int) -> None:
    # Rows (of blocks) 1 : 2 and 3 : 4, columns 1 : 0 : 3 and 5 : 1; of the first matrix (row 0, column 2) exists.
    parts = []
    for name, rows, cols in (("a", [1.0, 2.0], [1.0, 0.0, 3.0]), ("b", [3.0, 4.0], [5.0, 1.0])):
        weight = SparseWeight(name, 2 * block_rows, len(cols), block_rows=block_rows)
        weight.connect(torch.tensor([2] if name == "a" else []).long())
        weight.marginals = Marginals(weight.rows, weight.cols, weight.values)
        weight.marginals.rows_R = torch.tensor(rows).repeat_interleave(block_rows) / block_rows
        weight.marginals.cols_C = torch.tensor(cols)
        parts.append(Part(weight, 0, weight.rows))
    group, method = Group("both", tuple(parts)), GSE(candidates="grabo", pool=1.0)
    seen = torch.zeros(10)
    for seed in range(6000):
        seen[method._draw_pool(group, generator_for(seed))] += 1
    #                         a: 1 * (1 0 3)  2 * (1 0 3)  b: 3 * (5 1)  4 * (5 1)
    products = torch.tensor([1.0, 0, 3, 2, 0, 6, 15, 3, 20, 4])
    expected = 6000 * products / products.sum()
    expected[2] = 0  # it is there already, and what falls on it is lost
    assert seen[expected == 0].tolist() == [0, 0, 0]
    drawn = expected > 0
    # Chi-square with 7 degrees of freedom (and the lost), 99.9 % point.
    assert float(((seen - expected)[drawn] ** 2 / expected[drawn]).sum()) < 24.3


def test_without_any_gradient_candidates_are_drawn_evenly() -> None:
    weight = SparseWeight("w", 4, 5)
    weight.connect(torch.arange(4))
    (group,) = make_groups([weight], "matrix")
    evenly = GSE()._draw_pool(group, generator_for(3))
    assert torch.equal(GSE(candidates="grabo")._draw_pool(group, generator_for(3)), evenly)
    weight.marginals = Marginals(4, 5, weight.values)
    assert torch.equal(GSE(candidates="grabo")._draw_pool(group, generator_for(3)), evenly)


@pytest.mark.parametrize("window", [1, 3, 4])
def test_the_step_before_a_window_draws_its_candidates(tiny_run: Any, window: int) -> None:
    run = tiny_run(GSE(**OFTEN, window=window, candidates="grabo"), total_steps=STEPS)
    recurrent, embedding = run.weights["rnn.0.recurrent"], run.weights["embedding"]
    for step in range(1, STEPS + 1):
        run.backward(step)
        watches = step < 8 and (step + window) % 4 == 0
        assert (recurrent.marginals is not None) == watches, step
        assert embedding.marginals is None
        if watches:
            assert float(recurrent.marginals.rows_R.min()) > 0
        run.sparsifier.after_backward(step)
        run.optimizer.step()
        run.sparsifier.after_step(step)
        assert recurrent.marginals is None
        assert (recurrent.pool is not None) == (step < 8 and (watches or 0 < -step % 4 < window)), step
    assert run.sparsifier.updates == 2
    assert run.sparsifier.connections_moved > 0


def test_a_step_that_is_left_out_leaves_candidates_to_chance(tiny_run: Any) -> None:
    lost, evenly = (
        tiny_run(GSE(**OFTEN, candidates=candidates), total_steps=STEPS) for candidates in ("grabo", "uniform")
    )
    for step in range(1, 5):
        for run in (lost, evenly):
            run.backward(step) if step == 3 else run.step(step)
    assert lost.topology() == evenly.topology()


@pytest.mark.parametrize("lost", [[4], [4, 7], [4, 8]])
@pytest.mark.parametrize("window", [1, 4])
def test_candidates_of_an_update_that_was_left_out_are_not_kept(tiny_run: Any, window: int, lost: list[int]) -> None:
    run = tiny_run(GSE(**OFTEN, window=window, candidates="grabo"), total_steps=STEPS)
    recurrent = run.weights["rnn.0.recurrent"]
    for step in range(1, 4):
        run.step(step)
    old = recurrent.pool.positions.clone()
    for step in range(4, 9):
        run.backward(step)  # of a step that is left out, nothing else happens
        if step == 9 - window:
            assert not torch.equal(recurrent.pool.positions, old)
            assert not recurrent.pool.total.any()
        if step not in lost:
            run.sparsifier.after_backward(step)
            run.optimizer.step()
            run.sparsifier.after_step(step)
    assert run.sparsifier.updates == (8 not in lost)


def test_an_embedding_has_candidates_drawn_evenly_and_so_have_pools_of_all_positions(tiny_run: Any) -> None:
    assert not GSE(candidates="grabo", pool=None).watches_factors
    run = tiny_run(GSE(**OFTEN, candidates="grabo"), total_steps=STEPS, budget=BudgetConfig(sparsity=0.6))
    plain = tiny_run(GSE(**OFTEN), total_steps=STEPS, budget=BudgetConfig(sparsity=0.6))
    for step in range(1, 5):
        run.step(step)
        plain.step(step)
    assert run.topology() != plain.topology()
    assert run.weights["embedding"].indices.tolist() == plain.weights["embedding"].indices.tolist()
