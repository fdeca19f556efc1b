"""What all plots have in common.

They are drawn for the width of a phone.
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
from PIL import Image

WIDTH = 5.2  # inches
DPI, DETAIL_DPI = 150, 120  # 780 and 624 pixels, two and five thirds for each of a phone's
PALETTE, DETAIL_PALETTE = 256, 64  # colours; with 64, labels of two methods become one colour
BELOW = 0.62  # inches below a panel, for its axis
BITS = "bits per character (validation)"
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
    """A picture, what it is called, and what it shows, for those who cannot see it.

    `shown` is what a page holds, an image of the `kind` that is in its media type; `png` is for a file of its own.
    """

    name: str
    title: str
    description: str
    shown: bytes
    kind: Literal["svg+xml", "webp"]
    png: bytes | None = None


@contextmanager
def new_figure(height: float = 4.0, layout: Literal["constrained"] | None = None) -> Iterator[Figure]:
    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(WIDTH, height), dpi=DPI, layout=layout)


def overview_plot(figure: Figure, name: str, title: str, description: str) -> Plot:
    """Return what a figure shows, sharp at every size, and as PNG. The same data gives the same bytes."""
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(out, format="svg", metadata={"Creator": None, "Date": None})
    png = io.BytesIO()
    _few_colours(figure, DPI, PALETTE).save(png, "png", optimize=True)
    return Plot(name, title, description, out.getvalue(), "svg+xml", png.getvalue())


def detail_plot(figure: Figure, name: str, title: str, description: str) -> Plot:
    """Return what a figure shows in few bytes, since a comparison has many of these."""
    out = io.BytesIO()
    _few_colours(figure, DETAIL_DPI, DETAIL_PALETTE).convert("RGB").save(out, "webp", lossless=True, method=6)
    return Plot(name, title, description, out.getvalue(), "webp")


def _few_colours(figure: Figure, dpi: int, palette: int) -> Image.Image:
    """Return a picture in a palette of its own: a quarter as large, and nothing of it less sharp."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi)
    return Image.open(out).convert("RGB").quantize(palette, dither=Image.Dither.NONE)


def steps_axis(axes: Axes) -> None:
    """Label the x axis as training steps."""
    axes.set_xlabel("training steps")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
