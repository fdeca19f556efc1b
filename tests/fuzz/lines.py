"""Which lines of rnnsparse an input reaches: what guides the fuzzer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import rnnsparse

HOME = str(Path(rnnsparse.__file__).parent)
ENOUGH = 5  # calls of a function whose lines are looked at, for each input: tracing makes everything slow
Line = tuple[str, int]


class Lines:
    """Lines of rnnsparse that ran within `watched()`; `fresh` counts those of the last time that were new."""

    def __init__(self) -> None:
        self.seen: set[Line] = set()
        self.fresh = 0
        self._calls: dict[CodeType, int] = {}  # of each function while an input is read

    @contextmanager
    def watched(self) -> Iterator[None]:
        before = len(self.seen)
        watch = self._monitored if sys.version_info >= (3, 12) else self._traced
        try:
            with watch():
                yield
        finally:
            self.fresh = len(self.seen) - before

    @contextmanager
    def _traced(self) -> Iterator[None]:
        def of_line(frame: FrameType, event: str, argument: Any) -> Any:
            if event == "line":
                self.seen.add((frame.f_code.co_filename, frame.f_lineno))
            return of_line

        def of_call(frame: FrameType, event: str, argument: Any) -> Any:
            code = frame.f_code
            calls = self._calls.get(code)
            if calls is None:
                calls = 0 if code.co_filename.startswith(HOME) else ENOUGH
            self._calls[code] = calls + 1 if calls < ENOUGH else calls
            return of_line if calls < ENOUGH else None

        self._calls = {code: ENOUGH for code in self._calls if not code.co_filename.startswith(HOME)}
        previous = sys.gettrace()
        sys.settrace(of_call)
        try:
            yield
        finally:
            sys.settrace(previous)

    @contextmanager
    def _monitored(self) -> Iterator[None]:
        # A line that was seen, or that is not ours, never reports again: this costs next to nothing.
        monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
        tool = next((number for number in (3, 4) if monitoring.get_tool(number) is None), None)
        if tool is None:
            yield
            return

        def of_line(code: CodeType, line: int) -> Any:
            if code.co_filename.startswith(HOME):
                self.seen.add((code.co_filename, line))
            return monitoring.DISABLE

        monitoring.use_tool_id(tool, "rnnsparse fuzz")
        monitoring.register_callback(tool, monitoring.events.LINE, of_line)
        monitoring.set_events(tool, monitoring.events.LINE)
        try:
            yield
        finally:
            monitoring.set_events(tool, 0)
            monitoring.free_tool_id(tool)
