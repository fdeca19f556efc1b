"""Settings against each other: by sparsity, by arithmetic, time and length of training, and while they train."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from rnnsparse.reporting.compare import LENGTH_KEYS, SPARSITY, Setting
from rnnsparse.reporting.plots.figure import BELOW, BITS, Plot, new_figure, overview_plot
from rnnsparse.reporting.plots.labels import End, height, lay_out, name_lines
from rnnsparse.reporting.plots.series import Series, marker_of_sparsities, series
from rnnsparse.reporting.plots.while_training import CURVES, GRADIENTS, gradient_norms, learning_curves
from rnnsparse.reporting.runs import Run

OVERVIEW = [
    "bits_by_sparsity",
    "bits_by_training_flops",
    "bits_by_minutes",
    "bits_by_training_length",
    CURVES,
    GRADIENTS,
]
PANEL, LINE = 3.4, 0.3  # inches


def overview(settings: Sequence[Setting]) -> list[Plot]:
    """Return the plots that compare settings; against sparsity, time and length only where they can tell something."""
    plots = []
    sparse = [setting for setting in settings if setting.method != "dense"]
    if len({setting.sparsity for setting in sparse}) > 1:
        plots.append(_by_sparsity(settings))
    plots.append(_by_flops(settings))
    if len({setting.steps for setting in settings}) > 1:
        if all(run.summary.characters_per_second for setting in settings for run in setting.runs):
            plots.append(_by_minutes(settings))
        plots.append(_by_length(settings))
    if any(setting.runs[0].curves.steps for setting in settings):
        plots.append(learning_curves(settings))
    if all(run.curves.gradient_norm for setting in settings for run in setting.runs):
        plots.append(gradient_norms(settings))
    return plots


def _one_panel(figure: Figure, found: Sequence[Series], below: float = BELOW) -> Axes:
    """Return a panel with room for the names of series, and `below` it for what is written there."""
    labels = [one.label for one in found]
    tall = height(labels, PANEL)
    figure.set_figheight(tall + below + 0.12)
    axes = figure.subplots()
    lay_out(figure, [axes], [tall], labels, between=0, below=below)
    return axes


def _points(axes: Axes, one: Series, x: Callable[[Setting], float], markers: dict[float, str]) -> End:
    """Draw one series: means, joined from left to right, and their deviations."""
    settings = sorted(one.settings, key=x)
    where = [x(setting) for setting in settings]
    axes.plot(where, [setting.bits.mean for setting in settings], color=one.colour, linestyle=one.line)
    for setting, at in zip(settings, where, strict=True):
        deviation = math.nan if setting.bits.deviation is None else setting.bits.deviation
        axes.errorbar(at, setting.bits.mean, yerr=deviation, color=one.colour, marker=markers[setting.sparsity])
    return End(one.label, where[-1], settings[-1].bits.mean, one.colour)


def _sparsity_legend(figure: Figure, markers: dict[float, str]) -> None:
    """Say below which marker is which sparsity."""
    handles = [
        Line2D([], [], color="#444444", linestyle="", marker=marker, label=f"{sparsity:g}")
        for sparsity, marker in markers.items()
    ]
    figure.legend(
        handles=[Line2D([], [], linestyle="", label="sparsity"), *handles],
        loc="lower left",
        ncols=len(handles) + 1,
        frameon=False,
        handletextpad=0.1,
        columnspacing=1.0,
    )


def _by_sparsity(settings: Sequence[Setting]) -> Plot:
    found = series(settings, SPARSITY)
    markers = marker_of_sparsities(settings)
    ticks = sorted({setting.sparsity for setting in settings if setting.method != "dense"})
    with new_figure() as figure:
        axes = _one_panel(figure, found)
        ends = []
        for one in found:
            if one.is_dense:
                # It has no place on this axis: it is what the others are measured by.
                bits = one.settings[0].bits
                axes.axhline(bits.mean, color=one.colour, linestyle=one.line)
                ends.append(End(one.label, _halvings(ticks[-1]), bits.mean, one.colour))
            else:
                ends.append(_points(axes, one, lambda setting: _halvings(setting.sparsity), markers))
        axes.set_xlabel("sparsity (share of positions without a connection)")
        axes.set_ylabel(BITS)
        where = [_halvings(tick) for tick in ticks]
        crowded = any(b - a < 0.12 * (where[-1] - where[0]) for a, b in pairwise(where))
        axes.set_xticks(where, [f"{tick:g}" for tick in ticks], rotation=90 if crowded else 0)
        name_lines(figure, axes, ends)
        description = "Bits per character against sparsity, a line per series."
        return overview_plot(figure, OVERVIEW[0], "Against sparsity", description)


def _halvings(sparsity: float) -> float:
    """Return how often the connections were halved: from 0.9 to 0.95 is as far as from 0.8 to 0.9."""
    return -math.log2(max(1 - sparsity, 1e-6))


def _by_flops(settings: Sequence[Setting]) -> Plot:
    def flops(run: Run) -> float:
        return run.summary.training_flops

    highest = max(_mean(setting, flops) for setting in settings)
    exponent = 3 * math.floor(math.log10(highest) / 3) if highest > 0 else 0
    description = "Bits per character against the arithmetic of the whole training, a line per series."
    words = (OVERVIEW[1], "Against training FLOPs", description)
    return _by_cost(settings, lambda run: flops(run) / 10**exponent, f"training FLOPs (1e{exponent})", words)


def _by_minutes(settings: Sequence[Setting]) -> Plot:
    """Say what arithmetic does not: how long it takes, where the runs had the same machine for themselves."""
    description = "Bits per character against the minutes that all training steps took where each run was trained."
    return _by_cost(settings, _minutes, "minutes of training", (OVERVIEW[2], "Against time", description))


def _minutes(run: Run) -> float:
    speed = run.summary.characters_per_second
    return run.summary.characters_seen / speed / 60 if speed else math.nan


def _mean(setting: Setting, number: Callable[[Run], float]) -> float:
    return math.fsum(map(number, setting.runs)) / len(setting.runs)


def _by_cost(
    settings: Sequence[Setting], cost: Callable[[Run], float], label: str, words: tuple[str, str, str]
) -> Plot:
    """Draw bits against what a run costs; a series joins its sparsities, or, if there is but one, its lengths."""
    markers = marker_of_sparsities(settings)
    alone = len({setting.sparsity for setting in settings if setting.method != "dense"}) < 2
    found = series(settings, *(LENGTH_KEYS if alone else [SPARSITY]))
    with new_figure() as figure:
        axes = _one_panel(figure, found, BELOW + (LINE if len(markers) > 1 else 0))
        ends = [_points(axes, one, lambda setting: _mean(setting, cost), markers) for one in found]
        _positive_axis(axes, [_mean(setting, cost) for setting in settings])
        axes.set_xlabel(label)
        axes.set_ylabel(BITS)
        name_lines(figure, axes, ends)
        if len(markers) > 1:
            _sparsity_legend(figure, {sparsity: marker for sparsity, marker in markers.items() if sparsity})
        return overview_plot(figure, *words)


def _by_length(settings: Sequence[Setting]) -> Plot:
    found = series(settings, *LENGTH_KEYS)
    markers = marker_of_sparsities(settings)
    lengths = sorted({setting.steps for setting in settings})
    with new_figure() as figure:
        axes = _one_panel(figure, found, BELOW + LINE)
        ends = [_points(axes, one, lambda setting: setting.steps, markers) for one in found]
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(lengths, [f"{length / lengths[0]:.3g}x\n{length:,}" for length in lengths])
        axes.set_xlabel("training length (times the shortest; steps)")
        axes.set_ylabel(BITS)
        name_lines(figure, axes, ends)
        description = "Bits per character against the number of training steps, a line per series."
        return overview_plot(figure, OVERVIEW[3], "Against training length", description)


def _positive_axis(axes: Axes, values: Sequence[float]) -> None:
    """Make the x axis logarithmic where values span more than a factor of five."""
    if min(values) > 0 and max(values) / min(values) > 5:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
