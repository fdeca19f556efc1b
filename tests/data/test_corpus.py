"""Corpora: from files, folders and data sets to exact splits; bad text; the cache. No network."""

from __future__ import annotations

import errno
import gzip
import json
import lzma
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rnnsparse.data import cache, hub, packing, pieces, sources, split_names
from rnnsparse.data.corpus import Corpus, Split, load_corpus, load_text_split
from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.errors import RunFailed, UserError
from rnnsparse.settings.data import DataConfig

TEXT = "Añb €\r\n𝄞 one\n\n" * 40  # characters of one to four bytes, both kinds of line ends
ROWS: dict[str, list[str | None]] = {
    "train": ["", " = Title = \n", "", " A naïve € line \r\n", " unk \n"],
    "validation": ["", " x — y \n"],
    "test": [" last \n", ""],
}


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has caches of its own, ours and that of `datasets`."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    monkeypatch.setenv("RNNSPARSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def text_config(path: Path, **options: Any) -> DataConfig:
    return DataConfig(source="text", path=str(path), **options)


def text_of(split: Split, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(split.tokens.tolist())


def texts_of(corpus: Corpus) -> dict[str, str]:
    return {name: text_of(getattr(corpus, name), corpus.tokenizer) for name in split_names.SPLITS}


def write_dataset(folder: Path, rows: dict[str, list[str | None]], column: str = "text") -> Path:
    """A data set as the hub lays it out: parquet files in data/, one config in README.md."""
    (folder / "data").mkdir(parents=True)
    for split, lines in rows.items():
        table = pyarrow.table({column: pyarrow.array(lines, pyarrow.string())})
        pyarrow.parquet.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
    files = "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in rows)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: some-raw-v1\n  data_files:\n{files}---\n")
    return folder


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunk borders everywhere, inside characters too."""
    monkeypatch.setattr(packing, "CHUNK_BYTES", 5)
    monkeypatch.setattr(cache, "CHUNK_BYTES", 5)
    monkeypatch.setattr(hub, "CHUNK_ROWS", 2)


# Text files


@pytest.mark.parametrize("tokenizer", ["byte", "char"])
def test_a_text_is_divided_90_5_5_and_nothing_is_lost(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(TEXT.encode())
    corpus = load_corpus(text_config(tmp_path / "text.txt", tokenizer=tokenizer))
    texts = texts_of(corpus)
    assert "".join(texts.values()) == TEXT
    for name, share in (("train", 0.9), ("validation", 0.05), ("test", 0.05)):
        split = getattr(corpus, name)
        assert split.bytes == len(texts[name].encode()) == pytest.approx(share * len(TEXT.encode()), abs=4)
        assert split.characters == len(texts[name])
        assert split.unknown_bytes == 0
        assert isinstance(split.tokens, np.memmap)


@given(text=st.text(st.characters(codec="utf-8"), min_size=60), tokenizer=st.sampled_from(["byte", "char"]))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_counts_are_exact_wherever_chunks_and_splits_end(
    text: str, tokenizer: Any, tmp_path: Path, small_chunks: None
) -> None:
    (tmp_path / "text.txt").write_bytes(text.encode())
    corpus = load_corpus(text_config(tmp_path / "text.txt", tokenizer=tokenizer), minimum=0)
    splits = [corpus.train, corpus.validation, corpus.test]
    assert sum(split.bytes for split in splits) == len(text.encode())
    assert sum(split.characters for split in splits) == len(text)
    start = 0
    for split in splits:
        part = text[start : start + split.characters]
        start += split.characters
        known = set(text[: corpus.train.characters]) if tokenizer == "char" else set(part)
        assert split.bytes == len(part.encode())
        assert split.chunks is not None
        assert b"".join(split.chunks()).decode() == part
        assert split.unknown_bytes == sum(len(c.encode()) for c in part if c not in known)
        expected = "".join(c if c in known else "<unk>" for c in part)
        assert text_of(split, corpus.tokenizer) == expected


@pytest.mark.parametrize(("name", "opener"), [("a.txt.gz", gzip.open), ("a.xz", lzma.open)])
def test_compressed_files_are_unpacked(name: str, opener: Callable[..., Any], tmp_path: Path) -> None:
    with opener(tmp_path / name, "wb") as file:
        file.write(TEXT.encode())
    assert "".join(texts_of(load_corpus(text_config(tmp_path / name))).values()) == TEXT


def test_a_folder_is_all_its_files_in_order_hidden_ones_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    (folder / "b").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / "c.txt").write_bytes(b"third " * 10)
    (folder / "a.txt").write_bytes(b"first " * 10)
    (folder / "b" / "testament.txt.gz").write_bytes(gzip.compress(b"second " * 10))
    (folder / ".git" / "config").write_bytes(b"\xff")
    (folder / ".hidden").write_bytes(b"\xff")
    text = "".join(texts_of(load_corpus(text_config(folder))).values())
    assert text == "first " * 10 + "second " * 10 + "third " * 10


@pytest.mark.parametrize("validation", ["valid.txt", "val-2.txt", "validation/a.txt"])
def test_a_folder_with_split_names_has_those_splits(validation: str, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    (folder / "validation").mkdir(parents=True)
    for name, text in {
        "train-1.txt": "one ",
        "train-0.txt": "zero ",
        validation: "two ",
        "Test.txt": "three ",
        "README.md": "no part of it",
    }.items():
        (folder / name).write_text(text)
    assert texts_of(load_corpus(text_config(folder))) == {
        "train": "zero one ",
        "validation": "two ",
        "test": "three ",
    }


@pytest.mark.parametrize(
    ("names", "alike"),
    [
        (["testset.txt", "trainset.txt", "validset.txt"], "trainset.txt, validset.txt, testset.txt"),
        (["test.txt", "traindata.txt", "val.txt"], "traindata.txt"),
        (["train.txt", "valid.txt", "tests.txt"], "tests.txt"),
        (["Testing/a.txt", "trainset.txt", "b.txt"], "trainset.txt"),
        (["wikitrain.txt", "wikitest.txt"], "wikitrain.txt, wikitest.txt"),
        (
            ["deep/er/newsdev2014.en", "deep/er/newstest2014.en", "news"],
            "deep/er/newsdev2014.en, deep/er/newstest2014.en",
        ),
    ],
)
def test_a_folder_whose_names_only_look_like_splits_is_a_user_error(
    names: list[str], alike: str, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_text("text " * 10)
    with pytest.raises(UserError, match=rf"folder: {alike}: no names of splits"):
        load_corpus(text_config(tmp_path / "folder"))


@pytest.mark.parametrize(
    "names",
    [
        ["a.txt", "testament.txt"],
        ["a.txt", "trainspotting.txt"],
        ["tests.txt", "value"],
        ["contest.txt", "strain.txt", "testament.txt", "trainspotting.txt", "valley.txt"],
    ],
)
def test_names_that_look_like_no_split_beside_each_other_are_one_text(names: list[str], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in names:
        (tmp_path / "folder" / name).write_text(f"{name} " * 10)
    assert "".join(texts_of(load_corpus(text_config(tmp_path / "folder"))).values()) == "".join(
        f"{name} " * 10 for name in names
    )


def test_names_that_look_like_splits_are_left_out_beside_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("train.txt", "valid.txt", "test.txt", "testament.txt"):
        (tmp_path / "folder" / name).write_text(name)
    texts = texts_of(load_corpus(text_config(tmp_path / "folder")))
    assert texts == {"train": "train.txt", "validation": "valid.txt", "test": "test.txt"}


def test_evaluation_text_is_one_split_whatever_the_files_are_called(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in ("train.txt", "valid.txt", "other.txt"):
        (folder / name).write_text(name)
    split = load_text_split(folder, Tokenizer.byte())
    assert text_of(split, Tokenizer.byte()) == "other.txttrain.txtvalid.txt"


def test_evaluation_text_counts_the_bytes_of_unknown_characters(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("aé€b€")
    tokenizer = Tokenizer.char("ab")
    split = load_text_split(tmp_path / "text.txt", tokenizer)
    assert split.tokens.tolist() == [1, 0, 0, 2, 0]
    assert (split.characters, split.bytes, split.unknown_bytes) == (5, 10, 8)


def test_python_docs_need_no_file() -> None:
    corpus = load_corpus(DataConfig())
    assert corpus.train.characters > 100_000
    assert "python_docs" in corpus.description
    assert "assert" in text_of(corpus.train.head(20_000, corpus.tokenizer), corpus.tokenizer)


# Heads of splits


@pytest.mark.parametrize("symbols", [1, 3, 4, 17, 10_000])
def test_the_head_of_bytes_counts_the_characters_that_begin_in_it(symbols: int, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(TEXT.encode())
    tokenizer = Tokenizer.byte()
    head = load_text_split(tmp_path / "text.txt", tokenizer).head(symbols, tokenizer)
    data = TEXT.encode()[:symbols]
    assert head.tokens.tobytes() == data
    assert head.bytes == len(data)
    assert head.characters == len(data.decode(errors="replace"))


def test_the_head_of_characters_takes_unknown_ones_at_their_mean_length(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("aé€b€")  # unknown: 2 + 3 + 3 bytes, 8/3 on average
    tokenizer = Tokenizer.char("ab")
    head = load_text_split(tmp_path / "text.txt", tokenizer).head(4, tokenizer)
    assert (head.characters, head.unknown_bytes, head.bytes) == (4, 5, 7)


# Data sets


@pytest.mark.parametrize("source", ["wikitext103", "wikitext2"])
def test_a_local_data_set_gives_exactly_the_text_of_its_rows(
    source: Any, tmp_path: Path, small_chunks: None, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_dataset(tmp_path / "wikitext", ROWS)
    corpus = load_corpus(DataConfig(source=source, path=str(path)))
    assert texts_of(corpus) == {
        "train": " \n = Title = \n \n A naïve € line \r\n unk \n",
        "validation": " \n x — y \n",
        "test": " last \n \n",
    }
    assert corpus.train.bytes == len(texts_of(corpus)["train"].encode())
    assert capfd.readouterr() == ("", "")  # no progress bars


def test_a_row_without_text_is_a_blank_line(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "wikitext", {**ROWS, "train": ["one\n", None, "two\n"]})
    assert texts_of(load_corpus(DataConfig(source="wikitext2", path=str(path))))["train"] == "one\n \ntwo\n"


def test_unknown_characters_are_those_that_training_text_lacks(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "wikitext", ROWS)
    corpus = load_corpus(DataConfig(source="wikitext2", path=str(path), tokenizer="char"))
    known = set(text_of(corpus.train, corpus.tokenizer))
    assert corpus.tokenizer == Tokenizer.char(known)
    unknown = [character for character in " \n x — y \n" if character not in known]
    assert (corpus.validation.tokens == 0).sum() == len(unknown)
    assert corpus.validation.unknown_bytes == len("".join(unknown).encode()) > 0
    assert corpus.validation.bytes == len(" \n x — y \n".encode())


@pytest.mark.parametrize(
    ("rows", "column", "reason"),
    [
        ({"train": ["a"], "test": ["b"]}, "text", "no split validation, only train, test"),
        (ROWS, "content", "split train has no column 'text', only content"),
    ],
)
def test_a_data_set_that_is_not_wikitexts_is_a_user_error(
    rows: dict[str, list[str | None]], column: str, reason: str, tmp_path: Path
) -> None:
    path = write_dataset(tmp_path / "wikitext", rows, column)
    with pytest.raises(UserError, match=reason):
        load_corpus(DataConfig(source="wikitext103", path=str(path)))


def test_a_damaged_data_set_is_a_user_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_dataset(tmp_path / "wikitext", ROWS)
    (path / "data" / "test-00000-of-00001.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"data\.path=.*cannot be loaded as a data set") as error:
        load_corpus(DataConfig(source="wikitext103", path=str(path)))
    assert "\n" not in str(error.value)
    assert "magic bytes" in str(error.value)  # the reason, not only that there was one
    assert capfd.readouterr() == ("", "")


def test_a_folder_of_text_files_is_not_read_as_a_data_set(tmp_path: Path) -> None:
    """`datasets` would read it, and drop the line ends."""
    for split in split_names.SPLITS:
        (tmp_path / "texts" / split).parent.mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{split}.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"data\.source=text"):
        load_corpus(DataConfig(source="wikitext103", path=str(tmp_path / "texts")))


@pytest.mark.parametrize("name", ["file.txt", "missing"])
def test_a_data_set_must_be_a_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("text")
    with pytest.raises(UserError, match=rf"data\.path=.*{name}: not a folder .*data\.source=text"):
        load_corpus(DataConfig(source="wikitext103", path=str(tmp_path / name)))


def test_a_hub_out_of_reach_is_a_user_error_that_names_the_way_out(tmp_path: Path) -> None:
    """In a process of its own: the hub's client reads HF_HUB_OFFLINE when it is imported."""
    code = """
from rnnsparse.settings.data import DataConfig
from rnnsparse.data.corpus import load_corpus
from rnnsparse.errors import UserError
try:
    load_corpus(DataConfig(source="wikitext103"))
except UserError as error:
    print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    assert line.startswith("data.source=wikitext103: Salesforce/wikitext ")
    assert "data.path" in line
    assert "HF_HUB_OFFLINE" in line


# Bad text


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b"abc\xffdef", 3),
        ("é".encode() * 7 + b"\xe9t\xe9", 14),  # latin1
        ("€".encode() * 9 + b"\xe2\x82", 27),  # cut inside its last character
        (b"abcdefgh\xe2\x82xyz", 8),  # the chunk ends inside what turns out to be none
        (b"ab\xed\xa0\x80", 2),  # a surrogate
    ],
)
@pytest.mark.parametrize("tokenizer", ["byte", "char"])
def test_text_that_is_not_utf8_is_a_user_error_that_names_the_byte(
    data: bytes, offset: int, tokenizer: Any, tmp_path: Path, small_chunks: None, caches: Path
) -> None:
    (tmp_path / "bad.txt").write_bytes(data)
    with pytest.raises(UserError, match=rf"bad\.txt: not UTF-8 text: .* at byte {offset};"):
        load_corpus(text_config(tmp_path / "bad.txt", tokenizer=tokenizer))
    assert list(caches.iterdir()) == []  # nothing half made stays behind


def test_the_file_of_a_folder_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("good " * 10)
    (folder / "b.txt").write_bytes(b"bad\xff")
    with pytest.raises(UserError, match=r"b\.txt: not UTF-8 text: invalid start byte at byte 3;"):
        load_corpus(text_config(folder))


def test_a_character_cut_between_two_files_is_not_mended(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_bytes("€".encode()[:2])
    (folder / "b.txt").write_bytes("€".encode()[2:])
    with pytest.raises(UserError, match=r"a\.txt: not UTF-8 text"):
        load_corpus(text_config(folder))


def test_a_missing_path_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.path=.*nowhere: no such file or folder"):
        load_corpus(text_config(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"--data=.*nowhere: no such file or folder"):
        load_text_split(tmp_path / "nowhere", Tokenizer.byte())


def test_a_folder_without_text_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "folder" / "empty").mkdir(parents=True)
    with pytest.raises(UserError, match="folder holds no files"):
        load_corpus(text_config(tmp_path / "folder"))


def test_a_folder_with_some_of_the_splits_only_is_a_user_error(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.txt").write_text("text")
    with pytest.raises(UserError, match=r"files for train \(train\.txt\) but none for validation and test"):
        load_corpus(text_config(folder))


@pytest.mark.parametrize("held_out", ["test.txt", "valid.txt", "test/a.txt"])
def test_what_is_held_out_by_its_name_is_not_trained_on(held_out: str, tmp_path: Path) -> None:
    for name in (held_out, "other.txt"):
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_text("text " * 10)
    with pytest.raises(UserError, match=rf"folder: {held_out}: is for validation or test .*, and no file is for train"):
        load_corpus(text_config(tmp_path / "folder"))


@pytest.mark.parametrize(
    ("text", "encoding"), [("text".encode("utf-16"), "utf-16"), ("caf\xe9 ".encode("latin1"), "latin1")]
)
def test_the_way_out_of_another_encoding_names_it(text: bytes, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(text)
    with pytest.raises(UserError, match=f"if it is text at all, convert it first, .* -f {encoding} "):
        load_corpus(text_config(tmp_path / "text.txt"))


@pytest.mark.parametrize("name", ["empty.txt", "empty.gz", "empty.xz"])
def test_an_empty_text_is_a_user_error(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes({"gz": gzip.compress(b""), "xz": lzma.compress(b"")}.get(name[-2:], b""))
    with pytest.raises(UserError, match=rf"{name}: the text is empty"):
        load_corpus(text_config(tmp_path / name))
    with pytest.raises(UserError, match=rf"{name}: the text is empty"):
        load_text_split(tmp_path / name, Tokenizer.byte())


def test_a_text_too_short_to_divide_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("0123456789")
    with pytest.raises(UserError, match=r"short\.txt: the text is too short: its validation part has 0 symbols"):
        load_corpus(text_config(tmp_path / "short.txt"))
    (tmp_path / "longer.txt").write_text("0123456789" * 10)
    with pytest.raises(UserError, match="its validation part has 5 symbols and needs at least 6"):
        load_corpus(text_config(tmp_path / "longer.txt"), minimum=6)
    for text in ("a", "é"):  # which has two bytes
        (tmp_path / "one.txt").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"one\.txt: the text has one character"):
            load_text_split(tmp_path / "one.txt", Tokenizer.byte())


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
@pytest.mark.parametrize("damage", [lambda packed: packed[:-9], lambda packed: b"plain text" + packed])
def test_a_damaged_compressed_file_is_a_user_error(
    suffix: str, damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    packed = gzip.compress(TEXT.encode()) if suffix == ".gz" else lzma.compress(TEXT.encode())
    (tmp_path / f"text{suffix}").write_bytes(damage(packed))
    with pytest.raises(UserError, match=rf"damaged or incomplete {suffix} file"):
        load_corpus(text_config(tmp_path / f"text{suffix}"))


def test_the_text_source_needs_a_path_and_python_docs_must_have_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.path: missing"):
        DataConfig(source="text")
    with pytest.raises(UserError, match=rf"data\.path={tmp_path}: .*data\.source=text"):
        DataConfig(path=str(tmp_path))


# The cache


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_bytes(TEXT.encode())
    return tmp_path / "text.txt"


def entries(root: Path, hidden: bool = True) -> dict[str, int]:
    """Each folder of the cache, with the inode of its ids: a new number is a new file."""
    folders = [folder for folder in root.iterdir() if hidden or not folder.name.startswith(".")]
    return {folder.name: (folder / "tokens.bin").stat().st_ino for folder in folders}


def test_the_same_content_is_tokenized_once_wherever_it_lies(text_file: Path, caches: Path) -> None:
    one = load_corpus(text_config(text_file))
    made = entries(caches)
    copy = text_file.with_name("copy.txt")
    copy.write_bytes(TEXT.encode())
    other = load_corpus(text_config(copy))
    assert entries(caches) == made
    assert len(made) == 1
    assert other.fingerprint == one.fingerprint


def test_changed_content_is_tokenized_anew(text_file: Path, caches: Path) -> None:
    before = load_corpus(text_config(text_file)).fingerprint
    stamp = text_file.stat()
    text_file.write_bytes(TEXT.encode().replace(b"one", b"two"))
    os.utime(text_file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # same size, same time
    corpus = load_corpus(text_config(text_file))
    assert "two" in texts_of(corpus)["train"]
    assert corpus.fingerprint != before
    assert len(entries(caches)) == 2


def test_the_text_behind_unknown_ids_can_be_read_again(tmp_path: Path, small_chunks: None) -> None:
    few = Tokenizer.char("n \n")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("train", "valid-1", "valid-2", "test"):
        (folder / f"{name}.txt").write_text(f"{TEXT}{name}\n", encoding="utf-8", newline="")
    packed = tmp_path / "text.gz"
    packed.write_bytes(gzip.compress(TEXT.encode()))
    wikitext = DataConfig(source="wikitext103", path=str(write_dataset(tmp_path / "hub", ROWS)))
    found = {
        "validation": load_corpus(text_config(folder), few).validation,
        "whole": load_text_split(packed, few),
        "test": load_corpus(wikitext, few).test,
    }
    texts = {name: b"".join(split.chunks()).decode() for name, split in found.items() if split.chunks}
    assert texts == {"validation": f"{TEXT}valid-1\n{TEXT}valid-2\n", "whole": TEXT, "test": " last \n \n"}


@pytest.mark.parametrize(("suffix", "pack"), [(".txt", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
@pytest.mark.parametrize("changed", [TEXT.replace("one", "two"), TEXT * 2, TEXT[:-1]])
def test_a_text_that_changes_between_its_digest_and_its_tokens_is_not_cached(
    suffix: str, pack: Callable[[bytes], bytes], changed: str, text_file: Path, caches: Path
) -> None:
    file = text_file.with_suffix(suffix)
    file.write_bytes(pack(TEXT.encode()))
    source = sources.text_source(file, "data.path")
    file.write_bytes(pack(changed.encode()))
    with pytest.raises(UserError, match=rf"data\.path=.*{file.name}: changed while it was read; run again"):
        cache.tokenized(source, Tokenizer.byte(), divide=True, root=caches)
    assert list(caches.iterdir()) == []


def test_bytes_behind_a_packed_text_belong_to_its_digest(text_file: Path) -> None:
    packed = text_file.with_suffix(".xz")
    packed.write_bytes(lzma.compress(TEXT.encode()) + b"no xz" * 100_000)
    assert "".join(texts_of(load_corpus(text_config(packed))).values()) == TEXT


def test_tokenizers_and_divisions_have_entries_of_their_own(text_file: Path, caches: Path) -> None:
    byte = load_corpus(text_config(text_file))
    char = load_corpus(text_config(text_file, tokenizer="char"))
    whole = load_text_split(text_file, Tokenizer.byte())
    assert len(entries(caches)) == 3
    assert byte.fingerprint == char.fingerprint
    assert len(whole.tokens) == len(TEXT.encode())


def test_a_checkpoints_own_tokenizer_finds_the_entry_it_came_from(text_file: Path, caches: Path) -> None:
    corpus = load_corpus(text_config(text_file, tokenizer="char"))
    again = load_corpus(text_config(text_file, tokenizer="char"), Tokenizer.from_json(corpus.tokenizer.to_json()))
    assert again.tokenizer == corpus.tokenizer
    assert len(entries(caches)) == 1


@pytest.mark.parametrize("config_tokenizer", ["byte", "char"])
def test_a_given_tokenizer_replaces_the_configs(config_tokenizer: Any, text_file: Path) -> None:
    load_corpus(text_config(text_file, tokenizer="char"))  # an entry with another vocabulary is in the way
    tokenizer = Tokenizer.char("Anb one\n")
    corpus = load_corpus(text_config(text_file, tokenizer=config_tokenizer), tokenizer)
    assert corpus.tokenizer == tokenizer
    expected = "".join(character if character in "Anb one\n" else "<unk>" for character in TEXT)
    assert "".join(texts_of(corpus).values()) == expected


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("tokens.bin", lambda content: content[:-1]),
        ("tokens.bin", lambda content: content + b"x"),
        ("tokens.bin", lambda content: content[:7] + bytes([content[7] ^ 1]) + content[8:]),
        ("tokens.bin", None),
        ("meta.json", lambda content: content[:-5]),
        ("meta.json", lambda content: b"[]"),
        ("meta.json", lambda content: content.replace(b"bytes", b"other")),
        ("meta.json", lambda content: content.replace(b'"unknown_bytes": 0', b'"unknown_bytes": 1')),
        ("tokenizer.json", lambda content: b"{}"),
        ("tokenizer.json", None),
    ],
)
@pytest.mark.parametrize("tokenizer", ["byte", "char"])
def test_a_damaged_entry_is_made_anew(
    name: str, damage: Callable[[bytes], bytes] | None, tokenizer: Any, text_file: Path, caches: Path
) -> None:
    load_corpus(text_config(text_file, tokenizer=tokenizer))
    (folder,) = caches.iterdir()
    if damage is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
    assert "".join(texts_of(load_corpus(text_config(text_file, tokenizer=tokenizer))).values()) == TEXT
    assert len(entries(caches)) == 1


def test_a_corpus_stays_readable_when_its_entry_is_made_anew(text_file: Path, caches: Path) -> None:
    corpus = load_corpus(text_config(text_file))
    (folder,) = caches.iterdir()
    (folder / "meta.json").unlink()
    load_corpus(text_config(text_file))
    assert "".join(texts_of(corpus).values()) == TEXT


def test_two_processes_that_make_one_entry_share_that_of_the_faster(caches: Path) -> None:
    def source(chunks: Callable[[], Iterator[bytes]]) -> sources.Source:
        return sources.Source("text", {"text": (pieces.Piece("text", "digest", chunks),)})

    def load(chunks: Callable[[], Iterator[bytes]]) -> cache.Entry:
        return cache.tokenized(source(chunks), Tokenizer.byte(), divide=False, root=caches)

    made = {}

    def overtaken() -> Iterator[bytes]:
        """While this one still reads, another is done."""
        load(lambda: iter([TEXT.encode()]))
        made.update(entries(caches, hidden=False))
        yield TEXT.encode()

    assert text_of(load(overtaken).splits["text"], Tokenizer.byte()) == TEXT
    assert entries(caches) == made


def test_the_config_overrides_the_environment(text_file: Path, tmp_path: Path, caches: Path) -> None:
    load_corpus(text_config(text_file, cache=str(tmp_path / "own")))
    assert len(entries(tmp_path / "own")) == 1
    assert not caches.exists()


def test_the_cache_follows_the_xdg_convention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RNNSPARSE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.default_root() == tmp_path / "xdg" / "rnnsparse"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.default_root() == tmp_path / ".cache" / "rnnsparse"


def test_a_cache_that_cannot_be_written_is_a_user_error(text_file: Path) -> None:
    for place in (text_file, text_file / "below"):  # a file where the folder should be
        with pytest.raises(UserError, match=r"cannot be written .*data\.cache"):
            load_corpus(text_config(text_file, cache=str(place)))


def test_a_full_disk_fails_the_run_and_leaves_nothing_behind(caches: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield TEXT.encode()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source = sources.Source("text", {"text": (pieces.Piece("text", "digest", chunks),)})
    with pytest.raises(RunFailed, match=r"no space left .*data\.cache"):
        cache.tokenized(source, Tokenizer.byte(), divide=True, root=caches)
    assert list(caches.iterdir()) == []


def test_what_a_killed_process_left_goes_after_a_day(text_file: Path, caches: Path) -> None:
    old, half_old, new = (caches / f".making-{name}" for name in ("old", "half-old", "new"))
    for work in (old, half_old, new):
        (work / "entry").mkdir(parents=True)
        (work / "text").write_text("abc")
    yesterday = time.time() - 25 * 3600
    for path in (old / "text", old / "entry", old, half_old / "entry", half_old):
        os.utime(path, (yesterday, yesterday))
    load_corpus(text_config(text_file))
    assert {path.name for path in caches.glob(".making-*")} == {half_old.name, new.name}


def test_meta_json_says_what_the_entry_holds(text_file: Path, caches: Path) -> None:
    corpus = load_corpus(text_config(text_file))
    (folder,) = caches.iterdir()
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["splits"]["train"] == {
        "symbols": len(corpus.train.tokens),
        "characters": corpus.train.characters,
        "bytes": corpus.train.bytes,
        "unknown_bytes": 0,
    }


def test_importing_the_package_does_not_load_datasets() -> None:
    code = "import sys, rnnsparse.data.corpus; assert 'datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
