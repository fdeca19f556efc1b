"""Settings against each other: by sparsity, by arithmetic, by length of training, and while they train."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from rnnsparse.reporting.compare import LENGTH_KEYS, Setting
from rnnsparse.reporting.plots.figure import Plot, new_figure, png, series_style, steps_axis

BITS = "bits per character (validation)"
OVERVIEW = ["bits_by_sparsity", "bits_by_training_flops", "bits_by_training_length", "learning_curves"]


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


def _series(settings: Sequence[Setting], *keys: str) -> dict[str, list[Setting]]:
    """Return the settings that differ in nothing but `keys`, by what they have in common."""
    series: dict[str, list[Setting]] = {}
    for setting in settings:
        series.setdefault(setting.label_without(*keys), []).append(setting)
    return dict(sorted(series.items()))


def _points(axes: Axes, settings: Sequence[Setting], x: Callable[[Setting], float], number: int, label: str) -> None:
    """Draw one series: means, joined from left to right, and their deviations."""
    settings = sorted(settings, key=x)
    numbers = [setting.statistic("bits_per_character") for setting in settings]
    axes.errorbar(
        [x(setting) for setting in settings],
        [number.mean for number in numbers if number],
        yerr=[math.nan if number.deviation is None else number.deviation for number in numbers if number],
        label=label,
        **series_style(number),
    )


def _legend(figure: Figure, *panels: Axes) -> None:
    """Put one legend for all panels below them, in the order of the labels."""
    found = (zip(*axes.get_legend_handles_labels(), strict=True) for axes in panels)
    handles = {label: handle for pairs in found for handle, label in pairs}
    labels = sorted(handles)
    figure.legend(
        [handles[label] for label in labels],
        [_wrapped(label) for label in labels],
        loc="outside lower center",
        ncols=_legend_columns(labels),
        frameon=False,
        handlelength=3,
    )


def _wrapped(label: str) -> str:
    return textwrap.fill(label, 45)


def _legend_columns(labels: Sequence[str]) -> int:
    return 2 if max(map(len, labels)) <= 18 else 1


def _height(labels: Sequence[str], plot: float = 3.4) -> float:
    """Return the height of a figure that has a legend for `labels` below."""
    lines = sum(_wrapped(label).count("\n") + 1 for label in labels)
    return plot + 0.3 + 0.22 * math.ceil(lines / _legend_columns(labels))


def _by_sparsity(settings: Sequence[Setting]) -> Plot:
    series = _series(settings, "sparsity.sparsity")
    with new_figure(_height(list(series))) as figure:
        axes = figure.subplots()
        for number, (label, members) in enumerate(series.items()):
            if members[0].method == "dense":
                # It has no place on this axis: it is what the others are measured by.
                for setting in members:
                    bits = setting.statistic("bits_per_character")
                    assert bits is not None
                    style = series_style(number) | {"marker": ""}
                    axes.axhline(bits.mean, label=label, **style)
            else:
                _points(axes, members, lambda setting: setting.sparsity, number, label)
        axes.set_xlabel("sparsity (share of positions without a connection)")
        axes.set_ylabel(BITS)
        ticks = sorted({setting.sparsity for setting in settings if setting.method != "dense"})
        crowded = any(b - a < 0.1 * (ticks[-1] - ticks[0]) for a, b in pairwise(ticks))
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=90 if crowded else 0)
        _legend(figure, axes)
        description = "Bits per character against sparsity, a line per series."
        return Plot(OVERVIEW[0], "Against sparsity", description, png(figure))


def _by_flops(settings: Sequence[Setting]) -> Plot:
    series = _series(settings, "sparsity.sparsity")

    def cost(setting: Setting) -> float:
        return math.fsum(run.summary.training_flops for run in setting.runs) / len(setting.runs)

    flops = [cost(setting) for setting in settings]
    exponent = 3 * math.floor(math.log10(max(flops)) / 3) if max(flops) > 0 else 0
    with new_figure(_height(list(series))) as figure:
        axes = figure.subplots()
        for number, (label, members) in enumerate(series.items()):
            _points(axes, members, lambda setting: cost(setting) / 10**exponent, number, label)
        _positive_axis(axes, [flop / 10**exponent for flop in flops])
        axes.set_xlabel(f"training FLOPs (1e{exponent})")
        axes.set_ylabel(BITS)
        _legend(figure, axes)
        description = "Bits per character against the arithmetic of the whole training, a line per series."
        return Plot(OVERVIEW[1], "Against training FLOPs", description, png(figure))


def _by_length(settings: Sequence[Setting]) -> Plot:
    series = _series(settings, *LENGTH_KEYS)
    lengths = sorted({setting.steps for setting in settings})
    with new_figure(_height(list(series))) as figure:
        axes = figure.subplots()
        for number, (label, members) in enumerate(series.items()):
            _points(axes, members, lambda setting: setting.steps, number, label)
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(lengths, [f"{length / lengths[0]:.3g}x\n{length:,}" for length in lengths])
        axes.set_xlabel("training length (times the shortest; steps)")
        axes.set_ylabel(BITS)
        _legend(figure, axes)
        description = "Bits per character against the number of training steps, a line per series."
        return Plot(OVERVIEW[2], "Against training length", description, png(figure))


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
    series = list(_series(settings, "sparsity.sparsity"))
    validated = all(len(run.curves.validation) > 2 for setting in settings for run in setting.runs)
    with new_figure(_height(series, 3.1 * len(sparsities))) as figure:
        panels = figure.subplots(len(sparsities), squeeze=False)[:, 0]
        for axes, sparsity in zip(panels, sparsities, strict=True):
            tops = []
            for setting in settings:
                if setting.method == "dense" or setting.sparsity == sparsity:
                    steps, bits = mean_curve(setting, validated)
                    if not steps:
                        continue
                    label = setting.label_without("sparsity.sparsity")
                    style = series_style(series.index(label)) | {"markevery": max(1, len(steps) // 6), "markersize": 5}
                    axes.plot(steps, bits, label=label, **style)
                    tops.append(bits[len(bits) // 10])
            if tops:
                # The first steps come from eight bits; the frame is for what follows.
                bottom, _ = axes.get_ylim()
                axes.set_ylim(top=max(tops) + 0.03 * (max(tops) - bottom))  # with room for a whole marker
            if len(sparsities) > 1:
                axes.set_title(f"sparsity {sparsity:g}", fontsize=11)
            steps_axis(axes)
            axes.set_ylabel(BITS if validated else "bits per character\n(training batches)")
        _legend(figure, *panels)
        what = "validation text" if validated else "training batches"
        description = f"Bits per character on the {what} while training, means over seeds; the first steps lie above."
        return Plot(OVERVIEW[3], "Learning curves", description, png(figure))


def mean_curve(setting: Setting, validated: bool) -> tuple[list[int], list[float]]:
    """Return steps and the mean over seeds of bits per character, at the steps that all runs of a setting have."""
    curves = []
    for run in setting.runs:
        training = zip(run.curves.steps, run.curves.bits_per_character, strict=True)
        curves.append(dict(run.curves.validation if validated else training))
    steps = [step for step in curves[0] if all(step in curve for curve in curves)]
    return steps, [math.fsum(curve[step] for curve in curves) / len(curves) for step in steps]
