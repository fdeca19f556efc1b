"""What a run tells while it trains: metrics.jsonl, connectivity.jsonl, TensorBoard, and the progress on the terminal.

The logger knows no metric by meaning, only how a few of them read in the progress (`SHOWN`).
"""

from __future__ import annotations

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
from rnnsparse.training.settings import LoggingConfig

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
    that step, so that no step is told twice. `clock` gives seconds.

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
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total_steps, self._initial_step = total_steps, initial_step
        self._stream = sys.stderr if stream is None else stream
        self._clock, self._started = clock, clock()
        self._latest: dict[str, str] = {}

        run_folder.mkdir(parents=True, exist_ok=True)
        resumed = initial_step > 0 or (run_folder / "metrics.jsonl").exists()
        self._open = ExitStack()
        self._metrics = self._open.enter_context(_records(run_folder / "metrics.jsonl", initial_step))
        self._connectivity = self._open.enter_context(_records(run_folder / "connectivity.jsonl", initial_step))
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

    def advance(self, step: int) -> None:
        """Move the bar, if there is one, to `step` optimizer steps done; cheap enough for every step."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        """Record `values` after `step` optimizer steps and show the progress.

        A value that is not finite is null in metrics.jsonl, which stays strict JSON. The line is flushed.
        """
        assert "step" not in values, "the step is an argument of its own"
        record = {"step": step} | {key: _json_number(value) for key, value in values.items()}
        self._metrics.write(json.dumps(record, allow_nan=False) + "\n")
        self._metrics.flush()
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
            picture = connection_picture(weight.indices, weight.rows, weight.cols).unsqueeze(0)
            self._tensorboard.add_image(f"connectivity/{name}", picture, step)

    def connection_counts(self, step: int, counts: Mapping[str, Any]) -> None:
        """Record in connectivity.jsonl how many connections the parts of the network have."""
        self._connectivity.write(json.dumps({"step": step} | dict(counts)) + "\n")
        self._connectivity.flush()

    def message(self, text: str) -> None:
        """Show a line of text, above the bar if there is one."""
        if self._bar is None:
            self._write_line(text)
        else:
            self._bar.write(text, file=self._stream)

    def sync(self) -> None:
        """Return when what was recorded is on the disk; a checkpoint must not outlive what was told up to it."""
        for records in (self._metrics, self._connectivity):
            records.flush()
            os.fsync(records.fileno())

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

    def sync(self) -> None:
        pass

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


def _records(path: Path, initial_step: int) -> TextIO:
    """Open a file of lines to go on behind `initial_step`: a new one at the start of a run."""
    if initial_step > 0 and path.exists():
        _forget_beyond(path, initial_step)
    return path.open("a" if initial_step > 0 else "w", encoding="utf-8")


def _forget_beyond(metrics_path: Path, last_step: int) -> None:
    """Replace the file, at once, by one without the lines beyond `last_step` and without torn ones."""
    kept_path = metrics_path.with_name(metrics_path.name + ".new")
    with kept_path.open("w", encoding="utf-8") as kept:
        kept.writelines(_lines_up_to(metrics_path, last_step))
        kept.flush()
        os.fsync(kept.fileno())
    os.replace(kept_path, metrics_path)


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
