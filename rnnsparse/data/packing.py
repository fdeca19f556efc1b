"""How a text is packed, told by the bytes it begins with and not by its name: gzip, xz, bzip2 and zstd are unpacked.

Archives and documents of other kinds are refused with what to do about them: read as text, or converted from another
encoding, they would be noise.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any, Protocol

from rnnsparse.errors import UserError

CHUNK_BYTES = 1 << 22
HEAD_BYTES = 512  # the first header of a tar
# Text packs to a third or a tenth, of which a few kilobytes may fill a disk; a small file may repeat one word.
LARGEST_RATIO, UNPACKED_FREELY = 100, 1 << 26


class _KeptOpen:
    """A file as pyarrow wants it, which whoever opened it closes."""

    closed = False

    def __init__(self, stored: Readable) -> None:
        self.read = stored.read

    def close(self) -> None:
        pass


def _open_zstd(stored: Readable) -> Readable:
    import pyarrow

    stream: Readable = pyarrow.CompressedInputStream(pyarrow.PythonFile(_KeptOpen(stored), mode="r"), "zstd")
    return stream


OPENERS: Mapping[str, Callable[..., Any]] = {
    "gz": gzip.open,
    "xz": lzma.open,
    "bz2": bz2.open,
    "zst": _open_zstd,
}
SUFFIXES = {".gz": "gz", ".xz": "xz", ".lzma": "xz", ".bz2": "bz2", ".zst": "zst", ".zip": "zip"}
# No text begins like this: these hold control characters or are not UTF-8, but for the names of formats.
MAGIC = {
    "gz": rb"\x1f\x8b",
    "xz": rb"\xfd7zXZ\0|\x5d\0\0[\0-\xff]{2}(\xff{8}|[\0-\xff]{5}\0{3})",  # also .lzma, its predecessor
    "bz2": rb"BZh[1-9](1AY&SY|\x17rE8P\x90)",
    "zip": rb"PK(\x03\x04|\x05\x06|\x07\x08)",
    "7z": rb"7z\xbc\xaf\x27\x1c",
    "zst": rb"(\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18)",
    "lz4": rb"\x04\x22\x4d\x18",
    "lzip": rb"LZIP[\x00\x01]",
    "compress": rb"\x1f[\x9d\xa0]",
    "rar": rb"Rar!\x1a\x07",
    "PDF": rb"%PDF-",
    "Office": rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    "parquet": rb"PAR1[\0-\x08\x0e-\x1f\x80-\xff]",
    "arrow": rb"ARROW1\0\0",
    "SQLite": rb"SQLite format 3\0",
}
_AS_TEXT = "save its text as a plain text file"
_OF_COLUMN = "write its column of text to a plain text file"
_AS_TABLE = "set data.source=hub, and data.column to its column of text"
REFUSED = {
    "tar": ("a tar archive", "unpack it into a folder, as with `tar -xf FILE -C FOLDER`, and give the folder"),
    "zip": ("a zip archive", "unpack it into a folder, as with `unzip FILE -d FOLDER`, and give the folder"),
    "7z": ("a 7z archive", "unpack it into a folder, as with `7z x FILE -oFOLDER`, and give the folder"),
    "rar": ("a rar archive", "unpack it into a folder, as with `unrar x FILE FOLDER/`, and give the folder"),
    "lz4": ("lz4-compressed", "unpack it, as with `lz4 -d FILE`"),
    "lzip": ("lzip-compressed", "unpack it, as with `lzip -d FILE`"),
    "compress": ("compressed by `compress`", "unpack it, as with `gzip -d FILE`"),
    "document": ("a document (docx, xlsx, odt, epub or the like)", _AS_TEXT),
    "PDF": ("a PDF document", "take out its text, as with `pdftotext FILE`"),
    "Office": ("an Office document", _AS_TEXT),
    "parquet": ("a parquet table", _AS_TABLE),
    "arrow": ("an arrow table", _OF_COLUMN),
    "SQLite": ("an SQLite database", _OF_COLUMN),
}


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def kind_of(head: bytes) -> str | None:
    """Return a key of MAGIC, or "tar", for what begins with these HEAD_BYTES; None for what may be text."""
    for kind, magic in MAGIC.items():
        if re.match(magic, head, re.DOTALL):
            return kind
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:  # above all, its checksum is wrong
        return None
    return "tar"


def refuse_unreadable(kind: str | None, label: str, inside: str = "") -> None:
    """Raise a UserError for a kind that is not read; `inside` says where it was found, as "inside of .gz"."""
    if kind in REFUSED and (kind != "zip" or inside):
        what, way_out = REFUSED[kind]
        raise UserError(f"{label}: {what}{inside and f' {inside}'}, which is not read as text; {way_out}")
    if inside.startswith("inside of .") and kind is not None:
        raise UserError(f"{label}: is packed twice ({kind} {inside}); unpack it yourself")


def suffix_kind(name: PurePath) -> str | None:
    """Return how a file is packed by its name."""
    return SUFFIXES.get(name.suffix.lower())


def refuse_wrong_suffix(name: PurePath, kind: str | None, label: str) -> None:
    """Raise a UserError for a file that is called .gz or the like but is none, as a page that tells of an error."""
    if kind is None and (expected := suffix_kind(name)):
        raise damaged(expected, label, "it does not begin like one")


def unpacked(stored: Readable, kind: str | None, size: int, label: str) -> Iterator[bytes]:
    """Yield the text of a file or member of `size` bytes that begins as `kind` says, chunk by chunk.

    Raises a UserError for an archive inside, and for what unpacks to more than text does.
    """
    stream: Readable = stored if kind is None else OPENERS[kind](stored)
    head = stream.read(HEAD_BYTES)
    if kind is not None:
        refuse_unreadable(kind_of(head), label, f"inside of .{kind}")
    yield from (head[start : start + CHUNK_BYTES] for start in range(0, len(head), CHUNK_BYTES))
    length = len(head)
    while chunk := stream.read(CHUNK_BYTES):
        length += len(chunk)
        if kind is not None and length > largest_text(size):
            raise bomb(label)
        yield chunk


def largest_text(size: int) -> int:
    """Return how many bytes a packed file of `size` bytes may unpack to."""
    return max(UNPACKED_FREELY, LARGEST_RATIO * size)


def bomb(label: str) -> UserError:
    return UserError(
        f"{label}: unpacks to more than {LARGEST_RATIO} times its size, which no text does; unpack it yourself if it "
        "is right"
    )


@contextmanager
def packing_errors(kind: str | None, label: str) -> Iterator[None]:
    """Turn what reading and unpacking raise into a UserError that begins with `label`."""
    try:
        yield
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{label}: takes more memory to unpack than there is; unpack it yourself") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{label}: cannot be read ({error.strerror})") from None
        if kind is None:
            raise
        raise damaged(kind, label, error) from None


def damaged(kind: str, label: str, reason: Exception | str) -> UserError:
    return UserError(f"{label}: damaged or incomplete .{kind} file ({reason}); fetch it again")
