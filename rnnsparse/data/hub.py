"""Data sets of the Hugging Face hub: any with a column of text, and WikiText, also from a local copy in its layout."""

from __future__ import annotations

import errno
import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rnnsparse.data.division import NINETY_FIVE_FIVE, Division
from rnnsparse.data.pieces import Piece
from rnnsparse.data.sources import Source
from rnnsparse.data.split_names import SPLITS, WORDS
from rnnsparse.data.tables import joined
from rnnsparse.data.tokenizer import Chunk
from rnnsparse.errors import RunFailed, UserError

CHUNK_ROWS = 1000
HUB_REPOSITORY = "Salesforce/wikitext"
HUB_CONFIGS = {"wikitext103": "wikitext-103-raw-v1", "wikitext2": "wikitext-2-raw-v1"}
READERS = ("parquet", "arrow", "json", "csv", "text")  # of `datasets`, that run nothing and unpack no archives


def hub_source(name: str, config: str | None, column: str, division: Division | None = None) -> Source:
    """Any data set of the hub by its name, config and column of text; each row ends with a line end.

    It is fetched and prepared by `datasets` in its cache on disk, from which it is read a few rows at a time. One that
    has not all three splits is divided: its only split, or with a `division` the one for training.

    A hub out of reach, a data set that is not there or has no such column, and splits of which some are missing raise
    a UserError.
    """
    label = f"data.name={name}"
    place = (name,) if config is None else (name, config)
    out_of_reach = (
        f"{label}: cannot be loaded from the Hugging Face hub (%s); check data.name and data.config, connect once "
        "without HF_HUB_OFFLINE, or set data.path to a local copy (parquet, JSON lines, CSV)"
    )

    def require_readable(builder: Any) -> None:
        if builder.name not in READERS:
            raise ValueError(f"it holds {builder.name} files, and only {', '.join(READERS)} are read")

    splits = _load_splits(place, label, out_of_reach, require_readable)
    for split, dataset in splits.items():
        _require_column(dataset, column, f"{label}: split {split}", "set data.column")
        if (kind := getattr(dataset.features[column], "dtype", "a list")) not in ("string", "large_string"):
            raise UserError(f"{label}: split {split}: column {column!r} holds {kind}, not text; set data.column")

    def piece(split: str) -> Piece:
        called = f"{label}: split {split}"
        return _piece(called, lambda: joined(_values(splits[split], column), column, called))

    named = {WORDS.get(split, split): split for split in reversed(list(splits))}
    named |= {split: split for split in splits if split in SPLITS}  # the usual names come first
    if division is None and set(SPLITS) <= named.keys():
        parts = {part: (piece(named[part]),) for part in SPLITS}
    elif len(splits) == 1 or (division and "train" in named):
        parts = {"text": (piece(named.get("train", next(iter(splits)))),)}
    else:
        raise UserError(
            f"{label}: no split {' or '.join(part for part in SPLITS if part not in named)}, only {', '.join(splits)}; "
            "set data.split, as to [0.9, 0.05, 0.05], to divide the one for training"
        )
    taken = [named[part] for part in SPLITS] if "text" not in parts else [named.get("train", next(iter(splits)))]
    left_out = [split for split in splits if split not in taken]
    notes = (f"left out: split {', '.join(left_out)}",) if left_out else ()
    return Source("/".join(place), parts, notes, division or NINETY_FIVE_FIVE)


