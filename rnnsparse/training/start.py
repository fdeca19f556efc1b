"""A run's first model: random, or made of what other runs have come to (the `start` section)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnnsparse.config import RunConfig
from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.errors import UserError
from rnnsparse.nn.basis import Basis, same_basis
from rnnsparse.nn.language_model import CharLM
from rnnsparse.randomness import generator_for
from rnnsparse.settings.marks import KeptOnRewind
from rnnsparse.sparsity.allocation import Budget, connect_randomly
from rnnsparse.sparsity.group import Group, weight_topologies
from rnnsparse.sparsity.method import StepContext
from rnnsparse.sparsity.selection import draw_absent, rewire
from rnnsparse.storage.checkpoint import STATE
from rnnsparse.storage.manifest import damaged
from rnnsparse.training.build import (
    Restored,
    begins_as_it_ends,
    empty_model,
    follow_connections,
    new_model,
    require_execution,
    restore,
)
from rnnsparse.training.device import CPU
from rnnsparse.training.step.optim import build_optimizer

# What the training state of a rewound run takes over; the rest, such as what was best, is the new run's own.
REWOUND = ("step", "scaler", "lanes", "recurrent_state", "generators", "corpus", "characters_seen", "seconds")
# And its topology's history, if it has all the connections and the method goes on.
TOPOLOGY_STATE = "sparsifier"
TEACHER_STATE = "teacher"  # if it learns from the same one


@dataclass(frozen=True)
class Start:
    """A model before its first step, its budgets, and what else a rewound run goes on with (a part of the state)."""

    model: CharLM
    budgets: list[Budget]
    training_state: dict[str, Any]


def final_model(config: RunConfig, vocab_size: int, device: torch.device) -> tuple[CharLM, list[Budget]]:
    """Return a model with as many connections as a run ends with, to be counted: where they are means nothing.

    Raises:
        UserError: as `first_model`.
    """
    if config.start.is_elsewhere:
        start = first_model(config, vocab_size, device)
        model, budgets = start.model, start.budgets
    else:
        require_execution(config, device)
        model, budgets = empty_model(config, vocab_size, device)
    connect_randomly(budgets, config.run.seed)
    return model, budgets


def first_model(config: RunConfig, vocab_size: int, device: torch.device, tokenizer: Tokenizer | None = None) -> Start:
    """Return what a new run starts with.

    Args:
        tokenizer: the run's own; without it only the size of another run's vocabulary is compared.

    Raises:
        UserError: the budgets cannot be met, sparse execution is impossible, or the other runs do not fit this one.
    """
    if not config.start.is_elsewhere:
        model, budgets = new_model(config, vocab_size, device)
        _take_singular_vectors(config, model, tokenizer)
        _draw_in_basis(model)
        return Start(model, budgets, training_state={})
    require_execution(config, device)
    model, budgets = empty_model(config, vocab_size, device)
    _take_singular_vectors(config, model, tokenizer)
    opened = {key: _open(f"start.{key}", path, config, model, tokenizer) for key, path in config.start.runs.items()}
    for key, other in opened.items():
        _change_basis(key, other, config, model)
    topology, values = opened.get("topology"), opened.get("weights") or opened.get("rewind")
    state: dict[str, Any] = {}
    if values is None:
        assert topology is not None
        for name, weight in model.sparse_weights().items():
            weight.connect(topology.model.sparse_weights()[name].indices)
        model.reset_parameters(config.run.seed, config.budget.initial_scale)
        _draw_in_basis(model)
    else:
        optimizer = build_optimizer(config.training, values.model.parameters())
        if "rewind" in opened:
            state = _training_state(config, values, optimizer)
        if topology is not None:
            _restrict(values, topology, optimizer)
        if "rewind" in opened:
            state["optimizer"] = optimizer.state_dict()
        _copy(values.model, model)
        if config.start.add:
            _add_connections(config, budgets)
    budgets = follow_connections(config, model, budgets, device)
    decides = "topology" if "topology" in opened else next(iter(opened))
    _require_counts(config, budgets, decides, opened[decides])
    if "rewind" in opened:
        _require_updates(config, budgets, opened["rewind"])
        if TOPOLOGY_STATE in state and not begins_as_it_ends(config, budgets):
            state[TOPOLOGY_STATE].pop("budgets", None)  # this run has its own to come to
    return Start(model, budgets, state)


def rewound(own: dict[str, Any], taken: dict[str, Any]) -> dict[str, Any]:
    """Return the training state of a run that goes on with what `Start.training_state` takes over."""
    ours, theirs = own[TEACHER_STATE], taken[TEACHER_STATE]
    same_teacher = ours and theirs and ours["sha256"] == theirs["sha256"]
    return own | taken | {TEACHER_STATE: theirs if same_teacher else ours}


def _open(key: str, path: str, config: RunConfig, model: CharLM, tokenizer: Tokenizer | None) -> Restored:
    """Read another run, whose symbols and matrices must be those of this one."""
    try:
        other = restore(Path(path), CPU)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    # Before the matrices, two of which have as many rows as there are symbols.
    same = other.tokenizer == tokenizer if tokenizer else other.tokenizer.vocab_size == model.vocab_size
    if not same:
        raise UserError(f"{key}: {path}: {_other_symbols(key, path, config, model, other.tokenizer)}")
    ours = {name: (w.rows, w.cols, [b.name for b in w.gates]) for name, w in model.sparse_weights().items()}
    theirs = {name: (w.rows, w.cols, [b.name for b in w.gates]) for name, w in other.model.sparse_weights().items()}
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"{key}: {path}: its {name} is {_shape(theirs.get(name))}, this run's is {_shape(ours.get(name))}; "
                f"name a run with the same model"
            )
    if not key.startswith("start."):
        return other  # of which only matrices are taken
    if key != "start.topology" and other.model.config.layer_norm != model.config.layer_norm:
        raise UserError(
            f"{key}: {path}: was trained with model.layer_norm={str(other.model.config.layer_norm).lower()}, this run "
            f"has {str(model.config.layer_norm).lower()}; use the same, or another run"
        )
    for name, weight in model.sparse_weights().items():
        if (height := other.model.sparse_weights()[name].block_rows) != weight.block_rows:
            raise UserError(
                f"{key}: {path}: its connections in {name} are of {height} rows, this run's of {weight.block_rows} "
                f"(sparsity.block_rows); use the same, or another run"
            )
    return other


def _other_symbols(key: str, path: str, config: RunConfig, model: CharLM, theirs: Tokenizer) -> str:
    """Return why the symbols of another run are not those of this one, and the way out."""
    if theirs.kind != config.data.tokenizer:
        return f"its symbols are {theirs.kind}s, this run's are {config.data.tokenizer}s; use the same data.tokenizer"
    reason = (
        f"its {theirs.vocab_size} symbols are the characters of another text than this run's {model.vocab_size}; name "
        "a run that was trained on the same text"
    )
    if key == "start.rewind":
        return f"{reason}, with the same data.vocabulary"
    return f"{reason}, or train with its symbols on this one: data.vocabulary={path}"


def _take_singular_vectors(config: RunConfig, model: CharLM, tokenizer: Tokenizer | None) -> None:
    """Make each weight's basis of the singular vectors of another run's matrix, if it is to be that.

    A run in such a basis hands on that one, so that its coefficients keep their meaning.
    """
    if config.budget.basis == "svd":
        assert config.budget.basis_from is not None
        other = _open("sparsity.basis_from", config.budget.basis_from, config, model, tokenizer)
        for name, weight in model.sparse_weights().items():
            theirs = other.model.sparse_weights()[name]
            if theirs.basis is None or theirs.basis.derived:
                basis = Basis.svd(theirs.to_dense(), len(weight.gates))
            else:
                basis = theirs.basis
            weight.basis = basis.to(weight.values)


def _draw_in_basis(model: CharLM) -> None:
    """Take numbers drawn for every position as a matrix: full networks of one seed are then the same in any basis."""
    for weight in model.sparse_weights().values():
        if weight.basis and weight.is_full:
            basis, weight.basis = weight.basis, None
            weight.express(weight.to_dense(), basis)


def _change_basis(key: str, other: Restored, config: RunConfig, model: CharLM) -> None:
    """Write another run's values in this run's basis, which makes every position of its matrices a connection."""
    for name, weight in model.sparse_weights().items():
        theirs = other.model.sparse_weights()[name]
        if same_basis(weight.basis, theirs.basis):
            continue
        if key != "weights" or config.start.add:
            other_way = "use start.weights, which takes values from any" if key != "weights" else "leave out start.add"
            raise UserError(
                f"start.{key}: {other.folder}: its connections are in another basis (sparsity.basis: "
                f"{other.config.budget.basis}) than this run's ({config.budget.basis}) and have no place here; name "
                f"a run in the same basis, or {other_way}"
            )
        theirs.express(theirs.to_dense(), weight.basis)


def _shape(weight: tuple[int, int, list[str]] | None) -> str:
    return f"{weight[0]} x {weight[1]}" if weight else "missing"


def _training_state(config: RunConfig, rewind: Restored, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return what a rewound run takes over; give its moments to the optimizer, whose settings are this run's own."""
    kept = rewind.config.marked(KeptOnRewind)
    for key, now in config.marked(KeptOnRewind).items():
        if kept[key] != now:
            raise UserError(
                f"start.rewind: {rewind.folder}: was trained with {key}={kept[key]}, this run has {now}, so it "
                f"cannot go on from there; use the same, or start.weights, which takes the values alone"
            )
    if rewind.step >= config.training.steps:
        raise UserError(
            f"start.rewind: {rewind.folder}: was saved after step {rewind.step}, and this run ends with "
            f"training.steps={config.training.steps}; rewind to an earlier one (checkpoint.keep), or train longer"
        )
    try:
        state = rewind.saved.training_state()
        optimizer.load_state_dict(state["optimizer"] | {"param_groups": optimizer.state_dict()["param_groups"]})
        goes_on = config.start.topology is None and config.method == rewind.config.method
        return {key: state[key] for key in (*REWOUND, TEACHER_STATE, *([TOPOLOGY_STATE] if goes_on else []))}
    except UserError as error:
        raise UserError(f"start.rewind: {error}") from None
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise damaged(rewind.saved.folder / STATE, "does not fit its model") from error


