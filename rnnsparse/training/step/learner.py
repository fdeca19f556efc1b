"""One run's learning: all that changes from step to step, and the step that changes it.

Shape suffixes: T time, B batch (lanes), V vocabulary; the recurrent state is [L, S, B, H] as in the language model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rnnsparse.data.batches import Lanes, to_device
from rnnsparse.data.corpus import Corpus
from rnnsparse.errors import UserError
from rnnsparse.nn.language_model import CharLM
from rnnsparse.randomness import generator_for
from rnnsparse.settings.training import TrainingConfig
from rnnsparse.sparsity.updater import Updater
from rnnsparse.training.step.captured import CapturedPass, Pass
from rnnsparse.training.step.distributed import Ranks
from rnnsparse.training.step.loss import Teacher, read_later, training_loss
from rnnsparse.training.step.nonfinite import BadBatch, Diverged, diagnosis, lost_lanes, without_lost_lanes
from rnnsparse.training.step.optim import clip_gradients, learning_rate, set_learning_rate

WARM_UP_STEPS = 10  # not timed: the first steps pay for compilation and caches
COUNTERS = ("step", "characters_seen", "seconds", "timed_seconds", "timed_characters")
SKIPS = ("skipped", "bad_in_a_row")


class Learner:
    """A model that learns from lanes of text, with its optimizer, its topology updates and its place in the text.

    `take_step` is `begin_step`, as many `backward` as batches are accumulated, and `end_step`; whoever makes the
    gradients of several learners at once calls these instead.

    Args:
        corpus: whose training text the lanes read.
        training: sizes, rates and limits of a step.
        seed: of all that is random.
        ranks: this process among those that learn together.
        is_told: whether somebody reads the loss of a step, which then has to be exact.

    Attributes:
        step: optimizer steps taken, those left out included.
        characters_seen: code points that it has read to predict, those read again included.
        seconds: in all steps. Those after the first few, and their characters, are in `timed_seconds` and
            `timed_characters`.
        skipped: steps left out, by an overflow in half precision or because of a bad batch.
        bad_in_a_row: bad batches left out since a step that was none.
        left_out: why the last step was left out because of its batch, or "".
    """

    def __init__(
        self,
        model: CharLM,
        optimizer: torch.optim.Optimizer,
        sparsifier: Updater,
        lanes: Lanes,
        corpus: Corpus,
        training: TrainingConfig,
        *,
        seed: int,
        ranks: Ranks,
        teacher: Teacher | None = None,
        is_told: Callable[[int], bool],
    ) -> None:
        self.model, self.optimizer, self.sparsifier, self.lanes = model, optimizer, sparsifier, lanes
        self.training, self.ranks, self.teacher = training, ranks, teacher
        self.device = model.embedding.values.device
        self._corpus, self._seed, self._is_told = corpus, seed, is_told
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=training.precision == "fp16")
        self.state = model.initial_state(training.batch_size // ranks.world_size)
        self.step = 0
        self.characters_seen = 0
        self.seconds = 0.0
        self.timed_seconds, self.timed_characters = 0.0, 0
        self.skipped = self.bad_in_a_row = 0
        self.left_out = ""
        self._states_before = self._states()
        # A teacher has a state of its own, and its loss is computed in another way where somebody reads it.
        is_captured = self.device.type == "cuda" and teacher is None
        self.forward_and_backward: Pass = self._forward_and_backward
        if is_captured:
            self.forward_and_backward = CapturedPass(self._forward_and_backward, model)
        self._groups = [budget.group for budget in sparsifier.budgets if not budget.dense]
        # Counting characters needs only a look at each symbol, so it costs next to nothing.
        self._starts_character = torch.from_numpy(np.array(corpus.tokenizer.starts_character))
        self._symbols_per_character = len(corpus.train.tokens) / corpus.train.characters

    # ---- a step

    def take_step(self) -> dict[str, Any]:
        """Forward, backward, topology, optimizer: one step over `accumulate` batches. Returns its metrics.

        Raises:
            Diverged: loss or gradients are not finite; nothing of the model has changed.
        """
        started = time.perf_counter()
        self.begin_step()
        batches = [self.next_batch() for _ in range(self.training.accumulate)]
        losses = [read() for read in [self._backward(*batch) for batch in batches]]
        characters = sum(self.characters_in(targets_TB) for _, targets_TB in batches)
        return self.end_step(losses, characters, started)

    def begin_step(self) -> None:
        """Get ready for the backward passes of the next step."""
        self.model.train()
        self._reset_lanes()
        self._states_before = self._states()
        self.ranks.seed_dropout(self._seed, self.step + 1)
        self.sparsifier.before_backward(self.step + 1)

    def _reset_lanes(self) -> None:
        """Let lanes, drawn by the seed and the step, forget what they have read.

        A lane that goes on for ever never meets the zeros that evaluation and sampling start with, and a network may
        lose itself in them.
        """
        training = self.training
        if not training.reset_probability:
            return
        numbers = generator_for(self._seed, "reset", self.step + 1)
        all_lanes = torch.rand(training.batch_size, generator=numbers) < training.reset_probability
        reset_B1 = all_lanes.chunk(self.ranks.world_size)[self.ranks.rank].unsqueeze(1).to(self.device)
        self.state = self.state.masked_fill(reset_B1, 0)
        if self.teacher:
            self.teacher.state_LSBH = self.teacher.state_LSBH.masked_fill(reset_B1, 0)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Return inputs and targets [T, B], on the CPU."""
        return next(self.lanes)

    def characters_in(self, targets_TB: Tensor) -> int:
        """Return how many characters begin in a batch."""
        return int(self._starts_character[targets_TB].sum())

    def loss(self, logits_TBV: Tensor, inputs_TB: Tensor, targets_TB: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a backward pass starts from, and the cross-entropy in it in nats per symbol."""
        return training_loss(
            logits_TBV,
            targets_TB,
            self.teacher(inputs_TB) if self.teacher else None,
            weight=self.training.teacher_weight,
            temperature=self.training.teacher_temperature,
            exact=self._is_told(self.step + 1),
        )

    def _backward(self, inputs_TB: Tensor, targets_TB: Tensor) -> Callable[[], list[float]]:
        """Add one batch's gradients; return what reads its mean loss and cross-entropy."""
        inputs_TB, targets_TB = to_device(inputs_TB, self.device), to_device(targets_TB, self.device)
        self.state, loss, nats = self.forward_and_backward(inputs_TB, targets_TB, self.state)
        return read_later(loss, nats)

    def _forward_and_backward(
        self, inputs_TB: Tensor, targets_TB: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Add one batch's gradients; return the state after it, its mean loss and its cross-entropy."""
        logits_TBV, state = self.model(inputs_TB, state)
        loss, nats = self.loss(logits_TBV, inputs_TB, targets_TB)
        self.scaler.scale(loss / self.training.accumulate).backward()
        return state.detach(), loss.detach(), nats.detach()

    def end_step(self, losses: Sequence[Sequence[float]], characters: float, started: float) -> dict[str, Any]:
        """Let gradients change values and topology; return the step's metrics.

        Args:
            losses: of each batch, its mean loss and its cross-entropy in nats per symbol.
            characters: how many characters these batches had.
            started: when the step began, on the clock of `time.perf_counter`.

        Raises:
            Diverged: loss or gradients are not finite; nothing of the model has changed.
        """
        training, step = self.training, self.step + 1
        batches = len(losses) * self.ranks.world_size
        loss, nats = (sum(each, start=0.0) for each in zip(*losses, strict=True))
        loss, nats, characters = self.ranks.total(loss, nats, characters)
        loss, nats = loss / batches, nats / batches
        scale, updates = self.scaler.get_scale(), self.sparsifier.updates
        norm = math.nan
        if math.isfinite(loss):
            self.ranks.average_gradients(self.model.parameters())
            self.scaler.unscale_(self.optimizer)
            norm = float(clip_gradients(self.model.parameters(), training.grad_clip))
        rate = learning_rate(training, step - 1)
        set_learning_rate(self.optimizer, rate)
        self.left_out = ""
        # All ranks have the same loss and the same gradients by now, so they decide the same.
        if math.isfinite(norm):
            if self.sparsifier.after_backward(step, scale):
                self.scaler.step(self.optimizer)
            self.sparsifier.after_step(step)
            if self.sparsifier.updates > updates:
                self.ranks.require_same_topology(self.model)
            self.bad_in_a_row = 0
        elif math.isfinite(loss) and self.scaler.is_enabled() and scale > 1:
            # Half-precision gradients overflowed because of their scale, which is halved now. The step changes neither
            # values nor topology; its recurrent state is that of a forward pass without fault.
            self.skipped += 1
        else:
            self._leave_out(losses, finite_loss=math.isfinite(loss))
        if step == training.steps:
            self.sparsifier.finish()
        if math.isfinite(loss):
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._count(int(characters), time.perf_counter() - started)
        return {
            "loss": loss,
            "bits_per_character": nats / math.log(2) * self._symbols_per_character,
            "learning_rate": rate,
            "gradient_norm": norm,
            "density": self._density(),
            "moved": self.sparsifier.last_moved_share,
            "ever_active": self.sparsifier.ever_active.share,
            "characters_seen": self.characters_seen,
            "skipped": self.skipped,
        }

    def _leave_out(self, losses: Sequence[Sequence[float]], *, finite_loss: bool) -> None:
        """Take back what the step has done to recurrent states, if the settings allow to go on without it.

        The text goes on, from the states before the step: any stretch of text may leave those, while zeros belong to
        the start of a run, and what this batch made of them may be what is not finite.

        Raises:
            Diverged: there were too many bad batches in a row, or the next one cannot be better.
        """
        state, taught = self._states_before
        first_lane = self.ranks.rank * state.shape[2]
        lost = [first_lane + lane for lane in lost_lanes(state)]
        lost_teacher = any(math.isfinite(nats) and not math.isfinite(loss) for loss, nats in losses)
        # What one rank has seen all have to know: the first to fail tells.
        everyone = self.ranks.gather((lost, lost_teacher))
        error = diagnosis(
            list(self.model.named_parameters()),
            finite_loss=finite_loss,
            lost_lanes=[lane for lanes, _ in everyone for lane in lanes],
            lost_teacher=any(teacher for _, teacher in everyone),
        )
        read = len(losses) * self.training.sequence_length
        last = self.lanes.position - 1
        line = f"step {self.step + 1}, symbols {last + 1 - read:,} to {last:,} of each lane: {error}"
        allowed = self.training.skip_bad_batches
        if not isinstance(error, BadBatch):
            raise Diverged(line)
        if self.bad_in_a_row == allowed:
            raise Diverged(
                f"{line}, or resume with training.skip_bad_batches={allowed + 1} or more to go on without this batch"
                + (f" too, after {allowed} in a row" if allowed else "")
            )
        self.skipped += 1
        self.bad_in_a_row += 1
        self.left_out = line
        self.state = without_lost_lanes(state)
        if self.teacher and taught is not None:
            self.teacher.state_LSBH = without_lost_lanes(taught)

    def _states(self) -> tuple[Tensor, Tensor | None]:
        """Return the recurrent states, of the model and of its teacher."""
        return self.state, self.teacher.state_LSBH if self.teacher else None

    def _count(self, characters: int, seconds: float) -> None:
        self.step += 1
        self.seconds += seconds
        self.characters_seen += characters
        if self.step > WARM_UP_STEPS:
            self.timed_seconds += seconds
            self.timed_characters += characters

    def _density(self) -> float:
        groups = self._groups
        return sum(g.entries for g in groups) / sum(g.matrix_entries for g in groups) if groups else 1.0

    # ---- what a checkpoint has

    def state_dict(self) -> dict[str, Any]:
        """Return all that the model itself does not hold, as plain data and tensors."""
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        state = {
            "optimizer": self.optimizer.state_dict(),
            "sparsifier": self.sparsifier.state_dict(),
            "scaler": self.scaler.state_dict(),
            "lanes": self.lanes.state_dict(),
            "recurrent_state": self.state,
            "generators": {"cpu": torch.get_rng_state(), "cuda": cuda},
            "corpus": self._corpus.fingerprint,
            "teacher": self.teacher.state_dict() if self.teacher else None,
            **{name: getattr(self, name) for name in (*COUNTERS, *SKIPS)},
        }
        return self.ranks.gather_state(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a learner of the same model was.

        Raises:
            UserError: it learned from another text, or from another teacher.
        """
        if state["corpus"] != self._corpus.fingerprint:
            raise UserError(
                "data.path: this is not the text that the run was trained on, so its position in "
                "it means nothing; bring that text back, or start a new run"
            )
        state = self.ranks.own_state(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.sparsifier.load_state_dict(state["sparsifier"])
        self.scaler.load_state_dict(state["scaler"])
        self.lanes.load_state_dict(state["lanes"])
        self.state = state["recurrent_state"].to(self.device)
        if self.teacher:
            self.teacher.load_state_dict(state["teacher"])
        torch.set_rng_state(state["generators"]["cpu"])
        if self.device.type == "cuda" and state["generators"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["generators"]["cuda"], self.device)
        for name in COUNTERS:
            setattr(self, name, state[name])
        for name in SKIPS:  # which checkpoints of earlier versions do not have
            setattr(self, name, state.get(name, 0))
