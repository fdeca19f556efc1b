"""The grid of a sweep: what it offers for each key, multiplied out or drawn from."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch

from rnnsparse.config import keys
from rnnsparse.errors import UserError
from rnnsparse.randomness import generator_for
from rnnsparse.settings.marks import OfOneRun

RANGE = ("low", "high", "log")
MOST_POINTS = 10_000  # each is validated before the first run starts
PATIENCE = 20  # draws in a row without another point, for each that there is: of as many, none would be missed so long
LARGEST = 1e15  # in a range: whole numbers up to it are exact
DIGITS = 3  # of a number drawn from a range; it stands in names

Grid = Mapping[str, Any]
T = TypeVar("T")


def settings_in(values: Any, where: str) -> dict[str, Any]:
    """Return what a sweep says of settings, all of which a sweep may choose; `where` is what errors call the place."""
    if not isinstance(values, dict):
        found = json.dumps(values, ensure_ascii=False)
        raise UserError(f"{where}: must hold settings such as `training.steps: 500`, but is {found}")
    for key in sorted(keys(OfOneRun)):
        if key in values:
            raise UserError(f"{where}: {key}: the sweep names its runs itself; see the key dir")
    return values


def grids_in(grid: Any, drawn: bool) -> list[Grid]:
    """Return the grids of a file, each with what it offers for each key; ranges only if that is drawn from."""
    grids = grid if isinstance(grid, list) else [grid]
    if not grids or not all(isinstance(part, dict) and part for part in grids):
        raise UserError("grid: must hold lists of values such as `run.seed: [1, 2]`, or be a list of such grids")
    for part in grids:
        for key, offer in settings_in(part, "grid").items():
            if offer == []:
                raise UserError(f"grid: {key}: has no values; give at least one")
            if _has_range(offer) and not drawn:
                raise UserError(f"grid: {key}: a range is drawn from; say how often in search.trials, or list values")
            _require_ranges(key, offer)
    return grids


def points(grids: Sequence[Grid]) -> Iterator[dict[str, Any]]:
    """Yield every combination, the last key varying fastest; a value that is no list stands for itself."""
    for part in grids:
        choices = [value if isinstance(value, list) else [value] for value in part.values()]
        if math.prod(map(len, choices)) > MOST_POINTS:
            raise UserError(f"grid: has {math.prod(map(len, choices)):,} combinations; use at most {MOST_POINTS:,}")
        for point in itertools.product(*choices):
            yield dict(zip(part, point, strict=True))


def draws(grids: Sequence[Grid], seed: int) -> Iterator[dict[str, Any]]:
    """Yield settings at random without an end: of one of the grids, a value for each key.

    Each depends on `seed` and its number alone, and each value on its key too: more draws leave the others as they are,
    and so does another key.
    """
    for number in itertools.count():
        grid = _one_of(grids, generator_for(seed, "grid", number))
        yield {key: _drawn(offer, generator_for(seed, "trial", number, key)) for key, offer in grid.items()}


def different(points: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield each point once; end when hardly another one can be left to draw."""
    seen: set[str] = set()
    repeated = 0
    for point in points:
        what = json.dumps(point, sort_keys=True)
        repeated = repeated + 1 if what in seen else 0
        if not repeated:
            seen.add(what)
            yield point
        elif repeated > PATIENCE * len(seen):
            return


# ---- ranges


def _has_range(offer: Any) -> bool:
    """Return whether what a grid has for a key is a range, or a list with one."""
    return any(map(_is_range, offer)) if isinstance(offer, list) else _is_range(offer)


def _require_ranges(key: str, offer: Any) -> None:
    """Make sure that ranges are such as numbers can be drawn from.

    Raises:
        UserError: one is not.
    """
    for value in filter(_is_range, offer if isinstance(offer, list) else [offer]):
        low, high, log = value.get("low"), value.get("high"), value.get("log", False)
        numbers = type(low) in (int, float) and type(high) in (int, float) and type(log) is bool
        if not numbers or not -LARGEST <= low < high <= LARGEST or (log and low <= 0):
            raise UserError(
                f"grid: {key}: {json.dumps(value)} is not a range such as {{low: 1e-3, high: 2e-2, log: true}}: low is "
                f"below high, above 0 with log, and both are within {LARGEST:g} of 0"
            )


def _is_range(value: Any) -> bool:
    return isinstance(value, dict) and ("low" in value or "high" in value) and value.keys() <= set(RANGE)


def _drawn(offer: Any, generator: torch.Generator) -> Any:
    if isinstance(offer, list):
        return _drawn(_one_of(offer, generator), generator) if _has_range(offer) else _one_of(offer, generator)
    if not _is_range(offer):
        return offer
    low, high, log = offer["low"], offer["high"], offer.get("log", False)
    share = float(torch.rand((), generator=generator, dtype=torch.float64))
    whole = type(low) is int and type(high) is int
    stop = high + 1 if whole else high
    first, last = (math.log(low), math.log(stop)) if log else (low, stop)
    value = first + (last - first) * share
    value = math.exp(value) if log else value
    value = math.floor(value) if whole else float(f"{value:.{DIGITS}g}")
    return min(max(value, low), high)


def _one_of(values: Sequence[T], generator: torch.Generator) -> T:
    return values[int(torch.randint(len(values), (), generator=generator))]
