"""Running a sweep: each run is a `train` of its own in a child process, within a budget of cores and memory."""

from __future__ import annotations

import os
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
from rnnsparse.recipes.sweep import Run, Sweep
from rnnsparse.recipes.sweep_status import Estimator, Status, duration, status
from rnnsparse.training import lock
from rnnsparse.training.assembly import training_device
from rnnsparse.training.interrupts import stop_on_signals
from rnnsparse.training.peak_memory import peak_memory

POLL_SECONDS = 0.1


@dataclass
class Outcome:
    """What became of the runs; `failed` has a reason for each."""

    done: list[Run] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    elsewhere: list[Run] = field(default_factory=list)
    interrupted: bool = False


@dataclass(frozen=True)
class _Child:
    run: Run
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int
    started: float
    memory_bytes: int
    resumed: bool


def run_sweep(sweep: Sweep, runs: Sequence[Run], say: Callable[[str], None]) -> Outcome:
    """Train what is not done of `runs`, which are those of `sweep` or a part of them; go on where one was interrupted.

    A run that fails stops no other. SIGINT and SIGTERM let every run save itself. Several processes, also on several
    machines with one file system, may run the same sweep: each run is trained by one of them.

    Args:
        say: gets one line per event.

    Raises:
        UserError: the device or a text is not there; nothing has been started.
    """
    program_bytes = peak_memory()
    for run in runs:
        training_device(run.config.training)
    for data in {run.config.data for run in runs}:
        load_corpus(data)  # tokenized once, here, and not by every run at the same time
    return _Runner(sweep, runs, say, program_bytes).run()


