"""What a run tells while it trains: metrics.jsonl, connectivity.jsonl, TensorBoard, and the progress on the terminal.

The logger knows no metric by meaning, only how a few of them read in the progress (`SHOWN`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn, Self, TextIO

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from rnnsparse.nn.weight import SparseWeight
from rnnsparse.settings.run import LoggingConfig
from rnnsparse.streams import lasting

# The metrics that the progress shows, if they are given; a narrow terminal cuts off the last ones.
SHOWN = {
    "bits_per_character": "{:.3f} bits/char",
    "density": "density {:.4f}",
    "moved": "{:.2%} moved",
    "validation_bits_per_character": "validation {:.3f}",
    "characters_per_second": "{:,.0f} char/s",
}
PICTURE_CELLS = 256  # a connectivity image has at most this many cells per side


class RunLogger:
    """Writes metrics.jsonl, connectivity.jsonl and tensorboard/ in `run_folder`; shows progress on `stream` (stderr).

    On a terminal the progress is one bar with the time left and the latest of each shown metric, else one
    plain line per call of `scalars`. A run that goes on after `initial_step` forgets what was recorded beyond
    that step, so that no step is told twice; `synced` is what `sync` returned at that step, and a file that
    is another one now is warned about. A stream that cannot be written stops nothing. `clock` gives seconds.

    Raises:
        OSError: a file cannot be written.
    """

    def __init__(
        self,
        run_folder: Path,
        *,
        total_steps: int,
        config: LoggingConfig,
        initial_step: int = 0,
        synced: Mapping[str, str] | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total_steps, self._initial_step = total_steps, initial_step
        self._stream = lasting(sys.stderr if stream is None else stream)
        self._clock, self._started = clock, clock()
        self._latest: dict[str, str] = {}

        run_folder.mkdir(parents=True, exist_ok=True)
        resumed = initial_step > 0 or (run_folder / "metrics.jsonl").exists()
        self._open = ExitStack()
        self._metrics, self._connectivity = records = [
            _Records(run_folder / name, initial_step) for name in ("metrics.jsonl", "connectivity.jsonl")
        ]
        for file in records:
            self._open.callback(file.close)
        self._tensorboard: SummaryWriter | None = None
        if config.tensorboard:
            purge_step = initial_step + 1 if resumed else None
            self._tensorboard = SummaryWriter(str(run_folder / "tensorboard"), purge_step=purge_step, flush_secs=30)
            self._open.callback(self._tensorboard.close)
        self._bar: tqdm[NoReturn] | None = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=total_steps,
                initial=initial_step,
                file=self._stream,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
            )
            self._open.callback(self._bar.close)
        for file in records:
            if initial_step > 0 and (synced or {}).get(file.path.name, file.sha256) != file.sha256:
                self.message(
                    f"warning: {file.path}: is not what was written up to step {initial_step}: damaged or edited; "
                    "lines that cannot be read are left out, and what the run computes does not depend on them"
                )

    def advance(self, step: int) -> None:
        """Move the bar, if there is one, to `step` optimizer steps done; cheap enough for every step."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        """Record `values` after `step` optimizer steps and show the progress.

        A value that is not finite is null in metrics.jsonl, which stays strict JSON. The line is flushed.
        """
        if "step" in values:
            raise ValueError("the step is an argument of its own")
        record = {"step": step} | {key: _json_number(value) for key, value in values.items()}
        self._metrics.add(json.dumps(record, allow_nan=False) + "\n")
        if self._tensorboard is not None:
            for key, value in values.items():
                self._tensorboard.add_scalar(key, float(value), step)

        shown = {key: form.format(float(values[key])) for key, form in SHOWN.items() if key in values}
        if self._bar is None:
            self._write_line(", ".join([f"step {step}/{self._total_steps}", *shown.values(), self._time_left(step)]))
        else:
            self._latest |= shown
            self._bar.set_postfix_str(
                ", ".join(self._latest[key] for key in SHOWN if key in self._latest), refresh=False
            )
            self.advance(step)

    def text(self, step: int, tag: str, text: str) -> None:
        """Record a text in TensorBoard, shown as it is (not as Markdown)."""
        if self._tensorboard is not None:
            verbatim = "    " + text.replace("\n", "\n    ")
            self._tensorboard.add_text(tag, verbatim, step)

    def histogram(self, step: int, tag: str, values: Tensor) -> None:
        """Record the distribution of the finite `values` in TensorBoard; nothing if there are none."""
        if self._tensorboard is not None:
            values = values.detach().to("cpu", torch.float64).flatten()
            values = values[values.isfinite()]
            if values.numel() > 0:
                self._tensorboard.add_histogram(tag, values, step)

    def connectivity(self, step: int, name: str, weight: SparseWeight) -> None:
        """Record in TensorBoard a picture of where the connections of `weight` are: bright where dense."""
        if self._tensorboard is not None:
            picture = connection_picture(weight.topology.entries.flatten(), weight.rows, weight.cols).unsqueeze(0)
            self._tensorboard.add_image(f"connectivity/{name}", picture, step)

    def connection_counts(self, step: int, counts: Mapping[str, Any]) -> None:
        """Record in connectivity.jsonl how many connections the parts of the network have."""
        self._connectivity.add(json.dumps({"step": step} | dict(counts)) + "\n")

    def message(self, text: str) -> None:
        """Show a line of text, above the bar if there is one."""
        if self._bar is None:
            self._write_line(text)
        else:
            self._bar.write(text, file=self._stream)

    def sync(self) -> dict[str, str]:
        """Bring what was recorded to the disk, and return the sha256 of each file by its name.

        A checkpoint must not outlive what was recorded up to it.
        """
        for file in (self._metrics, self._connectivity):
            file.sync()
        return {file.path.name: file.sha256 for file in (self._metrics, self._connectivity)}

    def close(self) -> None:
        """Finish the bar and the files, each even if another fails; a second call does nothing."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write_line(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()

    def _time_left(self, step: int) -> str:
        """Return how long the rest takes at this run's mean pace so far."""
        done = step - self._initial_step
        if done <= 0:
            return "time left unknown"
        seconds = (self._clock() - self._started) / done * (self._total_steps - step)
        return f"{tqdm.format_interval(seconds)} left"


