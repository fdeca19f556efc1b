"""Settings against each other: by sparsity, by arithmetic, by length of training, and while they train."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from rnnsparse.reporting.compare import LENGTH_KEYS, SPARSITY, Setting
from rnnsparse.reporting.plots.figure import Plot, new_figure, overview_plot, steps_axis
from rnnsparse.reporting.plots.labels import End, height, lay_out, name_lines
from rnnsparse.reporting.plots.series import Series, marker_of_sparsities, series

BITS = "bits per character (validation)"
OVERVIEW = ["bits_by_sparsity", "bits_by_training_flops", "bits_by_training_length", "learning_curves"]
PANEL, BELOW, LINE = 3.4, 0.62, 0.3  # inches
TRAINING_POINTS = 25  # that a curve over training batches is put together to


def overview(settings: Sequence[Setting]) -> list[Plot]:
    """Return the plots that compare settings; against sparsity and length only where these vary."""
    plots = []
    sparse = [setting for setting in settings if setting.method != "dense"]
    if len({setting.sparsity for setting in sparse}) > 1:
        plots.append(_by_sparsity(settings))
    plots.append(_by_flops(settings))
    if len({setting.steps for setting in settings}) > 1:
        plots.append(_by_length(settings))
    if any(setting.runs[0].curves.steps for setting in settings):
        plots.append(_learning_curves(settings))
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
    found = series(settings, SPARSITY)
    markers = marker_of_sparsities(settings)

    def cost(setting: Setting) -> float:
        return math.fsum(run.summary.training_flops for run in setting.runs) / len(setting.runs)

    flops = [cost(setting) for setting in settings]
    exponent = 3 * math.floor(math.log10(max(flops)) / 3) if max(flops) > 0 else 0
    with new_figure() as figure:
        axes = _one_panel(figure, found, BELOW + (LINE if len(markers) > 1 else 0))
        ends = [_points(axes, one, lambda setting: cost(setting) / 10**exponent, markers) for one in found]
        _positive_axis(axes, [flop / 10**exponent for flop in flops])
        axes.set_xlabel(f"training FLOPs (1e{exponent})")
        axes.set_ylabel(BITS)
        name_lines(figure, axes, ends)
        if len(markers) > 1:
            _sparsity_legend(figure, {sparsity: marker for sparsity, marker in markers.items() if sparsity})
        description = "Bits per character against the arithmetic of the whole training, a line per series."
        return overview_plot(figure, OVERVIEW[1], "Against training FLOPs", description)


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
        return overview_plot(figure, OVERVIEW[2], "Against training length", description)


def _positive_axis(axes: Axes, values: Sequence[float]) -> None:
    """Make the x axis logarithmic where values span more than a factor of five."""
    if min(values) > 0 and max(values) / min(values) > 5:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def _learning_curves(settings: Sequence[Setting]) -> Plot:
    """A panel for each sparsity, so that few curves share one; a dense network is in each."""
    sparsities = sorted({setting.sparsity for setting in settings if setting.method != "dense"}) or [0.0]
    validated = all(len(run.curves.validation) > 2 for setting in settings for run in setting.runs)
    found = [
        (one, {setting.sparsity: shown_curve(setting, validated) for setting in one.settings})
        for one in series(settings, SPARSITY)
    ]
    shown = [
        [
            (one, curves.get(sparsity) or next(iter(curves.values())))
            for one, curves in found
            if one.is_dense or sparsity in curves
        ]
        for sparsity in sparsities
    ]
    shown = [[(one, curve) for one, curve in panel if curve[0]] for panel in shown]
    heights = [height([one.label for one, _ in panel], 2.9) for panel in shown]
    between = 0.95 if len(sparsities) > 1 else 0.0
    with new_figure() as figure:
        figure.set_figheight(sum(heights) + between * (len(heights) - 1) + BELOW + 0.35)
        panels = list(figure.subplots(len(sparsities), squeeze=False)[:, 0])
        lay_out(figure, panels, heights, [one.label for one, _ in found], between, BELOW)
        for axes, sparsity, panel in zip(panels, sparsities, shown, strict=True):
            for one, (steps, bits) in panel:
                axes.plot(steps, bits, color=one.colour, linestyle=one.line)
            if panel:
                # The first steps come from eight bits; the frame is for what follows.
                top = max(bits[len(bits) // 10] for _, (_, bits) in panel)
                bottom, _ = axes.get_ylim()
                axes.set_ylim(top=top + 0.03 * (top - bottom))
            if len(sparsities) > 1:
                axes.set_title(f"sparsity {sparsity:g}", fontsize=11)
            steps_axis(axes)
            axes.set_ylabel(BITS if validated else "bits per character (training)")
            name_lines(figure, axes, [End(one.label, steps[-1], bits[-1], one.colour) for one, (steps, bits) in panel])
        where = (
            "on the validation text, means over seeds"
            if validated
            else "on training batches, each point a mean over the steps since the point before and over seeds"
        )
        description = f"Bits per character while training, {where}; the first steps lie above."
        return overview_plot(figure, OVERVIEW[3], "Learning curves", description)


def shown_curve(setting: Setting, validated: bool) -> tuple[list[int], list[float]]:
    """Return the mean curve; of training batches, which differ more than methods do, means of neighbouring points.

    It ends where training ended; points that are left over are first ones, which lie above the frame.
    """
    steps, bits = mean_curve(setting, validated)
    size = 1 if validated else max(1, len(steps) // TRAINING_POINTS)
    parts = [slice(stop - size, stop) for stop in range(size + len(steps) % size, len(steps) + 1, size)]
    return [steps[part][-1] for part in parts], [math.fsum(bits[part]) / size for part in parts]


def mean_curve(setting: Setting, validated: bool) -> tuple[list[int], list[float]]:
    """Return steps and the mean over seeds of bits per character, at the steps that all runs of a setting have."""
    curves = []
    for run in setting.runs:
        training = zip(run.curves.steps, run.curves.bits_per_character, strict=True)
        curves.append(dict(run.curves.validation if validated else training))
    steps = [step for step in curves[0] if all(step in curve for curve in curves)]
    return steps, [math.fsum(curve[step] for curve in curves) / len(curves) for step in steps]
