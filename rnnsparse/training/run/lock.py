"""One trainer per run folder: a lock of the operating system, which ends with the process however that ends."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from rnnsparse.errors import NEEDS_POSIX, UserError
from rnnsparse.training.run import lifeline

try:
    import fcntl
except ImportError:
    raise ImportError(f"rnnsparse {NEEDS_POSIX}") from None

NAME = ".lock"
# Whoever only looks (`holder`) has the lock for an instant.
ATTEMPTS, PAUSE_SECONDS = 5, 0.05
UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


@contextlib.contextmanager
def held(folder: Path) -> Iterator[str]:
    """Hold the lock of an existing folder; yields "", or a warning where the file system has no locks.

    Raises:
        UserError: another process holds it; named as well as it has told.
        OSError: the lock file cannot be made.
    """
    path = folder / NAME
    try:
        descriptor = _acquire(path)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        path.unlink(missing_ok=True)
        yield (
            f"{folder}: this file system has no locks ({error.strerror}); make sure that no other process trains "
            "in this folder"
        )
        return
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds, only nobody can read whose it is
            now = time.strftime("%Y-%m-%d %H:%M:%S %Z")
            os.truncate(descriptor, 0)
            os.write(descriptor, f"{lifeline.introduction()} since {now}".encode())
        yield ""
    finally:
        # Removed while it is held; who has opened it meanwhile sees in `_acquire` that it is gone.
        path.unlink(missing_ok=True)
        os.close(descriptor)


def refuse_if_held(folder: Path) -> None:
    """Raise the UserError of `held` without taking the lock."""
    if (other := holder(folder)) is not None:
        raise _in_use(folder, other)


def holder(folder: Path) -> str | None:
    """Return who trains in `folder` at this moment, in words, or None if nobody is known to."""
    try:
        descriptor = os.open(folder / NAME, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _told(folder)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def _acquire(path: Path) -> int:
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise _in_use(path.parent, _told(path.parent))


def _told(folder: Path) -> str:
    try:
        return (folder / NAME).read_text(encoding="utf-8", errors="replace") or "another process"
    except OSError:
        return "another process"


def _in_use(folder: Path, other: str) -> UserError:
    return UserError(f"{folder}: {other} trains in this run.dir; wait for it or stop it, or choose another run.dir")
