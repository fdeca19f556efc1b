"""From a configuration, or from a checkpoint, to a model and to all that a step needs; each part is built here."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rnnsparse.cells.cell import CELLS
from rnnsparse.config import RunConfig, parse_config
from rnnsparse.data.batches import Lanes
from rnnsparse.data.corpus import Corpus, given_tokenizer, load_corpus
from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.errors import UserError
from rnnsparse.nn.basis import Basis
from rnnsparse.nn.execution import Chosen, choose
from rnnsparse.nn.language_model import CharLM
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.settings.data import DataConfig
from rnnsparse.settings.model import ModelConfig
from rnnsparse.sparsity.allocation import Budget, allocate, connect_randomly
from rnnsparse.sparsity.blocks import set_block_rows
from rnnsparse.sparsity.updater import Updater
from rnnsparse.storage import checkpoint
from rnnsparse.training.device import COMPUTE_TYPES, CPU, NOWHERE, PARAMETER_TYPES
from rnnsparse.training.step.distributed import Ranks
from rnnsparse.training.step.learner import Learner
from rnnsparse.training.step.loss import Teacher
from rnnsparse.training.step.optim import build_optimizer


def vocabulary_size(data: DataConfig) -> int:
    """Return how many symbols a text has; reads it only if its characters are the symbols."""
    return (given_tokenizer(data) or load_corpus(data).tokenizer).vocab_size


def empty_model(config: RunConfig, vocab_size: int, device: torch.device) -> tuple[CharLM, list[Budget]]:
    """Return a model without connections, and the budgets that its groups have.

    Half precision is for CUDA: elsewhere such a model computes in fp32. NOWHERE is a device for what is only validated.

    Raises:
        UserError: the budgets cannot be met.
    """
    with NOWHERE:
        shape = config.method.model_config(config.model, config.budget, vocab_size)
    with NOWHERE if device == NOWHERE else nullcontext():
        return _empty_model(config, shape, vocab_size, device)


def _empty_model(
    config: RunConfig, shape: ModelConfig, vocab_size: int, device: torch.device
) -> tuple[CharLM, list[Budget]]:
    precision = config.training.precision
    model = CharLM(shape, vocab_size).to(device=device, dtype=PARAMETER_TYPES.get(precision, torch.float32))
    model.compute_dtype = COMPUTE_TYPES.get(precision) if device.type == "cuda" else None
    model.execution, _ = choose_execution(config, device)
    budget = config.budget
    if shape is config.model:  # a network in the place of the configured one has no blocks
        set_block_rows(list(model.sparse_weights().values()), budget.block_rows)
    for weight in model.sparse_weights().values():
        weight.basis = _basis(budget.basis, weight)
    if config.method.stays_dense:
        # Names are checked as ever; sparsity is not, for it may be more than a network without it can bear.
        budget = replace(budget, sparsity=0.0, overrides=dict.fromkeys(budget.overrides, 0.0))
    budgets = allocate(list(model.sparse_weights().values()), budget)
    config.method.require_groups([budget.group for budget in budgets], config.budget.granularity)
    return model, budgets


def _basis(kind: str, weight: SparseWeight) -> Basis | None:
    """Return what a weight's values are coefficients in; of singular vectors, which another run has, the place."""
    if kind == "canonical":
        return None
    gates, rows = len(weight.gates), weight.rows // len(weight.gates)
    basis = Basis.dct(rows, weight.cols) if kind == "dct" else Basis.blank(gates, rows, weight.cols)
    return basis.to(weight.values)


def choose_execution(config: RunConfig, device: torch.device, sparsity: float | None = None) -> tuple[Chosen, str]:
    """Return how a model is computed on a device, and why in a few words; sparse only where that is possible.

    `sparsity` is that of connections that come from another run, by default the configured one.
    """
    method, obstacle, favour = config.method, "", ""
    if config.budget.basis != "canonical":
        obstacle = f"in basis {config.budget.basis} a matrix is dense, however few coefficients it has"
    elif device.type != "cpu":
        obstacle = "sparse execution is for CPUs"
    elif not method.works_sparse:
        obstacle = f"method {method.name} needs the dense gradient at every step"
    if method.mostly_dense:
        how_long = "throughout" if method.stays_dense else "for much of the run"
        favour = f"method {method.name} has every connection {how_long}"
    sparsity = config.budget.sparsity if sparsity is None else sparsity
    return choose(config.model.execution, sparsity, CELLS[config.model.cell].sparse_wins_from, obstacle, favour)


def sparsity_of(budgets: Sequence[Budget]) -> float:
    """Return the share of positions without a connection, in what is not dense by name."""
    counted = [budget for budget in budgets if not budget.dense]
    positions = sum(budget.group.matrix_entries for budget in counted)
    return 1 - sum(budget.entries for budget in counted) / positions if positions else 0.0


def follow_connections(
    config: RunConfig, model: CharLM, budgets: Sequence[Budget], device: torch.device
) -> list[Budget]:
    """Return the budgets of a run with the connections that its model has, and execute it accordingly.

    Connections from another run decide the budgets of a method that begins with as many as it ends with.
    """
    if config.start.is_elsewhere and begins_as_it_ends(config, budgets):
        budgets = [replace(budget, connections=budget.group.connections) for budget in budgets]
        model.execution, _ = choose_execution(config, device, sparsity_of(budgets))
    return list(budgets)


