"""Each text is tokenized once: its ids lie on disk, are found by the content they came from, and are mapped.

An entry is a folder: `tokens.bin` (the ids of all splits, one after the other), `tokenizer.json`, and `meta.json`
(what a Split counts, and the sha256 of all this). It is verified whenever it is opened, as the text itself is hashed:
a flipped bit would make another run of every run that goes on.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from codecs import BOM_UTF16_BE, BOM_UTF16_LE, getincrementaldecoder
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np

from rnnsparse import files
from rnnsparse.data.packing import CHUNK_BYTES
from rnnsparse.data.pieces import Piece
from rnnsparse.data.sources import Source
from rnnsparse.data.split import Split
from rnnsparse.data.split_names import SPLITS
from rnnsparse.data.tokenizer import CODE_POINTS, Tokenizer, code_points
from rnnsparse.errors import RunFailed, UserError

LARGEST_META = 10_000
FORMAT = 2  # raise it when the same text would give other files
WAY_OUT = "set another folder by data.cache in a configuration, or by RNNSPARSE_CACHE for commands that read none"
CANNOT_BE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST),
    *(errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP),  # though parents are made too: as below /proc
)
UNFINISHED, ABANDONED_SECONDS = ".making-", 24 * 3600


@dataclass(frozen=True)
class Entry:
    """A tokenized source: its tokenizer, and a Split for every part."""

    tokenizer: Tokenizer
    splits: Mapping[str, Split]


def default_root() -> Path:
    """Return $RNNSPARSE_CACHE, else $XDG_CACHE_HOME/rnnsparse, else ~/.cache/rnnsparse."""
    if own := os.environ.get("RNNSPARSE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rnnsparse"


def tokenized(source: Source, tokenizer: Tokenizer | None, divide: bool, root: Path) -> Entry:
    """Return the entry of `source`, made now if there is none or if it is damaged.

    Without a tokenizer, a character tokenizer is made of what occurs in the training text. `divide` cuts a
    source that has no splits as its division says, at the last character border at or before each place. Any
    number of processes may ask for the same entry at once. Text that is not UTF-8 raises a UserError that
    names the byte; a full disk raises RunFailed.
    """
    content = f"{source.digest[:32]}-{'divided' if divide else 'whole'}-{FORMAT}"
    kind = "char" if tokenizer is None else tokenizer.kind
    folder = root / f"{kind}-{content}"
    entry = read_entry(folder)
    if tokenizer is not None and tokenizer.kind == "char" and (entry is None or entry.tokenizer != tokenizer):
        # Another text's characters, as when a trained model is evaluated on new data.
        folder = root / f"char-{hashlib.sha256(tokenizer.to_json().encode()).hexdigest()[:16]}-{content}"
        entry = read_entry(folder)
    if entry is None:
        with _disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(root)
            with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=root) as work:
                fresh = _write_entry(source, tokenizer, divide, Path(work))
                entry = _publish(fresh, folder)
    return entry


def _remove_abandoned(root: Path) -> None:
    """Remove what processes that were killed have left: text unpacked, but not written to for a day."""
    for work in root.glob(f"{UNFINISHED}*"):
        with suppress(OSError):  # another process was faster, or may not be disturbed
            written = max(path.stat().st_mtime for path in (work, *work.rglob("*")))
            if written < time.time() - ABANDONED_SECONDS:
                shutil.rmtree(work)


def read_entry(folder: Path) -> Entry | None:
    """Open an entry; None if there is none or if it is damaged."""
    try:
        meta = json.loads(files.read(folder / "meta.json", LARGEST_META))
        counts = meta["splits"]
        if set(counts) not in ({"text"}, set(SPLITS)) or not all(map(_is_count, counts.values())):
            return None
        tokenizer = Tokenizer.load(folder / "tokenizer.json")
        symbols = sum(split["symbols"] for split in counts.values())
        size = (folder / "tokens.bin").stat().st_size
        if size != symbols * tokenizer.dtype.itemsize or meta["sha256"] != _sha256(folder, counts):
            return None
        tokens = np.memmap(folder / "tokens.bin", dtype=tokenizer.dtype, mode="r")
        splits, start = {}, 0
        for name, split in counts.items():
            stop = start + split.pop("symbols")
            splits[name] = Split(tokens=tokens[start:stop], **split)
            start = stop
        if tokenizer.kind == "char" and symbols and tokens.max() >= tokenizer.vocab_size:
            return None
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):  # UserError is a ValueError
        return None
    return Entry(tokenizer, splits)


def _is_count(split: Mapping[str, int]) -> bool:
    """Whether a part of meta.json may be true."""
    if set(split) != {"symbols", "characters", "bytes", "unknown_bytes"}:
        return False
    if not all(type(count) is int and 0 <= count < 1 << 62 for count in split.values()):
        return False
    return split["characters"] <= split["bytes"] and split["unknown_bytes"] <= split["bytes"] <= 4 * split["symbols"]


def _write_entry(source: Source, tokenizer: Tokenizer | None, divide: bool, work: Path) -> Path:
    # The whole text lies on disk once before it is tokenized: only then are the borders of the splits known,
    # and the characters of the training text. The source, perhaps compressed, is unpacked only once.
    borders = {}
    with (work / "text").open("w+b") as text:
        for part, pieces in source.parts.items():
            start = text.tell()
            for piece in pieces:
                _copy_checked(piece, text)
            if text.tell() == start:
                raise UserError(f"{pieces[0].name}: the text is empty; give one of some thousand characters")
            borders[part] = (start, text.tell())
        if divide and "text" in borders:
            label = source.parts["text"][0].name if len(source.parts["text"]) == 1 else source.name
            cuts = source.division.cuts(borders["text"][1], label)
            cuts = [_character_border(text, cut) for cut in cuts]
            borders = dict(zip(SPLITS, pairwise(cuts), strict=True))
        if tokenizer is None:
            tokenizer = _characters_of(text, *borders["train"])
        fresh = work / "entry"
        fresh.mkdir()
        with (fresh / "tokens.bin").open("wb") as tokens:
            counts = {name: _encode(text, *border, tokenizer, tokens) for name, border in borders.items()}
            tokens.flush()
            os.fsync(tokens.fileno())  # after a power failure an entry of the right size holds the right ids
    tokenizer.save(fresh / "tokenizer.json")
    meta = {"splits": counts, "sha256": _sha256(fresh, counts)}
    (fresh / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
    return fresh


def _sha256(folder: Path, counts: dict[str, dict[str, int]]) -> str:
    with (folder / "tokens.bin").open("rb") as tokens:
        digest = hashlib.file_digest(tokens, "sha256")
    digest.update((folder / "tokenizer.json").read_bytes())
    digest.update(json.dumps(counts, sort_keys=True).encode())
    return digest.hexdigest()


def _publish(fresh: Path, folder: Path) -> Entry:
    for attempt in range(100):
        try:
            fresh.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        # Now there is an entry: ours, or that of a process that was faster.
        if (entry := read_entry(folder)) is not None:
            return entry
        # Or a damaged one: out of the way, and it goes with the temporary folder.
        with suppress(FileNotFoundError):  # another process did the same
            folder.rename(fresh.parent / f"damaged-{attempt}")
    raise RunFailed(f"{folder}: other processes keep damaging this folder; {WAY_OUT}")


def _copy_checked(piece: Piece, text: IO[bytes]) -> None:
    utf8 = getincrementaldecoder("utf-8")()
    checked = 0  # bytes, up to the last whole character
    try:
        for chunk in piece.chunks():
            pending = len(utf8.getstate()[0])
            utf8.decode(chunk)
            checked += pending + len(chunk) - len(utf8.getstate()[0])
            text.write(chunk)
        utf8.decode(b"", final=True)
    except UnicodeDecodeError as error:
        encoding = "utf-16" if not checked and bytes(chunk[:2]) in (BOM_UTF16_LE, BOM_UTF16_BE) else "latin1"
        if encoding == "latin1" and 0 in bytes(chunk):
            way_out = "it holds zeros, so it is no text in another encoding either; give a text file"
        else:
            way_out = f"if it is text at all, convert it first, for example with `iconv -f {encoding} -t utf-8`"
        raise UserError(
            f"{piece.name}: not UTF-8 text: {error.reason} at byte {checked + error.start}; {way_out}"
        ) from None


def _character_border(text: IO[bytes], position: int) -> int:
    """Return the last character border at or before `position`."""
    start = max(position - 3, 0)
    text.seek(start)
    window = text.read(position - start + 1)
    return position if len(window) <= position - start else start + _last_character(window)


def _last_character(chunk: bytes) -> int:
    """Return where the last, perhaps cut, character of a chunk of UTF-8 begins."""
    index = len(chunk) - 1
    while chunk[index] & 0xC0 == 0x80:
        index -= 1
    return index


def _whole_characters(text: IO[bytes], start: int, stop: int) -> Iterator[bytes]:
    while start < stop:
        text.seek(start)
        chunk = text.read(min(CHUNK_BYTES, stop - start))
        if start + len(chunk) < stop:
            chunk = chunk[: _last_character(chunk)]
        yield chunk
        start += len(chunk)


def _characters_of(text: IO[bytes], start: int, stop: int) -> Tokenizer:
    seen = np.zeros(CODE_POINTS, dtype=bool)
    for chunk in _whole_characters(text, start, stop):
        seen[code_points(chunk)] = True
    return Tokenizer.char(map(chr, np.flatnonzero(seen).tolist()))


def _encode(text: IO[bytes], start: int, stop: int, tokenizer: Tokenizer, tokens: IO[bytes]) -> dict[str, int]:
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for chunk in _whole_characters(text, start, stop):
        ids = tokenizer.encode_utf8(chunk)
        tokens.write(ids.data)
        counts += np.bincount(ids, minlength=tokenizer.vocab_size)
    return {
        "symbols": int(counts.sum()),
        "characters": int(counts @ tokenizer.starts_character),
        "bytes": stop - start,
        "unknown_bytes": stop - start - int(counts @ tokenizer.byte_lengths),
    }


@contextmanager
def _disk_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = f"no space left for the tokenized text; free some, or {WAY_OUT}"
            raise RunFailed(f"{root}: {reason}") from error
        if error.errno in CANNOT_BE:
            reason = f"cannot be written ({error.strerror}); {WAY_OUT}"
            raise UserError(f"{root}: {reason}") from error
        raise