class Silence(RunLogger):
    """A logger that neither writes nor shows anything."""

    def __init__(self) -> None:
        self._open, self._tensorboard = ExitStack(), None

    def advance(self, step: int) -> None:
        pass

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        pass

    def connection_counts(self, step: int, counts: Mapping[str, Any]) -> None:
        pass

    def sync(self) -> dict[str, str]:
        return {}

    def message(self, text: str) -> None:
        pass


def connection_picture(indices: Tensor, rows: int, cols: int) -> Tensor:
    """Return a picture, at most [256, 256], of where a matrix [rows, cols] has its connections.

    `indices` (int64 [N]) are their flat positions. A cell's grey value is its density relative to the densest
    cell's, 0 to 1. Takes O(N) time and memory: the dense matrix is never made.
    """
    height, width = min(rows, PICTURE_CELLS), min(cols, PICTURE_CELLS)
    indices = indices.cpu()
    cell = (indices // cols) * height // rows * width + (indices % cols) * width // cols
    connections = torch.bincount(cell, minlength=height * width).view(height, width)
    density = connections / torch.outer(_cell_sizes(rows, height), _cell_sizes(cols, width))
    return density / density.max().clamp(min=torch.finfo(density.dtype).tiny)


def _cell_sizes(length: int, cells: int) -> Tensor:
    """Return how many of `length` rows (or columns) i have i * cells // length = 0, 1, ..., cells - 1."""
    return torch.tensor([-(-cell * length // cells) for cell in range(cells + 1)]).diff()


def _json_number(value: float | int) -> float | int | None:
    return value if math.isfinite(value) else None


class _Records:
    """A file of lines that goes on behind `initial_step`, and the sha256 of all that is in it; new at step 0."""

    def __init__(self, path: Path, initial_step: int) -> None:
        self.path = path
        self._sha256 = hashlib.sha256()
        if initial_step > 0 and path.exists():
            self._forget_beyond(initial_step)
        self._file = path.open("a" if initial_step > 0 else "w", encoding="utf-8")

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def add(self, line: str) -> None:
        self._file.write(line)
        self._file.flush()
        self._sha256.update(line.encode())

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _forget_beyond(self, last_step: int) -> None:
        """Replace the file, at once, by one without the lines beyond `last_step` and without torn ones."""
        kept_path = self.path.with_name(self.path.name + ".new")
        with kept_path.open("w", encoding="utf-8") as kept:
            for line in _lines_up_to(self.path, last_step):
                kept.write(line)
                self._sha256.update(line.encode())
            kept.flush()
            os.fsync(kept.fileno())
        os.replace(kept_path, self.path)


def _lines_up_to(metrics_path: Path, last_step: int) -> Iterator[str]:
    with metrics_path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue  # cut off by whatever stopped the run
            step = record.get("step") if isinstance(record, dict) else None
            if line.endswith("\n") and isinstance(step, int) and step <= last_step:
                yield line
