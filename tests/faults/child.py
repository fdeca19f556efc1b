"""What happens in a trainer's own process: the command line, with a fault waiting for it."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import resource
import signal
import sys
import termios
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rnnsparse import evaluation
from rnnsparse.cli import main
from rnnsparse.data.batches import Lanes
from rnnsparse.sparsity.updater import Updater
from rnnsparse.storage import atomic, checkpoint

NOBODY = 65534
PHASES = ("start", "step", "update", "evaluation", "checkpoint")


@dataclass(frozen=True)
class Announce:
    """Tell the parent when a phase begins for the `count`-th time; with `wait`, go on when it answers."""

    phase: str
    count: int
    wait: bool = False


@dataclass(frozen=True)
class Output:
    """Let stdout and stderr be what a shell would make of them; tell the parent when a step begins, and wait.

    Each is "read" (by the parent), "elsewhere" (/dev/null), "closed" (`>&-`), "full" (a full disk), or "terminal" (both
    are one). With `saving`, also tell when the next checkpoint is being saved, and wait.
    """

    step: int
    stdout: str
    stderr: str
    saving: bool = False


@dataclass(frozen=True)
class FillDisk:
    """Let every write beyond `size` bytes of a file fail from the `step`-th step on."""

    step: int
    size: int


@dataclass(frozen=True)
class AtCall:
    """Do something at the `number`-th call that changes files, counted from 1; 0 only counts.

    `action` is the number of an error, which the call then raises instead of doing anything, or "kill before", "kill
    after", or "power cut": killed before it, and what no fsync has brought to the disk is gone.
    """

    number: int
    action: int | str
    exchange: bool = True


Fault = Announce | Output | FillDisk | AtCall | None


def train(place: Path, resume: bool, fault: Fault, parent: Connection, said: Connection, nobody: bool) -> None:
    """Train in `place`; what is told on stderr goes into `said`, a pipe, which no full disk stops. Never returns."""
    os.chdir(place)
    if isinstance(fault, Output):
        _arrange(fault, said)
    else:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(said.fileno(), 2)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    said.close()
    code = 70
    try:
        if nobody and os.getuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        seen = Phases(fault, parent)
        calls = Calls(place / "run", fault) if isinstance(fault, AtCall) else None
        seen.begins("start")
        code = main(["train", "config.yaml", *(["--resume"] if resume else [])])
        parent.send((seen.times, calls.names if calls else []))
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def _arrange(output: Output, said: Connection) -> None:
    """Make stdout and stderr what they would be in a process of its own; a terminal is that of the process."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever started the tests may ignore it
    if output.stdout == "terminal":
        os.setsid()
        fcntl.ioctl(said.fileno(), termios.TIOCSCTTY, 0)
    for number, name, kind in ((1, "stdout", output.stdout), (2, "stderr", output.stderr)):
        setattr(sys, name, None)
        if kind == "closed":
            os.close(number)
            continue
        files = {"full": "/dev/full", "elsewhere": os.devnull}
        os.dup2(os.open(files[kind], os.O_WRONLY) if kind in files else said.fileno(), number)
        setattr(sys, name, os.fdopen(number, "w", buffering=number - 1 or -1, closefd=False))


class Phases:
    """Notices when phases of training begin, and lets happen what should happen then."""

    def __init__(self, fault: Fault, parent: Connection) -> None:
        self._fault, self._parent = fault, parent
        self._waits_for = ("step", fault.step if isinstance(fault, Output) else 0)
        self.times: dict[str, list[float]] = {phase: [] for phase in PHASES}
        self._patch(Lanes, "__next__", "step")
        self._patch(Updater, "after_backward", "update")
        self._patch(checkpoint, "save", "checkpoint")
        evaluate = evaluation.evaluate
        for module in [module for name, module in sys.modules.items() if name.startswith("rnnsparse.")]:
            if getattr(module, "evaluate", None) is evaluate:
                self._patch(module, "evaluate", "evaluation")

    def begins(self, phase: str) -> None:
        self.times[phase].append(time.monotonic())
        count, fault = len(self.times[phase]), self._fault
        if isinstance(fault, Announce) and (fault.phase, fault.count) == (phase, count):
            self._parent.send("announced")
            if fault.wait:
                self._parent.recv()
        if isinstance(fault, Output) and self._waits_for == (phase, count):
            again = fault.saving and phase == "step"
            self._waits_for = ("checkpoint", len(self.times["checkpoint"]) + 1) if again else ("", 0)
            self._parent.send("announced")
            self._parent.recv()
        if isinstance(fault, FillDisk) and (phase, count) == ("step", fault.step):
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault.size, resource.RLIM_INFINITY))

    def _patch(self, owner: Any, name: str, phase: str) -> None:
        original = getattr(owner, name)

        def noticed(*arguments: Any, **named: Any) -> Any:
            self.begins(phase)
            return original(*arguments, **named)

        setattr(owner, name, noticed)


class Calls:
    """Counts the calls that change something in a run's folder, and spoils one."""

    def __init__(self, folder: Path, fault: AtCall) -> None:
        self._folder, self._fault = folder, fault
        self.names: list[str] = []
        self._synced = {path.stat().st_ino: path.stat().st_size for path in self._files()}
        for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
            setattr(os, name, self._spoilt(name, getattr(os, name)))
        if fault.exchange:
            atomic._exchange = self._spoilt("exchange", atomic._exchange)
        else:
            atomic._exchange = lambda a, b: False  # as on NFS
        opened = io.open
        spoilt = self._spoilt("open", opened)

        def open_(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            return (spoilt if set(mode) & set("wax+") else opened)(file, mode, *arguments, **named)

        io.open = open_  # what Path.open calls

    def _files(self) -> list[Path]:
        return [path for path in self._folder.rglob("*") if path.is_file()]

    def _spoilt(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            first = arguments[0]
            place = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else os.path.abspath(first)
            if named.get("dir_fd") is not None:
                place = os.path.join(os.readlink(f"/proc/self/fd/{named['dir_fd']}"), first)
            if not Path(place).is_relative_to(self._folder):
                return original(*arguments, **named)
            self.names.append(f"{name} {Path(place).relative_to(self._folder)}")
            due, action = len(self.names) == self._fault.number, self._fault.action
            if due and isinstance(action, int):
                if name == "exchange":
                    return False
                raise OSError(action, os.strerror(action), place)
            if due and action in ("kill before", "power cut"):
                if action == "power cut":
                    for path in self._files():
                        os.truncate(path, self._synced.get(path.stat().st_ino, 0))
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*arguments, **named)
            if due and action == "kill after":
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "fsync":
                self._synced[os.fstat(first).st_ino] = os.fstat(first).st_size
            return result

        return call


FAILURES = (errno.EIO, errno.ENOSPC)
