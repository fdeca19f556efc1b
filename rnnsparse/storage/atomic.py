"""Replace a folder as a whole: whoever looks, whenever a writer is killed, finds one complete folder.

Linux can exchange two folders in one step. Elsewhere, and on file systems that cannot (NFS), the old folder
is renamed aside first: for a moment there is only `.NAME.previous`, which `existing` and every writer know.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

# From <fcntl.h> and <linux/fs.h>; Python has no names for them.
AT_FDCWD = -100
RENAME_EXCHANGE = 2


@contextlib.contextmanager
def replacing(folder: Path, *, keep: Path | None = None, exchange: bool = True) -> Iterator[Path]:
    """Yield an empty sibling folder to fill; afterwards it is on disk and has taken the place of `folder`.

    If the body raises, `folder` is untouched and the sibling removed. What killed writers left is cleaned up
    first; there must be one writer at a time. Readers may keep files of the old folder open.

    Args:
        folder: an existing folder, or none yet (its parents are made). A link to a folder stays a link.
        keep: where the old folder goes, in the place of what is there; on the same file system. It need not succeed:
            the new folder is there by then. Without it the old folder is removed.
        exchange: False renames in two steps even where the system could exchange in one.

    Raises:
        OSError: disk full, read-only, no permission; `folder` is then still the old one.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    _clean_up(folder)
    if keep is not None:
        _clean_up(keep)
    new = _temporary(folder)
    try:
        new.mkdir()
        yield new
        for path in (*new.rglob("*"), new):
            _sync(path)
        _swap(new, folder, exchange)
        if keep is not None and new.exists():
            with contextlib.suppress(OSError):
                _swap(new, keep, exchange)
    finally:
        # After a swap this is an old folder. If some of it stays behind, the next writer tries again.
        shutil.rmtree(new, ignore_errors=True)


def put_in_place(other: Path, folder: Path) -> None:
    """Let the complete folder `other` and `folder`, if that exists, change places.

    Raises:
        OSError: as `replacing`.
    """
    _clean_up(folder)
    _swap(other, folder, exchange=True)


def is_left_over(path: Path) -> bool:
    """Return whether `path` is what a killed writer left unfinished; the next writer of that folder removes it."""
    return re.fullmatch(r"\..+\.new-[0-9a-f]{8}", path.name) is not None


def remove(path: Path) -> None:
    """Remove what was left over, a folder or a file, as far as that can be done."""
    shutil.rmtree(path, ignore_errors=True)  # which leaves a file
    with contextlib.suppress(OSError):
        path.unlink()


def existing(folder: Path) -> Path | None:
    """Return `folder`, or its complete predecessor if a writer stopped between two renames, or None."""
    if folder.is_dir():
        return folder
    previous = _previous(folder.resolve())
    return previous if previous.is_dir() else None


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def _temporary(folder: Path) -> Path:
    # A fresh name each time: NFS keeps a removed folder for as long as a reader has one of its files open.
    return folder.with_name(f".{folder.name}.new-{secrets.token_hex(4)}")


def _clean_up(folder: Path) -> None:
    previous = _previous(folder)
    if previous.is_dir():
        previous.rename(_temporary(folder) if folder.exists() else folder)
    for path in folder.parent.iterdir():
        if path.name.startswith(f".{folder.name}.new-"):
            shutil.rmtree(path, ignore_errors=True)


def _swap(new: Path, folder: Path, exchange: bool) -> None:
    """Put `new` in the place of `folder`, durably; the old folder, if any, is then called `new`."""
    if not folder.exists():
        new.rename(folder)
        _sync(folder.parent)
    elif exchange and _exchange(new, folder):
        # The old folder may go only when the new one is sure to survive a power failure.
        try:
            _sync(folder.parent)
        except OSError:
            _exchange(new, folder)
            raise
    else:
        previous = _previous(folder)
        folder.rename(previous)
        try:
            new.rename(folder)
        except OSError:
            previous.rename(folder)
            raise
        _sync(folder.parent)
        previous.rename(new)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two paths in one step; False if that is impossible here, and then nothing has happened."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)  # missing from old C libraries
    if renameat2 is None:
        return False
    arguments = (AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), ctypes.c_uint(RENAME_EXCHANGE))
    return bool(renameat2(*arguments) == 0)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
