"""A loaded model is the one that the command line measures and lets write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import rnnsparse as rs
from rnnsparse.cli import main

DEMO = Path(__file__).parent.parent / "checkpoints/demo"
TEXT = "The tower was built in 1887 . It is — so to say — high .\n" * 3


@pytest.fixture(scope="module")
def demo() -> rs.TrainedModel:
    return rs.load(DEMO, device="cpu")


def test_bits_are_those_of_evaluate(demo: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    assert main(["evaluate", str(DEMO), "--data", str(tmp_path / "text.txt"), "--json", "--device", "cpu"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert demo.bits_per_character(TEXT) == pytest.approx(told["bits_per_character"], rel=1e-12)


def test_dynamic_bits_are_those_of_evaluate(demo: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    options = ["--dynamic", "--dynamic-rate", "0.002", "--data", str(tmp_path / "text.txt"), "--json"]
    assert main(["evaluate", str(DEMO), *options, "--device", "cpu"]) == 0
    told = json.loads(capsys.readouterr().out)
    bits = demo.bits_per_character(TEXT, dynamic=True, dynamic_rate=0.002)
    assert bits == pytest.approx(told["bits_per_character"], rel=1e-12)
    assert bits < demo.bits_per_character(TEXT)
    with pytest.raises(ValueError, match=r"dynamic_rate=0\.1: must be"):
        demo.bits_per_character(TEXT, dynamic_rate=0.1)


def test_texts_are_those_of_sample(demo: Any, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--length", "60", "--seed", "4", "--temperature", "0.8", "--top-k", "9", "--stop", " was"]
    assert main(["sample", str(DEMO), "--prompt", "The ", "--device", "cpu", *options]) == 0
    text = demo.sample("The ", length=60, seed=4, temperature=0.8, top_k=9, stop=[" was"])
    assert capsys.readouterr().out == f"The {text}\n"


def test_the_network_is_ready_to_use(demo: Any) -> None:
    assert not demo.model.training
    assert demo.model.vocab_size == demo.tokenizer.vocab_size
    logits, state = demo.model(torch.zeros(3, 2, dtype=torch.int64))
    assert logits.shape == (3, 2, demo.tokenizer.vocab_size)
    assert state.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"length": -1}, "length=-1"),
        ({"temperature": -0.5}, "temperature=-0.5"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"stop": "x"}, "must be a list"),
    ],
)
def test_numbers_out_of_range_are_refused(demo: Any, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        demo.sample("The ", **arguments)


def test_too_short_a_text_and_no_checkpoint_are_refused(demo: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        demo.bits_per_character("a")
    with pytest.raises(ValueError, match="neither a run"):
        rs.load(tmp_path)
