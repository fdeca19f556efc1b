from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import (
    STORE_EVERYTHING_SIZE_GUIDANCE,
    EventAccumulator,
)

from rnnsparse.nn.weight import SparseWeight
from rnnsparse.settings.run import LoggingConfig
from rnnsparse.training.run.logging import RunLogger, connection_picture


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Ten seconds pass between two looks."""

    seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 10
        return self.seconds


def logger(folder: Path, stream: io.StringIO | None = None, *, tensorboard: bool = False, **options: Any) -> RunLogger:
    config = LoggingConfig(tensorboard=tensorboard)
    return RunLogger(folder, total_steps=100, config=config, stream=stream or io.StringIO(), **options)


def metrics(folder: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / "tensorboard"), STORE_EVERYTHING_SIZE_GUIDANCE)
    return accumulator.Reload()


def test_every_call_is_one_json_line_there_at_once(tmp_path: Path) -> None:
    with logger(tmp_path / "new" / "run") as log:
        log.scalars(10, {"loss": 1.5, "connections": 7})
        log.scalars(20, {"loss": 1.25})
        assert metrics(tmp_path / "new" / "run") == [
            {"step": 10, "loss": 1.5, "connections": 7},
            {"step": 20, "loss": 1.25},
        ]


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    with logger(tmp_path) as log:
        log.scalars(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": np.float64(0.5)})
    assert metrics(tmp_path) == [{"step": 1, "a": None, "b": None, "c": None, "d": 0.5}]


def test_a_resumed_run_forgets_what_lay_beyond_its_step_and_torn_lines(tmp_path: Path) -> None:
    kept = '{"step": 10, "loss": 2.0}\n{"step": 20, "loss": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_text(kept + '{"step": 30, "loss": 0.5}\n{"step": 20, "lo')
    with logger(tmp_path, initial_step=20) as log:
        assert (tmp_path / "metrics.jsonl").read_text() == kept
        log.scalars(30, {"loss": 0.75})
    assert [line["loss"] for line in metrics(tmp_path)] == [2.0, 1.0, 0.75]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["connectivity.jsonl", "metrics.jsonl"]


@pytest.mark.parametrize(
    ("change", "warned", "kept"),
    [
        (lambda text: text, False, [10, 20]),
        (lambda text: text + '{"step": 20, "lo', False, [10, 20]),
        (lambda text: text.replace("1.5", "1.7"), True, [10, 20]),
        (lambda text: text.replace('"step": 10', '"step": "x"'), True, [20]),
        (lambda text: text.replace('"step": 10', '"step": ' + "1" * 5000), True, [20]),
        (lambda text: "[" * 100_000 + text[1:], True, [20]),
        (lambda text: text[:30], True, [10]),
    ],
    ids=["as it was", "torn at the end", "a digit", "a step that is no number", "a huge number", "deep", "cut off"],
)
def test_lines_that_are_not_what_was_written_are_warned_about(
    tmp_path: Path, change: Callable[[str], str], warned: bool, kept: list[int]
) -> None:
    with logger(tmp_path) as log:
        log.scalars(10, {"loss": 1.5})
        log.scalars(20, {"loss": 1.25})
        synced = log.sync()
        log.scalars(30, {"loss": 1.0})
    path, stream = tmp_path / "metrics.jsonl", io.StringIO()
    path.write_text(change(path.read_text()))
    with logger(tmp_path, stream, initial_step=20, synced=synced):
        assert [line["step"] for line in metrics(tmp_path)] == kept
    assert (f"warning: {path}: is not what was written up to step 20: damaged or edited" in stream.getvalue()) is warned


def test_connection_counts_are_lines_of_their_own_and_forgotten_alike(tmp_path: Path) -> None:
    with logger(tmp_path) as log:
        for step in (0, 10, 20):
            log.connection_counts(step, {"blocks": {"output": 3}})
    with logger(tmp_path, initial_step=10) as log:
        log.connection_counts(15, {"blocks": {"output": 4}})
    lines = [json.loads(line) for line in (tmp_path / "connectivity.jsonl").read_text().splitlines()]
    assert [(line["step"], line["blocks"]["output"]) for line in lines] == [(0, 3), (10, 3), (15, 4)]


def test_a_last_line_whose_newline_is_missing_counts_as_torn(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n{"step": 20}')
    with logger(tmp_path, initial_step=20) as log:
        log.scalars(30, {})
    assert [line["step"] for line in metrics(tmp_path)] == [10, 30]


def test_a_resumed_run_without_metrics_starts_them(tmp_path: Path) -> None:
    with logger(tmp_path, initial_step=20) as log:
        log.scalars(30, {})
    assert [line["step"] for line in metrics(tmp_path)] == [30]


def test_without_a_terminal_progress_is_one_plain_line_per_call(tmp_path: Path) -> None:
    stream = io.StringIO()
    with logger(tmp_path, stream, clock=Clock(), initial_step=20) as log:
        log.advance(21)
        log.message("a message")
        log.scalars(40, {"moved": 0.25, "loss": 9.0, "bits_per_character": 2.5, "density": 0.1})
        log.scalars(60, {"bits_per_character": math.nan})
    # Twenty steps took ten seconds, so the sixty steps to come take thirty; then forty took twenty.
    assert stream.getvalue() == (
        "a message\n"
        "step 40/100, 2.500 bits/char, density 0.1000, 25.00% moved, 00:30 left\n"
        "step 60/100, nan bits/char, 00:20 left\n"
    )


def test_before_the_first_step_the_time_left_is_unknown(tmp_path: Path) -> None:
    stream = io.StringIO()
    with logger(tmp_path, stream) as log:
        log.scalars(0, {})
    assert stream.getvalue() == "step 0/100, time left unknown\n"


def test_on_a_terminal_one_bar_shows_the_latest_of_each_metric(tmp_path: Path) -> None:
    stream = Terminal()
    with logger(tmp_path, stream, initial_step=20) as log:
        log.scalars(30, {"bits_per_character": 2.5, "density": 0.1})
        log.message("a message")
        log.scalars(40, {"bits_per_character": 2.25})
        log.advance(50)
    last_bar = stream.getvalue().rsplit("\r", 1)[1]
    assert "50%" in last_bar
    assert "50/100" in last_bar
    assert "2.250 bits/char, density 0.1000" in last_bar
    assert "a message\n" in stream.getvalue()
    assert stream.getvalue().count("\n") == 2, "the message and the end; the bar itself stays on one line"


def test_tensorboard_holds_scalars_text_histogram_and_image(tmp_path: Path) -> None:
    weight = SparseWeight("w", 2, 4)
    weight.connect(torch.tensor([0, 1, 7]))
    with logger(tmp_path, tensorboard=True) as log:
        log.scalars(5, {"loss": 1.5})
        log.text(5, "sample", "*one*\ntwo")
        log.histogram(5, "values", torch.tensor([1.0, math.nan, 3.0], dtype=torch.bfloat16, requires_grad=True))
        log.histogram(5, "nothing", torch.empty(0))
        log.connectivity(5, "w", weight)
    found = events(tmp_path)
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(5, 1.5)]
    assert found.Tensors("sample/text_summary")[0].tensor_proto.string_val == [b"    *one*\n    two"]
    histogram = found.Histograms("values")[0].histogram_value
    assert (histogram.num, histogram.min, histogram.max) == (2, 1, 3)
    assert found.Tags()["histograms"] == ["values"]
    image = Image.open(io.BytesIO(found.Images("connectivity/w")[0].encoded_image_string))
    assert np.asarray(image)[..., 0].tolist() == [[255, 255, 0, 0], [0, 0, 0, 255]]


@pytest.mark.parametrize(("resumed_after", "steps"), [(20, [10, 20, 40]), (0, [40])])
def test_tensorboard_forgets_what_lay_beyond_a_resumed_step(
    tmp_path: Path, resumed_after: int, steps: list[int]
) -> None:
    with logger(tmp_path, tensorboard=True) as log:
        for step in (10, 20, 30):
            log.scalars(step, {"loss": float(step)})
    with logger(tmp_path, tensorboard=True, initial_step=resumed_after) as log:
        log.scalars(40, {"loss": 40.0})
    assert [event.step for event in events(tmp_path).Scalars("loss")] == steps


def test_without_tensorboard_no_such_folder_appears(tmp_path: Path) -> None:
    with logger(tmp_path) as log:
        log.text(1, "sample", "text")
        log.histogram(1, "values", torch.ones(3))
        log.connectivity(1, "w", SparseWeight("w", 2, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["connectivity.jsonl", "metrics.jsonl"]


def test_a_second_close_does_nothing(tmp_path: Path) -> None:
    log = logger(tmp_path, Terminal(), tensorboard=True)
    log.close()
    log.close()


def test_progress_that_nobody_can_read_stops_nothing(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as gone:
        with pytest.raises(BrokenPipeError):
            gone.write("a line\n")
        with RunLogger(tmp_path, total_steps=100, config=LoggingConfig(tensorboard=False), stream=gone) as log:
            log.message("a message")
            log.scalars(1, {"loss": 1.5})
        os.dup2(os.open(os.devnull, os.O_WRONLY), gone.fileno())
    assert metrics(tmp_path) == [{"step": 1, "loss": 1.5}]


def test_a_bar_on_a_terminal_that_has_gone_stops_nothing(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w", buffering=1) as terminal:
        with RunLogger(tmp_path, total_steps=100, config=LoggingConfig(tensorboard=False), stream=terminal) as log:
            os.close(ours)
            with pytest.raises(OSError, match="Input/output error"):
                os.write(theirs, b"x")
            log.message("a message")
            log.scalars(1, {"loss": 1.5})
        os.dup2(os.open(os.devnull, os.O_WRONLY), terminal.fileno())
    assert metrics(tmp_path) == [{"step": 1, "loss": 1.5}]


def test_a_full_disk_is_an_os_error(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "metrics.jsonl").symlink_to(full)
    log = logger(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        log.scalars(1, {})
    with pytest.raises(OSError, match="No space left"):
        log.close()


def test_a_small_matrix_is_pictured_cell_by_position() -> None:
    # X . X
    # . . X
    assert connection_picture(torch.tensor([0, 2, 5]), 2, 3).tolist() == [[1, 0, 1], [0, 0, 1]]


def test_a_cell_of_a_large_matrix_is_as_bright_as_it_is_dense() -> None:
    """600 rows fall into 256 cells of two or three rows: all are equally dense when all positions exist."""
    everything = torch.arange(600 * 3)
    assert torch.equal(connection_picture(everything, 600, 3), torch.ones(256, 3))

    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(512, 768, generator=generator) < 0.2
    picture = connection_picture(dense.flatten().nonzero().squeeze(1), 512, 768)
    counts = dense.view(256, 2, 256, 3).sum(dim=(1, 3))
    torch.testing.assert_close(picture, counts / counts.max())


def test_a_matrix_without_connections_is_black() -> None:
    assert connection_picture(torch.empty(0, dtype=torch.int64), 300, 2).tolist() == [[0.0, 0.0]] * 256


def test_a_picture_never_needs_the_dense_matrix() -> None:
    """A matrix of 10^16 positions has a picture."""
    side = 10**8
    picture = connection_picture(torch.tensor([0, side * side - 1]), side, side)
    assert picture.nonzero().tolist() == [[0, 0], [255, 255]]
