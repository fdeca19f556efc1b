"""The two ways a command can fail that are not a defect of the program, and the wording they share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can mend: a key, a value, a file. One line; the command line exits with 2."""


class RunFailed(RuntimeError):
    """A run that could not go on (not-a-number loss, full disk). One line; the command line exits with 1."""


def suggest(word: str, allowed: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the allowed word closest to `word`, or "" if none is close."""
    close = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def one_line(error: Exception | str) -> str:
    """Return what an error says without line breaks."""
    return " ".join(str(error).split())
