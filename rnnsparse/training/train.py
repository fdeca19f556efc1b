"""A run from its configuration to its end: look at its folder, build its parts, go on where it was, train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch

from rnnsparse.config import RunConfig
from rnnsparse.data.corpus import load_corpus
from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.errors import UserError
from rnnsparse.storage import checkpoint
from rnnsparse.storage.manifest import damaged
from rnnsparse.storage.training_state import require_fitting
from rnnsparse.training.banner import banner
from rnnsparse.training.build import build_learner, saved_model
from rnnsparse.training.device import training_device
from rnnsparse.training.run.record import Record
from rnnsparse.training.run.stretches import planned_steps
from rnnsparse.training.start import first_model, rewound
from rnnsparse.training.step.distributed import Ranks
from rnnsparse.training.step.optim import with_settings
from rnnsparse.training.trainer import Trainer


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    stream: TextIO | None = None,
    ranks: Ranks | None = None,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train a run to its end and return its summary, which is also written to summary.json.

    Args:
        config: what to run.
        resume: continue the last checkpoint in the run's folder instead of starting anew.
        stream: where progress goes, by default stderr.
        ranks: this process among those that train together, by default the only one.
        tell: takes, before the first step, what the run is.

    Raises:
        UserError: the text, the budgets, the run's folder or another run that it starts from do not fit.
        Interrupted, RunFailed: as `Trainer.train`.
    """
    trainer = prepare(config, resume=resume, stream=stream, ranks=ranks)
    if tell and trainer.ranks.is_first:
        tell("\n".join(banner(trainer)))
        if trainer.step >= config.training.steps:
            tell(
                f"finished before: all {trainer.step:,} steps are taken; to train longer, raise training.steps with "
                "--resume"
            )
    return trainer.train()


def prepare(
    config: RunConfig,
    *,
    resume: bool = False,
    stream: TextIO | None = None,
    recorded: RunConfig | None = None,
    ranks: Ranks | None = None,
) -> Trainer:
    """Return a run that is ready for its next step; its folder is looked at, and nothing is written.

    Args:
        recorded: what the run's folder says it is, if this is the last run of a recipe, which has claimed the folder.

    Raises:
        UserError: as `train`.
    """
    if config.method.recipe and not recorded:
        raise ValueError(f"a run of method {config.method.name} is trained by its recipe")
    ranks = Ranks(ranks.rank, ranks.world_size) if ranks else Ranks()  # whose counts are those of this run
    record = Record(recorded or config, ranks, claims=recorded is None)
    saved = record.look(resume)
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    torch.manual_seed(config.run.seed)
    device = training_device(config.training)
    corpus = load_corpus(config.data, Tokenizer.from_json(saved.tokenizer_json) if saved else None)
    corpus = corpus.limited(config.data.limit)
    earlier: dict[str, Any] = {}
    if saved:
        model, budgets = saved_model(saved, config, corpus.tokenizer, device)
    else:
        first = first_model(config, corpus.tokenizer.vocab_size, device, corpus.tokenizer)
        model, budgets, earlier = first.model, first.budgets, first.training_state
    learner = build_learner(config, model, budgets, corpus, ranks)
    trainer = Trainer(config, learner, corpus, record, stream)
    if saved:
        _load(trainer, saved.training_state(), saved.step, saved.folder, str(record.folder))
    elif earlier:
        place = Path(config.start.runs["rewind"])
        state = rewound(trainer.state_dict(), earlier) | {"records": {}}
        _load(trainer, state, earlier["step"], place, f"start.rewind: {place}")
    if changes := record.changes:
        if trainer.has_stalled():
            raise UserError(
                f"{record.folder}: training.early_stopping: the run has stopped early, after "
                f"{trainer.evaluations_without_gain} evaluations without a better one; to train longer, raise this "
                "too, or set it to null"
            )
        trainer.begin_stretch(changes)
    learner.sparsifier.total_steps = planned_steps(record.config, trainer.stretches)
    return trainer


def _load(trainer: Trainer, state: dict[str, Any], step: int, place: Path, called: str) -> None:
    """Go on from a training state after `step` that is saved in `place`; errors call it so.

    Raises:
        UserError: it is not that of such a run.
    """
    config, model = trainer.config, trainer.model
    try:
        state = with_settings(state, trainer.record.was.training, config.training)
        require_fitting(state, trainer.state_dict(), list(model.parameters()), model.sparse_weights(), config.method)
        if not state["step"] == step <= config.training.steps:
            raise ValueError("step does not fit")
        trainer.load_state_dict(state)
    except UserError as error:
        raise UserError(f"{called}: {error}") from None
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise damaged(place / checkpoint.STATE, "does not fit this run") from error
