"""Bits of every character and line: they add up to what `evaluate` says, and lie where the text is."""

from __future__ import annotations

import csv
import json
import math
import os
import resource
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnsparse import code_lengths
from rnnsparse.data.split import Split
from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.errors import RunFailed, UserError
from rnnsparse.evaluation import Evaluation, evaluate
from rnnsparse.settings.run import EvaluationConfig
from tests.test_evaluation import BYTE, TEXT, model_of, split_of, textbook_nats

Rows = list[dict[str, Any]]
LINES = "é\r\n\nZwölf Boxkämpfer,\n  😀 = +1\u2028\x85\x00\"'\n" * 9 + "no end"
CHAR = Tokenizer.char(set(LINES) - set("ö😀"))


def readable(text: str, tokenizer: Tokenizer, size: int = 7) -> Split:
    """A split whose text can be read again, in chunks that end inside characters."""
    utf8 = text.encode()
    return replace(split_of(text, tokenizer), chunks=lambda: (utf8[i : i + size] for i in range(0, len(utf8), size)))


def written(text: str, tokenizer: Tokenizer, folder: Path, lanes: int = 1, suffix: str = "jsonl") -> Evaluation:
    split, config = readable(text, tokenizer), EvaluationConfig(lanes=lanes, priming=16, sequence_length=10)
    with code_lengths.Recorder(folder) as recorder:
        result = evaluate(model_of(tokenizer), split, tokenizer, config, record=recorder.record)
        code_lengths.write_characters(folder / f"characters.{suffix}", split, tokenizer, recorder)
        code_lengths.write_lines(folder / f"lines.{suffix}", split, tokenizer, recorder)
    return result


def rows_of(path: Path) -> Rows:
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            rows: Rows = list(csv.DictReader(file))
        numbers = {"bits": float, "offset": int, "line": int, "characters": int}
        return [{key: numbers.get(key, str)(text) if text else None for key, text in row.items()} for row in rows]
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize("lanes", [1, 5])
@pytest.mark.parametrize("tokenizer", [BYTE, CHAR], ids=["byte", "char"])
def test_characters_and_lines_add_up_to_the_total_and_are_in_the_order_of_the_text(
    tokenizer: Tokenizer, lanes: int, suffix: str, tmp_path: Path
) -> None:
    total = written(LINES, tokenizer, tmp_path, lanes, suffix)
    characters, lines = (rows_of(tmp_path / f"{name}.{suffix}") for name in ("characters", "lines"))
    bits = total.nats / math.log(2)
    assert "".join(row["text"] for row in characters) == LINES, "unknown characters too"
    assert [row["offset"] for row in characters] == [len(LINES[:i].encode()) for i in range(len(LINES))]
    assert math.fsum(row["bits"] or 0 for row in characters) == pytest.approx(bits, rel=1e-12)
    assert math.fsum(row["bits"] for row in lines) == pytest.approx(bits, rel=1e-12)
    assert sum(row["characters"] for row in lines) == total.characters

    ends = [row["offset"] for row in lines[1:]] + [len(LINES.encode())]
    texts = [LINES.encode()[row["offset"] : end].decode() for row, end in zip(lines, ends, strict=True)]
    assert texts == [*(f"{line}\n" for line in LINES.split("\n")[:-1]), "no end"]
    assert [row["line"] for row in lines] == list(range(1, len(lines) + 1))
    for row, text, end in zip(lines, texts, ends, strict=True):
        inside = [one for one in characters if row["offset"] <= one["offset"] < end]
        assert row["bits"] == pytest.approx(math.fsum(one["bits"] or 0 for one in inside), rel=1e-12)
        assert row["characters"] == len(text) - (row is lines[0])


def test_a_character_costs_what_its_bytes_cost_and_the_first_byte_nothing(tmp_path: Path) -> None:
    text = "é€ab"
    written(text, BYTE, tmp_path)
    model, tokens = model_of(BYTE), split_of(text, BYTE).tokens
    upto = [textbook_nats(model, tokens[:stop]) / math.log(2) for stop in (2, 5, 6, 7)]
    expected = np.diff(upto, prepend=0.0)
    assert [row["bits"] for row in rows_of(tmp_path / "characters.jsonl")] == pytest.approx(list(expected), rel=1e-9)


