"""The loss along straight lines between networks."""

from __future__ import annotations

from collections.abc import Mapping

from rnnsparse.interpolation import Line
from rnnsparse.reporting.plots.figure import BELOW, BITS, new_figure, overview_plot
from rnnsparse.reporting.plots.labels import End, height, lay_out, name_lines
from rnnsparse.reporting.plots.series import COLOURS, LINES

PANEL = 3.4  # inches


def straight_lines(lines: Mapping[tuple[str, str], Line]) -> bytes:
    """Return a PNG with a curve for each pair of networks, each with a look of its own; dotted what has no barrier."""
    labels = [f"{first} to {second}: barrier {line.barrier:.2f}" for (first, second), line in lines.items()]
    with new_figure() as figure:
        tall = height(labels, PANEL)
        figure.set_figheight(tall + BELOW + 0.12)
        axes = figure.subplots()
        lay_out(figure, [axes], [tall], labels, between=0, below=BELOW)
        ends = []
        for number, (label, line) in enumerate(zip(labels, lines.values(), strict=True)):
            colour = COLOURS[number % len(COLOURS)]
            style = LINES[number // len(COLOURS) % len(LINES)]
            axes.plot(line.places, line.bits, color=colour, linestyle=style, marker="o", markersize=3)
            axes.plot([0, 1], [line.bits[0], line.bits[-1]], color=colour, linestyle=":", linewidth=1.0)
            ends.append(End(label, 1, line.bits[-1], colour))
        axes.set_xlabel("0: the first network, 1: the second")
        axes.set_ylabel(BITS)
        name_lines(figure, axes, ends)
        plot = overview_plot(figure, "straight_lines", "Straight lines", "Bits per character between networks.")
        assert plot.png is not None
        return plot.png
