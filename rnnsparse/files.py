"""Files that may come from strangers, read whole but never without bounds; and files written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from rnnsparse.errors import RunFailed, UserError


def read(path: Path, largest: int, pipes: bool = False) -> bytes:
    """Return the bytes of a file of at most `largest`; one that never ends costs no more memory than that.

    Args:
        pipes: whether it may also be a pipe or a device, as what a user names on the command line may be.

    Raises:
        UserError: it has more bytes, or is no plain file.
        OSError: it cannot be read.
    """
    # Opening a pipe would wait for somebody to write to it.
    with os.fdopen(os.open(path, os.O_RDONLY | (0 if pipes else os.O_NONBLOCK)), "rb") as file:
        if not pipes and not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UserError(f"{path}: is no plain file; remove it, or put a file in its place")
        data = file.read(largest + 1)
    if len(data) > largest:
        raise UserError(f"{path}: has more than {largest:,} bytes, too many for what it should hold; use another file")
    return data


def require_new(path: Path, key: str = "") -> None:
    """Make sure that a file can be written to `path` without overwriting anything; `key` is what errors call it.

    Raises:
        UserError: there is something, or no folder to write to.
    """
    called = f"{key}: {path}" if key else str(path)
    if os.path.lexists(path):
        raise UserError(f"{called}: exists and is never overwritten; choose another name, or remove it first")
    if not path.parent.is_dir():
        raise UserError(f"{called}: there is no folder {path.parent}; make it first, or choose another")


def write_new(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file that appears at `path` only when it is complete and on disk.

    Raises:
        UserError: there is something at `path`, or no folder to write to.
        RunFailed: it cannot be written.
    """
    require_new(path)
    try:
        replace(path, write)
    except (OSError, RuntimeError) as error:
        cause = os_error(error)
        raise RunFailed(
            f"{path}: cannot be written ({cause.strerror or cause}) and was not; write it elsewhere"
        ) from error


def replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file that takes the place of `path` only when it is complete and on disk.

    Several processes may do so at the same time; the last one decides.

    Raises:
        OSError: it cannot be written; what was there is there still.
    """
    temporary = path.with_name(f".{path.name}.new-{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # a full disk names no file, and nobody knows the temporary one
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Add a line of JSON to a file, which several processes may do, and after a line that a kill has torn."""
    line = f"{json.dumps(record)}\n".encode()
    with path.open("a+b", buffering=0) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)


def records(path: Path, largest: int = 1 << 26) -> list[dict[str, Any]]:
    """Return the lines of such a file; none if there is no file, and without what is torn.

    Raises:
        UserError: as `read`.
        OSError: it cannot be read.
    """
    found = []
    for line in read(path, largest).splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [record for record in found if isinstance(record, dict)]


def os_error(error: OSError | RuntimeError) -> OSError:
    """Return why a file could not be written: torch hides that behind an internal error of its own.

    Raises:
        RuntimeError: `error` itself, if it is another one.
    """
    cause = error if isinstance(error, OSError) else error.__context__
    if not isinstance(cause, OSError):
        raise error
    return cause
