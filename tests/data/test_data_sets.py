"""Data sets that the field measures on: tables, the hub, enwik8 and text8, the Penn Treebank; and how they are cut."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rnnsparse.data import cache, division, hub, packing, tables
from rnnsparse.data.corpus import Corpus, load_corpus
from rnnsparse.data.split_names import SPLITS
from rnnsparse.errors import UserError
from rnnsparse.settings.data import DataConfig
from tests.data.test_corpus import write_dataset

ROWS = ["Once upon\na time…\n", "", 'a "quoted", naïve row', "last € row\r\n"] * 30
TEXT = "".join(row if row.endswith("\n") else f"{row}\n" for row in ROWS)
TEXT_OF_CSV = "".join(line for line in TEXT.splitlines(keepends=True) if line != "\n")  # in which "" is no value


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has caches of its own, ours and that of `datasets`."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    monkeypatch.setenv("RNNSPARSE_CACHE", str(tmp_path / "cache"))


def texts_of(corpus: Corpus) -> list[str]:
    return [corpus.tokenizer.decode(getattr(corpus, name).tokens.tolist()) for name in SPLITS]


def parquet(path: Path, rows: list[str | None]) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"id": range(len(rows)), "story": rows}), path, row_group_size=7)


def json_lines(path: Path, rows: list[str | None]) -> None:
    path.write_text("".join(f"{json.dumps({'id': i, 'story': row})}\n\n" for i, row in enumerate(rows)))


def csv_table(path: Path, rows: list[str | None]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "story"], *enumerate(rows)])


WRITERS: dict[str, Callable[[Path, list[Any]], None]] = {
    "t.parquet": parquet,
    "t.jsonl": json_lines,
    "t.json": json_lines,
    "t.csv": csv_table,
}


def zst(data: bytes) -> bytes:
    return bytes(pyarrow.compress(data, "zstd", asbytes=True))


# Tables


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_a_table_is_the_text_of_its_rows(
    name: str, small: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small:  # chunk borders everywhere
        monkeypatch.setattr(packing, "CHUNK_BYTES", 5)
        monkeypatch.setattr(cache, "CHUNK_BYTES", 5)
        monkeypatch.setattr(tables, "CHUNK_ROWS", 2)
    WRITERS[name](tmp_path / name, ROWS)
    corpus = load_corpus(DataConfig(source="hub", path=str(tmp_path / name), column="story"))
    assert "".join(texts_of(corpus)) == (TEXT_OF_CSV if name == "t.csv" else TEXT)
    assert corpus.notes == (f"1 file ({name}) as one text, divided 90/5/5",)


@pytest.mark.parametrize("name", WRITERS)
def test_rows_without_a_value_are_left_out(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, [*ROWS, None])
    corpus = load_corpus(DataConfig(source="hub", path=str(tmp_path / name), column="story"))
    assert "".join(texts_of(corpus)) == (TEXT_OF_CSV if name == "t.csv" else TEXT)


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zst)])
def test_packed_tables_and_texts_are_unpacked(
    suffix: str, pack: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "CHUNK_BYTES", 100)
    json_lines(tmp_path / "t.jsonl", ROWS)
    (tmp_path / f"t.jsonl{suffix}").write_bytes(pack((tmp_path / "t.jsonl").read_bytes()))
    corpus = load_corpus(DataConfig(source="hub", path=str(tmp_path / f"t.jsonl{suffix}"), column="story"))
    assert "".join(texts_of(corpus)) == TEXT
    # Two frames, one after the other, are one text, in a zip archive as well.
    (tmp_path / "plain").write_bytes(pack(TEXT.encode()) * 2)
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as archive:
        archive.write(tmp_path / "plain", f"text{suffix}")
    for name in ("plain", "texts.zip"):
        assert "".join(texts_of(load_corpus(DataConfig(source="text", path=str(tmp_path / name))))) == TEXT * 2


@pytest.mark.parametrize("damage", [lambda data: data[:-6], lambda data: data[:6] + b"\xff" * 9 + data[15:]])
def test_a_damaged_zst_is_a_user_error(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    (tmp_path / "t.zst").write_bytes(damage(zst(os.urandom(300).hex().encode())))
    with pytest.raises(UserError, match=r"t\.zst: damaged or incomplete \.zst file"):
        load_corpus(DataConfig(source="text", path=str(tmp_path / "t.zst")))


def test_a_folder_of_tables_has_the_splits_of_their_names_and_other_files_are_left_out(tmp_path: Path) -> None:
    parquet(tmp_path / "train-00000-of-00002.parquet", ROWS)
    json_lines(tmp_path / "train-00001-of-00002.jsonl", ["more"])
    csv_table(tmp_path / "validation.csv", ["held"])
    parquet(tmp_path / "test.parquet", ["out"])
    (tmp_path / "README.md").write_text("no table")
    config = DataConfig(source="hub", path=str(tmp_path), column="story")
    corpus = load_corpus(config)
    assert texts_of(corpus) == [f"{TEXT}more\n", "held\n", "out\n"]
    assert corpus.notes[-1] == "left out: 1 file (README.md) for no split"
    divided = load_corpus(replace(config, split=(0.5, 0.25, 0.25)))
    assert "".join(texts_of(divided)) == f"{TEXT}more\n"
    assert divided.fingerprint != corpus.fingerprint


def test_a_folder_whose_only_split_is_called_train_is_divided(tmp_path: Path) -> None:
    parquet(tmp_path / "train-00000-of-00001.parquet", ROWS)
    assert "".join(texts_of(load_corpus(DataConfig(source="hub", path=str(tmp_path), column="story")))) == TEXT


def test_the_column_belongs_to_the_fingerprint_and_the_place_does_not(tmp_path: Path) -> None:
    table = pyarrow.table({"story": ROWS, "title": [f"{n}" for n in range(len(ROWS))]})
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        pyarrow.parquet.write_table(table, tmp_path / folder / "t.parquet")

    def fingerprint(folder: str, column: str) -> str:
        config = DataConfig(source="hub", path=str(tmp_path / folder / "t.parquet"), column=column)
        return load_corpus(config).fingerprint

    assert fingerprint("one", "story") == fingerprint("two", "story") != fingerprint("one", "title")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.jsonl", b'{"story": "a"}\n{"tale": "b"}\n', r"line 2: no column 'story', only tale; set data\.column"),
        ("t.jsonl", b'{"story": "a"}\n{"story": 3}\n', "row 2: column 'story' holds int, not text"),
        ("t.jsonl", b'{"story": "a"\n', "line 1: is no JSON .*give JSON lines"),
        ("t.json", b'["a"]\n', "line 1: is no JSON object"),
        ("t.jsonl", b'{"story": "\\ud800"}\n', "is not a Unicode character"),
        ("t.csv", b"id,tale\n1,b\n", "no column 'story', only id, tale"),
        ("t.csv", b"id,story\n1\n", "line 2: has 1 columns, and the first line 2"),
        ("t.csv", b'id,story\n1,"b\n', r"damaged or incomplete \.csv file"),
        ("t.csv", b"id,story\n1,\xff\n", "not UTF-8 text"),
        ("t.parquet", b"PAR1" + bytes(50) + b"PAR1", r"damaged or incomplete \.parquet file"),
        ("t.txt", b"text", r"no table; give files whose names end with parquet, \.jsonl"),
    ],
)
def test_what_is_no_such_table_is_a_user_error(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as told:
        load_corpus(DataConfig(source="hub", path=str(tmp_path / name), column="story"))
    assert str(tmp_path / name) in str(told.value)


def test_a_parquet_file_is_no_text_and_the_way_out_is_named(tmp_path: Path) -> None:
    parquet(tmp_path / "t.parquet", ROWS)
    with pytest.raises(UserError, match=r"a parquet table.*set data\.source=hub, and data\.column"):
        load_corpus(DataConfig(source="text", path=str(tmp_path / "t.parquet")))


@pytest.mark.parametrize("name", WRITERS)
def test_memory_does_not_grow_with_a_table(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "CHUNK_BYTES", 1 << 12)
    monkeypatch.setattr(cache, "CHUNK_BYTES", 1 << 12)

    def peak(rows: int) -> int:
        WRITERS[name](tmp_path / name, [f"{n} {'words ' * 20}" for n in range(rows)])
        config = DataConfig(source="hub", path=str(tmp_path / name), column="story")
        tracemalloc.start()
        load_corpus(config)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(100)  # first calls also import
    assert peak(8000) < 1.5 * peak(1000) + (1 << 18)


# The hub, by the call that fetches from it: `datasets` takes a folder for the name of a data set as well


def test_a_data_set_of_the_hub_is_its_rows_by_name_and_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "CHUNK_ROWS", 3)
    rows: dict[str, list[str | None]] = {"train": [*ROWS], "validation": ["held"], "test": ["out", None]}

    def config_of(*splits: str) -> DataConfig:
        folder = write_dataset(tmp_path / f"{len(splits)}", {split: rows[split] for split in splits}, "story")
        return DataConfig(source="hub", name=str(folder), column="story")

    assert texts_of(load_corpus(config_of(*rows))) == [TEXT, "held\n", "out\n"]
    config = config_of("train", "validation")
    with pytest.raises(UserError, match=r"^data\.name=.*: no split test, only train, validation; set data\.split"):
        load_corpus(config)
    corpus = load_corpus(replace(config, split=(0.8, 0.1, 0.1)))
    assert "".join(texts_of(corpus)) == TEXT
    assert corpus.notes == ("left out: split validation",)
    assert "".join(texts_of(load_corpus(config_of("train")))) == TEXT


def test_the_usual_names_of_splits_come_first_and_others_are_left_out_aloud(tmp_path: Path) -> None:
    # "val" is another word for validation, and a data set may have both.
    splits = {"train": [*ROWS], "val": ["other"], "validation": ["held"], "test": ["out"]}
    folder = write_dataset(tmp_path / "set", splits, "story")
    corpus = load_corpus(DataConfig(source="hub", name=str(folder), column="story"))
    if "other" not in "".join(texts_of(corpus)):
        assert texts_of(corpus)[1] == "held\n"
        assert corpus.notes == ("left out: split val",)


def test_an_empty_table_says_that_it_is_empty(tmp_path: Path) -> None:
    (tmp_path / "zero.csv").touch()
    with pytest.raises(UserError, match=r"zero\.csv.* is empty; leave it out"):
        load_corpus(DataConfig(source="hub", path=str(tmp_path / "zero.csv")))


def test_a_column_that_is_missing_or_holds_no_text_is_a_user_error(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", {"train": [*ROWS]})
    parquet(folder / "data" / "train-00000-of-00001.parquet", ROWS)
    with pytest.raises(UserError, match=r"has no column 'text', only id, story; set data\.column"):
        load_corpus(DataConfig(source="hub", name=str(folder)))
    with pytest.raises(UserError, match="column 'id' holds int64, not text"):
        load_corpus(DataConfig(source="hub", name=str(folder), column="id"))


def test_a_data_set_out_of_reach_is_one_line_that_names_the_ways_out(tmp_path: Path) -> None:
    """In a process of its own: the hub's client reads HF_HUB_OFFLINE when it is imported."""
    code = """
from rnnsparse.settings.data import DataConfig
from tests.data.test_corpus import write_dataset
from rnnsparse.data.corpus import load_corpus
from rnnsparse.errors import UserError
try:
    load_corpus(DataConfig(source="hub", name="roneneldan/TinyStories"))
except UserError as error:
    print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    assert line.startswith("data.name=roneneldan/TinyStories: cannot be loaded from the Hugging Face hub (")
    assert all(way_out in line for way_out in ("HF_HUB_OFFLINE", "data.path", "data.config"))


# Divisions


@pytest.mark.parametrize("source", ["enwik8", "text8"])
def test_enwik8_and_text8_are_cut_at_90_and_95_million_bytes(
    source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(division, "MILLION", 10)
    text = "".join(chr(32 + n % 90) for n in range(1000))
    (tmp_path / source).write_text(text)
    with zipfile.ZipFile(tmp_path / f"{source}.zip", "w") as archive:
        archive.write(tmp_path / source, source)
    for name in (source, f"{source}.zip"):
        config = DataConfig(source=source, path=str(tmp_path / name))
        assert texts_of(load_corpus(config)) == [text[:900], text[900:950], text[950:]]
    (tmp_path / source).write_text(text[:-1])
    with pytest.raises(UserError, match=rf"{source}: has 999 bytes, and {source} has 1,000; fetch it again"):
        load_corpus(DataConfig(source=source, path=str(tmp_path / source)))
    with pytest.raises(UserError, match=rf"data\.path: missing, and data\.source={source}"):
        DataConfig(source=source)


def test_a_text_is_divided_by_shares_or_exact_bytes_at_character_borders(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("é" * 100, encoding="utf-8")
    config = DataConfig(source="text", path=str(tmp_path / "t.txt"))

    def sizes(split: tuple[float, float, float] | None) -> list[int]:
        corpus = load_corpus(replace(config, split=split))
        return [getattr(corpus, name).bytes for name in SPLITS]

    assert sizes(None) == sizes((0.9, 0.05, 0.05)) == [180, 10, 10]
    assert sizes((0.5, 0.3, 0.2)) == [100, 60, 40]
    assert sizes((101, 20, 40)) == [100, 20, 40]
    corpora = [load_corpus(replace(config, split=split)) for split in (None, (0.9, 0.05, 0.05), (180, 10, 10))]
    assert len({corpus.fingerprint for corpus in corpora}) == 2, "another division is another text"
    with pytest.raises(UserError, match=r"data\.split=\[190, 10, 10\]: these are 210 bytes, and .*t\.txt has 200"):
        sizes((190, 10, 10))


@pytest.mark.parametrize("split", [(0.9, 0.05, 0.06), (1.5, 20, 20), (0.9, 5, 5)])
def test_a_split_that_is_neither_shares_nor_bytes_is_a_user_error(split: Any) -> None:
    with pytest.raises(UserError, match=r"data\.split=\[.*\]: must be three shares that add up to 1"):
        DataConfig(split=split)


def test_the_documentation_is_divided_too() -> None:
    corpus = load_corpus(DataConfig(split=(1000, 200, 100)))
    assert [getattr(corpus, name).bytes for name in SPLITS] == [1000, 200, 100]


# The Penn Treebank


def test_spaced_characters_are_those_between_the_spaces(tmp_path: Path) -> None:
    lines = {"train": " n o _ i t _ w a s n ' t \n b l a c k _ m o n d a y \n", "valid": " a _ \n", "test": " é _ N \n"}
    for split, text in lines.items():
        (tmp_path / f"ptb.char.{split}.txt").write_text(text, encoding="utf-8")
    config = DataConfig(source="text", path=str(tmp_path), spaced=True, tokenizer="char")
    corpus = load_corpus(config)
    assert corpus.tokenizer.decode(corpus.train.tokens.tolist()) == "no it wasn't\nblack monday\n"
    assert (corpus.test.characters, corpus.test.bytes) == (4, 5)
    assert corpus.test.chunks is not None
    assert b"".join(map(bytes, corpus.test.chunks())) == "é N\n".encode()
    assert corpus.fingerprint != load_corpus(replace(config, spaced=False)).fingerprint
