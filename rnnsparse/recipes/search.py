"""A search: trials drawn at random from what the grid of a sweep offers, and rungs that fewer and fewer of them reach.

search:
  trials: 64       # how many settings are drawn
  halving: 4       # the best 1/4 of each rung go on to the next one, four times as long; by default there is one rung
  rungs: 3         # by default as many as leave at least `halving` trials to the last
  minutes: 10      # processor time of each run of the last rung; by default its training.steps decide
  seed: 0          # of what is drawn

More trials leave those drawn before as they are. Runs of theirs stay those of the same rungs only if `rungs` is set: by
default it grows with the trials, and the first rung is then a smaller share of the last.

Random search: Bergstra & Bengio 2012. Successive halving: Jamieson & Talwalkar 2016, algorithm 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rnnsparse.errors import UserError, suggest

KEYS = ("trials", "halving", "rungs", "minutes", "seed")
MOST_TRIALS, MOST_MINUTES = 1000, 1e6
DECIDED = ("training.steps", "training.multiplier")  # by `minutes`


@dataclass(frozen=True)
class Rung:
    """Runs of equal length. `share` is what this is of the length of the last rung."""

    number: int
    trials: int
    share: float


@dataclass(frozen=True)
class Search:
    """What to draw, and how long and how often to train it."""

    trials: int
    halving: int | None = None
    rungs: int = 1
    minutes: float | None = None
    seed: int = 0

    def ladder(self) -> list[Rung]:
        """Return all rungs, the first, which has all trials, first."""
        by = self.halving or 1
        return [Rung(n + 1, self.trials // by**n, by ** (n + 1.0 - self.rungs)) for n in range(self.rungs)]


def parse_search(data: Any) -> Search:
    """Return what the key `search` of a sweep says.

    Raises:
        UserError: it says something wrong.
    """
    if not isinstance(data, dict):
        raise UserError(f"search: must hold keys such as `trials: 20`, but is {json.dumps(data)}")
    for key in data:
        if key not in KEYS:
            raise UserError(f"search: {key}: unknown key{suggest(key, KEYS)}; there are {', '.join(KEYS)}")
    if "trials" not in data:
        raise UserError("search: trials: missing; say how many settings to draw")
    trials = _whole(data, "trials", 1, MOST_TRIALS)
    halving = _whole(data, "halving", 2, MOST_TRIALS) if data.get("halving") is not None else None
    seed = _whole(data, "seed", 0, 2**63 - 1) if "seed" in data else 0
    minutes = data.get("minutes")
    if minutes is not None and not (type(minutes) in (int, float) and 0 < minutes <= MOST_MINUTES):
        raise UserError(
            f"search: minutes: {json.dumps(minutes)} is not a number above 0, up to {MOST_MINUTES:,.0f}; null: "
            "training.steps decide"
        )
    rungs = 1
    if halving:
        while trials // halving**rungs >= halving:
            rungs += 1
    if data.get("rungs") is not None:
        rungs = _whole(data, "rungs", 1, MOST_TRIALS)
        if rungs > 1 and not halving:
            raise UserError(f"search: rungs: {rungs}: without halving there is one; set halving: 2 or more")
        if halving and rungs > 1 and trials < halving ** (rungs - 1):
            raise UserError(
                f"search: rungs: {rungs}: of {trials} trials, none would be left for the last; use more trials, or "
                "fewer rungs"
            )
    return Search(trials, halving, rungs, None if minutes is None else float(minutes), seed)


def _whole(data: Mapping[str, Any], key: str, least: int, most: int) -> int:
    value = data[key]
    if type(value) is not int or not least <= value <= most:
        raise UserError(f"search: {key}: {json.dumps(value)} is not a whole number from {least} to {most}")
    return value
