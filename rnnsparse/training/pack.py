"""Packed training: several runs of one shape in one process, their gradients made together (`nn/packed.py`).

All else is each run's own, as when it is trained alone: folder, lock, optimizer, topology, learning rate, lanes, random
numbers, evaluations, checkpoints. A run that ends or fails leaves the pack. What is left of a run, alone or in another
pack, goes on from its checkpoint.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TextIO

import torch
from torch import Tensor

from rnnsparse.cells.cell import CELLS
from rnnsparse.config import RunConfig
from rnnsparse.data.batches import to_device
from rnnsparse.errors import RunFailed, UserError
from rnnsparse.nn import packed
from rnnsparse.randomness import OwnRandomNumbers
from rnnsparse.streams import lasting
from rnnsparse.training.banner import banner
from rnnsparse.training.build import choose_execution
from rnnsparse.training.device import COMPUTE_TYPES, choose_device
from rnnsparse.training.run.interrupts import Interrupted, StopRequest, stop_on_signals
from rnnsparse.training.step.learner import Learner
from rnnsparse.training.step.loss import read_later
from rnnsparse.training.train import prepare
from rnnsparse.training.trainer import TakeStep, Training

Outcome = dict[str, Any] | Exception


@dataclass(frozen=True)
class PackedRun:
    """A run to train in a pack; `stream` is where it tells about itself."""

    config: RunConfig
    resume: bool
    stream: TextIO


def pack_key(config: RunConfig, vocab_size: int) -> Hashable | None:
    """Return what runs have in common that fit into one pack, or None for a run that has to be alone.

    Method, sparsity, seed, steps, text, and all of the optimizer may differ. Alone are recipes, half precision,
    runs in sparse execution, cells that have no packed recurrence, and methods that need a layer's own passes.
    """
    training = config.training
    if config.method.watches_factors:
        return None
    if config.method.recipe or training.precision in COMPUTE_TYPES or CELLS[config.model.cell].packed is None:
        return None
    # A machine without CUDA can tell what one with CUDA would pack.
    device = torch.device("cuda") if training.device == "cuda" else choose_device(training.device)
    execution, _ = choose_execution(config, device)
    # Where connections come from another run, these decide the execution, and nobody has counted them yet.
    undecided = config.start.is_elsewhere and config.model.execution != "masked" and device.type == "cpu"
    if execution != "masked" or undecided:
        return None
    shape = config.method.model_config(config.model, config.budget, vocab_size)
    lanes = training.batch_size, training.sequence_length, training.accumulate
    return replace(shape, execution="masked"), vocab_size, lanes, training.precision, device, training.threads


def train_packed(runs: Sequence[PackedRun]) -> list[Outcome]:
    """Train runs with the same `pack_key`; return for each its summary or what ended it before.

    That is UserError, RunFailed, Interrupted or OSError, as for a run alone. A signal lets every run save itself.
    """
    with ExitStack() as open_runs, stop_on_signals(sys.stderr) as stop:
        members = [_Member(run, stop, open_runs) for run in runs]
        while learning := [member for member in members if member.outcome is None]:
            steps = take_steps([m.learner for m in learning], [m.random_numbers for m in learning])
            for member, step in zip(learning, steps, strict=True):
                member.go_on(step)
    return [member.outcome for member in members if member.outcome is not None]


def take_steps(learners: Sequence[Learner], random_numbers: Sequence[AbstractContextManager[object]]) -> list[TakeStep]:
    """Make the gradients of the next step of all; return for each a function that does the rest of it.

    The time that they take together is shared out among them, so that the times of all add up to what passed.
    """
    if len(learners) == 1:
        return [learners[0].take_step]
    started = time.perf_counter()
    for learner in learners:
        learner.begin_step()
    accumulate = learners[0].training.accumulate
    batches = [[learner.next_batch() for learner in learners] for _ in range(accumulate)]
    losses = [read() for read in [_backward(learners, of_all, random_numbers) for of_all in batches]]
    seconds = (time.perf_counter() - started) / len(learners)

    def end_step(i: int, learner: Learner) -> dict[str, Any]:
        own_losses = [of_all[2 * i : 2 * i + 2] for of_all in losses]
        characters = sum(learner.characters_in(of_all[i][1]) for of_all in batches)
        return learner.end_step(own_losses, characters, time.perf_counter() - seconds)

    return [partial(end_step, i, learner) for i, learner in enumerate(learners)]


def _backward(
    learners: Sequence[Learner],
    batches: Sequence[tuple[Tensor, Tensor]],
    random_numbers: Sequence[AbstractContextManager[object]],
) -> Callable[[], list[float]]:
    """Add one batch's gradients to each model; return what reads the loss and cross-entropy of the first, the second...

    The graph ends here.
    """
    device = learners[0].device
    inputs_MTB, targets_MTB = (to_device(torch.stack(of_all), device) for of_all in zip(*batches, strict=True))
    models, states = [learner.model for learner in learners], [learner.state for learner in learners]
    logits_MTBV, states_MLSBH = packed.forward(models, inputs_MTB, states, random_numbers)
    losses, numbers = [], []
    for i, learner in enumerate(learners):
        if learner.scaler.is_enabled():
            raise ValueError("half precision is not packed")
        loss, nats = learner.loss(logits_MTBV[i], inputs_MTB[i], targets_MTB[i])
        losses.append(loss)
        numbers += [loss, nats]
        learner.state = states_MLSBH[i].clone()  # not a view, of which a checkpoint would hold the states of all
    read = read_later(*numbers)
    (torch.stack(losses).sum() / learners[0].training.accumulate).backward()
    return read


class _Member:
    """One run of a pack, waiting for its next step until it has an outcome."""

    learner: Learner

    def __init__(self, run: PackedRun, stop: StopRequest, open_runs: ExitStack) -> None:
        self.outcome: Outcome | None = None
        self.random_numbers = OwnRandomNumbers(choose_device(run.config.training.device))
        self._training = self._train(run, stop)
        open_runs.enter_context(closing(self._training))
        self.go_on()

    def _train(self, run: PackedRun, stop: StopRequest) -> Training:
        trainer = prepare(run.config, resume=run.resume, stream=run.stream)
        lasting(run.stream).write("\n".join(banner(trainer)) + "\n")
        self.learner = trainer.learner
        return (yield from trainer.training(nullcontext(stop)))

    def go_on(self, step: TakeStep | None = None) -> None:
        """Start, or take a step, and do what is due until the next one."""
        try:
            with self.random_numbers:
                next(self._training) if step is None else self._training.send(step)
        except StopIteration as end:
            self.outcome = end.value
        except (UserError, RunFailed, Interrupted, OSError) as error:
            self.outcome = error
