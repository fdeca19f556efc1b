from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from rnnsparse.reporting.compare import Setting, group
from rnnsparse.reporting.plots.figure import Plot
from rnnsparse.reporting.plots.labels import readable
from rnnsparse.reporting.plots.network import of_setting
from rnnsparse.reporting.plots.overview import overview
from rnnsparse.reporting.plots.series import DENSE
from rnnsparse.reporting.plots.while_training import gradient_curve, mean_curve
from rnnsparse.reporting.reading import read_runs
from rnnsparse.reporting.report import report

VOID = {"meta", "wbr", "img", "br", "hr", "link", "input"}
HOSTILE = "<script>alert(1)</script>\"'&$\\frac$|é"


class Page(HTMLParser):
    """Checks that every tag is closed, in order, and keeps what a test wants to see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], "tags that stay open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def settings(folder: Path) -> list[Setting]:
    return group(read_runs([folder / "runs"])[0])


@pytest.fixture(scope="module")
def plots(settings: list[Setting]) -> list[Plot]:
    return overview(settings)


@pytest.fixture(scope="module")
def page(settings: list[Setting]) -> str:
    """A report of two settings and three runs, all with names to be careful with."""
    hostile = [
        replace(s, runs=tuple(replace(run, name=HOSTILE) for run in s.runs), special=s.special | {"data.text": HOSTILE})
        for s in settings
        if s.method == "rigl" and s.steps == 3
    ]
    return report(hostile, overview(hostile), [f"{HOSTILE}: not finished"])


def test_the_page_is_well_formed_and_leads_from_its_table_to_each_setting(page: str) -> None:
    found = Page(page)
    sections = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert sections == ["setting-1", "setting-2"]
    links = [attributes["href"] for tag, attributes in found.tags if tag == "a"]
    assert sorted(map(str, links)) == [f"#{section}" for section in sections]
    assert sum(tag == "table" for tag, _ in found.tags) == 1 + 2 + 2, "all, configurations, runs of each"


def test_the_first_page_has_the_table_and_the_plots_and_all_else_is_folded_away(page: str) -> None:
    first, _, details = page.partition("<h2>Details</h2>")
    assert (first.count("<table"), first.count("<img"), first.count("<details>")) == (1, 3, 1)
    assert "<img" not in re.sub("<details>.*?</details>", "", details, flags=re.DOTALL)
    assert details.count("<details>") == 2 + 2
    assert "<details open" not in page


def test_names_are_shown_and_never_obeyed(page: str) -> None:
    found = Page(page)
    assert "script" not in [tag for tag, _ in found.tags]
    assert found.words.count(HOSTILE) == 3 + 2 * 2, "each run by its name, each setting by its text in two tables"
    assert f"{HOSTILE}: not finished" in found.words


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    for tag, attributes in Page(page).tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} {name}"
            if name in ("src", "href"):
                assert (value or "").startswith(("data:image/svg+xml;base64,", "data:image/webp;base64,", "#"))
    assert "url(" not in page
    assert "@import" not in page


def test_every_picture_can_be_seen_and_has_a_text_for_those_who_cannot(page: str) -> None:
    pictures = [attributes for tag, attributes in Page(page).tags if tag == "img"]
    assert len(pictures) == 4 + 2 * 6
    assert len({str(picture["src"]) for picture in pictures}) == len(pictures), "each is drawn once"
    for attributes in pictures:
        assert attributes["alt"]
        kind, _, data = str(attributes["src"]).partition(";base64,")
        if kind == "data:image/svg+xml":
            drawing = base64.b64decode(data).decode()
            assert "<path" in drawing
            assert not re.search(r"<script|<image|href=\"(?!#)", drawing), "it needs nothing else"
        else:
            image = Image.open(io.BytesIO(base64.b64decode(data))).convert("L")
            assert image.width == 624
            assert image.getextrema()[0] < 100, "something is drawn"


def test_plots_are_files_of_few_colours_as_well(plots: list[Plot]) -> None:
    for plot in plots:
        image = Image.open(io.BytesIO(plot.png or b""))
        assert (image.width, image.mode) == (780, "P")


def test_tables_scroll_in_a_box_of_their_own(page: str) -> None:
    assert page.count('<div class="scroll"') == page.count("<table")
    assert re.search(r"\.scroll \{ overflow-x: auto;", page)
    assert '<meta name="viewport" content="width=device-width' in page
    assert "@media print" in page


def test_axes_are_drawn_for_what_varies_only(settings: list[Setting], plots: list[Plot]) -> None:
    assert [plot.name for plot in plots] == [
        "bits_by_sparsity",
        "bits_by_training_flops",
        "bits_by_training_length",
        "learning_curves",
        "gradient_norms",
    ]
    alone = [setting for setting in settings if len(setting.runs) == 2]
    assert [plot.name for plot in overview(alone)] == ["bits_by_training_flops", "learning_curves", "gradient_norms"]


def test_lengths_are_told_in_minutes_too_if_all_runs_were_timed(settings: list[Setting]) -> None:
    timed = [
        replace(s, runs=tuple(replace(r, summary=replace(r.summary, characters_per_second=50.0)) for r in s.runs))
        for s in settings
    ]
    assert "bits_by_minutes" in [plot.name for plot in overview(timed)]
    assert "bits_by_minutes" not in [plot.name for plot in overview([s for s in timed if s.steps == 3])]


def test_against_cost_the_lengths_of_one_sparsity_are_one_line(settings: list[Setting]) -> None:
    def labels(of: list[Setting]) -> str:
        (plot,) = [plot for plot in overview(of) if plot.name == "bits_by_training_flops"]
        return plot.shown.decode()

    rigl = [s for s in settings if s.method == "rigl"]
    same = [s for s in rigl if s.sparsity == 0.5]
    assert len(same) == 2
    assert labels(same).count("<!-- rigl") == 1
    assert labels(rigl).count("<!-- rigl") == 2, "a line of two sparsities, and the longer run"


def test_the_dense_network_alone_can_be_shown(settings: list[Setting]) -> None:
    dense = [setting for setting in settings if setting.method == "dense"]
    assert [plot.name for plot in overview(dense)] == ["bits_by_training_flops", "learning_curves", "gradient_norms"]
    assert len(of_setting(dense[0], DENSE)) == 6


def test_a_setting_without_any_record_has_no_pictures(settings: list[Setting]) -> None:
    run = settings[0].runs[0]
    empty = replace(
        run.curves, steps=[], bits_per_character=[], moved=[], ever_active=[], validation=[], gradient_norm=[]
    )
    setting = replace(settings[0], runs=(replace(run, curves=empty, pictures=None),))
    assert of_setting(setting, DENSE) == []
    assert "its checkpoint was not there" in report([setting], overview([setting]), [])


def test_a_mean_curve_has_the_steps_that_all_seeds_have(settings: list[Setting]) -> None:
    (pair,) = [setting for setting in settings if len(setting.runs) == 2]
    a, b = (
        replace(run, curves=replace(run.curves, validation=points))
        for run, points in zip(pair.runs, ([(1, 4.0), (2, 3.0)], [(2, 2.0), (3, 9.0)]), strict=True)
    )
    assert mean_curve(replace(pair, runs=(a, b)), validated=True) == ([2], [2.5])


def test_a_gradient_curve_is_the_median_over_a_window_and_seeds(settings: list[Setting]) -> None:
    (pair,) = [setting for setting in settings if len(setting.runs) == 2]
    steps = list(range(1, 76))
    runs = [
        replace(r, curves=replace(r.curves, steps=steps, bits_per_character=[2.0] * 75, moved=[], ever_active=[],
                                  gradient_norm=norms))
        for r, norms in zip(pair.runs, ([1.0, 2.0, 900.0] * 25, [3.0, 0.5, 4.0] * 25), strict=True)
    ]  # fmt: skip
    assert gradient_curve(replace(pair, runs=tuple(runs))) == (steps[2::3], [2.5] * 25)


def test_runs_of_an_earlier_version_have_no_gradients_to_draw(settings: list[Setting]) -> None:
    old = [
        replace(s, runs=tuple(replace(run, curves=replace(run.curves, gradient_norm=[])) for run in s.runs))
        for s in settings
    ]
    assert "gradient_norms" not in [plot.name for plot in overview(old)]


@pytest.mark.parametrize(
    ("symbol", "shown"),
    [
        ("61", "a"),
        ("20", "␣"),
        ("0a", "\\n"),
        ("00", "00"),
        ("7f", "7F"),
        ("c3", "C3"),
        ("c3bc", "ü"),
        ("c2a0", "U+00A0"),
        ("e4b8ad", "U+4E2D"),
        ("3c756e6b3e", "<unk>"),
    ],
)
def test_symbols_can_be_read(symbol: str, shown: str) -> None:
    assert readable(symbol) == shown
