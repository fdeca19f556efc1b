"""Series of settings that a plot joins, and how they look, the same in every plot of a comparison.

Colour tells the method, line style what else is special about a series, marker the sparsity.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rnnsparse.reporting.compare import Setting

# Of Okabe and Ito, and three of Tol's that the colour-blind tell from these.
DENSE = "#000000"
COLOURS = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#8C8C8C", "#999933"]
LINES: list[Any] = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3))]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", "*"]


@dataclass(frozen=True)
class Series:
    """Settings that have `label` in common."""

    label: str
    settings: tuple[Setting, ...]
    colour: str
    line: Any

    @property
    def is_dense(self) -> bool:
        return self.settings[0].method == "dense"


def series(settings: Sequence[Setting], *keys: str) -> list[Series]:
    """Return the settings that differ in nothing but `keys` together."""
    together: dict[str, list[Setting]] = {}
    for setting in settings:
        together.setdefault(setting.label_without(*keys), []).append(setting)
    colours = colour_of_methods(settings)
    seen: dict[str, int] = {}
    found = []
    for label in sorted(together):
        method = together[label][0].method
        number = seen[method] = seen.get(method, -1) + 1
        found.append(Series(label, tuple(together[label]), colours[method], LINES[number % len(LINES)]))
    return found


def colour_of_methods(settings: Iterable[Setting]) -> dict[str, str]:
    """Return a colour for each method, that of `dense` always black."""
    methods = sorted({setting.method for setting in settings} - {"dense"})
    return {"dense": DENSE} | {method: COLOURS[number % len(COLOURS)] for number, method in enumerate(methods)}


def marker_of_sparsities(settings: Iterable[Setting]) -> dict[float, str]:
    sparsities = sorted({setting.sparsity for setting in settings})
    return {sparsity: MARKERS[number % len(MARKERS)] for number, sparsity in enumerate(sparsities)}


def readable_shade(colour: str) -> str:
    """Return a colour, darkened until text in it has a contrast of 4.5 on white, as the WCAG want it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    while 1.05 / (_luminance(channels) + 0.05) < 4.5:
        channels = [0.95 * channel for channel in channels]
    return "#" + "".join(f"{round(255 * channel):02X}" for channel in channels)


def _luminance(channels: Sequence[float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
