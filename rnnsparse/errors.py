"""The ways a command can fail that are not a defect of the program, and the wording they share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST_LINE = 2000
NEEDS_POSIX = "needs Linux or macOS, whose file locks and exchange of folders it uses; on Windows, run it in WSL"


class UserError(ValueError):
    """Something the user can mend: a key, a value, a file. One line; the command line exits with 2."""


class Damaged(UserError):
    """A file that is missing, or is not what was written. `what` says which one and how."""

    def __init__(self, what: str, way_out: str) -> None:
        super().__init__(f"{what}: damaged, or not written by rnnsparse; {way_out}")
        self.what = what


class RunFailed(RuntimeError):
    """A run that could not go on (not-a-number loss, full disk). One line; the command line exits with 1."""


def suggest(word: str, allowed: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the allowed word closest to `word`, or "" if none is close."""
    close = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def one_line(error: Exception | str) -> str:
    """Return what an error says in one line of printable characters; a file may hold any, and much of it."""
    text = printable(" ".join(str(error).split()))
    return text if len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE - 3]}..."


def printable(text: str) -> str:
    """Return a text with escapes in the place of what would steer a terminal, such as \\x1b."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
