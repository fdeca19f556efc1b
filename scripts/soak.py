"""Train for half an hour with everything on, and see that memory, open files and threads stay where they are.

A small RigL run updates, evaluates, draws pictures and saves every few steps, in a process of its own, which is watched
from outside through /proc (hence Linux). The first tenth of the time is a warm-up: kernels are compiled, caches fill.
The rest is cut into five parts, and of each the least of every number counts: it leaves out what is only held for the
length of an update or a checkpoint, and nothing that is lost. Exits with 1 if the last part needs more than the first.

    python scripts/soak.py --minutes 30
    python scripts/soak.py --minutes 5 sparsity.method=scout model.cell=lstm
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rnnsparse.storage import checkpoint

ROOT = Path(__file__).resolve().parent.parent
EVERYTHING = [
    "training.steps=10000000",  # it is stopped long before
    "training.lr_schedule=constant",
    "training.learning_rate=1e-3",
    "sparsity.method=rigl",
    "sparsity.interval=20",
    "sparsity.schedule=constant",  # updates move as much at the end as at the start
    "sparsity.stop=1.0",
    "sparsity.redistribute=momentum",  # tensors change their lengths
    "evaluation.interval=100",
    "evaluation.symbols=4000",
    "logging.interval=10",
    "logging.pictures=100",
    "logging.sample_length=50",
    "checkpoint.interval=25",
]
PARTS = 5
# One vector of the 33,000 values, lost at each checkpoint, would be 5 MB in a thousand steps; half an hour has many.
# The allocator itself, with nothing lost, keeps a few megabytes more or less from one part to the next.
MEMORY_TOLERANCE = 16 << 20
EVERY = 1.0  # seconds between two samples


@dataclass(frozen=True)
class Sample:
    """What a process holds at a moment.

    `memory` (bytes) is its own; pages of files that the system may drop at any time, such as those of the text, are in
    `mapped`. `folder` is the size of the run's folder in bytes.
    """

    seconds: float
    step: int
    memory: int
    mapped: int
    handles: int
    threads: int
    folder: int


def sample(pid: int, folder: Path, seconds: float) -> Sample:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    status = {key: rest.split() for key, _, rest in (line.partition(":") for line in lines)}
    return Sample(
        seconds=seconds,
        step=last_step(folder),
        memory=int(status["RssAnon"][0]) << 10,
        mapped=int(status["RssFile"][0]) << 10,
        handles=len(os.listdir(f"/proc/{pid}/fd")),
        threads=int(status["Threads"][0]),
        folder=size(folder),
    )


def last_step(folder: Path) -> int:
    """Return the last step that metrics.jsonl tells, or 0."""
    with suppress(OSError), folder.joinpath("metrics.jsonl").open("rb") as metrics:
        metrics.seek(max(0, metrics.seek(0, os.SEEK_END) - 4096))
        whole = metrics.read().rpartition(b"\n")[0]
        if whole:
            return int(json.loads(whole.rpartition(b"\n")[2])["step"])
    return 0


def size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # checkpoints come and go
            total += path.stat().st_size
    return total


def watch(process: subprocess.Popen[bytes], folder: Path, seconds: float) -> list[Sample]:
    """Return samples of a training process, from its first logged step on, for so many seconds or until it ends."""
    samples: list[Sample] = []
    started = None
    while process.poll() is None:
        now = time.monotonic()
        if started is None and last_step(folder):
            started = now
        if started is not None:
            if now - started > seconds:
                break
            with suppress(OSError, KeyError):  # it has just ended
                samples.append(sample(process.pid, folder, now - started))
        time.sleep(min(EVERY, seconds / 100))
    return samples


def parts_of(samples: Sequence[Sample], seconds: float) -> list[list[Sample]]:
    """Return the samples after the warm-up, in five parts of the same length in time."""
    warm_up = seconds / 10
    length = (seconds - warm_up) / PARTS
    ends = [warm_up + length * (part + 1) for part in range(PARTS)]
    return [[s for s in samples if end - length <= s.seconds < end] for end in ends]


def growth(parts: Sequence[Sequence[Sample]]) -> list[str]:
    """Return what the last part needs more of than the first, each as a line; no line is good."""
    found = []
    for name, tolerance in (("memory", MEMORY_TOLERANCE), ("handles", 0), ("threads", 0)):
        first, last = (min(getattr(s, name) for s in part) for part in (parts[0], parts[-1]))
        if last - first > tolerance:
            found.append(f"{name} grew from {first:,} to {last:,} (tolerated: {tolerance:,})")
    return found


def table(parts: Sequence[Sequence[Sample]]) -> str:
    lines = [
        "| minutes | step | steps/s | memory, MB | mapped files, MB | open files | threads | run folder, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for part in parts:
        first, last = part[0], part[-1]
        pace = (last.step - first.step) / max(last.seconds - first.seconds, 1e-9)
        least = {name: min(getattr(s, name) for s in part) for name in ("memory", "mapped", "handles", "threads")}
        lines.append(
            f"| {first.seconds / 60:.1f} to {last.seconds / 60:.1f} | {last.step:,} | {pace:.1f} "
            f"| {least['memory'] / 1e6:.1f} | {least['mapped'] / 1e6:.1f} | {least['handles']} | {least['threads']} "
            f"| {last.folder / 1e6:.1f} |"
        )
    return "\n".join(lines)


def soak(minutes: float, folder: Path, overrides: Sequence[str]) -> list[list[Sample]]:
    """Train in a process of its own, stop it as Ctrl-C does, and return its samples in parts.

    Raises:
        SystemExit: the run ended by itself, or left no complete checkpoint.
    """
    config = ROOT / "configs/small.yaml"
    command = [sys.executable, "-m", "rnnsparse", "train", config, *EVERYTHING, f"run.dir={folder}", *overrides]
    log = folder.with_name("log.txt")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            samples = watch(process, folder, minutes * 60)
            ended_by_itself = process.poll() is not None
            process.send_signal(signal.SIGINT)
            code = process.wait(timeout=300)
        finally:
            process.kill()
    if ended_by_itself or code != 130:
        raise SystemExit(f"the run ended with exit code {code}:\n{log.read_text(encoding='utf-8')[-2000:]}")
    saved = checkpoint.load(folder / "last")
    assert saved.step >= samples[-1].step, "an interrupted run saves its last step"
    return parts_of(samples, minutes * 60)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="how long to train (%(default)s)")
    parser.add_argument("overrides", nargs="*", help="other settings, as section.key=value")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        parts = soak(options.minutes, Path(place) / "run", options.overrides)
    print(table(parts))
    found = growth(parts)
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
