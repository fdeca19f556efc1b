"""Settings against each other while they train: their learning curves, and the norms of their gradients."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from rnnsparse.reporting.compare import SPARSITY, Setting
from rnnsparse.reporting.plots.figure import BELOW, BITS, Plot, new_figure, overview_plot, steps_axis
from rnnsparse.reporting.plots.labels import End, height, lay_out, name_lines
from rnnsparse.reporting.plots.series import Series, series

CURVES, GRADIENTS = "learning_curves", "gradient_norms"
PANEL = 2.9  # inches
TRAINING_POINTS = 25  # that a curve over training batches is put together to

Curve = tuple[list[int], list[float]]  # steps, and a number at each
Panel = list[tuple[Series, Curve]]


def learning_curves(settings: Sequence[Setting]) -> Plot:
    """Return bits per character: on the validation text, or, if that was scored too rarely, on training batches."""
    validated = all(len(run.curves.validation) > 2 for setting in settings for run in setting.runs)

    def frame(axes: Axes, panel: Panel) -> None:
        # The first steps come from eight bits; the frame is for what follows.
        top = max(bits[len(bits) // 10] for _, (_, bits) in panel)
        bottom, _ = axes.get_ylim()
        axes.set_ylim(top=top + 0.03 * (top - bottom))

    where = (
        "on the validation text, means over seeds"
        if validated
        else "on training batches, each point a mean over the steps since the point before and over seeds"
    )
    return _over_steps(
        settings,
        lambda setting: shown_curve(setting, validated),
        BITS if validated else "bits per character (training)",
        frame,
        (CURVES, "Learning curves", f"Bits per character while training, {where}; the first steps lie above."),
    )


def gradient_norms(settings: Sequence[Setting]) -> Plot:
    """Return the norms of gradients before clipping, as Evci et al. 2022 (Gradient flow in sparse networks) do."""

    def frame(axes: Axes, panel: Panel) -> None:
        axes.set_yscale("log")
        norms = [norm for _, (_, found) in panel for norm in found if norm > 0]
        wide = not norms or max(norms) / min(norms) > 100
        axes.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))

    about = (
        "The norm of the gradient of all connections and biases, before clipping. Each point is the median of those "
        "logged since the point before, over seeds too."
    )
    return _over_steps(settings, gradient_curve, "norm of the gradient", frame, (GRADIENTS, "Gradient flow", about))


def _over_steps(
    settings: Sequence[Setting],
    curve: Callable[[Setting], Curve],
    what: str,
    frame: Callable[[Axes, Panel], None],
    words: tuple[str, str, str],
) -> Plot:
    """Draw a panel for each sparsity, so that few curves share one; a dense network is in each.

    Args:
        what: the number that is drawn.
        frame: sets scale and limits of a panel.
        words: name, title and description of the plot.
    """
    sparsities = sorted({setting.sparsity for setting in settings if setting.method != "dense"}) or [0.0]
    found = [
        (one, {setting.sparsity: curve(setting) for setting in one.settings}) for one in series(settings, SPARSITY)
    ]
    shown = [
        [
            (one, curves.get(sparsity) or next(iter(curves.values())))
            for one, curves in found
            if one.is_dense or sparsity in curves
        ]
        for sparsity in sparsities
    ]
    shown = [[(one, points) for one, points in panel if points[0]] for panel in shown]
    heights = [height([one.label for one, _ in panel], PANEL) for panel in shown]
    between = 0.95 if len(sparsities) > 1 else 0.0
    with new_figure() as figure:
        figure.set_figheight(sum(heights) + between * (len(heights) - 1) + BELOW + 0.35)
        panels = list(figure.subplots(len(sparsities), squeeze=False)[:, 0])
        lay_out(figure, panels, heights, [one.label for one, _ in found], between, BELOW)
        for axes, sparsity, panel in zip(panels, sparsities, shown, strict=True):
            for one, (steps, numbers) in panel:
                axes.plot(steps, numbers, color=one.colour, linestyle=one.line)
            if panel:
                frame(axes, panel)
            if len(sparsities) > 1:
                axes.set_title(f"sparsity {sparsity:g}", fontsize=11)
            steps_axis(axes)
            axes.set_ylabel(what)
            name_lines(figure, axes, [End(one.label, steps[-1], last[-1], one.colour) for one, (steps, last) in panel])
        return overview_plot(figure, *words)


def shown_curve(setting: Setting, validated: bool) -> Curve:
    """Return the mean curve; of training batches, which differ more than methods do, means of neighbouring points."""
    steps, bits = mean_curve(setting, validated)
    parts = [slice(i, i + 1) for i in range(len(steps))] if validated else _windows(len(steps))
    return [steps[part][-1] for part in parts], [math.fsum(bits[part]) / len(bits[part]) for part in parts]


def gradient_curve(setting: Setting) -> Curve:
    """Return medians over neighbouring points and seeds of the gradient's norm: single batches have far larger ones."""
    curves = [dict(zip(run.curves.steps, run.curves.gradient_norm, strict=True)) for run in setting.runs]
    steps = [step for step in curves[0] if all(step in curve for curve in curves)]
    parts = [steps[part] for part in _windows(len(steps))]
    return [part[-1] for part in parts], [statistics.median(c[step] for c in curves for step in part) for part in parts]


def _windows(points: int) -> list[slice]:
    """Return ranges of neighbouring points of equal size, about `TRAINING_POINTS` of them.

    The last ends where training ended; points that are left over are first ones, which lie above the frame.
    """
    size = max(1, points // TRAINING_POINTS)
    return [slice(stop - size, stop) for stop in range(size + points % size, points + 1, size)]


def mean_curve(setting: Setting, validated: bool) -> Curve:
    """Return steps and the mean over seeds of bits per character, at the steps that all runs of a setting have."""
    curves = []
    for run in setting.runs:
        training = zip(run.curves.steps, run.curves.bits_per_character, strict=True)
        curves.append(dict(run.curves.validation if validated else training))
    steps = [step for step in curves[0] if all(step in curve for curve in curves)]
    return steps, [math.fsum(curve[step] for curve in curves) / len(curves) for step in steps]
