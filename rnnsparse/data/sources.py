"""Where text comes from: files, folders and zip archives of them, and Python's documentation.

A source is read as a stream of UTF-8 chunks of some megabytes; no source ever holds its text in memory.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from rnnsparse.data.division import NINETY_FIVE_FIVE, Division
from rnnsparse.data.folder import Contents, contents
from rnnsparse.data.pieces import (
    BYTE_FOR_BYTE,
    Piece,
    Reading,
    file_piece,
    is_parquet,
    member_piece,
    packing_of,
    parquet_piece,
    read_as,
    require_readable,
)
from rnnsparse.data.split_names import announced_by, by_split
from rnnsparse.data.tables import ENDS, table_format
from rnnsparse.data.zipped import Archives
from rnnsparse.errors import UserError, printable


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


def text_source(
    path: str | Path,
    key: str,
    find_splits: bool = True,
    *,
    reading: Reading = BYTE_FOR_BYTE,
    division: Division | None = None,
) -> Source:
    """A UTF-8 file, or all files below a folder or in a zip archive, in the order of their names.

    What gzip, xz, bzip2 or zstd packed is unpacked, whatever it is called (see `packing`). With `find_splits`, a folder
    or archive in which names announce splits (see `split_names`) has those splits, and other files are left out, as
    hidden ones always are. Links are followed; a file that several lead to is read once in each split (see `folder`).

    With a `division`, what is for training by its name, or else all, is one text that is divided so.

    `key` is what errors call the setting. A path that is missing or is a pipe, a folder without files, unclear names
    of splits, and a file to be read that is a broken link, damaged, or an archive of another kind raise a UserError.
    """
    label, root, archives = f"{key}={path}", Path(path), Archives()
    is_folder, kind, archive = stat.S_ISDIR(require_readable(root, label)), None, None
    if is_folder:
        found = contents(root, label, find_splits)
    elif reading.column and is_parquet(root):
        found = Contents([PurePath(root.name)])
    elif (kind := packing_of(root, label)) == "zip":
        archive = archives.look_into(root, label)
        found = archive.contents
    else:
        found = Contents([PurePath(root.name)])

    def pieces_of(name: PurePath, part: str) -> Sequence[Piece]:
        if reading.column and archive is None and is_parquet(name):
            file = root / name if is_folder else root
            return [parquet_piece(file, reading.column, f"{key}={file}")]
        if is_folder:
            pieces = _pieces_in(root, key, archives, find_splits, name, part)
        elif archive is not None:
            pieces = [member_piece(root, archive, name, label, archives)]
        else:
            pieces = [file_piece(root, kind, label)]
        return [read_as(piece, name, reading) for piece in pieces]

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


def _pieces_in(
    root: Path, key: str, archives: Archives, find_splits: bool, name: PurePath, part: str
) -> Sequence[Piece]:
    """Return the text of a file in a folder, or all texts of an archive in it, for one part."""
    file, label = root / name, f"{key}: {root / name}"
    if stat.S_ISDIR(require_readable(file, label)):  # it was none when the folder was listed
        raise UserError(f"{label}: changed while it was read; run again when it is complete")
    if (kind := packing_of(file, label)) != "zip":
        return [file_piece(file, kind, label)]
    archive = archives.look_into(file, label)
    for member in archive.contents.files:
        if find_splits and announced_by(member) - {part}:
            raise UserError(
                f"{label}: {member}: is for a split by its name, and the archive is one of the files of a folder; "
                "unpack it, or give it alone"
            )
    return [member_piece(file, archive, member, label, archives) for member in archive.contents.files]


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
