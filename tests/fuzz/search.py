"""The search: change what reached new lines or had a new outcome, keep what does."""

from __future__ import annotations

import re
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from tests.fuzz import lines
from tests.fuzz.judge import Crash, judged
from tests.fuzz.kinds import Kind

WHOLE = 100  # of so many inputs that are read alone, one goes through the command line
MOST_NOVEL = 20  # of so many, at most one goes there because its outcome is new
TEXTS = 20  # different messages that one place in the program is known to refuse with
LARGEST_KEPT = 4096  # bytes, or four times the largest seed: what follows from it is read slowly too


@dataclass
class Outcome:
    """What came of the inputs of one kind; `whole` of them went through the command line.

    `crashes` has an input for each kind of crash; `crashed` counts all.
    """

    accepted: int = 0
    refused: int = 0
    crashed: int = 0
    whole: int = 0
    lines: int = 0
    crashes: dict[str, bytes] = field(default_factory=dict)

    @property
    def inputs(self) -> int:
        return self.accepted + self.refused + self.crashed


def search(
    kind: Kind,
    name: str,
    *,
    seed: int = 0,
    seconds: float | None = None,
    inputs: int | None = None,
    before_each: Callable[[bytes], object] = lambda data: None,
) -> Outcome:
    """Feed changed inputs to a kind's reader for so long, or so many."""
    random, outcome, seen = Random(f"{seed} {name}"), Outcome(), _Seen()
    corpus, valid = kind.seeds(), kind.seeds()
    largest = max(LARGEST_KEPT, 4 * max(map(len, corpus)))
    started = time.monotonic()
    lines.forget()

    def feed(data: bytes, whole: bool) -> None:
        before_each(data)
        before = lines.reached()
        try:
            accepted, error = judged(kind.read or kind.run, data)
            novel = seen.is_new(accepted, error) or lines.reached() > before
            if novel and len(data) <= largest:
                (valid if accepted else corpus).append(data)
            if kind.read is None or whole or (novel and outcome.whole * MOST_NOVEL < outcome.inputs):
                outcome.whole += 1
                if kind.read is not None and judged(kind.run, data)[0] and not accepted:
                    raise Crash(f"the command accepts what is refused alone: {error}")
        except Crash as crash:
            outcome.crashed += 1
            outcome.crashes.setdefault(_where(crash), data)
            return
        if accepted:
            outcome.accepted += 1
        else:
            outcome.refused += 1

    for data in kind.seeds():
        feed(data, whole=True)
    while (seconds is None or time.monotonic() - started < seconds) and (inputs is None or outcome.inputs < inputs):
        # Most changes of what is refused are refused at the same place. What was found last is changed more often.
        data = random.choice(random.choices([valid, corpus, corpus[-5:]], [5, 3, 2])[0])
        feed(kind.change(random, data, random.choice(corpus)), whole=outcome.inputs % WHOLE == 0)
    outcome.lines = lines.reached()
    return outcome


class _Seen:
    """The outcomes so far: accepted, or refused at this place in the program with such a message."""

    def __init__(self) -> None:
        self._texts: defaultdict[tuple[object, ...], set[str]] = defaultdict(set)

    def is_new(self, accepted: bool, error: Exception | None) -> bool:
        place: list[object] = [accepted]
        frame = error.__traceback__ if error else None
        while frame is not None:
            place += [frame.tb_frame.f_code, frame.tb_lineno]
            frame = frame.tb_next
        texts = self._texts[tuple(place)]
        # The file and the key; what comes from an input makes no end of texts.
        text = ": ".join(str(error or "").split(": ", 2)[:2])
        if text in texts or len(texts) == TEXTS:
            return False
        texts.add(text)
        return True


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
