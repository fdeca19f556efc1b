from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rnnsparse.reporting.answer import answer, table_of_settings
from rnnsparse.reporting.compare import Setting, Statistic, group
from rnnsparse.reporting.plots.series import colour_of_methods
from rnnsparse.reporting.ranking import noise, ranked, standing, student_t
from rnnsparse.reporting.reading import read_runs
from rnnsparse.reporting.runs import Run

RESULTS = Path(__file__).parent.parent.parent / "checkpoints" / "results"


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    """Thirteen settings at 75 %, two seeds of each: the dense network, eight methods, some of them in two variants."""
    return [replace(run, pictures=None) for run in read_runs([RESULTS / "methods_gru256_75.json"])[0]]


def at(sparsity: float) -> Callable[[Run], Run]:
    def moved(run: Run) -> Run:
        return replace(run, config=run.config | {"sparsity": run.config["sparsity"] | {"sparsity": sparsity}})

    return moved


@pytest.mark.parametrize(
    ("freedom", "level", "t"),
    [(1, 0.05, 12.706), (2, 0.05, 4.303), (3, 0.01, 5.841), (5, 0.05, 2.571), (10, 0.01, 3.169), (30, 0.05, 2.042)],
)
def test_students_t_is_that_of_the_tables(freedom: int, level: float, t: float) -> None:
    assert student_t(freedom, level) == pytest.approx(t, abs=6e-4)


def test_noise_is_the_pooled_spread_as_by_hand() -> None:
    numbers = [Statistic(2.0, 0.01, 2), Statistic(2.1, 0.03, 3), Statistic(2.2, None, 1)]
    found = noise(numbers)
    assert found.deviation == pytest.approx(((0.01**2 + 2 * 0.03**2) / 3) ** 0.5)
    assert found.factor == pytest.approx(student_t(3, 0.025))  # two comparisons with the best


def test_what_chance_may_have_decided_is_close_and_no_more() -> None:
    numbers = [Statistic(2.0, 0.01, 2), Statistic(2.02, 0.01, 2), Statistic(2.5, 0.01, 2), None]
    assert standing(numbers) == ["best", "close", "", ""]
    assert standing(numbers, max) == ["", "", "best", ""]


def test_without_a_second_seed_nothing_is_said_about_noise() -> None:
    assert standing([Statistic(2.0, None, 1), Statistic(2.0001, None, 1)]) == ["best", ""]


def test_where_all_are_equal_none_is_best() -> None:
    assert standing([Statistic(1.0, 0.0, 2), Statistic(1.0, 0.0, 2)]) == ["", ""]


def test_settings_are_ranked_at_their_sparsity_and_the_dense_network_is_the_reference(runs: list[Run]) -> None:
    sparser = [at(0.9)(run) for run in runs if run.summary.method in ("rigl", "scout")]
    groups = ranked(group([*runs, *sparser]))
    assert [found.sparsity for found in groups] == [0.75, 0.9, 0.0]
    assert [len(found.settings) for found in groups] == [12, 4, 1]
    for found in groups:
        bits = [setting.bits.mean for setting in found.settings]
        assert bits == sorted(bits)


def test_one_method_at_many_sparsities_is_one_ranking(runs: list[Run]) -> None:
    static = [run for run in runs if run.summary.method == "static"]
    dense = [run for run in runs if run.summary.method == "dense"]
    (found,) = ranked(group([*static, *map(at(0.9), static), *dense]))
    assert (found.sparsity, len(found.settings)) == (None, 3)


def test_networks_of_other_texts_are_never_ranked_together(runs: list[Run]) -> None:
    def on_own_text(run: Run) -> Run:
        return replace(run, config=run.config | {"data": run.config["data"] | {"source": "text", "path": "own.txt"}})

    sparse = [run for run in runs if run.summary.method != "dense"]
    groups = ranked(group([*sparse, *map(on_own_text, sparse)]))
    assert [(found.sparsity, len(found.settings)) for found in groups] == [(0.75, 12), (0.75, 12)]
    assert groups[0].text != groups[1].text


def test_the_answer_names_the_best_and_what_seeds_do_not_tell_from_it(runs: list[Run]) -> None:
    settings = group(runs)
    first, reference = re.findall("<li>(.*?)</li>", answer(settings))
    assert first.startswith("Sparsity 0.75: <b>scout, drop_fraction=0.5</b>, 2.3606 ± 0.0057 bits per character; ")
    assert "these seeds do not tell it from scout, drop_fraction=0.3 (+0.0043)" in first
    assert "rigl" not in first
    assert reference == "Dense: <b>dense</b>, 2.2651 ± 0.0080 bits per character, the reference."


def test_settings_that_come_to_the_same_are_not_ahead_of_each_other(runs: list[Run]) -> None:
    static = [run for run in runs if run.summary.method == "static"]
    slower = [replace(run, config=run.config | {"training": run.config["training"] | {"warmup": 7}}) for run in static]
    assert answer(group([*static, *slower])).count("these seeds do not tell it from") == 1


def test_of_one_seed_each_the_answer_says_that_chance_is_not_known(runs: list[Run]) -> None:
    settings = group([run for run in runs if run.summary.seed == 1])
    assert "One run each, so how much of it is chance is not known." in answer(settings)
    assert "≈" not in table_of_settings(settings, colour_of_methods(settings))


def test_the_table_has_the_answer_on_top_and_the_best_of_each_column_marked(runs: list[Run]) -> None:
    settings = group(runs)
    table = table_of_settings(settings, colour_of_methods(settings))
    rows = re.findall(r'<tr><th scope="row">.*?</tr>', table)
    assert len(rows) == 13
    assert "scout" in rows[0]
    assert '<span class="best">2.3606<span class="unseen"> (best)</span></span> <small>± 0.0057</small>' in rows[0]
    assert "≈ 2.3649</span> <small>± 0.0070</small>" in rows[1]
    assert "+0.0043" in rows[1]
    (fastest,) = [row for row in rows if '<span class="best">69,395' in row]
    assert "small_<wbr>dense" in fastest
    assert "dense" in rows[-1]
    assert 'class="best"' not in rows[-1], "the reference has no rivals"


def test_one_setting_alone_has_no_answer(runs: list[Run]) -> None:
    settings: list[Setting] = group([run for run in runs if run.summary.method == "static"])
    assert answer(settings) == ""
    assert 'class="best"' not in table_of_settings(settings, colour_of_methods(settings))
