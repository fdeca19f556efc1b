"""The texts in a zip archive. Nothing is unpacked to disk, and names in the archive lead nowhere."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath

from rnnsparse.data.folder import Contents
from rnnsparse.data.packing import (
    HEAD_BYTES,
    bomb,
    damaged,
    kind_of,
    largest_text,
    packing_errors,
    refuse_unreadable,
    refuse_wrong_suffix,
    unpacked,
)
from rnnsparse.errors import UserError

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
OUTSIDE = re.compile(r"[/\\]|[a-z]:|(.*[/\\])?\.\.([/\\]|$)", re.IGNORECASE | re.DOTALL)
IS_ENCRYPTED = 1  # in flag_bits


@dataclass(frozen=True)
class Member:
    """A file in an archive: its name there, which one it is of all, and what was noted of its text."""

    stored_name: str
    index: int
    size: int
    crc: int


@dataclass(frozen=True)
class Archive:
    """The names in an archive, the members behind those for reading, and the digest of all its bytes."""

    contents: Contents
    members: dict[PurePath, Member]
    sha256: str


class Archives:
    """Opens archives one at a time: that which was read last stays open, for it may have 100,000 members."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._archive: zipfile.ZipFile | None = None

    def look_into(self, path: Path, label: str) -> Archive:
        """Return what is in an archive, names in their order.

        Raises a UserError that begins with `label` for an archive that is damaged, or is a document, and for a member
        that is encrypted, a link, packed by an unknown method, there twice, or has a name that leads outside; and if
        all unpack to more than text does.
        """
        with self._closed_after_errors():
            return self._look_into(path, label)

    def _look_into(self, path: Path, label: str) -> Archive:
        with _zip_errors(label):
            archive = self._open(path)
            infos, stored = archive.infolist(), archive.fp
            assert stored is not None  # it is open
            size = stored.seek(0, os.SEEK_END)
            stored.seek(0)
            sha256 = hashlib.file_digest(stored, "sha256").hexdigest()  # type: ignore[arg-type]
        names = [info.filename for info in infos]
        if "[Content_Types].xml" in names or names[:1] == ["mimetype"]:
            refuse_unreadable("document", label)
        members: dict[PurePath, Member] = {}
        found = Contents()
        for index, info in enumerate(infos):
            name = PurePath(info.filename.replace("\\", "/"))
            if info.filename.endswith("/"):
                continue
            if any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in name.parts):
                found.hidden.append(name)
                continue
            if reason := _refusal(info):
                raise UserError(f"{label}: {name}: {reason}")
            if name in members:
                raise UserError(f"{label}: {name}: is in the archive twice; unpack it and keep the right one")
            members[name] = Member(info.filename, index, info.file_size, info.CRC)
        if sum(member.size for member in members.values()) > largest_text(size):
            raise bomb(label)
        found.files.extend(sorted(members))
        return Archive(found, members, sha256)

    def chunks(self, path: Path, member: Member, label: str) -> Iterator[bytes]:
        """Yield the text of a member, which may be packed again, by gzip and the like."""
        with self._closed_after_errors(), _zip_errors(label):
            archive = self._open(path)
            try:
                info = archive.getinfo(member.stored_name)
            except KeyError:
                info = None
            if info is None or (info.file_size, info.CRC) != (member.size, member.crc):
                raise UserError(f"{label}: changed while it was read; run again when it is complete")
            with archive.open(info) as stored:
                kind = kind_of(stored.read(HEAD_BYTES))
                refuse_unreadable(kind, label, "inside of a zip archive")
                if info.file_size:
                    refuse_wrong_suffix(PurePath(member.stored_name), kind, label)
                stored.seek(0)
                yield from unpacked(stored, kind, member.size, label)
                while stored.read(HEAD_BYTES):
                    pass  # up to the end, where the checksum is compared

    def _open(self, path: Path) -> zipfile.ZipFile:
        if self._archive is None or self._path != path:
            self._path, self._archive = path, zipfile.ZipFile(path)
        return self._archive

    @contextmanager
    def _closed_after_errors(self) -> Iterator[None]:
        """Leave no file open that nobody reads on."""
        try:
            yield
        except Exception:
            if self._archive is not None:
                self._archive.close()
                self._archive = None
            raise


def _refusal(info: zipfile.ZipInfo) -> str | None:
    if not info.filename.strip("./\\"):
        return "has no name; unpack the archive, and give the folder"
    if OUTSIDE.match(info.filename):
        return "its name leads out of the archive; unpack only what you trust, and give the folder"
    if info.flag_bits & IS_ENCRYPTED:
        return "is encrypted; unpack the archive with its password, and give the folder"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a link; unpack the archive, and give the folder"
    if info.compress_type not in METHODS:
        return f"is packed by method {info.compress_type}, which Python does not know; unpack it, and give the folder"
    return None


@contextmanager
def _zip_errors(label: str) -> Iterator[None]:
    try:
        with packing_errors("zip", label):
            yield
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, struct.error, LookupError) as error:
        raise damaged("zip", label, error) from None
