"""The examples of the library run as they are, and their networks learn."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "scripts/examples"


def told(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def number(pattern: str, text: str) -> float:
    found = re.search(pattern + r" ([\d.]+)", text)
    assert found, text
    return float(found[1])


def test_every_example_is_tried_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"own_loop.py", "prune_trained.py", "mixed_network.py"}


def test_an_own_loop_learns(capsys: pytest.CaptureFixture[str]) -> None:
    out = told("own_loop.py", capsys)
    assert number("accuracy", out) > 0.85
    assert re.search(r"in all +951 of +9,504 +0\.1001", out), out
    assert len((EXAMPLES / "own_loop.py").read_text().splitlines()) < 42


def test_a_trained_network_keeps_what_it_learned_when_pruned(capsys: pytest.CaptureFixture[str]) -> None:
    out = told("prune_trained.py", capsys)
    assert number("dense: error", out) < 0.1
    assert number("with a tenth of the weights: error", out) < 0.1
    assert number("as LSTM of PyTorch: error", out) < 0.1


def test_a_mixed_network_learns_and_says_what_stays_dense(capsys: pytest.CaptureFixture[str]) -> None:
    out = told("mixed_network.py", capsys)
    assert "not sparsified: convolution (Conv1d, 1,568 parameters)" in out
    assert "not sparsified: head (Linear, 98 parameters)" in out
    assert number("accuracy", out) > 0.7
