"""Where faults are injected: small trainings in processes of their own, and what they must leave behind."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnnsparse.errors import UserError
from rnnsparse.storage import checkpoint
from rnnsparse.training.run import run_folder
from tests.faults.child import NOBODY, PHASES, AtCall, Fault, Output, train

ROOT = Path(__file__).parent.parent.parent
TEXT = "pack my box with five dozen liquor jugs. the quick brown fox jumps over the lazy dog, ünd ein ß.\n" * 20
STEPS = 12
CONFIG = f"""
run: {{dir: run}}
data: {{source: text, path: text.txt, cache: cache, tokenizer: char}}
model: {{embedding_dim: 8, hidden_size: 16}}
sparsity: {{method: rigl, sparsity: 0.8, interval: 3, drop_fraction: 0.5, stop: 1.0}}
training: {{steps: {STEPS}, batch_size: 3, sequence_length: 5, learning_rate: 1.0e-2, threads: 1}}
evaluation: {{interval: 4, lanes: 2, priming: 4, symbols: 100}}
logging: {{interval: 1, tensorboard: false, pictures: null}}
checkpoint: {{interval: 3, keep: [{STEPS}]}}
"""
# What differs from run to run; records are the sha256 of files that hold times.
TIMES = {"records", "seconds", "timed_seconds", "characters_per_second", "validation_seconds", "peak_memory_bytes"}
RECORDS = ("metrics.jsonl", "connectivity.jsonl")
PATIENCE = 300  # seconds for a training that takes less than one


def write_inputs(place: Path) -> None:
    """Write what a training in `place` reads."""
    (place / "text.txt").write_text(TEXT, encoding="utf-8")
    (place / "config.yaml").write_text(CONFIG, encoding="utf-8")


@dataclass(frozen=True)
class Ending:
    """How a trainer ended: its exit code, minus the number of the signal that killed it, and what it said."""

    code: int
    said: str

    @property
    def is_clear(self) -> bool:
        """Whether a failure was told in one line, without a traceback."""
        lines = [line for line in self.said.splitlines() if line.startswith("rnnsparse: ")]
        return "Traceback" not in self.said and (self.code == 0 or len(lines) == 1)

    def __str__(self) -> str:
        return f"exit code {self.code}: {' | '.join(self.said.splitlines()[-3:])}"


class Trainer:
    """A trainer in a process of its own."""

    def __init__(self, process: BaseProcess, connection: Connection, said: Connection, place: Path) -> None:
        self.process, self.connection, self._said, self._place = process, connection, said, place

    def wait(self) -> Ending:
        self.process.join(PATIENCE)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise TimeoutError(f"{self._place}: a trainer hangs")
        assert self.process.exitcode is not None
        if self._said.closed:
            return Ending(self.process.exitcode, "")
        with open(os.dup(self._said.fileno()), encoding="utf-8", errors="replace") as said:
            return Ending(self.process.exitcode, said.read())

    def leave(self) -> None:
        """Read no more of what it says."""
        self._said.close()

    def speaks(self) -> bool:
        """Wait for it to say something, and read a part of that."""
        return self._said.poll(PATIENCE) and bool(os.read(self._said.fileno(), 1))

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def reaches(self) -> bool:
        """Wait for what should be announced; False if the process ends before."""
        with contextlib.suppress(EOFError):
            return self.connection.poll(PATIENCE) and self.connection.recv() == "announced"
        return False

    def kill(self) -> Ending:
        if self.process.pid is not None and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGKILL)
        return self.wait()


class Bench:
    """A folder of experiments, and an undisturbed run to compare them with; `numbers` decides what is random."""

    def __init__(self, root: Path, seed: int) -> None:
        self._root, self.numbers, self._count = root, random.Random(seed), 0
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.faults.warm"])
        place = self.place(cache=False)
        trainer = self.start(place, fault=AtCall(0, "count"))
        assert trainer.connection.poll(PATIENCE)
        times, self.calls = trainer.connection.recv()
        ending = trainer.wait()
        assert ending.code == 0, ending
        self.counts = {phase: len(times[phase]) for phase in PHASES}
        first = times["start"][0]
        self.seconds = {
            "start": times["step"][0] - first,
            "step": (times["step"][-1] - times["step"][0]) / STEPS / 2,
            "update": 0.002,
            "evaluation": 0.01,
            "checkpoint": 0.03,
        }
        self.expected = traces(place / "run")
        self._cache = place / "cache"
        self.bytes = sum(path.stat().st_size for path in (place / "run").rglob("*"))
        self.interrupted = self._interrupted()

    def _interrupted(self) -> Path:
        """Return a place with a run that was killed after step 10: `last` is of step 9, `previous` of step 6."""
        from tests.faults.child import Announce

        place = self.place()
        trainer = self.start(place, fault=Announce("step", 11, wait=True))
        assert trainer.reaches()
        trainer.kill()
        assert checkpoint.load(place / "run" / "last").step == 9
        assert checkpoint.load(place / "run" / "previous").step == 6
        return place

    def place(self, *, cache: bool = True, like: Path | None = None, nobody: bool = False) -> Path:
        """Return a new folder with what a training needs; `like` another one, run included."""
        self._count += 1
        place = self._root / f"{self._count:05}"
        if like:
            shutil.copytree(like, place)
        else:
            place.mkdir()
            write_inputs(place)
            if cache:
                shutil.copytree(self._cache, place / "cache")
        if nobody and os.getuid() == 0:
            for path in (place, *place.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        return place

    def start(self, place: Path, *, resume: bool = False, fault: Fault = None, nobody: bool = False) -> Trainer:
        ours, theirs = self._context.Pipe()
        if isinstance(fault, Output) and fault.stdout == "terminal":
            said, saying = (Connection(descriptor) for descriptor in os.openpty())
        else:
            said, saying = self._context.Pipe(duplex=False)
        process = self._context.Process(target=train, args=(place, resume, fault, theirs, saying, nobody))
        process.start()
        theirs.close()
        saying.close()
        return Trainer(process, ours, said, place)

    def train(self, place: Path, *, resume: bool = False, fault: Fault = None, nobody: bool = False) -> Ending:
        return self.start(place, resume=resume, fault=fault, nobody=nobody).wait()

    def go_on(self, place: Path, *, nobody: bool = False) -> Ending:
        """Resume the run, or begin it anew if it had saved nothing yet."""
        return self.train(place, resume=run_folder.has_checkpoint(place / "run"), nobody=nobody)

    def loss(self, place: Path, *, nobody: bool = False) -> str | None:
        """Return what is lost when the run in `place` goes on to its end, or None if that is nothing."""
        if (reason := damage(place / "run")) is not None:
            return reason
        ending = self.go_on(place, nobody=nobody)
        if ending.code != 0 or not ending.is_clear:
            return f"does not go on: {ending}"
        return self.difference(place)

    def difference(self, place: Path) -> str | None:
        """Return in what a finished run differs from an undisturbed one."""
        found = traces(place / "run")
        different = [name for name in self.expected if found.get(name) != self.expected[name]]
        return f"differs from an undisturbed run in {', '.join(different)}" if different else None


@contextlib.contextmanager
def bench(seed: int) -> Iterator[Bench]:
    """Make a bench on a file system in memory, if there is one: fsync is then as cheap as it can be."""
    memory = Path("/dev/shm")
    paths = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{paths}" if paths else str(ROOT)  # for the server
    root = Path(tempfile.mkdtemp(prefix="faults-", dir=memory if os.access(memory, os.W_OK) else None))
    root.chmod(0o755)
    try:
        yield Bench(root, seed)
    finally:
        os.environ["PYTHONPATH"] = paths
        shutil.rmtree(root, ignore_errors=True)


def damage(folder: Path) -> str | None:
    """Return what is wrong with the last checkpoint of a run that was stopped, if it has one."""
    if not run_folder.has_checkpoint(folder):
        return None
    try:
        checkpoint.load(folder / "last").training_state()
    except UserError as error:
        return f"last is not whole: {error}"
    return None


def traces(folder: Path) -> dict[str, Any]:
    """Return all that a finished run leaves behind, but for times, as plain data."""
    found: dict[str, Any] = {"the list of files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))}
    found["config.yaml"] = (folder / "config.yaml").read_text(encoding="utf-8")
    found["summary.json"] = _without_times(json.loads((folder / "summary.json").read_text(encoding="utf-8")))
    for name in ("last", "best", f"step_{STEPS}"):
        try:
            saved = checkpoint.load(folder / name)
            state = _plain(saved.training_state()) if saved.has_training_state else None
            found[name] = (saved.step, saved.weights_sha256, saved.tokenizer_json, saved.config_yaml, state)
        except UserError as error:
            found[name] = str(error)
    for name in RECORDS:
        lines = (folder / name).read_text(encoding="utf-8", errors="replace").splitlines()
        found[name] = [_without_times(json.loads(line)) for line in lines]
    return found


def _without_times(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_times(value) for key, value in data.items() if key not in TIMES}
    return data


def _plain(data: Any) -> Any:
    """Return plain data that is equal exactly if all tensors in `data` have the same bytes."""
    if isinstance(data, Tensor):
        content = data.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return str(data.dtype), tuple(data.shape), hashlib.sha256(content).hexdigest()
    if isinstance(data, dict):
        return {key: _plain(value) for key, value in data.items() if key not in TIMES}
    return [_plain(value) for value in data] if isinstance(data, list | tuple) else data


def pause(seconds: float) -> None:
    """Wait, also for less than the system's clock would sleep."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
