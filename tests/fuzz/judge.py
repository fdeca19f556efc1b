"""What may come of an input: it is refused in one line, or it is accepted and valid. Anything else is a crash."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import io
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from rnnsparse.cli import main
from rnnsparse.errors import RunFailed, UserError, one_line

SECONDS = 10  # of CPU time; the slowest valid input takes two
MEMORY_BYTES = 1 << 30  # beyond what the process has mapped before an input
HANGING_SECONDS = 120


class Crash(BaseException):
    """The program did with an input what it must never do; nothing in between catches this as an error of its own."""


def refused_or_valid(run: Callable[[bytes], bool], data: bytes) -> bool:
    """Return whether an input was accepted; raises as `judged` does."""
    return judged(run, data)[0]


def judged(run: Callable[[bytes], bool], data: bytes) -> tuple[bool, Exception | None]:
    """Return whether an input was accepted, and the error that refused it, if it came this far.

    Raises:
        Crash: it was neither refused in one line nor accepted and valid, within its time and memory.
    """
    gc.collect(0)
    try:
        with _limits():
            return run(data), None
    except (UserError, RunFailed) as error:
        require_one_line(one_line(error))
        return False, error
    except Crash:
        raise
    except MemoryError as error:
        raise Crash(f"memory: {error}") from error
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise Crash(f"{type(error).__name__}: {str(error)[:300]}") from error


def command(*arguments: str | Path) -> tuple[bool, str]:
    """Run the command line; return whether it succeeded, and its output.

    Raises:
        Crash: not a success and no refusal in one line.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    complaints = [line for line in err.getvalue().split("\n") if line and not line.startswith("rnnsparse: warning: ")]
    for line in err.getvalue().split("\n"):
        require_printable(line)
    if code:
        if arguments[0] == "compare":  # tells what it leaves out as well
            complaints = complaints[-1:]
        if len(complaints) != 1:
            raise Crash(f"exit code {code} with {len(complaints)} lines: {err.getvalue()[:300]!r}")
        require_one_line(complaints[0].removeprefix("rnnsparse: "))
        if "out of memory" in complaints[0]:
            raise Crash(f"memory: {complaints[0]}")
    return code == 0, out.getvalue()


def require_one_line(text: str) -> None:
    if "\n" in text or len(text) < 10:
        raise Crash(f"not one line that says what is wrong: {text[:200]!r}")
    if len(text) > 5000:
        raise Crash(f"{len(text)} characters are no line to read: {text[:200]!r}")
    require_printable(text)


def require_printable(text: str) -> None:
    """What a file says may not steer the terminal that shows it."""
    if not text.isprintable():
        raise Crash(f"not printable: {[c for c in text if not c.isprintable()][:5]} in {text[:200]!r}")


def require(condition: bool, claim: str) -> None:
    if not condition:
        raise Crash(f"accepted, but not so: {claim}")


@contextlib.contextmanager
def required(claim: str) -> Iterator[None]:
    """What was accepted, and is written, is not refused when it comes back."""
    try:
        yield
    except (UserError, RunFailed) as error:
        raise Crash(f"accepted, but not so: {claim}: {str(error)[:300]}") from error


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Limit time and memory; a library that does not return to Python ends the process with a traceback."""

    def too_long(signal_number: int, frame: FrameType | None) -> Any:
        raise Crash(f"hang: not done after {SECONDS} s of CPU time")

    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    old_limits = resource.getrlimit(resource.RLIMIT_AS)
    old_handler = signal.signal(signal.SIGPROF, too_long)
    # Faster than faulthandler's own clock, which is a thread for each input; then the signal ends the process.
    faulthandler.register(signal.SIGALRM, chain=True)
    signal.setitimer(signal.ITIMER_REAL, HANGING_SECONDS)
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES, old_limits[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, old_limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.unregister(signal.SIGALRM)
        signal.signal(signal.SIGPROF, old_handler)


def lines_of(text: str) -> Sequence[str]:
    for line in (lines := text.split("\n")):
        require_printable(line)
    return lines
