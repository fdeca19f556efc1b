"""MEST: what it drops by, and the soft bound of EM&S."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from rnnsparse.config import parse_config
from rnnsparse.errors import UserError
from rnnsparse.flops import training_flops
from rnnsparse.nn.language_model import CharLM
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.settings.model import ModelConfig
from rnnsparse.settings.sparsity import BudgetConfig
from rnnsparse.sparsity.allocation import Budget, allocate
from rnnsparse.sparsity.group import Group, Part
from rnnsparse.sparsity.method import StepContext
from rnnsparse.sparsity.methods.mest import MEST
from rnnsparse.sparsity.methods.static import Static

STEPS = 20
SOFT: dict[str, Any] = {"interval": 2, "drop_fraction": 0.5, "stop": 0.65, "soft_bound": True}  # to step 13


def test_connections_go_by_their_weight_and_their_gradient_together() -> None:
    # values                gradients            |w| + |gradient| / 2, of which the largest two stay
    #  .   .5  -.1   .       .   .1  -1.   .      .  .55  .6   .
    #  .2   .   .  -.3       0.  .   .   .4       .2  .   .   .5
    weight = SparseWeight("w", 2, 4)
    weight.connect(torch.tensor([1, 2, 4, 7]), torch.tensor([0.5, -0.1, 0.2, -0.3]))
    weight.values.grad = torch.tensor([0.1, -1.0, 0.0, 0.4])
    group = Group("w", (Part(weight, 0, 2),))
    context = StepContext(1, 10, 0)
    score = MEST(gradient_weight=0.5).keep_score(group, context)
    torch.testing.assert_close(score, torch.tensor([0.55, 0.6, 0.2, 0.5]))
    half: dict[str, Any] = {"interval": 1, "drop_fraction": 0.5, "schedule": "constant", "stop": 1.0}
    (chosen,) = MEST(**half, gradient_weight=0.5).update([Budget(group, 4)], context)
    assert {1, 2} <= set(chosen.tolist())
    (chosen,) = MEST(**half, gradient_weight=0.0).update([Budget(group, 4)], context)
    assert {1, 7} <= set(chosen.tolist())


def test_a_block_counts_by_the_norms_of_its_weights_and_of_its_gradients() -> None:
    weight = SparseWeight("w", 2, 3, block_rows=2)
    weight.connect(torch.tensor([0, 2]), torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
    weight.values.grad = torch.tensor([[0.0, 1.0], [6.0, -8.0]])
    score = MEST(gradient_weight=2.0).keep_score(Group("w", (Part(weight, 0, 2),)), StepContext(1, 10, 0))
    torch.testing.assert_close(score, torch.tensor([7.0, 21.0]))


@pytest.mark.parametrize("block_rows", [1, 4])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_with_a_soft_bound_groups_stay_under_it_and_come_back_to_their_budgets(
    tiny_run: Any, cell: str, block_rows: int
) -> None:
    run = tiny_run(MEST(**SOFT), cell, total_steps=STEPS, block_rows=block_rows)
    for step in range(STEPS + 1):
        if step:
            run.step(step)
        for budget in run.budgets:
            share = 0.5 if step < 10 else 0.25 if step < 13 else 0  # stages: half of it after 3/4 of 13 steps
            expected = min(budget.connections + int(budget.connections * share), budget.group.positions)
            assert budget.group.connections == expected, (step, budget.group.name)
    assert run.sparsifier.updates == 7  # at 2, 4, ... 12, and 13
    assert run.sparsifier.connections_moved > 0


def test_what_an_update_grew_over_the_budget_is_as_much_as_the_next_one_drops(tiny_run: Any) -> None:
    run = tiny_run(MEST(**SOFT, gradient_weight=0.0), total_steps=STEPS)
    for step in (1, 2):
        before = run.step(step)
    for budget in run.budgets:
        (part,) = budget.group.parts
        places = range(part.first_position, part.first_position + part.positions)
        old = {p: abs(entry[0]) for p, entry in before[part.weight.name].items() if p in places}
        largest = sorted(old, key=lambda p: (old[p], p))[len(old) - budget.connections :]
        assert {p - part.first_position for p in largest} <= set(budget.group.indices().tolist())


def test_a_soft_bound_never_asks_for_more_than_there_is() -> None:
    weight = SparseWeight("w", 2, 5)
    budget = Budget(Group("w", (Part(weight, 0, 2),)), 8)
    assert MEST(**SOFT).initial_connections(budget) == 10
    assert MEST(**SOFT | {"stop": 0.0}).initial_connections(budget) == 8
    assert MEST().initial_connections(budget) == 8


def test_a_run_with_a_soft_bound_goes_on_from_any_step_bit_by_bit(tiny_run: Any) -> None:
    through, reloaded = (tiny_run(MEST(**SOFT), total_steps=STEPS) for _ in range(2))
    for step in range(1, STEPS + 1):
        state = copy.deepcopy(reloaded.state_dict())
        reloaded = tiny_run(MEST(**SOFT), total_steps=STEPS)
        reloaded.load_state_dict(state)
        through.step(step)
        reloaded.step(step)
        assert through.snapshot() == reloaded.snapshot(), step


@pytest.mark.parametrize("lost", [10, 12, 13])
def test_an_update_whose_gradients_overflowed_is_made_up_for(tiny_run: Any, lost: int) -> None:
    run = tiny_run(MEST(**SOFT), total_steps=STEPS)
    for step in range(1, STEPS + 1):
        if step == lost:
            run.backward(step)  # nothing else of this step happens
        else:
            run.step(step)
    assert all(budget.group.connections == budget.connections for budget in run.budgets)


def test_training_flops_count_what_is_over_the_budget_meanwhile(tiny_run: Any) -> None:
    model = CharLM(ModelConfig(embedding_dim=8, hidden_size=12), vocab_size=20)
    budgets = allocate(list(model.sparse_weights().values()), BudgetConfig(sparsity=0.9))

    def flops(method: Any, taken: int = 1000) -> float:
        return training_flops(method, model, budgets, 1000, 10, taken=taken).per_character

    still = flops(Static())
    assert flops(MEST(interval=10)) == still
    soft = MEST(interval=10, drop_fraction=0.5, stop=0.8, soft_bound=True)
    # Half more for 600 steps, a quarter more for 200, none more for the rest.
    assert flops(soft) == pytest.approx(still * (1 + (0.5 * 600 + 0.25 * 200) / 1000), rel=0.02)
    assert flops(soft, taken=600) == pytest.approx(still * 1.5, rel=0.02)


def test_redistribution_with_a_soft_bound_is_refused_in_a_line() -> None:
    data = {"sparsity": {"method": "mest", "soft_bound": True, "redistribute": "weight"}}
    with pytest.raises(UserError) as error:
        parse_config(data, "c.yaml")
    assert str(error.value) == (
        "c.yaml: sparsity.redistribute: weight: with sparsity.soft_bound every group comes back to its own budget; use "
        "none, or set soft_bound to false"
    )
