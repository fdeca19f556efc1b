"""Running a sweep: each run is a child process of its own, within a budget of cores and memory."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rnnsparse.config import RunConfig
from rnnsparse.data.corpus import load_corpus
from rnnsparse.errors import UserError
from rnnsparse.recipes.sweep import Run, Sweep, needs
from rnnsparse.recipes.sweep_status import (
    Estimator,
    Fingerprints,
    Status,
    VocabularySizes,
    duration,
    is_ending,
    status,
)
from rnnsparse.settings.data import DataConfig
from rnnsparse.training.device import training_device
from rnnsparse.training.run import lock
from rnnsparse.training.run.interrupts import StopRequest, stop_on_signals
from rnnsparse.training.run.lifeline import Lifeline

POLL_SECONDS = 0.1
INTERRUPTED = 130  # exit code of a run that has saved itself


@dataclass
class Outcome:
    """What became of the runs; `failed` has a reason for each, `lost` names those that fail again at the same step."""

    done: list[Run] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    elsewhere: list[Run] = field(default_factory=list)
    interrupted: bool = False


@dataclass(frozen=True)
class _Child:
    """A run in a child process."""

    run: Run
    process: subprocess.Popen[bytes]
    started: float
    memory_bytes: int
    log: Path
    log_start: int
    resumed: bool


def run_sweep(
    sweep: Sweep, runs: Sequence[Run], say: Callable[[str], None], fingerprints: Fingerprints | None = None
) -> Outcome:
    """Train what is not done of `runs`, which are those of `sweep` or a part of them; go on where one was interrupted.

    A run that fails stops no other. One that starts or learns from another waits while that is trained here. A signal
    lets every run save itself, and so does the end of this process, even if it is killed; who runs the sweep again
    then waits for them first. Several processes, also on several machines with one file system, may run the same
    sweep: each run is trained by one of them.

    Args:
        say: gets one line per event.
        fingerprints: those of the texts that are known already; others are added.

    Raises:
        UserError: the device or a text is not there; nothing has been started.
    """
    for run in runs:
        training_device(run.config.training)
    fingerprints = Fingerprints() if fingerprints is None else fingerprints

    def size(data: DataConfig) -> int:
        """Tokenize a text, once, here, and not in every run at the same time; return how many symbols it has."""
        corpus = load_corpus(data)
        fingerprints[data] = corpus.fingerprint
        return corpus.tokenizer.vocab_size

    return _Runner(sweep, runs, say, Estimator(VocabularySizes(runs, size)), fingerprints).run()


class _Runner:
    def __init__(
        self,
        sweep: Sweep,
        runs: Sequence[Run],
        say: Callable[[str], None],
        estimator: Estimator,
        fingerprints: Fingerprints,
    ) -> None:
        self._sweep, self._say, self._estimator, self._fingerprints = sweep, say, estimator, fingerprints
        self._total = len(runs)
        self._pending = deque(runs)
        self._children: list[_Child] = []
        self._lifeline = Lifeline()
        self._outcome = Outcome()
        # Estimates are of training steps alone; what whole runs took besides shows in these two sums.
        self._took, self._estimated = 0.0, 0.0
        self._cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def run(self) -> Outcome:
        if any(run.config.training.threads is None for run in self._pending):
            self._say("training.threads is not set: each run gets one thread")
        try:
            with stop_on_signals() as stop:
                self._await_ending(stop)
                for run in self._pending:
                    self._learn(run, self._status(run))
                changed = True
                while (self._pending or self._children) and not stop.requested:
                    # What waits is looked at again only when there may be room for it: that reads its checkpoint.
                    while changed and self._pending and not stop.requested and self._start_next():
                        pass
                    if self._children:
                        time.sleep(POLL_SECONDS)
                    changed = self._reap()
                if stop.requested:
                    self._stop(stop)
        finally:
            # Only after an error is anyone left; without us they save themselves.
            self._lifeline.close()
            for child in self._children:
                child.process.wait()
        return self._outcome

    def _await_ending(self, stop: StopRequest) -> None:
        """Wait for runs that a sweep has left behind which was killed: they save themselves."""
        if ending := [run for run in self._pending if is_ending(run)]:
            self._say(f"waiting for {len(ending)} runs of an earlier sweep, which save themselves")
        while ending and not stop.requested:
            time.sleep(POLL_SECONDS)
            ending = [run for run in ending if is_ending(run)]

    def _learn(self, run: Run, found: Status) -> None:
        if found.summary:
            self._estimator.learn(run, found.summary, with_memory=self._sweep.memory_bytes is not None)

    def _status(self, run: Run) -> Status:
        return status(run, self._fingerprints)

    def _start_next(self) -> bool:
        """Take the next run if there is room for it; False if it has to wait."""
        run = self._pending[0]
        found = self._status(run)
        if found.state == "done":
            assert found.summary is not None
            self._outcome.done.append(run)
            self._say(f"done before  {run.name}: {found.summary['bits_per_character']:.4f} bits per character")
        elif found.state == "running elsewhere":
            self._elsewhere(run, found.detail)
        elif found.state == "refused":
            self._fail(run, found.detail.removeprefix(f"{run.config.folder}: "))
        elif needs(run, [child.run for child in self._children]):
            return False
        elif (memory := self._memory(run)) is not None:
            if self._has_room(run.config, memory):
                self._start(self._pending.popleft(), memory, resumed=found.state == "interrupted")
                return True
            if self._children:
                return False
            limit = f"memory: {(self._sweep.memory_bytes or 0) / 1e6:,.0f} MB"
            self._fail(run, f"needs about {memory / 1e6:,.0f} MB, more than {limit} in {self._sweep.path}; raise it")
        self._pending.popleft()
        return True

    def _memory(self, run: Run) -> int | None:
        """Return the bytes that a run needs, 0 without a limit; None, and it has failed, if nobody can tell."""
        try:
            return self._estimator.memory(run.config) if self._sweep.memory_bytes else 0
        except UserError as error:
            self._fail(run, str(error))
            return None

    def _has_room(self, config: RunConfig, memory: int) -> bool:
        limit, used = self._sweep.memory_bytes, sum(child.memory_bytes for child in self._children)
        if limit is not None and used + memory > limit:
            return False
        if self._sweep.processes is not None:
            return len(self._children) < self._sweep.processes
        threads = sum(_threads(child.run.config) for child in self._children)
        return not self._children or threads + _threads(config) <= self._cores

    def _start(self, run: Run, memory: int, resumed: bool) -> None:
        self._sweep.folder.mkdir(parents=True, exist_ok=True)
        log = self._sweep.folder / f"{run.name}.log"
        log_start = log.stat().st_size if log.exists() else 0
        command = [sys.executable, "-m", "rnnsparse", "train", str(self._sweep.base), *typed_for(run)]
        with log.open("ab") as output:
            # In a session of its own, so that Ctrl-C reaches it once, from here.
            process = subprocess.Popen(
                [*command, *(["--resume"] if resumed else [])],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **self._lifeline.options(),
            )
        self._children.append(_Child(run, process, time.monotonic(), memory, log, log_start, resumed))
        self._say(f"{'resumed' if resumed else 'started':11}  {run.name}")

    def _reap(self) -> bool:
        """Take note of every run that has ended; return whether there was one."""
        ended = [child for child in self._children if child.process.poll() is not None]
        for child in ended:
            self._children.remove(child)
            took, found = time.monotonic() - child.started, self._status(child.run)
            self._learn(child.run, found)
            if child.process.returncode == 0 and not child.resumed and (estimated := self._seconds(child.run)):
                self._took, self._estimated = self._took + took, self._estimated + estimated
            self._ended(child, found, took)
        return bool(ended)

    def _ended(self, child: _Child, found: Status, took: float) -> None:
        run = child.run
        if found.summary:
            self._outcome.done.append(run)
            bits = found.summary["bits_per_character"]
            self._say(f"finished     {run.name}: {bits:.4f} bits per character in {duration(took)}; {self._progress()}")
        elif (other := lock.holder(run.config.folder)) is not None:
            self._elsewhere(run, other)
        else:
            reason, is_own = _reason(child)
            # Lost numbers are told with their step, as progress is; a full disk or a signal is not.
            if child.process.returncode == 1 and is_own and re.search(r"(^|: )step \d", reason):
                self._outcome.lost.add(run.name)
            self._fail(run, f"{reason} ({child.log})")

    def _seconds(self, run: Run) -> float:
        """Return what all steps of a run take; 0 if nobody knows."""
        return self._estimator.seconds(run.config) or 0.0

    def _progress(self) -> str:
        now, slower = time.monotonic(), self._took / self._estimated if self._estimated else 1.0
        left = slower * sum(map(self._seconds, self._pending))
        left += sum(max(slower * self._seconds(child.run) - (now - child.started), 0.0) for child in self._children)
        at_once = len(self._children) + bool(self._pending)  # the place that has just become free
        time_left = f", about {duration(left / at_once)} left" if left else ""
        return f"{self._total - len(self._pending) - len(self._children)} of {self._total}{time_left}"

    def _elsewhere(self, run: Run, other: str) -> None:
        self._outcome.elsewhere.append(run)
        self._say(f"elsewhere    {run.name}: {other} trains it")

    def _fail(self, run: Run, reason: str) -> None:
        self._outcome.failed[run.name] = reason
        self._say(f"failed       {run.name}: {reason}")

    def _stop(self, stop: StopRequest) -> None:
        """Let every run save itself; a second Ctrl-C is passed on, and cuts no saving short."""
        stop.save_from_here()
        self._outcome.interrupted = True
        self._say(f"stopping: {len(self._children)} runs save themselves")
        for child in self._children:
            child.process.send_signal(signal.SIGINT)
        passed_on = False
        while self._children:
            time.sleep(POLL_SECONDS)
            if stop.insisted and not passed_on:
                passed_on = True
                for child in self._children:
                    child.process.send_signal(signal.SIGINT)
            for child in [child for child in self._children if child.process.poll() is not None]:
                self._children.remove(child)
                found, saved = self._status(child.run), child.process.returncode in (INTERRUPTED, -signal.SIGINT)
                if saved and not found.summary:
                    self._say(f"stopped      {child.run.name}")
                else:
                    self._ended(child, found, time.monotonic() - child.started)


def typed_for(run: Run) -> list[str]:
    """Return the overrides that a run is started with: one thread, if it says nothing of them."""
    return [*run.overrides, *(["training.threads=1"] if run.config.training.threads is None else [])]


def _threads(config: RunConfig) -> int:
    return config.training.threads or 1


def _reason(child: _Child) -> tuple[str, bool]:
    """Return in one line why a run has failed, and whether it has said so: what killed it, or what it said last."""
    code = child.process.returncode
    if code < 0:
        hint = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}", False
    with child.log.open("rb") as log:
        log.seek(child.log_start)
        lines = [line.strip() for line in log.read().decode("utf-8", errors="replace").splitlines() if line.strip()]
    own = [line.removeprefix("rnnsparse: ") for line in lines if line.startswith("rnnsparse: ")]
    return (own or lines or [f"exit code {code}"])[-1].removeprefix(f"{child.run.config.folder}: "), bool(own)
