from __future__ import annotations

import io
import math
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from rnnsparse.reporting.compare import Setting, group
from rnnsparse.reporting.markup import figures
from rnnsparse.reporting.plots.figure import new_figure
from rnnsparse.reporting.plots.labels import End, height, lay_out, name_lines, spread, wrapped
from rnnsparse.reporting.plots.overview import overview
from rnnsparse.reporting.plots.series import COLOURS, colour_of_methods, readable_shade, series
from rnnsparse.reporting.plots.while_training import shown_curve
from rnnsparse.reporting.reading import read_runs
from rnnsparse.reporting.report import report

RESULTS = Path(__file__).parent.parent.parent / "checkpoints" / "results"


@pytest.fixture(scope="module")
def settings() -> list[Setting]:
    """Thirteen settings of two runs each, with their pictures."""
    return group(read_runs([RESULTS / "methods_gru256_75.json"])[0])


def test_a_method_has_one_colour_and_its_variants_have_lines_of_their_own(settings: list[Setting]) -> None:
    for keys in [(), ("sparsity.sparsity",), ("training.steps",)]:
        found = series(settings, *keys)
        assert {(one.settings[0].method, one.colour) for one in found} == set(colour_of_methods(settings).items())
        looks = [(one.colour, str(one.line)) for one in found]
        assert len(set(looks)) == len(looks)


def test_a_curve_over_training_batches_is_put_together_and_ends_where_training_ended(settings: list[Setting]) -> None:
    run = settings[0].runs[0]
    steps, bits = list(range(10, 540, 10)), [float(i) for i in range(53)]
    curves = replace(run.curves, steps=steps, bits_per_character=bits, moved=[], ever_active=[], gradient_norm=[])
    found = shown_curve(replace(settings[0], runs=(replace(run, curves=curves),)), validated=False)
    assert found == (list(range(30, 540, 20)), [i + 0.5 for i in range(1, 53, 2)])


@pytest.mark.parametrize("colour", COLOURS)
def test_names_can_be_read_in_every_colour(colour: str) -> None:
    linear = []
    for i in (1, 3, 5):
        channel = int(readable_shade(colour)[i : i + 2], 16) / 255
        linear.append(channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4)
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    assert 1.05 / (luminance + 0.05) > 4.4


def test_pictures_of_few_colours_still_tell_the_names_of_methods_apart(settings: list[Setting]) -> None:
    wanted = {readable_shade(colour) for colour in colour_of_methods(settings).values()}
    for plot in overview(settings):
        assert plot.png is not None
        shown = {colour[:3] for _, colour in Image.open(io.BytesIO(plot.png)).convert("RGBA").getcolors(1 << 20)}
        for colour in wanted:
            rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
            assert min(math.dist(rgb, each) for each in shown) < 16, plot.name


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.1, 2)), min_size=1, max_size=20))
def test_labels_lie_in_order_without_covering_each_other(wanted: list[tuple[float, float]]) -> None:
    places, sizes = sorted(place for place, _ in wanted), [size for _, size in wanted]
    room = max(10.0, sum(sizes))
    centres = spread(places, sizes, room)
    edges = [(centre - size / 2, centre + size / 2) for centre, size in zip(centres, sizes, strict=True)]
    assert all(before[1] <= after[0] + 1e-9 for before, after in pairwise(edges))
    assert edges[0][0] >= -1e-9
    assert edges[-1][1] <= room + 1e-9


def test_labels_that_have_room_stay_where_their_lines_end() -> None:
    assert spread([1.0, 4.0, 8.0], [1.0, 1.0, 2.0], 10) == [1.0, 4.0, 8.0]
    assert spread([5.0, 5.0], [1.0, 1.0], 10) == [4.5, 5.5]
    assert spread([0.0, 10.0], [1.0, 1.0], 10) == [0.5, 9.5]


def test_names_of_lines_that_end_together_are_all_in_the_picture_and_apart() -> None:
    labels = [f"method_{i}, drop_fraction=0.{i}, a_long_name=$\\frac{i}$" for i in range(13)] + ["short", "W" * 90]
    tall = height(labels, 3.0)
    with new_figure() as figure:
        figure.set_figheight(tall + 0.8)
        axes = figure.subplots()
        lay_out(figure, [axes], [tall], labels, between=0, below=0.6)
        axes.plot([0, 1], [2.0, 2.1])
        name_lines(figure, axes, [End(label, 1, 2.05, "#56B4E9") for label in labels])
        renderer = FigureCanvasAgg(figure).get_renderer()
        boxes = [text.get_window_extent(renderer) for text in axes.texts]
        assert sorted(text.get_text() for text in axes.texts) == sorted(map(wrapped, labels))
        assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
        assert all(box.x0 > axes.get_window_extent(renderer).x1 for box in boxes)
        assert all(box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)


def test_a_report_of_26_runs_is_smaller_than_two_megabytes(settings: list[Setting]) -> None:
    """Its details are thirteen times those of the setting that has most connections, whose pictures are the fullest."""
    assert (len(settings), sum(len(setting.runs) for setting in settings)) == (13, 26)
    page = report([next(setting for setting in settings if setting.method == "scout")], [], [])
    assert page.count("<img") == 6
    assert 13 * len(page) + len(figures(overview(settings))) < 2_000_000
