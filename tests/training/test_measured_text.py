"""Which text a checkpoint is measured on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rnnsparse.data.corpus import load_corpus
from rnnsparse.errors import UserError
from rnnsparse.settings.data import DataConfig
from rnnsparse.training.build import Restored, restore
from rnnsparse.training.measured_text import other_text, own_text, require_own_texts
from tests.data.test_corpus import ROWS, write_dataset
from tests.training.test_trainer import TEXT, config_in, trained


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    config = config_in(folder)
    trained(config)
    return config.folder


@pytest.fixture
def restored(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Restored:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    return restore(run, torch.device("cpu"))


def trained_on(restored: Restored, **data: Any) -> Restored:
    """The same checkpoint, of a run with other settings for its text."""
    settings = DataConfig(cache=restored.config.data.cache, **data)
    return replace(restored, config=replace(restored.config, data=settings))


def test_own_text_is_that_of_the_run_by_its_path_or_source(restored: Restored) -> None:
    data = restored.config.data
    found = own_text(restored, "validation")
    assert (found.name, found.warning) == (f"validation of {data.path}", "")
    assert (found.text.tokens == load_corpus(data).validation.tokens).all()
    docs = trained_on(restored, source="python_docs")
    with pytest.raises(UserError, match=r"data\.source=python_docs: is no longer the text .*: then train 1"):
        own_text(docs, "test")
    verified = replace(docs.saved.manifest, text=load_corpus(docs.config.data).identity)
    docs = replace(docs, saved=replace(docs.saved, manifest=verified))
    assert own_text(docs, "test").name == "test of python_docs"


@pytest.mark.parametrize("source", ["wikitext103", "text", "python_docs"])
def test_splits_of_another_text_are_found_as_in_training(restored: Restored, tmp_path: Path, source: Any) -> None:
    other = trained_on(restored, source=source, path=None if source == "python_docs" else "gone")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    found = other_text(other, str(tmp_path / "text.txt"), "test")
    assert found.name == f"test of {tmp_path / 'text.txt'}"
    assert found.text.bytes == own_text(restored, "test").text.bytes
    if source == "wikitext103":
        hub = write_dataset(tmp_path / "hub", ROWS)
        assert other_text(other, str(hub), "test").text.bytes == len(" last \n \n")


def test_what_is_wrong_with_another_text_is_said_of_the_option(restored: Restored, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("short", encoding="utf-8")
    hub = write_dataset(tmp_path / "hub", {name: ROWS[name] for name in ("train", "test")})
    other = trained_on(restored, source="wikitext2")
    for path, split in ((tmp_path / "short.txt", "test"), (tmp_path / "gone", "test"), (hub, "test")):
        with pytest.raises(UserError, match=f"^--data={path}: "):
            other_text(other, str(path), split)


def test_a_home_folder_is_found(restored: Restored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    for split in ("test", None):
        assert other_text(restored, "~/text.txt", split).path == str(tmp_path / "text.txt")


def test_texts_of_several_runs_are_checked_at_once(run: Path, restored: Restored) -> None:
    require_own_texts([run, run / "best"])
    text = Path(str(restored.config.data.path))
    text.write_text(TEXT[:-1], encoding="utf-8")
    with pytest.raises(UserError, match="is no longer the text"):
        require_own_texts([run])
    text.write_text(TEXT, encoding="utf-8")


def test_files_are_read_as_the_run_reads_its_own(restored: Restored, tmp_path: Path) -> None:
    rows = [line.replace("ü", "u") for line in TEXT.splitlines()]
    (tmp_path / "t.jsonl").write_text("".join(f"{json.dumps({'story': row})}\n" for row in rows), encoding="utf-8")
    (tmp_path / "t.txt").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    (tmp_path / "spaced.txt").write_text(
        "".join(f" {' '.join(row.replace(' ', '_'))} \n" for row in rows), encoding="utf-8"
    )
    of_table = trained_on(restored, source="hub", name="some/set", column="story")
    spaced = trained_on(restored, source="text", path="gone", spaced=True)
    for split in (None, "test"):
        wanted = other_text(restored, str(tmp_path / "t.txt"), split).text
        for run_of, name in ((of_table, "t.jsonl"), (of_table, "t.txt"), (spaced, "spaced.txt")):
            text = other_text(run_of, str(tmp_path / name), split).text
            assert (text.tokens == wanted.tokens).all(), (split, name)


def test_a_folder_of_tables_and_texts_is_neither(restored: Restored, tmp_path: Path) -> None:
    of_table = trained_on(restored, source="hub", name="some/set", column="story")
    texts, table = tmp_path / "data" / "texts", tmp_path / "data" / "meta.jsonl"
    texts.mkdir(parents=True)
    (texts / "a.txt").write_text("the quick\n")
    (texts / ".index.jsonl").write_text("hidden")
    wanted = other_text(of_table, str(texts), None).text.tokens
    table.write_text('{"story": "brown fox"}\n')
    for split in (None, "test"):
        with pytest.raises(UserError) as error:
            other_text(of_table, str(tmp_path / "data"), split)
        assert str(error.value) == (
            f"--data={tmp_path / 'data'}: holds tables (meta.jsonl) and other files (texts/a.txt), which are not "
            "measured together; name a folder of one kind, or a single file"
        )
    assert (other_text(restored, str(texts), None).text.tokens == wanted).all()


def test_a_run_on_a_table_goes_on_and_is_measured(tmp_path: Path) -> None:
    rows = TEXT.splitlines()
    (tmp_path / "t.jsonl").write_text("".join(f"{json.dumps({'story': row})}\n" for row in rows), encoding="utf-8")
    table = [
        "data.source=hub",
        f"data.path={tmp_path / 't.jsonl'}",
        "data.column=story",
        "data.split=[0.5, 0.25, 0.25]",
    ]
    config = config_in(tmp_path, "run", *table)
    data, steps = config.data, config.training.steps
    trained(config)
    longer = config_in(tmp_path, "run", *table, f"training.steps={steps + 2}")
    assert trained(longer, resume=True)["steps"] == steps + 2
    now = restore(config.folder, torch.device("cpu"))
    assert own_text(now, "test").text.bytes == load_corpus(data).test.bytes
    other = replace(now, config=replace(now.config, data=replace(data, split=(0.8, 0.1, 0.1))))
    with pytest.raises(UserError, match="is no longer the text that this checkpoint was trained on"):
        own_text(other, "test")
