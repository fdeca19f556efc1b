"""What all plots have in common.

They are drawn for the width of a phone. Series differ in colour (of Okabe and Ito, told apart by the colour-blind), in
marker and in line style, so that they can be told apart in print too.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

WIDTH, DPI = 5.2, 150  # inches; 780 pixels, two for each of a phone's
COLOURS = ["#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", "*"]  # as many as have no factor in common with the colours
LINES: list[Any] = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))]
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.labelsize": 11,
    "legend.fontsize": 10,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # names may hold dollar signs
    "lines.markersize": 7,
    "lines.linewidth": 1.6,
    "errorbar.capsize": 4,
}


@dataclass(frozen=True)
class Plot:
    """A picture, what it is called, and what it shows, for those who cannot see it."""

    name: str
    title: str
    description: str
    png: bytes


@contextmanager
def new_figure(height: float, layout: Literal["constrained"] | None = "constrained") -> Iterator[Figure]:
    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(WIDTH, height), dpi=DPI, layout=layout)


def png(figure: Figure) -> bytes:
    out = io.BytesIO()
    # Without a version of the library in the file, the same data gives the same bytes for longer.
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def series_style(number: int) -> dict[str, Any]:
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number % len(LINES)],
    }


def steps_axis(axes: Axes) -> None:
    """Label the x axis as training steps."""
    axes.set_xlabel("training steps")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
