"""Names at the right of a plot, each led to from the end of its line; none covers another. And names of symbols."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text

from rnnsparse.reporting.plots.figure import WIDTH
from rnnsparse.reporting.plots.series import readable_shade

SIZE, LINE, GAP = 10, 0.165, 0.06  # points; inches of a line of text, and between two labels
LETTERS = 21  # of the longest line of a label
GUTTER = 0.28  # inches in which leaders go up or down


@dataclass(frozen=True)
class End:
    """Where a series ends, in its panel's data coordinates."""

    label: str
    x: float
    y: float
    colour: str


def wrapped(label: str) -> str:
    return "\n".join(textwrap.wrap(label, LETTERS)) or "?"


def height(labels: Sequence[str], least: float) -> float:
    """Return the inches that a panel needs for its labels, and at least `least`."""
    return max(least, sum(_height(label) for label in labels))


def _height(label: str) -> float:
    return LINE * (wrapped(label).count("\n") + 1) + GAP


def lay_out(
    figure: Figure,
    panels: Sequence[Axes],
    heights: Sequence[float],
    labels: Sequence[str],
    between: float,
    below: float,
) -> None:
    """Place panels of these heights one below the other, with room for the widest of `labels` at their right.

    `between` two panels, and `below` the last, there are as many inches.
    """
    right = 1 - (GUTTER + 0.1 + _width(figure, labels)) / WIDTH
    total = figure.get_figheight()
    top = total - (total - below - sum(heights) - between * (len(heights) - 1))
    for axes, own in zip(panels, heights, strict=True):
        axes.set_position((0.78 / WIDTH, (top - own) / total, right - 0.78 / WIDTH, own / total))
        top -= own + between


def _width(figure: Figure, labels: Sequence[str]) -> float:
    """Return the inches of the widest label."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [Text(0, 0, wrapped(label), fontsize=SIZE, figure=figure) for label in labels]
    return max((text.get_window_extent(renderer).width / figure.dpi for text in texts), default=0.0)


def name_lines(figure: Figure, axes: Axes, ends: Sequence[End]) -> None:
    """Write the names of series beside a panel whose place and limits are final."""
    axes.autoscale_view()  # otherwise the limits become final only when all is drawn
    across, tall = (axes.get_position().width * WIDTH, axes.get_position().height * figure.get_figheight())
    to_axes = axes.transData + axes.transAxes.inverted()
    points = [(end, *to_axes.transform((end.x, end.y))) for end in ends]
    points.sort(key=lambda point: (point[2], point[0].label))
    centres = spread([y * tall for _, _, y in points], [_height(end.label) for end, _, _ in points], tall)
    for (end, x, y), centre in zip(points, centres, strict=True):
        shade = readable_shade(end.colour)
        where: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False}
        axes.plot([x, 1], [y, y], color=shade, linewidth=0.7, linestyle=(0, (1, 2)), zorder=1, **where)
        axes.plot([1, 1 + GUTTER / across], [y, centre / tall], color=shade, linewidth=0.7, zorder=1, **where)
        axes.text(
            1 + (GUTTER + 0.04) / across,
            centre / tall,
            wrapped(end.label),
            color=shade,
            fontsize=SIZE,
            linespacing=1.0,
            va="center",
            **where,
        )


def spread(wanted: Sequence[float], sizes: Sequence[float], room: float) -> list[float]:
    """Return centres as near to `wanted`, which ascend, as intervals of `sizes` lie side by side within 0 to `room`.

    Neighbours that would overlap become one cluster around the mean of what its members want.
    """
    clusters: list[tuple[int, float, float]] = []  # members, size, mean of where the cluster's lower end should be
    for want, size in zip(wanted, sizes, strict=True):
        count, total, start = 1, size, want - size / 2
        while clusters:
            before, below, low = clusters[-1]
            if _within(low, below, room) + below <= _within(start, total, room):
                break
            clusters.pop()
            # Each member of the later cluster wants to be `below` higher than the joint start.
            start = (before * low + count * (start - below)) / (before + count)
            count, total = before + count, below + total
        clusters.append((count, total, start))
    centres: list[float] = []
    for count, total, start in clusters:
        low = _within(start, total, room)
        for size in sizes[len(centres) : len(centres) + count]:
            centres.append(low + size / 2)
            low += size
    return centres


def _within(start: float, size: float, room: float) -> float:
    return max(0.0, min(start, room - size))


def readable(symbol: str) -> str:
    """Return how a symbol, given as its bytes in hexadecimal, is written in a picture.

    A visible character stands for itself, a space is ␣, and a byte that is no character, or one that the font lacks,
    is its number in hexadecimal.
    """
    try:
        text = bytes.fromhex(symbol).decode()
    except ValueError:
        return symbol.upper()
    if text == " ":
        return "␣"
    if len(text) > 1:
        return text  # the unknown symbol
    font = get_font(findfont(FontProperties(family="DejaVu Sans")))
    if text.isprintable() and font.get_char_index(ord(text)):
        return text
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(
        text, symbol.upper() if len(symbol) == 2 else f"U+{ord(text):04X}"
    )