def _restrict(values: Restored, topology: Restored, optimizer: torch.optim.Optimizer) -> None:
    """Take from a model, and from its optimizer, all connections that `topology` has not."""
    for name, weight in values.model.sparse_weights().items():
        new = rewire(weight, topology.model.sparse_weights()[name].indices, optimizer)
        if new:
            raise UserError(
                f"start.topology: {topology.folder}: has {new * weight.block_rows:,} connections in {name} that "
                f"{values.folder} has not, so they have no values to start with; take those of a run that has them, "
                "such as a dense one"
            )


def _copy(source: CharLM, target: CharLM) -> None:
    """Give a model the connections, values and biases of another one."""
    for name, weight in source.sparse_weights().items():
        target.sparse_weights()[name].connect(weight.indices, weight.values)
    with torch.no_grad():
        for ours, theirs in zip(target.parameters(), source.parameters(), strict=True):
            ours.copy_(theirs)


def _require_updates(config: RunConfig, budgets: list[Budget], rewind: Restored) -> None:
    """Make sure that a method whose counts change has an update to change them at after the step of the checkpoint."""
    if all(budget.group.connections == budget.connections for budget in budgets if not budget.dense):
        return
    steps = range(rewind.step + 1, config.training.steps + 1)
    if not any(config.method.updates_at(StepContext(step, config.training.steps, config.run.seed)) for step in steps):
        raise UserError(
            f"start.rewind: {rewind.folder}: was saved after step {rewind.step}, when all updates of method "
            f"{config.method.name} are past, so it would never have its sparsity; rewind to an earlier one, or use "
            f"start.weights, which begins with step 1"
        )


