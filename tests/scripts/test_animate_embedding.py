from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from scripts import animate_embedding
from tests.training.test_trainer import config_in, trained


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moving")
    trained(config_in(folder, "run", "sparsity.method=set", "logging.pictures=1", "evaluation.interval=100"))
    return folder / "run"


def animate(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["animate_embedding.py", *map(str, words)])
    return animate_embedding.main()


def test_a_run_becomes_a_picture_of_as_many_moments_as_it_has_recorded_or_fewer(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = len((run / "connectivity.jsonl").read_text().splitlines())
    assert recorded > 4
    for out, options, most in [("all.gif", [], recorded), ("few.png", ["--frames", 3, "--width", 170], 3)]:
        assert animate(monkeypatch, run, "--out", tmp_path / out, *options) == 0
        with Image.open(tmp_path / out) as picture:
            # The end is the first frame as well, and moments in which nothing moved are one.
            assert 2 < getattr(picture, "n_frames", 1) <= most + 1
            assert picture.width == (170 if options else 442)


@pytest.mark.parametrize(
    ("target", "out", "reason"),
    [
        (".", "new.jpg", "is an animated picture; let the name end in .webp, .gif, .png"),
        (".", ".", "exists and is never overwritten"),
        ("last", "new.gif", "recorded no connections while it trained"),
        ("nowhere", "new.gif", "there is no such folder"),
        (".", "new.gif --width 10", "--width: 10: is not from 100 to 4000"),
        (".", "new.gif --frames 1", "--frames: 1: is not from 2 to 1000"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(
    run: Path, tmp_path: Path, target: str, out: str, reason: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out, *options = out.split()
    assert animate(monkeypatch, run / target, "--out", tmp_path / out, *options) == 2
    told = capsys.readouterr().err
    assert reason in told
    assert len(told.splitlines()) == 1