def begins_as_it_ends(config: RunConfig, budgets: Sequence[Budget]) -> bool:
    """Return whether a run's method keeps the number of connections in each group, or at least their sum."""
    method = config.method
    return not method.stays_dense and all(method.initial_connections(b) == b.connections for b in budgets)


def require_execution(config: RunConfig, device: torch.device) -> None:
    """Make sure that a new run can be computed as it wants to be.

    Raises:
        UserError: sparse execution is wanted where it is impossible.
    """
    execution, reason = choose_execution(config, device)
    if config.model.execution == "sparse" and execution != "sparse":
        raise UserError(f"model.execution: sparse is impossible here: {reason}; use model.execution=masked or auto")


def require_buildable(config: RunConfig) -> None:
    """Make sure of what a configuration alone cannot tell: that budgets can be met and computed.

    Raises:
        UserError: they cannot.
    """
    # Budgets depend on the vocabulary only where characters are symbols; 256 stands for any there.
    empty_model(config, 256, NOWHERE)
    require_execution(config, CPU)


def new_model(config: RunConfig, vocab_size: int, device: torch.device) -> tuple[CharLM, list[Budget]]:
    """Return a model with a random topology and random values, both by `run.seed`; and its budgets.

    Raises:
        UserError: the budgets cannot be met, or sparse execution is wanted where it is impossible.
    """
    require_execution(config, device)
    model, budgets = empty_model(config, vocab_size, device)
    connect_randomly(budgets, config.run.seed, config.method.initial_connections, config.method.draw_connections)
    model.reset_parameters(config.run.seed, config.budget.initial_scale)
    return model, budgets


@dataclass(frozen=True)
class Restored:
    """A checkpoint brought to life."""

    folder: Path
    step: int
    config: RunConfig
    model: CharLM
    tokenizer: Tokenizer
    budgets: list[Budget]
    saved: checkpoint.Checkpoint


def restore(path: Path, device: torch.device) -> Restored:
    """Read a run (its last checkpoint) or a checkpoint.

    Raises:
        UserError: there is none, it is damaged, or of another program or version.
    """
    saved = checkpoint.load(checkpoint.resolve(path))
    config = read_config(saved)
    tokenizer = Tokenizer.from_json(saved.tokenizer_json)
    model, budgets = saved_model(saved, config, tokenizer, device)
    return Restored(path, saved.step, config, model, tokenizer, budgets, saved)


def named_teacher(config: RunConfig, device: torch.device) -> Restored | None:
    """Return what the configuration names as the teacher of its run, if anything.

    Raises:
        UserError: it cannot be read.
    """
    if config.training.teacher is None:
        return None
    try:
        return restore(Path(config.training.teacher), device)
    except UserError as error:
        raise UserError(f"training.teacher: {error}") from None


def saved_model(
    saved: checkpoint.Checkpoint, config: RunConfig, tokenizer: Tokenizer, device: torch.device
) -> tuple[CharLM, list[Budget]]:
    """Return the model in a checkpoint of a run with this configuration, and the run's budgets.

    Raises:
        UserError: the checkpoint is of another model.
    """
    # What does not fit is refused before it takes memory.
    saved.weights.require_fit(empty_model(config, tokenizer.vocab_size, NOWHERE)[0])
    model, budgets = empty_model(config, tokenizer.vocab_size, device)
    saved.weights.apply(model)
    return model, follow_connections(config, model, budgets, device)


def read_config(saved: checkpoint.Checkpoint) -> RunConfig:
    """Return the configuration in a checkpoint."""
    return parse_config(saved.config, f"{saved.folder}/config.yaml")


def build_learner(config: RunConfig, model: CharLM, budgets: Sequence[Budget], corpus: Corpus, ranks: Ranks) -> Learner:
    """Return what a run's steps are made by: the model with its teacher, optimizer, topology updates and lanes.

    Raises:
        UserError: the text does not fit the lanes, or there is no such teacher.
    """
    training, seed = config.training, config.run.seed
    lanes, length = training.batch_size, training.sequence_length
    teacher = _teacher(config, model, corpus.tokenizer, lanes // ranks.world_size)
    optimizer = build_optimizer(training, model.parameters())
    reduce = ranks.average if ranks.several else None
    return Learner(
        model,
        optimizer,
        Updater(config.method, budgets, optimizer, seed=seed, total_steps=training.steps, reduce=reduce),
        Lanes(corpus.train.tokens, lanes, length, rank=ranks.rank, world_size=ranks.world_size),
        corpus,
        training,
        seed=seed,
        ranks=ranks,
        teacher=teacher,
        is_told=lambda step: config.logging.tells_of(step, training.steps),
    )


def _teacher(config: RunConfig, model: CharLM, tokenizer: Tokenizer, lanes: int) -> Teacher | None:
    restored = named_teacher(config, model.embedding.values.device)
    if restored is None:
        return None
    if restored.saved.tokenizer_json != tokenizer.to_json():
        raise UserError(
            f"training.teacher: {restored.folder}: predicts other symbols than this run has; name a run with the same "
            f"data.tokenizer, and if that is char, trained on the same text or with its symbols: "
            f"data.vocabulary={restored.folder}"
        )
    return Teacher(restored.model, restored.saved.weights_sha256, lanes)
