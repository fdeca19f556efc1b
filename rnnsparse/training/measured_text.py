"""Which text a checkpoint is measured on: that of its run, if it still is the same, or one that the user names.

On a text that has changed, a model is measured on what it was trained on before, or on too little, and nobody notices.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from rnnsparse.data.corpus import (
    Corpus,
    TextIdentity,
    cached_where_asked,
    load_corpus,
    load_text_split,
    reading_of,
)
from rnnsparse.data.folder import contents
from rnnsparse.data.pieces import BYTE_FOR_BYTE
from rnnsparse.data.split import Split
from rnnsparse.data.tables import table_format
from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.errors import UserError
from rnnsparse.settings.data import DataConfig
from rnnsparse.storage import checkpoint
from rnnsparse.training.build import Restored, read_config


@dataclass(frozen=True)
class MeasuredText:
    """A text in the symbols of a checkpoint's tokenizer, and what it is: `split` of what lies at `path`, None for all.

    A source without a path is called by its name. `warning` is "", or says what could not be checked.
    """

    path: str
    split: str | None
    text: Split
    tokenizer: Tokenizer
    warning: str = ""

    @property
    def name(self) -> str:
        return f"{self.split} of {self.path}" if self.split else self.path


def own_text(restored: Restored, split: str) -> MeasuredText:
    """Return a split of the text that a checkpoint was trained on.

    Raises:
        UserError: its run's settings name another text now; or as `load_corpus`.
    """
    data, saved = cached_where_asked(restored.config.data), restored.saved
    corpus = load_corpus(data, tokenizer=restored.tokenizer)
    trained = saved.trained_text()
    warning = ""
    if trained is None:
        warning = (
            f"{saved.folder}: an earlier version wrote it, without a fingerprint of its text, so nobody can tell "
            f"whether {data.told} is still the text that it was trained on"
        )
    else:
        _refuse_another(trained, corpus.identity, data, saved.folder)
    return MeasuredText(data.place, split, _split_of(corpus, split), corpus.tokenizer, warning)


def other_text(restored: Restored, path: str, split: str | None) -> MeasuredText:
    """Return a text that was named on purpose: all of it, or a split, found or divided as if it were trained on.

    Raises:
        UserError: it is a folder of tables and of texts; or as `load_text_split` and `load_corpus`.
    """
    path, data = os.path.expanduser(path), cached_where_asked(restored.config.data)
    if split is None:
        is_text = data.source == "hub" and not _is_table(Path(path))
        reading = BYTE_FOR_BYTE if is_text else reading_of(data)
        text = load_text_split(path, restored.tokenizer, cache=data.cache, reading=reading)
        return MeasuredText(path, None, text, restored.tokenizer)
    is_table = (data.source == "hub" and _is_table(Path(path))) or (
        data.source.startswith("wikitext") and _has_tables(Path(path))
    )
    source = data.source if is_table else "text"
    corpus = load_corpus(replace(data, source=source, path=path), tokenizer=restored.tokenizer, key="--data")
    return MeasuredText(path, split, _split_of(corpus, split), corpus.tokenizer)


def require_own_texts(runs: Iterable[Path]) -> None:
    """Make sure, before hours of measuring, that each run's settings still name the text of its last checkpoint.

    Raises:
        UserError: as `own_text`.
    """
    now: dict[tuple[DataConfig, str], TextIdentity] = {}
    for run in runs:
        saved = checkpoint.load(run)
        data = cached_where_asked(read_config(saved).data)
        if (trained := saved.trained_text()) is None:
            continue
        text = (data, saved.tokenizer_json)
        if text not in now:
            now[text] = load_corpus(data, Tokenizer.from_json(saved.tokenizer_json)).identity
        _refuse_another(trained, now[text], data, saved.folder)


def _refuse_another(trained: TextIdentity, now: TextIdentity, data: DataConfig, folder: Path) -> None:
    if trained.fingerprint == now.fingerprint:
        return
    if trained.bytes is None or now.bytes is None:
        change = f"fingerprint then {trained.fingerprint[:8]}, now {now.fingerprint[:8]}"
    elif trained.bytes == now.bytes:
        change = f"{_sizes(now)} bytes as then, but other ones"
    else:
        change = f"then {_sizes(trained)} bytes, now {_sizes(now)}"
    raise UserError(
        f"{folder}: {data.told}: is no longer the text that this checkpoint was trained on: {change}; bring that "
        "text back, or measure one on purpose with `rnnsparse evaluate`, --data PATH and --split test"
    )


def _sizes(text: TextIdentity) -> str:
    return ", ".join(f"{name} {size:,}" for name, size in (text.bytes or {}).items())


def _split_of(corpus: Corpus, name: str) -> Split:
    split: Split = getattr(corpus, name)
    return split


def _is_table(path: Path) -> bool:
    """Whether a path is a table, or a folder of tables.

    Raises:
        UserError: it is a folder of tables and of other files, of which nobody can tell which are meant.
    """
    if not path.is_dir():
        return table_format(path) is not None
    files = contents(path, f"--data={path}", by_split=False).files
    tables, others = ([name for name in files if bool(table_format(name)) is are] for are in (True, False))
    if tables and others:
        raise UserError(
            f"--data={path}: holds tables ({tables[0]}) and other files ({others[0]}), which are not measured "
            "together; name a folder of one kind, or a single file"
        )
    return bool(tables)


def _has_tables(path: Path) -> bool:
    """Whether a folder is one in the hub's layout."""
    return path.is_dir() and any(path.rglob("*.parquet"))
