"""What a folder holds: every file below it in the order of names, through links too, and each file once."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from rnnsparse.data.split_names import announced_by
from rnnsparse.errors import UserError


@dataclass(frozen=True)
class Contents:
    """Names relative to the folder, or inside of an archive.

    `files` are for reading, though one may turn out to be a broken link or a pipe; `hidden` files and folders are not
    what somebody wants to train on; what is `again` is one of the files, or leads to some, under another name.
    """

    files: list[PurePath] = field(default_factory=list)
    hidden: list[PurePath] = field(default_factory=list)
    again: list[PurePath] = field(default_factory=list)


@dataclass(frozen=True)
class _Folder:
    name: PurePath
    real: str  # without links
    above: _Folder | None

    def is_in(self, real: str) -> bool:
        folder: _Folder | None = self
        while folder and folder.real != real:
            folder = folder.above
        return folder is not None


def contents(root: Path, label: str, by_split: bool) -> Contents:
    """Return what lies below a folder; a UserError that begins with `label` names what cannot be listed.

    Linked folders are followed. Nothing is listed twice: what links lead to again stands under its first name;
    with `by_split`, under its first name for each of the splits that names announce.
    """
    found = Contents()
    seen: set[tuple[str, frozenset[str]]] = set()  # real paths, for what they are by the names that led there
    waiting: list[_Folder | tuple[PurePath, str]] = [_Folder(PurePath(), os.path.realpath(root), None)]
    while waiting:
        item = waiting.pop()
        name, real = (item.name, item.real) if isinstance(item, _Folder) else item
        if (key := (real, frozenset(announced_by(name) if by_split else ()))) in seen:
            found.again.append(name)
            continue
        seen.add(key)
        if not isinstance(item, _Folder):
            found.files.append(name)
            continue
        inside: list[_Folder | tuple[PurePath, str]] = []
        for entry in _sorted_entries(root / name, label):
            below = name / entry.name
            if entry.name.startswith("."):
                found.hidden.append(below)
                continue
            is_link = entry.is_symlink()
            target = os.path.realpath(entry.path) if is_link else os.path.join(real, entry.name)
            if not (os.path.isdir(target) if is_link else entry.is_dir(follow_symlinks=False)):
                inside.append((below, target))
            elif is_link and item.is_in(target):
                found.again.append(below)  # a circle
            else:
                inside.append(_Folder(below, target, item))
        waiting += reversed(inside)
    return found


def _sorted_entries(folder: Path, label: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{label}: {folder}: cannot be listed ({error.strerror})") from None
