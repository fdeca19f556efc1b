"""The one form of a line on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TextIO

from rnnsparse.errors import one_line


def complain(what: Exception | str, stream: TextIO | None = None) -> None:
    """Print in one line what is wrong, on stderr if on no other stream."""
    print(f"rnnsparse: {one_line(what)}", file=stream or sys.stderr)


def warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        complain(f"warning: {warning}")
