"""From a configuration, or from a checkpoint, to a model that is ready to use."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from rnnsparse.cells.cell import CELLS
from rnnsparse.config import RunConfig, parse_config
from rnnsparse.data.corpus import given_tokenizer, load_corpus
from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.errors import UserError
from rnnsparse.nn.basis import Basis
from rnnsparse.nn.language_model import CharLM
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.settings.data import DataConfig
from rnnsparse.settings.model import ModelConfig
from rnnsparse.settings.training import TrainingConfig
from rnnsparse.sparsity.allocation import Budget, allocate, connect_randomly
from rnnsparse.storage import checkpoint
from rnnsparse.training.precision import COMPUTE_TYPES, NEED_CUDA, PARAMETER_TYPES, allow_tf32

NOWHERE = torch.device("meta")  # PyTorch's device for shapes without numbers


def choose_device(wanted: str = "auto") -> torch.device:
    """Return the device called `wanted`; "auto" is the first CUDA device, or the CPU where there is none.

    With CUDA, fp32 means fp32 from now on: by itself PyTorch lets cuDNN's recurrent layers round it to TF32.

    Raises:
        UserError: CUDA is wanted and not there.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "device cuda: PyTorch finds none on this machine; use cpu or auto (training.device, or the option --device)"
        )
    if wanted == "cuda":
        allow_tf32(False)
    return torch.device(wanted)


def training_device(config: TrainingConfig) -> torch.device:
    """Return the device that a run trains on.

    Raises:
        UserError: it is not there, or it is no match for the precision.
    """
    device = choose_device(config.device)
    if config.precision in NEED_CUDA and device.type != "cuda":
        raise UserError(
            f"training.precision: {config.precision} needs a CUDA device, this run is on {device.type}; use "
            "training.precision=fp32"
        )
    allow_tf32(config.precision == "tf32")
    return device


def named_device(config: TrainingConfig) -> torch.device:
    """Return the device that a run is to train on, whether this machine has it or not."""
    return choose_device() if config.device == "auto" else torch.device(config.device)


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
    for weight in model.sparse_weights().values():
        weight.basis = _basis(budget.basis, weight)
    if config.method.stays_dense:
        # Names are checked as ever; sparsity is not, for it may be more than a network without it can bear.
        budget = replace(budget, sparsity=0.0, overrides=dict.fromkeys(budget.overrides, 0.0))
    return model, allocate(list(model.sparse_weights().values()), budget)


def _basis(kind: str, weight: SparseWeight) -> Basis | None:
    """Return what a weight's values are coefficients in; of singular vectors, which another run has, the place."""
    if kind == "canonical":
        return None
    blocks, rows = len(weight.gates), weight.rows // len(weight.gates)
    basis = Basis.dct(rows, weight.cols) if kind == "dct" else Basis.blank(blocks, rows, weight.cols)
    return basis.to(weight.values)


def choose_execution(
    config: RunConfig, device: torch.device, sparsity: float | None = None
) -> tuple[Literal["masked", "sparse"], str]:
    """Return how a model is computed on a device, and why in a few words; sparse only where that is possible.

    `sparsity` is that of connections that come from another run, by default the configured one.
    """
    wanted, method = config.model.execution, config.method
    sparsity = config.budget.sparsity if sparsity is None else sparsity
    if wanted == "masked":
        return "masked", "as configured"
    if config.budget.basis != "canonical":
        return "masked", f"in basis {config.budget.basis} a matrix is dense, however few coefficients it has"
    if device.type != "cpu":
        return "masked", "sparse execution is for CPUs"
    if not method.works_sparse:
        return "masked", f"method {method.name} needs the dense gradient at every step"
    if wanted == "sparse":
        return "sparse", "as configured"
    if method.mostly_dense:
        how_long = "throughout" if method.stays_dense else "for much of the run"
        return "masked", f"method {method.name} has every connection {how_long}"
    wins_from = CELLS[config.model.cell].sparse_wins_from
    if sparsity < wins_from:
        return "masked", f"dense kernels of this cell are faster below a sparsity of {wins_from}"
    return "sparse", f"faster than dense kernels of this cell from a sparsity of {wins_from}"


def sparsity_of(budgets: Sequence[Budget]) -> float:
    """Return the share of positions without a connection, in what is not dense by name."""
    counted = [budget for budget in budgets if not budget.dense]
    positions = sum(budget.group.positions for budget in counted)
    return 1 - sum(budget.connections for budget in counted) / positions if positions else 0.0


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


def new_model(config: RunConfig, vocab_size: int, device: torch.device) -> tuple[CharLM, list[Budget]]:
    """Return a model with a random topology and random values, both by `run.seed`; and its budgets.

    Raises:
        UserError: the budgets cannot be met, or sparse execution is wanted where it is impossible.
    """
    require_execution(config, device)
    model, budgets = empty_model(config, vocab_size, device)
    connect_randomly(budgets, config.run.seed, config.method.initial_connections)
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


def named_teacher(config: RunConfig, device: torch.device) -> CharLM | None:
    """Return the model that the configuration names as the teacher of its run, if any.

    Raises:
        UserError: it cannot be read.
    """
    if config.training.teacher is None:
        return None
    try:
        return restore(Path(config.training.teacher), device).model
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
