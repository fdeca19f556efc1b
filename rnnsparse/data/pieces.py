"""A stream of text: a file, a member of an archive, or a column of a table, with the digest of where it comes from."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import BinaryIO

from rnnsparse.data.packing import (
    CHUNK_BYTES,
    HEAD_BYTES,
    kind_of,
    packing_errors,
    refuse_unreadable,
    refuse_wrong_suffix,
    suffix_kind,
    unpacked,
)
from rnnsparse.data.tables import parquet_rows, rows_in, table_format
from rnnsparse.data.tokenizer import Chunk
from rnnsparse.data.zipped import Archive, Archives
from rnnsparse.errors import UserError


@dataclass(frozen=True)
class Piece:
    """One stream of text: a file, or a split of a data set."""

    name: str  # as errors call it
    digest: str  # of the bytes as stored: a compressed file need not be unpacked for it
    chunks: Callable[[], Iterator[Chunk]]  # unpacked; a chunk may end inside a character


@dataclass(frozen=True)
class Reading:
    """How files are read, unless byte for byte.

    Attributes:
        column: that of tables, which are then all that is read.
        spaced: spaces between symbols are left out, and each "_" is a space, as in the Penn Treebank's character files.
    """

    column: str | None = None
    spaced: bool = False


BYTE_FOR_BYTE = Reading()
WITHOUT_SPACES = bytes.maketrans(b"_", b" ")


def require_readable(path: Path, label: str) -> int:
    """Return the mode of a file or folder; raise a UserError if it is neither."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no path at all, as with \0 in it
        if os.path.islink(path):
            raise UserError(f"{label}: is a link to {os.readlink(path)}, which is missing; mend or remove it") from None
        if str(path) != "-":
            raise UserError(
                f"{label}: no such file or folder; give a UTF-8 text file, or a folder or .zip of them"
            ) from None
        mode = stat.S_IFIFO  # what other programs call their standard input
    except OSError as error:
        raise UserError(f"{label}: cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UserError(
            f"{label}: is no file but a pipe, a terminal or a device, which can be read only once, and a text is read "
            "several times (to know it again, and to divide it); save it as a file, and give that"
        )
    return mode


def packing_of(file: Path, label: str) -> str | None:
    """Return how a file is packed, None for not at all; raise a UserError if it is no text."""
    with packing_errors(None, label), file.open("rb") as stored:
        head = stored.read(HEAD_BYTES)
        kind = kind_of(head)
        refuse_unreadable(kind, label)
        if not head:
            return suffix_kind(file)
        refuse_wrong_suffix(file, kind, label)
        if kind is not None and kind != "zip":
            stored.seek(0)
            with packing_errors(kind, label):
                next(unpacked(stored, kind, len(head), label), None)  # raises if it is an archive inside
        return kind


def is_parquet(name: PurePath) -> bool:
    return table_format(name) == "parquet"


def read_as(piece: Piece, name: PurePath, reading: Reading) -> Piece:
    """Return a piece whose chunks are the text in a file, where that is not all of its bytes."""
    if reading.column:
        kind, column = table_format(name), reading.column
        if kind is None or kind == "parquet":  # in an archive among tables, or in one by itself
            raise UserError(f"{piece.name}: no table that is read here; unpack the archive, and give the folder")
        read = f"{kind}, empty values left out" if kind == "csv" else kind  # as they once were not
        digest = f"{piece.digest} {read} {column}"
        return Piece(piece.name, digest, lambda: rows_in(piece.chunks(), kind, column, piece.name))
    if reading.spaced:
        return Piece(piece.name, f"{piece.digest} spaced", partial(_without_spaces, piece))
    return piece


def _without_spaces(piece: Piece) -> Iterator[bytes]:
    return (bytes(chunk).translate(WITHOUT_SPACES, b" ") for chunk in piece.chunks())


def parquet_piece(file: Path, column: str, label: str) -> Piece:
    require_readable(file, label)
    with packing_errors(None, label), file.open("rb") as stored:
        sha256 = hashlib.file_digest(stored, "sha256").hexdigest()
    return Piece(label, f"{sha256} parquet {column}", partial(parquet_rows, file, sha256, column, label))


def member_piece(file: Path, archive: Archive, name: PurePath, label: str, archives: Archives) -> Piece:
    member, label = archive.members[name], f"{label}: {name}"
    digest = f"{archive.sha256}.zip {member.index}"
    return Piece(label, digest, partial(archives.chunks, file, member, label))


def file_piece(file: Path, kind: str | None, label: str) -> Piece:
    with packing_errors(None, label), file.open("rb") as stored:
        sha256 = hashlib.file_digest(stored, "sha256").hexdigest()
    # Packed and unpacked, the same bytes are other texts.
    digest = sha256 if kind is None else f"{sha256}.{kind}"
    return Piece(label, digest, partial(_file_chunks, file, kind, sha256, label))


class _Hashed:
    """A file that hashes what is read of it."""

    def __init__(self, stored: BinaryIO) -> None:
        self._stored, self.sha256 = stored, hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._stored.read(size)
        self.sha256.update(data)
        return data


def _file_chunks(file: Path, kind: str | None, sha256: str, label: str) -> Iterator[Chunk]:
    # Binary: text mode, and datasets' reader, would change line ends.
    with packing_errors(kind, label), file.open("rb") as stored:
        hashed = _Hashed(stored)
        yield from unpacked(hashed, kind, os.fstat(stored.fileno()).st_size, label)
        while hashed.read(CHUNK_BYTES):
            pass  # what may stand behind the end of a packed text
        if hashed.sha256.hexdigest() != sha256:
            # The cache would give this text for that of the digest ever after.
            raise UserError(f"{label}: changed while it was read; run again when it is complete")
