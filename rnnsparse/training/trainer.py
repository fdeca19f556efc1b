"""The loop around the steps of a run: what is due after which, evaluation, logging, checkpoints, stops."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from functools import cached_property
from typing import Any, TextIO

from rnnsparse.config import RunConfig
from rnnsparse.data.corpus import Corpus
from rnnsparse.data.split import Split
from rnnsparse.evaluation import Evaluation, evaluate
from rnnsparse.training.inspection import inspect
from rnnsparse.training.peak_memory import peak_memory
from rnnsparse.training.run import run_folder, stretches
from rnnsparse.training.run.connectivity import connection_counts
from rnnsparse.training.run.interrupts import Interrupted, StopRequest, stop_on_signals
from rnnsparse.training.run.logging import RunLogger
from rnnsparse.training.run.record import Record
from rnnsparse.training.run.stretches import Stretch
from rnnsparse.training.run.tensorboard_views import log_pictures, sample_text
from rnnsparse.training.step.learner import Learner
from rnnsparse.training.step.nonfinite import LOWER, Diverged
from rnnsparse.training.step.optim import after_evaluation, averaged

COUNTERS = ("best", "evaluations_without_gain")
ONE_SYMBOL = "all count as one symbol, which is easier to predict than they are"


class Trainer:
    """The loop of one run; making one changes nothing on the disk.

    Args:
        config: what is due when.
        learner: takes the steps.
        corpus: whose validation text is evaluated.
        record: where all is written.
        stream: where progress goes, by default stderr.

    Attributes:
        best: the lowest bits per character of an evaluation while training, if there was one.
        evaluations_without_gain: how many there were since.
        stretches: all of the run but the first.
        begins_stretch: whether the last of these begins now.
    """

    def __init__(
        self, config: RunConfig, learner: Learner, corpus: Corpus, record: Record, stream: TextIO | None = None
    ) -> None:
        self.config, self.learner, self.corpus, self.record, self._stream = config, learner, corpus, record, stream
        self.model, self.ranks = learner.model, learner.ranks
        self.best: float | None = None
        self.evaluations_without_gain = 0
        self.stretches: list[Stretch] = []
        self.begins_stretch = False
        self._stop = StopRequest()
        self._records: dict[str, str] = {}  # sha256 of what was recorded up to the last checkpoint
        self._told = learner.seconds, learner.characters_seen
        self._peak_before = 0  # bytes, of the processes that this run goes on from

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.learner.step

    @cached_property
    def unknown(self) -> str:
        """How much of the text is not in a vocabulary that is not its own, or "" for none; the first rank counts."""
        return self.corpus.unknown() if self.config.data.vocabulary and self.ranks.is_first else ""

    # ---- the loop

    def train(self) -> dict[str, Any]:
        """Train to the end and return the run's summary, which is also written to summary.json.

        Raises:
            Interrupted: stopped by a signal, after saving.
            UserError: another process trains in the run's folder.
            RunFailed: loss or gradients are not finite, or a checkpoint cannot be written; the last one is intact.
        """
        told_on = (self._stream or sys.stderr) if self.ranks.is_first else None
        try:
            with self.record.held() as warning:
                if not (begun := self.record.is_begun()):
                    self._dry_run()
                    self.record.begin(self.learner.device)
                    self._keep()
                elif self.begins_stretch:
                    self.save()  # before any other trace of it: from here on the run has the new settings
                self.record.go_on(self.step, self.stretches, begun=begun, ends=not self._goes_on())
                with (
                    stop_on_signals(told_on) as self._stop,
                    self.record.logger(self.step, self._records, self.config, self._stream) as logger,
                ):
                    if warning:
                        logger.message(f"warning: {warning}")
                    if self.unknown:
                        logger.message(f"warning: data.vocabulary: lacks {self.unknown}; {ONE_SYMBOL}")
                    if self.step == 0:
                        logger.connection_counts(0, connection_counts(self.model))
                    while self._goes_on():
                        self._train_step(logger)
                        if self.ranks.any(self._stop.requested):
                            self._stop.save_from_here()
                            break
                    with self._stop.saving():
                        self._records = logger.sync()
                        self.save()
                    if self.ranks.any(self._stop.requested):
                        raise Interrupted(
                            f"stopped after step {self.step}, saved in {self.record.folder / run_folder.LAST}"
                        )
                return self._finish()
        except OSError as error:
            raise self.record.failure(
                f"{error.strerror or error}; mend that, then train again with --resume"
            ) from error

    def _train_step(self, logger: RunLogger) -> None:
        """One step and what is due after it."""
        config = self.config
        try:
            metrics = self.learner.take_step()
        except Diverged as error:
            raise self.record.failure(str(error)) from None
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
        if shows and config.logging.tensorboard and self.ranks.is_first:
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
            raise self.record.failure(f"step {self.step}: validation costs {bits} bits per character; {LOWER}")
        if self.best is None or bits < self.best:
            self.best, self.evaluations_without_gain = bits, 0
            self._save_to(run_folder.BEST, None)
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
        return self.corpus.validation.head(symbols, self.corpus.tokenizer) if symbols else self.corpus.validation

    def _evaluate(self, split: Split, max_batches: int | None = None) -> Evaluation:
        config = self.config.evaluation
        return evaluate(self.model, split, self.corpus.tokenizer, config, max_batches=max_batches, sharing=self.ranks)

    def _goes_on(self) -> bool:
        return self.step < self.config.training.steps and not self.has_stalled()

    def has_stalled(self) -> bool:
        """Whether `training.early_stopping` ends the run."""
        patience = self.config.training.early_stopping
        return patience is not None and self.evaluations_without_gain >= patience

    # ---- before and after

    def _dry_run(self) -> None:
        """Evaluate, sample and save once, so that what would fail hours later fails now, and `last` is there."""
        self._evaluate(self._validation(), max_batches=2)
        if self.config.logging.pictures and self.config.logging.tensorboard:
            self._sample_text(length=1)
        self.save()

    def _finish(self) -> dict[str, Any]:
        """Evaluate the whole validation text at the end of training, and write the summary."""
        with averaged(self.learner.optimizer):
            evaluation = self._evaluate(self.corpus.validation)
        learner, report = self.learner, self.inspect(taken=self.step)
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
            "peak_memory_bytes": max(self._peak_memory(), self.record.told_peak()),
            "method": self.config.method.name,
            "seed": self.config.run.seed,
            "text": self.corpus.fingerprint,
            **self.ranks.report(self.model),
        }
        if told := stretches.told(self.record.config, self.stretches):
            summary["stretches"] = told
        self.record.write_summary(summary)
        return summary

    def inspect(self, taken: int) -> dict[str, Any]:
        """Return the report of `inspect` on the run as it is after `taken` steps."""
        config, teacher = self.record.config, self.learner.teacher
        return inspect(
            config,
            self.model,
            self.learner.sparsifier.budgets,
            # A recipe knows itself what the teacher costs that it gives to its last run.
            teacher.model if teacher and config.training.teacher is not None else None,
            taken,
            planned=self.learner.sparsifier.total_steps,
            counted=self.learner.sparsifier.counted,
        )

    def _peak_memory(self) -> int:
        """Return the most bytes that any process of the run has had in use."""
        return max(self._peak_before, peak_memory(self.learner.device))

    # ---- logging

    def _log_pictures(self, logger: RunLogger) -> None:
        log_pictures(logger, self.step, self.model)
        logger.text(self.step, "sample", self._sample_text(self.config.logging.sample_length))

    def _sample_text(self, length: int) -> str:
        prompt, seed = self.config.logging.sample_prompt, self.config.run.seed
        return sample_text(self.model, self.corpus.tokenizer, prompt, length, seed)

    # ---- checkpoints

    def save(self, name: str = run_folder.LAST) -> None:
        """Write a checkpoint from which a run continues bit for bit.

        Raises:
            RunFailed: it cannot be written, or the model is lost, and the one with that name stays what it was.
        """
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise self.record.failure(f"step {self.step}: parameters are infinite or not numbers; {LOWER}")
        self.ranks.require_same_topology(self.model)
        with self._stop.saving(), averaged(self.learner.optimizer):
            self._save_to(name, self.state_dict())
        self.ranks.wait()  # until it is there for all to read

    def _keep(self) -> None:
        if self.step in self.config.checkpoint.keep:
            self.save(f"step_{self.step}")

    def _save_to(self, name: str, training_state: dict[str, Any] | None) -> None:
        with self._stop.saving():
            self.record.save(name, step=self.step, model=self.model, corpus=self.corpus, training_state=training_state)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the model itself does not hold, as plain data and tensors; all ranks call this together."""
        own = {name: getattr(self, name) for name in COUNTERS}
        own |= {"peak_memory_bytes": self._peak_memory()}
        own |= {"records": self._records, "stretches": [asdict(stretch) for stretch in self.stretches]}
        return self.learner.state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the loop of the same run was.

        Raises:
            UserError: it read another text, or had another teacher.
            ValueError, LookupError, TypeError, AttributeError, RuntimeError: the state is none.
        """
        self.learner.load_state_dict(state)
        self._records = state.get("records", {})
        self._peak_before = state.get("peak_memory_bytes", 0)
        self.stretches = stretches.from_state(state.get("stretches", []), state["step"])
        for name in COUNTERS:
            setattr(self, name, state[name])
        self._told = self.learner.seconds, self.learner.characters_seen

    def begin_stretch(self, changes: stretches.Changes) -> None:
        """Go on with changed settings; nothing is written before training begins."""
        self.stretches.append(stretches.begun(self.step, changes))
        self.begins_stretch = True