def wikitext_source(source: str, path: str | None, key: str = "data.path") -> Source:
    """WikiText through `datasets`: from the hub, or from `path`, a folder in its layout with one config.

    The hub stores WikiText's blank lines, " \\n", as empty rows; they are put back, so that the text is
    exactly that of the original files. A hub out of reach, or a folder that is not such a data set, raises a
    UserError.
    """
    label = f"data.source={source}" if path is None else f"{key}={path}"
    if path is not None and not Path(path).is_dir():
        raise UserError(f"{label}: not a folder in the hub's layout; for a text file set data.source=text")
    if path is None:
        repository, config = HUB_REPOSITORY, HUB_CONFIGS[source]
        failed = (
            f"{label}: {repository} cannot be loaded from the Hugging Face hub (%s); connect once without "
            "HF_HUB_OFFLINE, or set data.path to a local copy in the hub's layout"
        )
        splits = _load_splits((repository, config), label, failed, lambda builder: None)
    else:
        root = Path(path).resolve()
        failed = (
            f"{label}: cannot be loaded as a data set in the hub's layout (%s); give a folder of parquet files with "
            "one config"
        )
        splits = _load_splits((path,), label, failed, lambda builder: _require_plain_tables(builder, root))
    if any(dataset.builder_name == "text" for dataset in splits.values()):
        # datasets' text reader drops line ends, so what it returns is not the text.
        raise UserError(f"{label}: holds plain text files; set data.source=text to read them byte for byte")
    if missing := [split for split in SPLITS if split not in splits]:
        raise UserError(
            f"{label}: no split {' or '.join(missing)}, only {', '.join(splits)}; "
            f"name its files {', '.join(SPLITS)}, as WikiText's are"
        )
    for split in SPLITS:
        _require_column(splits[split], "text", f"{label}: split {split}", "rename the right one")
    parts = {split: (_piece(f"{label}: split {split}", partial(_wikitext_chunks, splits[split])),) for split in SPLITS}
    return Source(source if path is None else f"{source} from {path}", parts)


def _require_column(dataset: Any, column: str, label: str, way_out: str) -> None:
    if column not in dataset.column_names:
        raise UserError(f"{label} has no column {column!r}, only {', '.join(dataset.column_names)}; {way_out}")


def _load_splits(
    place: tuple[str, ...], label: str, failed: str, require_readable: Callable[[Any], None]
) -> Mapping[str, Any]:
    """Return the splits at a place; errors say what `failed`, with the reason in the place of its %s."""
    with _quiet():
        import datasets

        try:
            require_readable(datasets.load_dataset_builder(*place))
            splits: Mapping[str, Any] = datasets.load_dataset(*place)
            return splits
        except Exception as error:  # the library's own errors share no base class
            cause: BaseException = error
            while cause.__cause__ is not None:  # the outermost one only says that something failed
                cause = cause.__cause__
    reason = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
    if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
        raise RunFailed(f"{label}: no space left for the data set ({reason}); free some, or set HF_HOME")
    raise UserError(failed.replace("%s", reason))


def _require_plain_tables(builder: Any, root: Path) -> None:
    """Make sure that a folder is read as tables or text (which another check refuses), and nothing outside of it.

    Other readers of `datasets` unpack archives and pickles, and its README may name files anywhere.
    """
    if builder.name not in ("parquet", "text"):
        raise ValueError(f"it holds {builder.name} files")
    for files in (builder.config.data_files or {}).values():
        for name in files:
            if not Path(name).resolve().is_relative_to(root):
                raise ValueError(f"it names {name}, which is not in it")


def _piece(label: str, chunks: Callable[[], Iterator[Chunk]]) -> Piece:
    digest = hashlib.sha256()
    for chunk in chunks():
        digest.update(chunk)
    return Piece(label, digest.hexdigest(), chunks)


def _values(dataset: Any, column: str) -> Iterator[str | None]:
    for rows in dataset.select_columns(column).iter(batch_size=CHUNK_ROWS):
        yield from rows[column]


def _wikitext_chunks(dataset: Any) -> Iterator[Chunk]:
    for rows in dataset.select_columns("text").iter(batch_size=CHUNK_ROWS):
        yield "".join([row or " \n" for row in rows["text"]]).encode()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the bars, log lines and warnings of `datasets` and the hub's client off the user's terminal."""
    with warnings.catch_warnings(), ExitStack() as restore:
        warnings.simplefilter("ignore")
        import datasets
        import huggingface_hub

        libraries: tuple[Any, ...] = (datasets.utils, huggingface_hub.utils)
        for library in libraries:
            restore.callback(library.logging.set_verbosity, library.logging.get_verbosity())
            library.logging.set_verbosity(logging.CRITICAL)  # errors are raised as well
            if not library.are_progress_bars_disabled():
                library.disable_progress_bars()
                restore.callback(library.enable_progress_bars)
        yield
