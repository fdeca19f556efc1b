"""The contract that every method keeps. A new method joins by one line in CONTRACT."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import cycle, product
from math import hypot
from typing import Any

import pytest
import torch
from torch.optim import Optimizer

from rnnsparse.cells.cell import CELLS
from rnnsparse.errors import UserError
from rnnsparse.nn.weight import BLOCK_ROWS
from rnnsparse.settings.sparsity import BudgetConfig
from rnnsparse.sparsity import methods  # registers them all
from rnnsparse.sparsity.allocation import Budget, connect_randomly
from rnnsparse.sparsity.drop_grow import DropGrow
from rnnsparse.sparsity.method import METHODS, Method, StepContext, method_class
from rnnsparse.sparsity.methods.cht import CHT
from rnnsparse.sparsity.methods.granet import GraNet
from rnnsparse.sparsity.methods.low_rank import LowRank
from rnnsparse.sparsity.methods.mest import MEST
from rnnsparse.sparsity.methods.prune import Prune
from rnnsparse.sparsity.methods.snip import SNIP
from rnnsparse.sparsity.methods.srigl import SRigL
from rnnsparse.sparsity.schedule import annealed

# With these, twelve steps show every kind of step: with an update, without one, after the last one.
OFTEN = {"interval": 2, "drop_fraction": 0.5, "stop": 0.8}
CONTRACT: dict[str, dict[str, Any]] = {
    "dense": {},
    "static": {},
    "set": OFTEN,
    "rigl": OFTEN,
    "snfs": OFTEN,
    "scout": OFTEN,
    "gse": OFTEN | {"candidates": "grabo"},
    "srigl": OFTEN,
    "mest": OFTEN,
    "cht": OFTEN,
    "granet": OFTEN,
    "prune": {"interval": 2, "start": 0.2, "stop": 0.8},
    "snip": {},
    "low_rank": {},
    "small_dense": {},
    # What each of their runs does; tests/recipes has the rest.
    "lottery": {},
    "kd_ticket": {},
}
STEPS = 12
# These drop by something else than weights alone; what each goes by is tested in its own file.
BY_OTHER_RULES = (SNIP, LowRank, SRigL, MEST, CHT)

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
}


def expected_connections(method: Method, budget: Budget, step: int) -> int:
    """Return how many connections a group has after a step, by the textbook."""
    positions, final = budget.group.positions, budget.connections
    if budget.dense or method.stays_dense:
        return positions
    if isinstance(method, SNIP | LowRank):
        return final if step else positions
    if isinstance(method, Prune | GraNet):
        first, last = (2, 9) if isinstance(method, Prune) else (0, 9)  # of twelve steps: 20 % or none, and 80 %
        if step >= last:
            return final
        step -= step % 2  # the last update
        left = 1 - (step - first) / (last - first) if step >= max(first, 2) else 1
        return final + round((positions - final) * left**3)
    return final


every_method = pytest.mark.parametrize("name", CONTRACT)
# Every cell with every size of blocks, by turns in the optimizers; sixteen units, the rows of the largest block.
KINDS: list[dict[str, Any]] = [
    {"cell": cell, "block_rows": rows, "optimizer": optimizer, "hidden_size": 16, "total_steps": STEPS}
    for (cell, rows), optimizer in zip(product(sorted(CELLS), BLOCK_ROWS), cycle(OPTIMIZERS.values()))
]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind['cell']}-{kind['block_rows']}")


def make(name: str, **changes: Any) -> Method:
    return METHODS[name](**CONTRACT[name] | changes)


def context(step: int, seed: int = 1) -> StepContext:
    return StepContext(step, STEPS, seed)


def test_every_registered_method_joins_the_contract() -> None:
    assert methods.__name__ == "rnnsparse.sparsity.methods"
    assert CONTRACT.keys() == METHODS.keys()
    assert all(METHODS[name].name == name for name in METHODS)


@every_method
def test_a_method_is_a_file_of_its_name(name: str) -> None:
    assert METHODS[name].__module__ == f"rnnsparse.sparsity.methods.{name}"


def test_an_unknown_method_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UserError) as error:
        method_class("rigel")
    assert "sparsity.method" in str(error.value)
    assert "did you mean 'rigl'?" in str(error.value)
    assert "\n" not in str(error.value)


@every_method
def test_every_method_says_in_a_line_what_it_does(name: str) -> None:
    assert METHODS[name].__doc__
    assert "(" not in METHODS[name].__doc__.splitlines()[0], "a sentence, not a generated signature"


@every_method
@every_kind
def test_groups_have_exactly_their_connections_after_every_step(tiny_run: Any, name: str, kind: dict[str, Any]) -> None:
    run = tiny_run(make(name), **kind)
    for step in range(STEPS + 1):
        if step:
            run.step(step)
        for budget in run.budgets:
            expected = expected_connections(run.method, budget, step)
            assert budget.group.connections == expected, (budget.group.name, step)
        for weight in run.weights.values():
            assert weight.values.shape == weight.topology.values_shape
            assert bool((weight.indices.diff() > 0).all())
            assert 0 <= int(weight.indices[0]) <= int(weight.indices[-1]) < weight.positions // weight.block_rows


@every_method
@every_kind
def test_updates_drop_only_the_smallest_and_start_the_new_from_nothing(
    tiny_run: Any, name: str, kind: dict[str, Any]
) -> None:
    run = tiny_run(make(name), **kind)
    moved = 0
    for step in range(1, STEPS + 1):
        before = run.step(step)
        after = run.snapshot()
        for weight, old in before.items():
            new = after[weight]
            assert all(new[p] == old[p] for p in old.keys() & new.keys()), "survivors are untouched"
            assert all(not any(new[p]) for p in new.keys() - old.keys()), "new ones start from nothing"
            moved += len(new.keys() - old.keys()) * run.weights[weight].block_rows
            if not run.method.updates_at(context(step)):
                assert old.keys() == new.keys(), "the topology changes at updates only"
        for budget in run.budgets:
            (part,) = budget.group.parts
            rows = range(part.first_position, part.first_position + part.positions)
            old = {p: entry for p, entry in before[part.weight.name].items() if p in rows}
            gone = old.keys() - after[part.weight.name].keys()
            if not isinstance(run.method, BY_OTHER_RULES):
                target = expected_connections(run.method, budget, step)
                share = annealed("cosine", OFTEN["drop_fraction"], step, OFTEN["stop"] * STEPS)
                drop = len(old) - target + (int(target * share) if isinstance(run.method, DropGrow) else 0)
                sizes = {p: hypot(*entry[: budget.group.block_rows]) for p, entry in old.items()}
                smallest = sorted(old, key=lambda p: (sizes[p], p))[:drop]
                assert gone <= set(smallest), budget.group.name
    assert run.sparsifier.connections_moved == moved
    assert (moved > 0) == isinstance(run.method, DropGrow)
    updates = sum(run.method.updates_at(context(step)) for step in range(1, STEPS + 1))
    assert run.sparsifier.updates == updates


def watch_growth_scores(run: Any) -> dict[str, dict[int, float]]:
    """Return a dictionary that gets, at each update, how much each position that may grow deserves it, by group."""
    scores: dict[str, dict[int, float]] = {}
    update = run.method.update

    def watched(budgets: Any, context: StepContext) -> Any:
        for budget in budgets:
            group, (part,) = budget.group, budget.group.parts
            if part.weight.pool:
                positions, total = group.pooled()
            else:
                rows = part.start_row, part.stop_row
                total_RC = run.method.growth_gradient(part.weight).rows(*rows)
                total = total_RC.unflatten(0, (-1, group.block_rows)).transpose(1, 2).flatten(0, 1)
                positions = torch.arange(group.positions)
            sizes = [hypot(*entries) for entries in total.reshape(len(positions), group.block_rows).tolist()]
            scores[group.name] = dict(zip(positions.tolist(), sizes, strict=True))
        return update(budgets, context)

    run.method.update = watched
    return scores


@pytest.mark.parametrize("name", [name for name in CONTRACT if name in ("rigl", "snfs", "scout", "gse", "granet")])
@every_kind
def test_updates_grow_only_the_best_of_what_they_choose_from(tiny_run: Any, name: str, kind: dict[str, Any]) -> None:
    run = tiny_run(make(name), **kind)
    scores = watch_growth_scores(run)
    grown_in_all = 0
    for step in range(1, STEPS + 1):
        before = {budget.group.name: set(budget.group.indices().tolist()) for budget in run.budgets}
        run.step(step)
        for budget in run.budgets:
            score, present = scores.get(budget.group.name), set(budget.group.indices().tolist())
            if grown := present - before[budget.group.name]:
                assert score is not None, "nothing grows without an update"
                left_out = max((score[p] for p in score.keys() - present), default=0.0)
                worst = min(score.get(p, 0.0) for p in grown)
                rounding = 1e-6 if kind["block_rows"] > 1 else 0  # of norms
                assert worst >= left_out * (1 - rounding), (budget.group.name, step)
                grown_in_all += len(grown) * kind["block_rows"]
    assert grown_in_all > 20


@pytest.mark.parametrize("name", [name for name in CONTRACT if make(name).works_sparse])
@every_kind
def test_both_executions_lead_to_the_same_topology(tiny_run: Any, name: str, kind: dict[str, Any]) -> None:
    runs = [tiny_run(make(name), **kind) for _ in range(2)]
    for run, execution in zip(runs, ("masked", "sparse"), strict=True):
        run.model.double()  # so that roundings decide no comparison
        run.model.execution = execution
    for step in range(1, STEPS + 1):
        for run in runs:
            run.step(step)
        masked, sparse = runs
        assert masked.topology() == sparse.topology(), step
    for ours, theirs in zip(masked.model.parameters(), sparse.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["rigl", "scout", "prune", "low_rank", "small_dense"])
def test_the_contract_holds_with_normalised_layers_and_skip_connections(tiny_run: Any, name: str) -> None:
    model = {"num_layers": 2, "layer_norm": True, "skip_connections": True}
    kind = {"total_steps": STEPS, "block_rows": 2, **model}
    through, reloaded = tiny_run(make(name), **kind), tiny_run(make(name), **kind)
    gains = [layer.norm.weight for layer in through.model.recurrent_layers]
    first = [gain.detach().clone() for gain in gains]
    for step in range(1, STEPS + 1):
        reloaded = resumed(reloaded, tiny_run, name, **kind)
        through.step(step)
        reloaded.step(step)
        assert through.snapshot() == reloaded.snapshot(), step
        for budget in through.budgets:
            assert budget.group.connections == expected_connections(through.method, budget, step), budget.group.name
    for ours, theirs in zip(through.model.parameters(), reloaded.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not any(torch.equal(gain, was) for gain, was in zip(gains, first, strict=True))


@every_method
def test_what_a_method_remembers_has_the_shapes_that_it_says(tiny_run: Any, name: str) -> None:
    run = tiny_run(make(name), total_steps=STEPS)
    for step in range(1, STEPS + 1):
        run.step(step)
        said = run.method.state_shapes(run.weights.values())
        for kind, tensors in run.method.state_dict().items():
            for key, tensor in tensors.items():
                assert (tensor.shape, tensor.dtype) == (said[kind][key].shape, said[kind][key].dtype)
    assert (name == "snfs") == bool(run.method.state_dict())


def resumed(run: Any, tiny_run: Any, name: str, **kind: Any) -> Any:
    """Return a run that began with another topology and other values, after a round trip through a file."""
    file = io.BytesIO()
    torch.save(run.state_dict(), file)
    file.seek(0)
    other = tiny_run(make(name), **kind)
    connect_randomly(other.budgets, seed=99)
    other.model.reset_parameters(seed=99)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


@every_method
@every_kind
def test_a_run_reloaded_at_every_step_is_bitwise_the_run_that_went_through(
    tiny_run: Any, name: str, kind: dict[str, Any]
) -> None:
    through, reloaded = (tiny_run(make(name), **kind) for _ in range(2))
    for step in range(1, STEPS + 1):
        reloaded = resumed(reloaded, tiny_run, name, **kind)
        through.step(step)
        reloaded.step(step)
        assert through.snapshot() == reloaded.snapshot(), step
        for ours, theirs in zip(through.model.parameters(), reloaded.model.parameters(), strict=True):
            assert torch.equal(ours, theirs)
        for counter in ("updates", "connections_moved", "last_moved_share"):
            assert getattr(through.sparsifier, counter) == getattr(reloaded.sparsifier, counter)


@every_method
def test_the_same_seed_gives_the_same_run_and_another_seed_another(tiny_run: Any, name: str) -> None:
    def final(seed: int) -> Any:
        run = tiny_run(make(name), total_steps=STEPS, seed=seed)
        for step in range(1, STEPS + 1):
            run.step(step)
            torch.rand(step)  # what others draw from the global generator changes nothing
        return run

    run, other = final(3), final(4)
    assert run.snapshot() == final(3).snapshot()
    assert run.snapshot() != other.snapshot()
    if not METHODS[name].stays_dense and name != "low_rank":  # whose topology is a matter of shapes
        assert run.topology() != other.topology()


@every_method
@pytest.mark.parametrize("granularity", ["matrix", "cell"])
def test_counts_stay_exact_for_coarse_groups_dense_blocks_and_overrides(
    tiny_run: Any, name: str, granularity: Any
) -> None:
    budget = BudgetConfig(sparsity=0.8, granularity=granularity, dense=("embedding",), overrides={"output": 0.5})
    run = tiny_run(make(name), "lstm", total_steps=STEPS, budget=budget)
    embedding = run.weights["embedding"]
    assert embedding.is_full
    for step in range(1, STEPS + 1):
        run.step(step)
        for b in run.budgets:
            assert b.group.connections == expected_connections(run.method, b, step)
        assert embedding.dense_gradient is None


@every_method
def test_dense_gradients_are_let_go_after_every_step(tiny_run: Any, name: str) -> None:
    run = tiny_run(make(name), total_steps=STEPS)
    for step in range(1, STEPS + 1):
        run.step(step)
        assert all(w.dense_gradient is None for w in run.weights.values())


@every_method
def test_the_optimizer_steps_unless_the_update_replaces_it(tiny_run: Any, name: str) -> None:
    run = tiny_run(make(name), total_steps=STEPS)
    bias = run.model.rnn[0].bias_ih
    for step in range(1, STEPS + 1):
        before = bias.detach().clone()
        run.step(step)
        replaced = name in ("rigl", "srigl", "snip", "low_rank") and run.method.updates_at(context(step))
        assert torch.equal(bias, before) == replaced, step


@pytest.mark.parametrize("name", [name for name in CONTRACT if issubclass(METHODS[name], DropGrow)])
def test_whether_an_update_replaces_the_optimizer_step_can_be_chosen(tiny_run: Any, name: str) -> None:
    for skip in (False, True):
        run = tiny_run(make(name, skip_optimizer_step=skip), total_steps=STEPS)
        bias = run.model.rnn[0].bias_ih
        before = bias.detach().clone()
        run.step(1)
        middle = bias.detach().clone()
        run.step(2)
        assert not torch.equal(before, middle)
        assert torch.equal(bias, middle) == skip
        assert run.sparsifier.updates == 1


# A uniformly sparse net as a share of the dense one's training (RigL, appendix H; interval 100).
@pytest.mark.parametrize(
    ("name", "at_75", "at_90"),
    [
        ("dense", 1.0, 1.0),
        ("static", 0.25, 0.1),
        ("set", 0.25, 0.1),
        ("rigl", 0.2525, 0.1030),
        ("snip", 0.25, 0.1),
        ("low_rank", 0.25, 0.1),
        ("snfs", 0.5, 0.4),
    ],
)
def test_training_flops_are_those_of_the_formulas(name: str, at_75: float, at_90: float) -> None:
    method = METHODS[name]()
    found = [method.training_flops((1 - s) * 1000, 1000, steps=200_000) / 3000 for s in (0.75, 0.9)]
    assert found == pytest.approx([at_75, at_90], abs=5e-5)


def test_training_flops_of_rigl_depend_on_the_interval() -> None:
    # (3 * 100 * 9 + 2 * 100 + 1000) / 10
    assert METHODS["rigl"](interval=9).training_flops(100, 1000, steps=1) == pytest.approx(390)


@pytest.mark.parametrize("granularity", ["gate", "matrix"])
def test_low_rank_keeps_the_corner_of_every_block(tiny_run: Any, granularity: Any) -> None:
    budget = BudgetConfig(sparsity=0.75, distribution="uniform", granularity=granularity)
    run = tiny_run(make("low_rank"), "lstm", total_steps=STEPS, budget=budget)
    run.step(1)
    recurrent = run.weights["rnn.0.recurrent"]
    corner = [8 * row + col for gate in range(4) for row in range(8 * gate, 8 * gate + 4) for col in range(4)]
    assert recurrent.indices.tolist() == corner  # 16 of the 64 positions of each gate


@pytest.mark.parametrize("redistribute", ["gradient", "momentum", "weight"])
@pytest.mark.parametrize("name", [name for name in CONTRACT if issubclass(METHODS[name], DropGrow)])
def test_blocks_and_single_connections_give_way_to_each_other_to_the_last_weight(
    tiny_run: Any, name: str, redistribute: str
) -> None:
    run = tiny_run(make(name, redistribute=redistribute), total_steps=STEPS, block_rows=4)
    first = [budget.group.connections for budget in run.budgets]
    for step in range(1, STEPS + 1):
        run.step(step)
        if name != "granet" or step == STEPS:
            assert sum(b.group.entries for b in run.budgets) == sum(b.entries for b in run.budgets), step
    assert first != [budget.group.connections for budget in run.budgets]


def test_blocks_that_compete_globally_keep_their_total(tiny_run: Any) -> None:
    run = tiny_run(make("snip", scope="global"), total_steps=STEPS, block_rows=4)
    run.step(1)
    assert sum(b.group.entries for b in run.budgets) == sum(b.entries for b in run.budgets)
    assert [b.group.connections for b in run.budgets] != [b.connections for b in run.budgets]