@pytest.mark.parametrize("tokenizer", [BYTE, CHAR], ids=["byte", "char"])
def test_a_first_character_that_is_never_scored_has_no_bits(tokenizer: Tokenizer, tmp_path: Path) -> None:
    written("\nZwölf", tokenizer, tmp_path)
    first, second, *_ = rows_of(tmp_path / "characters.jsonl")
    assert first == {"text": "\n", "bits": None, "offset": 0}
    assert second["bits"] > 0
    assert rows_of(tmp_path / "lines.jsonl")[0] == {"line": 1, "offset": 0, "characters": 0, "bits": 0.0}


def test_an_unknown_character_costs_its_naming_too(tmp_path: Path) -> None:
    written(LINES, CHAR, tmp_path)
    naming = math.log2(0x110000 - CHAR.vocab_size)
    bits = {row["text"]: row["bits"] for row in rows_of(tmp_path / "characters.jsonl")}
    assert min(bits["ö"], bits["😀"]) > naming > max(bits["w"], bits[" "])


@given(st.text(st.sampled_from("a\né€😀\r"), min_size=2, max_size=60), st.integers(1, 5), st.integers(1, 9))
def test_every_text_is_covered_once_wherever_its_chunks_end(text: str, size: int, stretch: int) -> None:
    split = readable(text, BYTE, size)

    class Ones:
        def nats(self, start: int, count: int) -> Any:
            return np.array([0.0 if i == 0 else math.log(2) for i in range(start, start + count)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_lengths, "STRETCH_BYTES", stretch)
        stretches = list(code_lengths._stretches(split, BYTE, Ones()))  # type: ignore[arg-type]
        lines = list(code_lengths._rows_of_lines(stretches))
    assert "".join(each.text for each in stretches) == text
    sizes = [len(character.encode()) for character in text]
    found = np.concatenate([each.bits for each in stretches])
    assert np.nan_to_num(found, nan=0.0).tolist() == pytest.approx([sizes[0] - 1, *sizes[1:]])
    assert len(lines) == text.count("\n") + (text[-1] != "\n")
    assert sum(line["bits"] for line in lines) == pytest.approx(sum(sizes) - 1)


def test_a_text_that_has_changed_leaves_no_file(tmp_path: Path) -> None:
    for changed in (TEXT + "a", TEXT[:-9]):
        split = replace(readable(TEXT, BYTE), chunks=readable(changed, BYTE).chunks)
        with code_lengths.Recorder(tmp_path) as recorder:
            evaluate(model_of(BYTE), split, BYTE, EvaluationConfig(lanes=1), record=recorder.record)
            with pytest.raises(UserError, match="changed while it was measured"):
                code_lengths.write_characters(tmp_path / "out.csv", split, BYTE, recorder)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_one_line_and_leaves_no_file(tmp_path: Path) -> None:
    split = readable(TEXT, BYTE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with code_lengths.Recorder(tmp_path) as recorder:
        evaluate(model_of(BYTE), split, BYTE, EvaluationConfig(lanes=1), record=recorder.record)
        recorder.nats(0, 1)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
            with pytest.raises(RunFailed, match=r"out\.jsonl: cannot be written \(File too large\)"):
                code_lengths.write_characters(tmp_path / "out.jsonl", split, BYTE, recorder)
            with pytest.raises(RunFailed, match=r"code lengths cannot be kept there \(File too large\)"):
                recorder.record(10_000, np.ones(100_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    class Zeros:
        def nats(self, start: int, count: int) -> Any:
            return np.ones(count)

    def peak(symbols: int) -> int:
        tokens = np.broadcast_to(np.uint8(ord("a")), symbols)
        split = Split(tokens, symbols, symbols, chunks=lambda: (b"a" * 10_000 for _ in range(symbols // 10_000)))
        tracemalloc.start()
        for name, write in (("c", code_lengths.write_characters), ("l", code_lengths.write_lines)):
            write(tmp_path / f"{name}{symbols}.csv", split, BYTE, Zeros())  # type: ignore[arg-type]
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(10_000)
    assert peak(200_000) < 1.5 * peak(20_000)
