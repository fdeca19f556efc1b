"""Processor time of a training step, which gives runs of different speed equal time."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path

from rnnsparse import files
from rnnsparse.config import RunConfig
from rnnsparse.errors import UserError
from rnnsparse.settings.marks import Changeable, Incidental, OfOneRun, Repetition
from rnnsparse.training.build import vocabulary_size
from rnnsparse.training.device import training_device
from rnnsparse.training.step.learner import WARM_UP_STEPS, Learner
from rnnsparse.training.step.nonfinite import Diverged
from rnnsparse.training.train import prepare

LONGEST_INTERVAL = 200  # steps; what comes less often than that costs little in the mean
LEAST_SECONDS, MOST_INTERVALS = 2.0, 10  # timed: so many seconds, in at most so many intervals
LEARNING_RATE = 1e-4  # while timing: with the one of a run, it might lose its numbers
MANY_STEPS = 10**6
KEY = "settings"  # a hash of those that decide the speed


def steps_in(minutes: float, seconds: float) -> int:
    """Return how many steps of so many seconds fit into minutes, at least one."""
    return max(1, int(60 * minutes / seconds))


def require_timeable(config: RunConfig) -> None:
    """Make sure that minutes can decide the steps of a run.

    Raises:
        UserError: there are several runs in it, or its steps are multiplied.
    """
    if config.method.recipe:
        raise UserError(
            f"sparsity.method: {config.method.name}: trains several runs, which no minutes are set for; use another "
            "method, or training.steps"
        )
    if config.written_training.multiplier != 1:
        raise UserError(
            f"training.multiplier: {config.written_training.multiplier:g}: minutes decide the steps; set it to 1"
        )


class Speeds:
    """Seconds of processor time per training step, measured once and remembered in a file, one line each.

    Runs that differ only in what changes no speed, such as seed and learning rate, have one speed. What several
    processes measure at the same time, the first to write decides for all.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._size = path, 0
        self._seconds: dict[str, float] = {}
        self._vocabulary_size = functools.cache(vocabulary_size)

    def known(self, config: RunConfig) -> float | None:
        """Return the seconds per step of a run, None if they are not measured.

        Raises:
            UserError: its text is not there, whose characters are the symbols.
        """
        size = self._path.stat().st_size if self._path.exists() else 0
        if size != self._size:  # others append to it
            self._size, self._seconds = size, {}
            for record in files.records(self._path):
                if type(seconds := record.get("seconds_per_step")) is float and seconds > 0:
                    self._seconds.setdefault(str(record.get(KEY)), seconds)
        return self._seconds.get(self._key(config))

    def of(self, config: RunConfig) -> float:
        """Return the same, measured here if nobody has.

        Raises:
            UserError: as `seconds_per_step`.
        """
        if (known := self.known(config)) is not None:
            return known
        seconds = seconds_per_step(config)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        files.append_record(self._path, {KEY: self._key(config), "seconds_per_step": seconds})
        return self.known(config) or seconds

    def _key(self, config: RunConfig) -> str:
        settings = config.settings(OfOneRun, Repetition, Changeable, Incidental)
        if config.data.tokenizer == "char":
            # Another text at the same place may have more characters; bytes are 256 everywhere.
            settings["vocabulary_size"] = self._vocabulary_size(config.data)
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def seconds_per_step(config: RunConfig) -> float:
    """Return the processor time of a training step, topology updates included, all threads added up.

    Whole intervals from one update to the next are timed, after one in which kernels are compiled and memory is found.
    Nothing is written.

    Raises:
        UserError: the run is for a GPU, or loses its numbers at once; or as `prepare`.
    """
    if training_device(config.training).type != "cpu":
        raise UserError(
            "training.device: minutes are those of a processor, and this is a GPU; set training.device=cpu, or "
            "training.steps in the place of minutes"
        )
    training = replace(
        config.written_training,
        steps=MANY_STEPS,
        warmup=0,
        learning_rate=LEARNING_RATE,
        threads=config.training.threads or 1,
    )
    nowhere = replace(config.run, dir=str(config.folder / "timed"))
    learner = prepare(replace(config, run=nowhere, written_training=training)).learner
    interval = min(max(getattr(config.method, "interval", 0), WARM_UP_STEPS), LONGEST_INTERVAL)
    try:
        _take_steps(learner, interval)
        started, intervals, seconds = time.process_time(), 0, 0.0
        while seconds < LEAST_SECONDS and intervals < MOST_INTERVALS:
            _take_steps(learner, interval)
            intervals, seconds = intervals + 1, time.process_time() - started
    except Diverged as error:
        raise UserError(f"{error}; this was at learning rate {LEARNING_RATE:g}, to measure the speed") from None
    return seconds / (intervals * interval)


def _take_steps(learner: Learner, steps: int) -> None:
    for _ in range(steps):
        learner.take_step()
