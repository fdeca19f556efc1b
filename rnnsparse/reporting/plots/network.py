"""One setting: how its runs learned, and what one of its networks learned to look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from rnnsparse.reporting.compare import Setting
from rnnsparse.reporting.pictures import Histogram, Pictures, SymbolPicture
from rnnsparse.reporting.plots.animation import animation
from rnnsparse.reporting.plots.figure import DETAIL_DPI, WIDTH, Plot, detail_plot, new_figure, steps_axis
from rnnsparse.reporting.plots.labels import readable
from rnnsparse.reporting.plots.series import LINES, MARKERS

LARGEST_ANIMATION = 300_000  # bytes
CHANGED_SYMBOLS = 40  # rows that the picture over time has


def of_setting(setting: Setting, colour: str) -> list[Plot]:
    """Return the learning curves of a setting's runs, in shades of the method's `colour`, and pictures of one run."""
    plots = []
    if any(run.curves.steps for run in setting.runs):
        plots.append(_runs(setting, colour))
    pictures = next((run.pictures for run in setting.runs if run.pictures), None)
    if pictures:
        plots += [_gates(pictures), _degrees(pictures), _symbols_moving(pictures) or _symbols(pictures)]
        if len(pictures.steps) > 1:
            plots += [_symbols_over_time(pictures), _units_over_time(pictures)]
    return plots


def _runs(setting: Setting, colour: str) -> Plot:
    """Learning curves of each run above, how far the topology moved below."""
    moving = [run for run in setting.runs if run.curves.moved and run.curves.steps]
    with new_figure(6.2 if moving else 3.4, layout="constrained") as figure:
        panels = figure.subplots(2 if moving else 1, squeeze=False, sharex=True)[:, 0]
        for number, run in enumerate(setting.runs):
            curves, line = run.curves, LINES[number % len(LINES)]
            label = f"seed {run.summary.seed}: training"
            panels[0].plot(curves.steps, curves.bits_per_character, label=label, color=colour, linestyle=line)
            if curves.validation:
                points = zip(*curves.validation, strict=True)
                marker = MARKERS[number % len(MARKERS)]
                panels[0].plot(*points, label="validation", color=colour, marker=marker, linestyle="")
        panels[0].set_ylabel("bits per character")
        panels[0].legend(frameon=False)
        if moving:
            run = moving[0]
            steps = run.curves.steps
            panels[1].plot(steps, [100 * x for x in run.curves.moved], color=colour, label="moved at an update")
            if run.curves.ever_active:
                ever = [100 * x for x in run.curves.ever_active]
                panels[1].plot(steps, ever, color=colour, linestyle="--", label="positions ever active")
            panels[1].set_ylim(bottom=0)
            panels[1].set_ylabel(f"% (seed {run.summary.seed})")
            panels[1].legend(frameon=False)
        steps_axis(panels[-1])
        description = "Above, bits per character of each run while training. Below, the share of connections moved."
        return detail_plot(figure, "runs", "Learning curves and moves", description)


def _gates(pictures: Pictures) -> Plot:
    names = [block.name for block in pictures.blocks]
    density = [100 * block.over_time[-1] / (block.rows * block.cols) for block in pictures.blocks]
    first = [100 * block.over_time[0] / (block.rows * block.cols) for block in pictures.blocks]
    with new_figure(1.1 + 0.34 * len(names), layout="constrained") as figure:
        axes = figure.subplots()
        axes.barh(names, density, color="#56B4E9", label="at the end")
        if len(pictures.steps) > 1:
            axes.plot(first, names, "D", color="#000000", markerfacecolor="none", label=f"step {pictures.steps[0]:,}")
        for name, value, block in zip(names, density, pictures.blocks, strict=True):
            axes.annotate(f" {block.over_time[-1]:,}", (max(value, 0), name), va="center", fontsize=9)
        axes.invert_yaxis()
        axes.margins(x=0.18)
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("density (% of positions), and connections")
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        description = "How dense each gate and matrix is, with its number of connections at the end."
        return detail_plot(figure, "gates", "Connections of each gate", description)


def _degrees(pictures: Pictures) -> Plot:
    height = 0.8 + 0.85 * len(pictures.blocks)
    # The automatic layout takes seconds for so many panels.
    with new_figure(height) as figure:
        panels = figure.subplots(len(pictures.blocks), 2, squeeze=False)
        figure.subplots_adjust(left=0.1, right=0.98, bottom=0.5 / height, top=1 - 0.25 / height, hspace=0.95)
        for axes_pair, block in zip(panels, pictures.blocks, strict=True):
            sides = [(block.inputs, "#0072B2", "in"), (block.outputs, "#D55E00", "out")]
            for axes, (histogram, colour, _) in zip(axes_pair, sides, strict=True):
                _bars(axes, histogram, colour)
            axes_pair[0].set_title(block.name, fontsize=10, loc="left", pad=2)
        panels[-1, 0].set_xlabel("inputs of a row")
        panels[-1, 1].set_xlabel("rows that read a column")
        description = (
            "For each gate, how many rows have how many inputs, and how many columns are read by how many rows."
        )
        return detail_plot(figure, "degrees", "In-degree and out-degree of each gate", description)


def _bars(axes: Axes, histogram: Histogram, colour: str) -> None:
    edges = [histogram.start + i * histogram.width for i in range(len(histogram.counts) + 1)]
    axes.stairs(histogram.counts, edges, fill=True, color=colour)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))


def _symbols(pictures: Pictures) -> Plot:
    """A grid of symbols, as bright as their rows are dense."""
    across = 16
    counts = [symbol.over_time[-1] for symbol in pictures.symbols]
    down = math.ceil(len(counts) / across)
    grid = np.full(across * down, np.nan)
    grid[: len(counts)] = counts
    height = 0.8 + WIDTH / across * down
    with new_figure(height) as figure:
        axes = figure.add_axes((0, 0.8 / height, 1, 1 - 0.8 / height))
        image = axes.imshow(grid.reshape(down, across), cmap="cividis", vmin=0, vmax=max(1, *counts), aspect="equal")
        for i, symbol in enumerate(pictures.symbols):
            colour = "black" if counts[i] > 0.55 * max(counts) else "white"
            label = readable(symbol.symbol)
            size = 10 if len(label) == 1 else 7 if len(label) == 2 else 5
            axes.text(i % across, i // across, label, ha="center", va="center", color=colour, fontsize=size)
        axes.set_axis_off()
        scale = figure.add_axes((0.1, 0.55 / height, 0.8, 0.15 / height))
        bar = figure.colorbar(image, cax=scale, orientation="horizontal")
        bar.set_label(f"connections of the embedding row, of {pictures.embedding_dim}")
        description = "Each symbol, as bright as its row of the embedding has connections at the end."
        return detail_plot(figure, "symbols", "What the embedding looks at", description)


def _symbols_moving(pictures: Pictures) -> Plot | None:
    """The same while training, if something moves and takes few bytes; it plays three times and stays at the end."""
    if all(len(set(symbol.over_time)) == 1 for symbol in pictures.symbols):
        return None
    moving = animation(pictures, round(WIDTH * DETAIL_DPI), "webp", plays=3)
    if len(moving) > LARGEST_ANIMATION:
        return None
    description = "Each symbol, as bright as its row of the embedding has connections, from the first step to the last."
    return Plot("symbols", "What the embedding looks at", description, moving, "webp")


def _symbols_over_time(pictures: Pictures) -> Plot:
    def gain(symbol: SymbolPicture) -> int:
        return symbol.over_time[-1] - symbol.over_time[0]

    most = sorted(pictures.symbols, key=gain, reverse=True)
    if len(most) > CHANGED_SYMBOLS:
        most = most[: CHANGED_SYMBOLS // 2] + most[-CHANGED_SYMBOLS // 2 :]
    rows = np.array([symbol.over_time for symbol in most])
    labels = [f"{readable(s.symbol)}   {s.over_time[0]} → {s.over_time[-1]}" for s in most]
    with new_figure(1.2 + 0.17 * len(most), layout="constrained") as figure:
        axes = figure.subplots()
        _heat(figure, axes, rows, pictures.steps, "connections of the embedding row", "cividis")
        axes.set_yticks(range(len(most)), labels, fontsize=8)
        description = (
            f"The embedding rows of {len(most)} symbols: above those that gained most, below those that lost most."
        )
        return detail_plot(figure, "symbols_over_time", "Embedding rows over time", description)


def _units_over_time(pictures: Pictures) -> Plot:
    """Gates, then units by their rank at the end, relative to what they had at first."""
    blocks = np.array([block.over_time for block in pictures.blocks], dtype=float)
    # A gate may start with nothing.
    relative = 100 * (blocks / np.maximum(blocks[:, :1], 1) - 1)
    with new_figure(1.5 + 0.22 * len(blocks) + 4.2 * len(pictures.units), layout="constrained") as figure:
        ratios = [0.22 * len(blocks) + 0.9, *(2.1 for _ in range(2 * len(pictures.units)))]
        panels = figure.subplots(len(ratios), gridspec_kw={"height_ratios": ratios})
        limit = max(1.0, float(np.abs(relative).max()))
        _heat(figure, panels[0], relative, pictures.steps, "% gained or lost", "PuOr", limit)
        panels[0].set_yticks(range(len(blocks)), [block.name for block in pictures.blocks], fontsize=8)
        sides = [(u.name, what, rows) for u in pictures.units for what, rows in (("in", u.inputs), ("out", u.outputs))]
        for axes, (name, what, rows) in zip(panels[1:], sides, strict=True):
            what = "inputs of a unit" if what == "in" else "readers of a unit"
            _heat(figure, axes, np.array(rows), pictures.steps, what, "cividis")
            axes.set_yticks([])
            axes.set_ylabel(f"{name}: units,\nmost at the end above", fontsize=9)
        description = (
            "Connections of each gate against its first ones; inputs and readers of units, by rank at the end."
        )
        return detail_plot(figure, "units_over_time", "Gates and units over time", description)


def _heat(
    figure: Figure,
    axes: Axes,
    rows: NDArray[Any],
    steps: Sequence[int],
    label: str,
    colours: str,
    limit: float | None = None,
) -> None:
    """Draw rows over the moments; with `limit` the colours are for -limit to limit, else from 0 on."""
    low, high = (-limit, limit) if limit else (0.0, max(1.0, float(rows.max())))
    image = axes.imshow(rows, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    shown = sorted({0, len(steps) // 2, len(steps) - 1})
    axes.set_xticks(shown, [f"{steps[i]:,}" for i in shown])
    axes.set_xlabel("training steps")
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes, label=label, aspect=12)