def _first_count(config: RunConfig, budget: Budget) -> int:
    """Return how many connections of a group a run begins with, wherever they come from."""
    return budget.group.positions if budget.dense else config.method.initial_connections(budget)


def _add_connections(config: RunConfig, budgets: list[Budget]) -> None:
    """Connect absent positions, drawn by `run.seed`, with values of zero, as many as each group lacks."""
    wanted: list[tuple[Group, Tensor]] = []
    for budget in budgets:
        group, count = budget.group, _first_count(config, budget)
        if group.connections > count:
            raise UserError(
                f"start.add: the other run has {group.entries:,} connections in {group.name}, and this one would "
                f"begin with {count * group.block_rows:,}; use a lower sparsity.sparsity, or set start.add to false"
            )
        numbers = generator_for(config.run.seed, "added", group.name)
        present = group.indices()
        added = draw_absent(count - group.connections, present, group.positions, numbers)
        wanted.append((group, torch.cat([present, added]).sort().values))
    for weight, indices in weight_topologies(wanted):
        rewire(weight, indices, optimizer=None)


def _require_counts(config: RunConfig, budgets: list[Budget], key: str, other: Restored) -> None:
    """Make sure that every group has as many connections as its method begins with."""
    for budget in budgets:
        group = budget.group
        wanted = _first_count(config, budget)
        if group.connections != wanted:
            reason = (
                "sparsity.dense names it"
                if budget.dense
                else f"method {config.method.name} begins with {wanted * group.block_rows:,}"
            )
            raise UserError(
                f"start.{key}: {other.folder}: has {group.entries:,} of {group.matrix_entries:,} connections in "
                f"{group.name}, but {reason}; use another run, or sparsity.method=static"
            )
