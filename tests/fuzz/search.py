"""The search: change what reached new lines, keep what reaches more."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from tests.fuzz.judge import Crash, refused_or_valid
from tests.fuzz.kinds import Kind
from tests.fuzz.lines import Lines


@dataclass
class Outcome:
    """What came of the inputs of one kind."""

    accepted: int = 0
    refused: int = 0
    lines: int = 0
    crashes: dict[str, bytes] = field(default_factory=dict)

    @property
    def inputs(self) -> int:
        return self.accepted + self.refused + len(self.crashes)


def search(
    kind: Kind,
    name: str,
    *,
    seed: int = 0,
    seconds: float | None = None,
    inputs: int | None = None,
    before_each: Callable[[bytes], object] = lambda data: None,
) -> Outcome:
    """Feed changed inputs to a kind's reader for so long, or so many; a crash that was seen before is skipped."""
    random, lines, outcome = Random(f"{seed} {name}"), Lines(), Outcome()
    corpus = kind.seeds()
    started = time.monotonic()

    def feed(data: bytes) -> None:
        before_each(data)
        try:
            with lines.watched():
                accepted = refused_or_valid(kind.run, data)
        except Crash as crash:
            outcome.crashes.setdefault(_where(crash), data)
            return
        if accepted:
            outcome.accepted += 1
        else:
            outcome.refused += 1
        if lines.fresh and len(data) < 200_000:
            corpus.append(data)

    for data in kind.seeds():
        feed(data)
    while (seconds is None or time.monotonic() - started < seconds) and (inputs is None or outcome.inputs < inputs):
        # What was found last is changed more often.
        data = random.choice(corpus if random.random() < 0.6 else corpus[-5:])
        feed(kind.change(random, data, random.choice(corpus)))
    outcome.lines = len(lines.seen)
    return outcome


def _where(crash: Crash) -> str:
    """Return what tells one crash from another: its kind, and the last line of ours that it came through."""
    error: BaseException = crash.__cause__ or crash
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        f"{frame.filename.rpartition('rnnsparse/')[2]}:{frame.lineno}"
        for frame in frames
        if "/rnnsparse/" in frame.filename
    ]
    text = re.sub(r"(['\"]).*?\1|[\[(].*[\])]|[0-9]+", "…", str(crash))[:160]
    return f"{ours[-1] if ours else ''} {text}".strip()
