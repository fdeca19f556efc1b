"""Where text comes from: files, folders and zip archives of them, and Python's documentation.

A source is read as a stream of UTF-8 chunks of some megabytes; no source ever holds its text in memory.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import BinaryIO

from rnnsparse.data.division import NINETY_FIVE_FIVE, Division
from rnnsparse.data.folder import Contents, contents
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
from rnnsparse.data.split_names import announced_by, by_split
from rnnsparse.data.tables import ENDS, parquet_rows, rows_in, table_format
from rnnsparse.data.tokenizer import Chunk
from rnnsparse.data.zipped import Archive, Archives
from rnnsparse.errors import UserError, printable


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
    notes: tuple[str, ...] = ()  # lines for people: what was taken as which part, and what was left out
    division: Division = NINETY_FIVE_FIVE  # of the one part "text"

    @property
    def digest(self) -> str:
        """Identifies the content and its parts; where it lies does not matter."""
        lines = [f"{part} {piece.digest}\n" for part, pieces in self.parts.items() for piece in pieces]
        if self.division != NINETY_FIVE_FIVE:
            lines.append(f"divided {self.division.told()}\n")
        return hashlib.sha256("".join(lines).encode()).hexdigest()


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


def text_source(
    path: str | Path,
    key: str,
    find_splits: bool = True,
    *,
    reading: Reading = BYTE_FOR_BYTE,
    division: Division | None = None,
) -> Source:
    """A UTF-8 file, or all files below a folder or in a zip archive, in the order of their names.

    What gzip, xz or bzip2 packed is unpacked, whatever it is called (see `packing`). With `find_splits`, a folder or
    archive in which names announce splits (see `split_names`) has those splits, and other files are left out, as
    hidden ones always are. Links are followed; a file that several lead to is read once in each split (see `folder`).

    With a `division`, what is for training by its name, or else all, is one text that is divided so.

    `key` is what errors call the setting. A path that is missing or is a pipe, a folder without files, unclear names
    of splits, and a file to be read that is a broken link, damaged, or an archive of another kind raise a UserError.
    """
    label, root, archives = f"{key}={path}", Path(path), Archives()
    is_folder, kind, archive = stat.S_ISDIR(_mode(root, label)), None, None
    if is_folder:
        found = contents(root, label, find_splits)
    elif reading.column and _is_parquet(root):
        found = Contents([PurePath(root.name)])
    elif (kind := _kind(root, label)) == "zip":
        archive = archives.look_into(root, label)
        found = archive.contents
    else:
        found = Contents([PurePath(root.name)])

    def pieces_of(name: PurePath, part: str) -> Sequence[Piece]:
        if reading.column and archive is None and _is_parquet(name):
            file = root / name if is_folder else root
            return [_parquet_piece(file, reading.column, f"{key}={file}")]
        if is_folder:
            pieces = _pieces_in(root, key, archives, find_splits, name, part)
        elif archive is not None:
            pieces = [_member_piece(root, archive, name, label, archives)]
        else:
            pieces = [_file_piece(root, kind, label)]
        return [_read_as(piece, name, reading) for piece in pieces]

    if not found.files:
        what = "folder" if is_folder else "archive"
        raise UserError(f"{label}: the {what} holds no files; put UTF-8 text files into it (hidden ones are not read)")
    files = [name for name in found.files if table_format(name)] if reading.column else found.files
    if not files:
        raise UserError(f"{label}: no table; give files whose names end with {ENDS}, or set data.source=text")
    groups = None
    if find_splits and (len(files) > 1 or is_folder):  # a file, or the one in an archive, may have any name
        groups = _groups(files, label, division, reading)
    names = groups or {"text": files}
    parts = {part: tuple(piece for name in names[part] for piece in pieces_of(name, part)) for part in names}
    division = division or NINETY_FIVE_FIVE
    notes = tuple(_notes(found, names, parts, division)) if find_splits else ()
    return Source(f"text {path}", parts, notes, division)


def _groups(
    files: Sequence[PurePath], label: str, division: Division | None, reading: Reading
) -> Mapping[str, Sequence[PurePath]] | None:
    """Return which files are for which split, or those of the one text; None for all files."""
    announced = {name: announced_by(name) for name in files}
    training = [name for name in files if announced[name] == {"train"}]
    # A data set of the hub often has one split, which is then called train.
    if training and (division or (reading.column and all(splits <= {"train"} for splits in announced.values()))):
        return {"text": training}
    return by_split(files, label)


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


def _mode(path: Path, label: str) -> int:
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


def _kind(file: Path, label: str) -> str | None:
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


def _pieces_in(
    root: Path, key: str, archives: Archives, find_splits: bool, name: PurePath, part: str
) -> Sequence[Piece]:
    """Return the text of a file in a folder, or all texts of an archive in it, for one part."""
    file, label = root / name, f"{key}: {root / name}"
    if stat.S_ISDIR(_mode(file, label)):  # it was none when the folder was listed
        raise UserError(f"{label}: changed while it was read; run again when it is complete")
    if (kind := _kind(file, label)) != "zip":
        return [_file_piece(file, kind, label)]
    archive = archives.look_into(file, label)
    for member in archive.contents.files:
        if find_splits and announced_by(member) - {part}:
            raise UserError(
                f"{label}: {member}: is for a split by its name, and the archive is one of the files of a folder; "
                "unpack it, or give it alone"
            )
    return [_member_piece(file, archive, member, label, archives) for member in archive.contents.files]


def _is_parquet(name: PurePath) -> bool:
    return table_format(name) == "parquet"


def _read_as(piece: Piece, name: PurePath, reading: Reading) -> Piece:
    """Return a piece whose chunks are the text in a file, where that is not all of its bytes."""
    if reading.column:
        kind, column = table_format(name), reading.column
        if kind is None or kind == "parquet":  # in an archive among tables, or in one by itself
            raise UserError(f"{piece.name}: no table that is read here; unpack the archive, and give the folder")
        digest = f"{piece.digest} {kind} {column}"
        return Piece(piece.name, digest, lambda: rows_in(piece.chunks(), kind, column, piece.name))
    if reading.spaced:
        return Piece(piece.name, f"{piece.digest} spaced", partial(_without_spaces, piece))
    return piece


def _without_spaces(piece: Piece) -> Iterator[bytes]:
    return (bytes(chunk).translate(WITHOUT_SPACES, b" ") for chunk in piece.chunks())


def _parquet_piece(file: Path, column: str, label: str) -> Piece:
    _mode(file, label)
    with packing_errors(None, label), file.open("rb") as stored:
        sha256 = hashlib.file_digest(stored, "sha256").hexdigest()
    return Piece(label, f"{sha256} parquet {column}", partial(parquet_rows, file, sha256, column, label))


def _member_piece(file: Path, archive: Archive, name: PurePath, label: str, archives: Archives) -> Piece:
    member, label = archive.members[name], f"{label}: {name}"
    digest = f"{archive.sha256}.zip {member.index}"
    return Piece(label, digest, partial(archives.chunks, file, member, label))


def _file_piece(file: Path, kind: str | None, label: str) -> Piece:
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


def _notes(
    found: Contents,
    names: Mapping[str, Sequence[PurePath]],
    parts: Mapping[str, Sequence[Piece]],
    division: Division,
) -> Iterator[str]:
    if "text" in names:
        yield f"{_count(names['text'], 'file')} as one text, divided {division.told()}"
    else:
        yield "; ".join(f"{part}: {_count(members, 'file')}" for part, members in names.items())
    taken = {name for members in names.values() for name in members}
    left_out = []
    if others := [name for name in found.files if name not in taken]:
        left_out.append(f"{_count(others, 'file')} for no split")
    if found.hidden:
        left_out.append(_count(found.hidden, "hidden name"))
    if left_out:
        yield f"left out: {'; '.join(left_out)}"
    if found.again:
        yield f"read once, though links lead there again: {_count(found.again, 'name')}"
    trained_on = {piece.digest: piece.name for piece in parts.get("train", ())}
    for part in ("validation", "test"):
        for piece in parts.get(part, ()):
            if piece.digest in trained_on:
                yield printable(
                    f"warning: {piece.name}: for {part}, has the same bytes as {trained_on[piece.digest]}, which is "
                    "trained on"
                )
                break


def _count(names: Sequence[PurePath], what: str) -> str:
    if len(names) == 1:
        return printable(f"1 {what} ({names[0]})")
    return printable(f"{len(names):,} {what}s (first {names[0]})")
