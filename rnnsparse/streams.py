"""stdout and stderr may go away while a command runs: a pipe's reader ends, a terminal closes, a disk is full."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, TextIO, cast


class _Lasting:
    """Passes on what is written, and leaves out what cannot be."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # a ValueError says that the stream has been closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def close(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.close()

    def isatty(self) -> bool:
        with suppress(OSError, ValueError):
            return self._stream.isatty()
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def lasting(stream: TextIO) -> TextIO:
    """Return a stream that writes to `stream` and never fails; where that is impossible, it does nothing.

    It tries every time: a disk may get free space again.
    """
    return stream if isinstance(stream, _Lasting) else cast(TextIO, _Lasting(stream))


@contextmanager
def lasting_output(*names: Literal["stdout", "stderr"]) -> Iterator[None]:
    """Let these of `sys` never fail within the `with`, nor leave anything that fails when the program ends."""
    originals = {name: getattr(sys, name) for name in names}
    for name, stream in originals.items():
        setattr(sys, name, lasting(stream))
    try:
        yield
    finally:
        for name, stream in originals.items():
            setattr(sys, name, stream)
            drop_unwritable(stream)


def drop_unwritable(stream: TextIO) -> None:
    """If what a stream holds cannot be written, leave nothing of it to be flushed at the exit."""
    try:
        stream.flush()
    except ValueError:
        pass  # closed
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def open_missing() -> None:
    """Open whichever of stdin, stdout and stderr the caller has closed (`>&-`), to /dev/null.

    The next file to be opened would get its number, and what is meant for a terminal.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
    # Python has None for what was closed; `print` takes a stderr of None for stdout.
    for descriptor, name in enumerate(("stdout", "stderr"), start=1):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "w", encoding="utf-8", closefd=False))


def write_at_once(stream: TextIO, text: str) -> None:
    """Write to the file behind a stream without waiting for anyone, if there is one that takes it.

    Safe in a signal handler, which may have interrupted a write to the same stream.
    """
    with suppress(OSError, ValueError):
        descriptor = stream.fileno()
        if select.select([], [descriptor], [], 0)[1]:
            os.write(descriptor, text.encode("utf-8", errors="replace"))
