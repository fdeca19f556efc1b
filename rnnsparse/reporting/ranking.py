"""Which setting is best, as far as that can be told from as many seeds.

Settings are ranked against those with the same sparsity on the same text. Two of them differ by more than noise where
the difference of their means is beyond what Student's t allows at 5 %, with the spread over seeds pooled over all that
are ranked together (of two or three seeds each, one spread alone says little), corrected for as many comparisons with
the best as there are (Bonferroni).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rnnsparse.reporting.compare import Setting, Statistic

LEVEL = 0.05


@dataclass(frozen=True)
class Ranked:
    """Settings that can be ranked, the fewest bits per character first. `sparsity` is None where it varies."""

    settings: tuple[Setting, ...]
    sparsity: float | None
    text: tuple[str, ...]


def ranked(settings: Sequence[Setting]) -> list[Ranked]:
    """Return the groups of comparable settings, each in the order of `settings`, the densest last.

    A dense network is the reference, not a rival. Where no two settings share a sparsity, sparsity is what is compared.
    """
    texts: dict[tuple[str, ...], list[Setting]] = {}
    for setting in settings:
        special = {key: value for key, value in setting.special.items() if key.startswith("data.")}
        text = tuple(f"{key.partition('.')[2]}={_said(special[key])}" for key in sorted(special))
        texts.setdefault(text, []).append(setting)
    groups = []
    for text, members in sorted(texts.items()):
        by_sparsity: dict[float, list[Setting]] = {}
        for setting in members:
            by_sparsity.setdefault(setting.sparsity, []).append(setting)
        if len(by_sparsity) > 1 and max(len(same) for sparsity, same in by_sparsity.items() if sparsity) < 2:
            groups.append(Ranked(tuple(members), None, text))
        else:
            order = sorted(by_sparsity, key=lambda sparsity: (sparsity == 0, sparsity))
            groups += [Ranked(tuple(by_sparsity[sparsity]), sparsity, text) for sparsity in order]
    return groups


def _said(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class Noise:
    """By how much two means may differ by chance; `deviation` is None where no setting has a second seed."""

    deviation: float | None
    factor: float

    def hides(self, a: Statistic, b: Statistic) -> bool:
        """Whether the difference of two means is known to be no more than chance makes."""
        if self.deviation is None:
            return False
        return abs(a.mean - b.mean) <= self.factor * self.deviation * math.sqrt(1 / a.count + 1 / b.count)


def noise(numbers: Sequence[Statistic]) -> Noise:
    """Return the noise of numbers that are compared with the best of them."""
    freedom = sum(number.count - 1 for number in numbers)
    if not freedom:
        return Noise(None, math.inf)
    squares = math.fsum((number.count - 1) * (number.deviation or 0.0) ** 2 for number in numbers)
    return Noise(math.sqrt(squares / freedom), student_t(freedom, LEVEL / max(1, len(numbers) - 1)))


def standing(numbers: Sequence[Statistic | None], better: Callable[[Sequence[float]], float] = min) -> list[str]:
    """Return "best", "close" (to the best: chance may have decided), or "" for each number."""
    known = [number for number in numbers if number]
    means = {number.mean for number in known}
    if len(means) < 2:
        return ["" for _ in numbers]
    best = better([number.mean for number in known])
    first = next(number for number in known if number.mean == best)
    around = noise(known)
    return [
        "" if number is None else "best" if number.mean == best else "close" if around.hides(number, first) else ""
        for number in numbers
    ]


def student_t(freedom: int, level: float) -> float:
    """Return what the size of Student's t with `freedom` degrees exceeds with probability `level`.

    By the finite sums for whole degrees of freedom (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4), halved often.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - _within(middle, freedom) > level else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """Return the probability that t is within plus and minus sqrt(freedom) tan(angle)."""
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for i in range(1 + odd, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * i / (i + 1)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
