"""WikiText as a source: from the hub, or from a local copy in the hub's layout."""

from __future__ import annotations

import errno
import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rnnsparse.data.sources import Piece, Source
from rnnsparse.data.split_names import SPLITS
from rnnsparse.data.tokenizer import Chunk
from rnnsparse.errors import RunFailed, UserError

CHUNK_ROWS = 1000
HUB_REPOSITORY = "Salesforce/wikitext"
HUB_CONFIGS = {"wikitext103": "wikitext-103-raw-v1", "wikitext2": "wikitext-2-raw-v1"}


def wikitext_source(source: str, path: str | None, key: str = "data.path") -> Source:
    """WikiText through `datasets`: from the hub, or from `path`, a folder in its layout with one config.

    The hub stores WikiText's blank lines, " \\n", as empty rows; they are put back, so that the text is
    exactly that of the original files. A hub out of reach, or a folder that is not such a data set, raises a
    UserError.
    """
    label = f"data.source={source}" if path is None else f"{key}={path}"
    if path is not None and not Path(path).is_dir():
        raise UserError(f"{label}: not a folder in the hub's layout; for a text file set data.source=text")
    splits = _load_splits(source, path, label)
    if any(dataset.builder_name == "text" for dataset in splits.values()):
        # datasets' text reader drops line ends, so what it returns is not the text.
        raise UserError(f"{label}: holds plain text files; set data.source=text to read them byte for byte")
    if missing := [split for split in SPLITS if split not in splits]:
        raise UserError(
            f"{label}: no split {' or '.join(missing)}, only {', '.join(splits)}; "
            f"name its files {', '.join(SPLITS)}, as WikiText's are"
        )
    for split in SPLITS:
        if "text" not in splits[split].column_names:
            columns = ", ".join(splits[split].column_names)
            raise UserError(f"{label}: split {split} has no column 'text', only {columns}; rename the right one")
    parts = {split: (_rows_piece(splits[split], f"{label}: split {split}"),) for split in SPLITS}
    return Source(source if path is None else f"{source} from {path}", parts)


def _load_splits(source: str, path: str | None, label: str) -> Mapping[str, Any]:
    with _quiet():
        import datasets

        try:
            place = (HUB_REPOSITORY, HUB_CONFIGS[source]) if path is None else (path,)
            if path is not None:
                _require_plain_tables(datasets.load_dataset_builder(*place), Path(path).resolve())
            splits: Mapping[str, Any] = datasets.load_dataset(*place)
            return splits
        except Exception as error:  # the library's own errors share no base class
            cause: BaseException = error
            while cause.__cause__ is not None:  # the outermost one only says that something failed
                cause = cause.__cause__
    reason = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
    if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
        raise RunFailed(f"{label}: no space left for the data set ({reason}); free some, or set HF_HOME")
    if path is not None:
        raise UserError(
            f"{label}: cannot be loaded as a data set in the hub's layout ({reason}); "
            "give a folder of parquet files with one config"
        )
    raise UserError(
        f"{label}: {HUB_REPOSITORY} cannot be loaded from the Hugging Face hub ({reason}); "
        "connect once without HF_HUB_OFFLINE, or set data.path to a local copy in the hub's layout"
    )


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


def _rows_piece(dataset: Any, label: str) -> Piece:
    digest = hashlib.sha256()
    for chunk in _row_chunks(dataset):
        digest.update(chunk)
    return Piece(label, digest.hexdigest(), lambda: _row_chunks(dataset))


def _row_chunks(dataset: Any) -> Iterator[Chunk]:
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