class _Runner:
    def __init__(self, sweep: Sweep, runs: Sequence[Run], say: Callable[[str], None], program_bytes: int) -> None:
        self._sweep, self._say = sweep, say
        self._total = len(runs)
        self._pending = deque(runs)
        self._children: list[_Child] = []
        self._outcome = Outcome()
        self._estimator = Estimator(program_bytes)
        # Estimates are of training steps alone; what whole runs took besides shows in these two sums.
        self._took, self._estimated = 0.0, 0.0
        self._cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def run(self) -> Outcome:
        for run in self._pending:
            self._learn(run, status(run))
        if any(run.config.training.threads is None for run in self._pending):
            self._say("training.threads is not set: each run gets one thread")
        try:
            with stop_on_signals() as stop:
                while (self._pending or self._children) and not stop.requested:
                    while self._pending and self._start_next():
                        pass
                    if self._children:
                        time.sleep(POLL_SECONDS)
                        self._reap()
                if stop.requested:
                    self._stop()
        finally:
            # Only after an error or a second Ctrl-C is anyone left; their last checkpoints are complete.
            for child in self._children:
                child.process.kill()
                child.process.wait()
        return self._outcome

    def _learn(self, run: Run, found: Status) -> None:
        if found.summary:
            self._estimator.learn(run, found.summary, with_memory=self._sweep.memory_bytes is not None)

    def _start_next(self) -> bool:
        """Take the next run if there is room for it; False if it has to wait."""
        run = self._pending[0]
        found = status(run)
        if found.state == "done":
            assert found.summary is not None
            self._outcome.done.append(run)
            self._say(f"done before  {run.name}: {found.summary['bits_per_character']:.4f} bits per character")
        elif found.state == "running elsewhere":
            self._elsewhere(run, found.detail)
        elif found.state == "refused":
            self._fail(run, found.detail.removeprefix(f"{run.config.folder}: "))
        else:
            memory = self._estimator.memory(run.config) if self._sweep.memory_bytes else 0
            if not self._has_room(run.config, memory):
                if self._children:
                    return False
                limit = f"memory: {(self._sweep.memory_bytes or 0) / 1e6:,.0f} MB"
                self._fail(
                    run, f"needs about {memory / 1e6:,.0f} MB, more than {limit} in {self._sweep.path}; raise it"
                )
            else:
                self._start(run, memory, resume=found.state == "interrupted")
        self._pending.popleft()
        return True

    def _has_room(self, config: RunConfig, memory: int) -> bool:
        limit, used = self._sweep.memory_bytes, sum(child.memory_bytes for child in self._children)
        if limit is not None and used + memory > limit:
            return False
        if self._sweep.processes is not None:
            return len(self._children) < self._sweep.processes
        threads = sum(_threads(child.run.config) for child in self._children)
        return not self._children or threads + _threads(config) <= self._cores

    def _start(self, run: Run, memory: int, resume: bool) -> None:
        command = [sys.executable, "-m", "rnnsparse", "train", str(self._sweep.base), *run.overrides]
        if run.config.training.threads is None:
            command.append("training.threads=1")
        if resume:
            command.append("--resume")
        self._sweep.folder.mkdir(parents=True, exist_ok=True)
        log = self._sweep.folder / f"{run.name}.log"
        with log.open("ab") as output:
            start = output.tell()
            # In a session of its own, so that Ctrl-C reaches it once, from here.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._children.append(_Child(run, process, log, start, time.monotonic(), memory, resume))
        self._say(f"{'resumed' if resume else 'started':11}  {run.name}")

    def _reap(self) -> None:
        """Take note of every run that has ended."""
        for child in [child for child in self._children if child.process.poll() is not None]:
            self._children.remove(child)
            run, code = child.run, child.process.returncode
            found = status(run)
            if code == 0 and found.summary:
                self._outcome.done.append(run)
                self._learn(run, found)
                took = time.monotonic() - child.started
                if not child.resumed and (estimated := self._estimator.seconds(run.config)):
                    self._took, self._estimated = self._took + took, self._estimated + estimated
                bits = found.summary["bits_per_character"]
                self._say(
                    f"finished     {run.name}: {bits:.4f} bits per character in {duration(took)}; {self._progress()}"
                )
            elif (other := lock.holder(run.config.folder)) is not None:
                self._elsewhere(run, other)
            else:
                self._fail(run, f"{_reason(child)} ({child.log})")

    def _progress(self) -> str:
        now, slower = time.monotonic(), self._took / self._estimated if self._estimated else 1.0
        left = [slower * (self._estimator.seconds(run.config) or 0.0) for run in self._pending]
        left += [
            max(slower * (self._estimator.seconds(child.run.config) or 0.0) - (now - child.started), 0.0)
            for child in self._children
        ]
        at_once = len(self._children) + bool(self._pending)  # the place that has just become free
        time_left = f", about {duration(sum(left) / at_once)} left" if sum(left) else ""
        return f"{self._total - len(left)} of {self._total}{time_left}"

    def _elsewhere(self, run: Run, other: str) -> None:
        self._outcome.elsewhere.append(run)
        self._say(f"elsewhere    {run.name}: {other} trains it")

    def _fail(self, run: Run, reason: str) -> None:
        self._outcome.failed[run.name] = reason
        self._say(f"failed       {run.name}: {reason}")

    def _stop(self) -> None:
        """Let every run save itself."""
        self._outcome.interrupted = True
        self._say(f"stopping: {len(self._children)} runs save themselves")
        for child in self._children:
            child.process.send_signal(signal.SIGINT)
        for child in list(self._children):
            child.process.wait()
            self._children.remove(child)
            if child.process.returncode == 0:
                self._outcome.done.append(child.run)
            self._say(f"stopped      {child.run.name}")


def _threads(config: RunConfig) -> int:
    return config.training.threads or 1


def _reason(child: _Child) -> str:
    """Return in one line why a run has failed: what killed it, or what it said last."""
    code = child.process.returncode
    if code < 0:
        hint = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"
    with child.log.open("rb") as log:
        log.seek(child.log_start)
        lines = [line.strip() for line in log.read().decode("utf-8", errors="replace").splitlines() if line.strip()]
    own = [line.removeprefix("rnnsparse: ") for line in lines if line.startswith("rnnsparse: ")]
    return (own or lines or [f"exit code {code}"])[-1].removeprefix(f"{child.run.config.folder}: ")
