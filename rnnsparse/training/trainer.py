"""The training loop: truncated backpropagation through time over lanes of text, with evaluation and checkpoints."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch

from rnnsparse.config import RunConfig
from rnnsparse.data.corpus import load_corpus
from rnnsparse.data.split import Split
from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.errors import RunFailed, UserError
from rnnsparse.evaluation import Evaluation, evaluate
from rnnsparse.sparsity.allocation import Budget
from rnnsparse.training import assembly, checkpoint, start
from rnnsparse.training.banner import banner
from rnnsparse.training.inspection import inspect
from rnnsparse.training.manifest import damaged
from rnnsparse.training.peak_memory import peak_memory
from rnnsparse.training.run import lock, run_folder, stretches
from rnnsparse.training.run.connectivity import connection_counts
from rnnsparse.training.run.interrupts import Interrupted, StopRequest, stop_on_signals
from rnnsparse.training.run.logging import RunLogger, Silence
from rnnsparse.training.run.stretches import Stretch
from rnnsparse.training.run.tensorboard_views import log_pictures, sample_text
from rnnsparse.training.state_check import require_fitting
from rnnsparse.training.step.distributed import Ranks
from rnnsparse.training.step.learner import Learner
from rnnsparse.training.step.nonfinite import LOWER, Diverged
from rnnsparse.training.step.optim import after_evaluation, averaged, with_settings

TakeStep = Callable[[], dict[str, Any]]  # returns the step's metrics
Training = Generator[None, TakeStep, dict[str, Any]]  # returns the run's summary


class Trainer:
    """One run: a learner, the folder it is recorded in, and the loop around its steps.

    Args:
        config: what to run.
        resume: continue the last checkpoint in the run's folder instead of starting anew.
        stream: where progress goes, by default stderr.
        recorded: what the run's folder says it is, if this is the last run of a recipe, which has claimed the folder.
        ranks: this process among those that train together, by default the only one.

    Raises:
        UserError: the text, the budgets, the run's folder or another run that it starts from do not fit.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        resume: bool = False,
        stream: TextIO | None = None,
        recorded: RunConfig | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        if config.method.recipe and not recorded:
            raise ValueError(f"a run of method {config.method.name} is trained by its recipe")
        self.config, self._stream = config, stream
        self.recorded = recorded or config
        self.folder = config.folder
        self.ranks = Ranks(ranks.rank, ranks.world_size) if ranks else Ranks()  # whose counts are those of this run
        if self.ranks.is_first:
            lock.refuse_if_held(config.folder)
        resume = resume or self.ranks.continues(config.folder)
        saved = run_folder.last_checkpoint(self.recorded, changing=True) if resume else None
        self._was = assembly.read_config(saved) if saved else self.recorded
        changes = run_folder.differences(self._was, self.recorded)
        self._resumed = saved is not None
        self._claims = recorded is None
        if saved is None and self._claims and self.ranks.is_first:
            run_folder.claim(config.folder)
        if config.training.threads:
            torch.set_num_threads(config.training.threads)
        torch.manual_seed(config.run.seed)
        self.device = assembly.training_device(config.training)
        tokenizer = Tokenizer.from_json(saved.tokenizer_json) if saved else None
        self.corpus = load_corpus(config.data, tokenizer)
        self.tokenizer = self.corpus.tokenizer
        self._unknown = self.corpus.unknown() if config.data.vocabulary and self.ranks.is_first else ""
        first = None
        if saved:
            self.model, budgets = assembly.saved_model(saved, config, self.tokenizer, self.device)
        else:
            first = start.first_model(config, self.tokenizer.vocab_size, self.device, self.tokenizer)
            self.model, budgets = first.model, first.budgets
        self.learner = Learner(config, self.model, budgets, self.corpus, self.device, self.ranks)
        self.best: float | None = None
        self.evaluations_without_gain = 0
        self._stop = StopRequest()
        self._records: dict[str, str] = {}  # sha256 of what was recorded up to the last checkpoint
        self.stretches: list[Stretch] = []  # all but the first
        self._begins_stretch = False
        if saved:
            self._load_fitting(saved.training_state(), saved.step, saved.folder, str(self.folder))
        elif first and first.training_state:
            assert config.start.rewind is not None
            state = start.rewound(self._training_state(), first.training_state) | {"records": {}}
            place = Path(config.start.rewind)
            self._load_fitting(state, first.training_state["step"], place, f"start.rewind: {place}")
        if changes:
            self._change(changes)
        self.learner.sparsifier.total_steps = stretches.planned_steps(self.recorded, self.stretches)
        self._told = self.learner.seconds, self.learner.characters_seen

    def _change(self, changes: stretches.Changes) -> None:
        """Go on with changed settings; nothing is written before training begins."""
        if self._has_stalled():
            raise UserError(
                f"{self.folder}: training.early_stopping: the run has stopped early, after "
                f"{self.evaluations_without_gain} evaluations without a better one; to train longer, raise this "
                "too, or set it to null"
            )
        self.stretches.append(stretches.begun(self.step, changes))
        self._begins_stretch = True

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.learner.step

    @property
    def budgets(self) -> list[Budget]:
        """How many connections each group began with, or ends with if its method has them come or go."""
        return self.learner.sparsifier.budgets

    # ---- the loop

    def train(self) -> dict[str, Any]:
        """Train to the end and return the run's summary, which is also written to summary.json.

        Raises:
            Interrupted: stopped by a signal, after saving.
            UserError: another process trains in the run's folder.
            RunFailed: loss or gradients are not finite, or a checkpoint cannot be written; the last one is intact.
        """
        told_on = (self._stream or sys.stderr) if self.ranks.is_first else None
        training = self.training(stop_on_signals(told_on))
        try:
            next(training)
            while True:
                training.send(self.learner.take_step)
        except StopIteration as end:
            summary: dict[str, Any] = end.value
            return summary

    def training(self, stopping: AbstractContextManager[StopRequest]) -> Training:
        """Do what `train` does, as a coroutine that waits for each step: send it a function that takes the next one.

        Args:
            stopping: the context of all steps, in which one may be asked to stop.
        """
        try:
            with self._own_folder() as warning:
                if new := self.ranks.first(not self.folder.joinpath("metrics.jsonl").exists()):
                    self._dry_run()
                    if self.ranks.is_first:
                        run_folder.describe(self.recorded, self.device, self.ranks.environment())
                    self._keep()
                elif self._begins_stretch:
                    self.save()  # before any other trace of it: from here on the run has the new settings
                if self.ranks.is_first:
                    if self._goes_on():
                        run_folder.set_summary_aside(self.folder, self.step)  # before settings that are not its own
                    run_folder.write_stretches(self.folder, self.stretches)
                    if not new:
                        run_folder.write_settings(self.recorded)  # whatever has become of the file
                with stopping as self._stop, self._logger() as logger:
                    if warning:
                        logger.message(f"warning: {warning}")
                    if self._unknown:
                        logger.message(f"warning: data.vocabulary: lacks {self._unknown}; {ONE_SYMBOL}")
                    if self.step == 0:
                        logger.connection_counts(0, connection_counts(self.model))
                    while self._goes_on():
                        self._train_step((yield), logger)
                        if self.ranks.any(self._stop.requested):
                            self._stop.save_from_here()
                            break
                    with self._stop.saving():
                        self._records = logger.sync()
                        self.save()
                    if self.ranks.any(self._stop.requested):
                        raise Interrupted(f"stopped after step {self.step}, saved in {self.folder / 'last'}")
                return self._finish()
        except OSError as error:
            raise self._failure(f"{error.strerror or error}; mend that, then train again with --resume") from error

    def _own_folder(self) -> AbstractContextManager[str]:
        """Return a context that holds the run's folder and yields "", or a warning. The first rank does so for all."""
        if not self.ranks.is_first:
            return nullcontext("")
        return run_folder.held(self.recorded, resumed_at=self.step if self._resumed else None, claims=self._claims)

    def _train_step(self, take_step: TakeStep, logger: RunLogger) -> None:
        """One step and what is due after it."""
        config = self.config
        try:
            metrics = take_step()
        except Diverged as error:
            raise self._failure(str(error)) from None
        step, last = self.step, self.step == config.training.steps
        logger.advance(step)
        if self.learner.left_out:
            logger.message(f"left out: {self.learner.left_out}")
        due: dict[str, float | int] = {}
        if config.logging.tells_of(step, config.training.steps):
            due |= metrics | {"characters_per_second": self._pace()}
        evaluates = step % config.evaluation.interval == 0 or last
        shows = config.logging.pictures is not None and step % config.logging.pictures == 0
        if evaluates:
            with averaged(self.learner.optimizer):
                due |= self._evaluate_and_keep_best()
            after_evaluation(self.learner.optimizer, due["validation_bits_per_character"])
        if due:
            logger.scalars(step, due)
        if evaluates or shows:
            logger.connection_counts(step, connection_counts(self.model))
        if shows and self.ranks.is_first:
            with averaged(self.learner.optimizer):
                self._log_pictures(logger)
        saves = step % config.checkpoint.interval == 0
        if saves or step in config.checkpoint.keep:
            self._records = logger.sync()
        self._keep()  # before `last`: a run that goes on from there does not come to this step again
        if saves:
            self.save()

    def _pace(self) -> float:
        """Return characters per second of training steps since the last call."""
        (seconds, characters), self._told = self._told, (self.learner.seconds, self.learner.characters_seen)
        return (self.learner.characters_seen - characters) / (self.learner.seconds - seconds)

    def _evaluate_and_keep_best(self) -> dict[str, float | int]:
        evaluation = self._evaluate(self._validation())
        bits = evaluation.bits_per_character
        if not math.isfinite(bits):
            raise self._failure(f"step {self.step}: validation costs {bits} bits per character; {LOWER}")
        if self.best is None or bits < self.best:
            self.best, self.evaluations_without_gain = bits, 0
            self._save_to(run_folder.BEST, training_state=None)
        else:
            self.evaluations_without_gain += 1
        return {
            "validation_bits_per_character": bits,
            "validation_bits_per_byte": evaluation.bits_per_byte,
            "validation_seconds": evaluation.seconds,
        }

    def _validation(self) -> Split:
        """Return the part of the validation text that is read while training."""
        symbols = self.config.evaluation.symbols
        return self.corpus.validation.head(symbols, self.tokenizer) if symbols else self.corpus.validation

    def _evaluate(self, split: Split, max_batches: int | None = None) -> Evaluation:
        config = self.config.evaluation
        return evaluate(self.model, split, self.tokenizer, config, max_batches=max_batches, sharing=self.ranks)

    def _goes_on(self) -> bool:
        return self.step < self.config.training.steps and not self._has_stalled()

    def _has_stalled(self) -> bool:
        patience = self.config.training.early_stopping
        return patience is not None and self.evaluations_without_gain >= patience

    # ---- before and after

    def banner(self) -> list[str]:
        """Return what a user wants to check before waiting for hours, as lines."""
        step, ranks = self.step if self._resumed else 0, self.ranks.line(self.model)
        report = self._inspect(taken=self.config.training.steps)
        return banner(self.config, self.corpus, self.device, step, report, ranks, self._unknown, self._stretch_lines())

    def _stretch_lines(self) -> list[str]:
        if not self._begins_stretch:
            return []
        lines = stretches.explained(self._was, self.recorded, self.stretches)
        best = f"best/ ({self.best:.4f} bits per character) until validation is better, " if self.best else ""
        lines += [
            f"goes on     checkpoints: {best}step_N/; previous/ is what last/ was, which is saved anew at once",
        ]
        if patience := self.config.training.early_stopping:
            gainless = self.evaluations_without_gain
            lines.append(f"goes on     early stopping: {gainless} of {patience} evaluations without a better one")
        if self.folder.joinpath(run_folder.SUMMARY).exists():
            lines.append(f"anew        {run_folder.SUMMARY}, of the whole run; the one there becomes summary_N.json")
        return lines

    def _dry_run(self) -> None:
        """Evaluate, sample and save once, so that what would fail hours later fails now, and `last` is there."""
        self._evaluate(self._validation(), max_batches=2)
        if self.config.logging.pictures:
            self._sample_text(length=1)
        self.save()

    def _finish(self) -> dict[str, Any]:
        """Evaluate the whole validation text at the end of training, and write the summary."""
        with averaged(self.learner.optimizer):
            evaluation = self._evaluate(self.corpus.validation)
        learner, report = self.learner, self._inspect(taken=self.step)
        summary = {
            "bits_per_character": evaluation.bits_per_character,
            "bits_per_byte": evaluation.bits_per_byte,
            "best_bits_per_character": self.best,
            "steps": self.step,
            "characters_seen": learner.characters_seen,
            "connections": report["connections"],
            "positions": report["positions"],
            "sparsity": report["sparsity"],
            "ever_active": learner.sparsifier.ever_active.share,
            "flops_per_character": report["flops_per_character"],
            "training_flops": report["training_flops"],
            "training_flops_vs_dense": report["training_flops_vs_dense"],
            "seconds": learner.seconds,
            "characters_per_second": learner.timed_characters / learner.timed_seconds
            if learner.timed_seconds
            else None,
            "peak_memory_bytes": peak_memory(self.device),
            "method": self.config.method.name,
            "seed": self.config.run.seed,
            "text": self.corpus.fingerprint,
            **self.ranks.report(self.model),
        }
        if told := stretches.told(self.recorded, self.stretches):
            summary["stretches"] = told
        if self.ranks.is_first:
            run_folder.write_json(self.folder / run_folder.SUMMARY, summary)
        return summary

    def _inspect(self, taken: int) -> dict[str, Any]:
        # A recipe knows itself what the teacher costs that it gives to its last run.
        named = self.recorded.training.teacher is not None
        return inspect(
            self.recorded,
            self.model,
            self.budgets,
            self.learner.teacher.model if self.learner.teacher and named else None,
            taken,
            planned=self.learner.sparsifier.total_steps,
        )

    # ---- logging

    def _logger(self) -> RunLogger:
        if not self.ranks.is_first:
            return Silence()
        return RunLogger(
            self.folder,
            total_steps=self.config.training.steps,
            config=self.config.logging,
            initial_step=self.step,
            synced=self._records,
            stream=self._stream,
        )

    def _log_pictures(self, logger: RunLogger) -> None:
        log_pictures(logger, self.step, self.model)
        logger.text(self.step, "sample", self._sample_text(self.config.logging.sample_length))

    def _sample_text(self, length: int) -> str:
        prompt, seed = self.config.logging.sample_prompt, self.config.run.seed
        return sample_text(self.model, self.tokenizer, prompt, length, seed)

    # ---- checkpoints

    def save(self, name: str = "last") -> None:
        """Write a checkpoint from which a run continues bit for bit.

        Raises:
            RunFailed: it cannot be written, or the model is lost, and the one with that name stays what it was.
        """
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise self._failure(f"step {self.step}: parameters are infinite or not numbers; {LOWER}")
        self.ranks.require_same_topology(self.model)
        with self._stop.saving(), averaged(self.learner.optimizer):
            self._save_to(name, self._training_state())
        self.ranks.wait()  # until it is there for all to read

    def _keep(self) -> None:
        if self.step in self.config.checkpoint.keep:
            self.save(f"step_{self.step}")

    def _failure(self, reason: str) -> RunFailed:
        left = (
            "the last checkpoint is intact" if run_folder.has_checkpoint(self.folder) else "there is no checkpoint yet"
        )
        return RunFailed(f"{self.folder}: {reason}; {left}")

    def _save_to(self, name: str, training_state: dict[str, Any] | None) -> None:
        if not self.ranks.is_first:
            return
        spare = run_folder.SPARES.get(name)
        with self._stop.saving():
            checkpoint.save(
                self.folder / name,
                step=self.step,
                model=self.model,
                tokenizer_json=self.tokenizer.to_json(),
                config_yaml=self.recorded.to_yaml(),
                training_state=training_state,
                text=self.corpus.identity,
                keep=self.folder / spare if spare else None,
            )

    def _training_state(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in COUNTERS}
        own |= {"records": self._records, "stretches": [asdict(stretch) for stretch in self.stretches]}
        return self.learner.state_dict() | own

    def _load_fitting(self, state: dict[str, Any], step: int, folder: Path, called: str) -> None:
        try:
            state = with_settings(state, self._was.training, self.config.training)
            require_fitting(state, self._training_state(), list(self.model.parameters()), self.model.sparse_weights())
            if not state["step"] == step <= self.config.training.steps:
                raise ValueError("step does not fit")
            self._load_state(state)
        except UserError as error:
            raise UserError(f"{called}: {error}") from None
        except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise damaged(folder / checkpoint.STATE, "does not fit this run") from error

    def _load_state(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state)
        self._records = state.get("records", {})
        self.stretches = stretches.from_state(state.get("stretches", []), state["step"])
        for name in COUNTERS:
            setattr(self, name, state[name])


ONE_SYMBOL = "all count as one symbol, which is easier to predict than they are"
COUNTERS = ("best", "evaluations_without_gain")
