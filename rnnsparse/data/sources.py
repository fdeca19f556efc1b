"""Where text comes from: files and folders, WikiText (from the hub or a local copy), Python's documentation.

A source is read as a stream of UTF-8 chunks of some megabytes; no source ever holds its text in memory.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import logging
import lzma
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rnnsparse.data.tokenizer import Chunk
from rnnsparse.errors import RunFailed, UserError

PACKED: Mapping[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
SPLITS = ("train", "validation", "test")
SPLIT_WORDS = ("train", "val", "test")  # which their names begin with
CHUNK_BYTES = 1 << 22
CHUNK_ROWS = 1000
# Text packs to a third or a tenth, of which a few kilobytes may fill a disk; a small file may repeat one word.
LARGEST_RATIO, UNPACKED_FREELY = 100, 1 << 26
HUB_REPOSITORY = "Salesforce/wikitext"
HUB_CONFIGS = {"wikitext103": "wikitext-103-raw-v1", "wikitext2": "wikitext-2-raw-v1"}
# A name announces a split when nothing but a separator, a number or a suffix follows: not "testament.txt".
SPLIT_NAME = re.compile(r"(train(?:ing)?|val(?:id(?:ation)?)?|test)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Piece:
    """One stream of text: a file, or a split of a data set."""

    name: str  # as errors call it
    digest: str  # of the bytes as stored: a compressed file need not be unpacked for it
    chunks: Callable[[], Iterator[Chunk]]  # unpacked; a chunk may end inside a character


@dataclass(frozen=True)
class Source:
    """A text in parts: the three splits, or the one part "text" where it has none of its own."""

    name: str
    parts: Mapping[str, tuple[Piece, ...]]

    @property
    def digest(self) -> str:
        """Identifies the content and its parts; where it lies does not matter."""
        lines = [f"{part} {piece.digest}\n" for part, pieces in self.parts.items() for piece in pieces]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def text_source(path: str | Path, key: str, find_splits: bool = True) -> Source:
    """A UTF-8 file, or all files below a folder in the order of their names; .gz and .xz are unpacked.

    With `find_splits`, a folder in which names announce splits (SPLIT_NAME) has those splits; other files are left
    out. `key` is what errors call the setting. A missing path, a folder without files, with some of the splits only,
    or with names that look like splits but announce none, raises a UserError.
    """
    label = f"{key}={path}"
    root = Path(path)
    if root.is_file():
        return Source(f"text {path}", {"text": (_file_piece(root, label),)})
    if not root.is_dir():
        raise UserError(f"{label}: no such file or folder; give a UTF-8 text file, or a folder of them")
    # Hidden files and folders (.git, .DS_Store) are not text that somebody wants to train on.
    names = sorted(
        name
        for name in (file.relative_to(root) for file in root.rglob("*") if file.is_file())
        if not any(component.startswith(".") for component in name.parts)
    )
    if not names:
        raise UserError(f"{label}: the folder holds no files; put UTF-8 text files (.gz and .xz too) into it")
    groups = {split: [name for name in names if _split_of(name) == split] for split in SPLITS}
    if find_splits:
        _refuse_lookalikes(names, groups, label)
    held_out = [*groups["validation"], *groups["test"]]
    if find_splits and held_out and not groups["train"]:
        raise UserError(
            f"{label}: {held_out[0]}: is for validation or test by its name, and no file is for train; name those like "
            "train.txt, or rename it, and all files together are divided 90/5/5"
        )
    if not find_splits or not groups["train"]:
        groups = {"text": names}
    elif missing := [split for split, members in groups.items() if not members]:
        raise UserError(
            f"{label}: the folder has files for train ({groups['train'][0]}) but none for {' and '.join(missing)}; "
            "add them, or rename those for train, and all files together are divided 90/5/5"
        )
    parts = {
        part: tuple(_file_piece(root / name, f"{key}: {root / name}") for name in members)
        for part, members in groups.items()
    }
    return Source(f"text {path}", parts)


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


def python_docs_source() -> Source:
    """The English documentation that CPython carries for `help()`, 0.5 MB; it differs between versions."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UserError(
            "data.source=python_docs: this Python comes without pydoc_data; "
            "install its full standard library, or set data.source=text and data.path"
        ) from None
    text = "\n".join(topics[topic] for topic in sorted(topics)).encode()
    piece = Piece("data.source=python_docs", hashlib.sha256(text).hexdigest(), lambda: iter([text]))
    return Source("python_docs", {"text": (piece,)})


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


def _refuse_lookalikes(names: Sequence[Path], groups: Mapping[str, Sequence[Path]], label: str) -> None:
    """Refuse trainset.txt beside testset.txt: as one text, it would be trained on what is meant for the test.

    One such name alone is no reason: a novel may be called testament.txt.
    """
    alike = {
        split: name
        for split, word in zip(SPLITS, SPLIT_WORDS, strict=True)
        for name in reversed(names)
        if not groups[split] and name.parts[0].lower().startswith(word)
    }
    announced = alike.keys() | {split for split in SPLITS if groups[split]}
    if alike and "train" in announced and len(announced) > 1:
        raise UserError(
            f"{label}: {', '.join(map(str, alike.values()))}: no names of splits, as a letter follows the word; rename "
            "them like train.txt, valid-1.txt, test/, or move all files into one folder in there to divide them 90/5/5"
        )


def _split_of(name: Path) -> str | None:
    match = SPLIT_NAME.match(name.parts[0])
    return next((split for split in SPLITS if match and split[:3] == match[1][:3].lower()), None)


def _file_piece(file: Path, label: str) -> Piece:
    try:
        with file.open("rb") as stored:
            sha256 = hashlib.file_digest(stored, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{label}: cannot be read ({error.strerror})") from None
    suffix = file.suffix.lower()
    # Packed and unpacked, the same bytes are other texts.
    digest = sha256 + suffix if suffix in PACKED else sha256
    return Piece(label, digest, lambda: _file_chunks(file, sha256, label))


class _Hashed:
    """A file that hashes what is read of it."""

    def __init__(self, stored: BinaryIO) -> None:
        self._stored, self.sha256 = stored, hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._stored.read(size)
        self.sha256.update(data)
        return data


def _file_chunks(file: Path, sha256: str, label: str) -> Iterator[Chunk]:
    # Binary: text mode, and datasets' reader, would change line ends.
    suffix = file.suffix.lower()
    try:
        with file.open("rb") as stored:
            hashed = _Hashed(stored)
            stream = PACKED[suffix](hashed) if suffix in PACKED else hashed
            unpacked, most = 0, max(UNPACKED_FREELY, LARGEST_RATIO * file.stat().st_size)
            while chunk := stream.read(CHUNK_BYTES):
                unpacked += len(chunk)
                if suffix in PACKED and unpacked > most:
                    raise UserError(
                        f"{label}: unpacks to more than {LARGEST_RATIO} times its size, which no text does; "
                        "unpack it yourself if it is right"
                    )
                yield chunk
            while hashed.read(CHUNK_BYTES):
                pass  # what may stand behind the end of a packed text
        if hashed.sha256.hexdigest() != sha256:
            # The cache would give this text for that of the digest ever after.
            raise UserError(f"{label}: changed while it was read; run again when it is complete")
    except MemoryError:
        raise UserError(f"{label}: takes more memory to unpack than there is; unpack it yourself") from None
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        reason = f"damaged or incomplete {file.suffix} file ({error}); fetch it again"
        raise UserError(f"{label}: {reason}") from None


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
