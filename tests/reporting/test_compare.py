from __future__ import annotations

import csv
import io
import json
import math
import resource
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from rnnsparse.cli import main
from rnnsparse.config import parse_config
from rnnsparse.reporting.compare import as_csv, as_markdown, as_text, group, statistic, table
from rnnsparse.reporting.places import shorten_places
from rnnsparse.reporting.reading import read_results, read_runs
from rnnsparse.reporting.runs import Results, Run
from tests.reporting.conftest import TEXT


def summary_of(run: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return summary


def copy(run: Path, to: Path) -> Path:
    return Path(shutil.copytree(run, to))


def slim(run: Path, to: Path) -> Path:
    """Return a copy without a checkpoint, of which no connections are drawn: that takes seconds."""
    shutil.rmtree(copy(run, to) / "last")
    return to


@pytest.fixture(scope="module")
def compared(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is written about rigl-a."""
    out = tmp_path_factory.mktemp("compared")
    assert main(["compare", str(folder / "runs" / "rigl-a"), "--out", str(out)]) == 0
    return out


def test_runs_that_differ_in_seed_place_threads_and_logging_only_are_one_setting(folder: Path) -> None:
    settings = group(read_runs([folder / "runs"])[0])
    found = {setting.label: [run.name for run in setting.runs] for setting in settings}
    assert found == {
        "dense, multiplier=1.0": ["dense"],
        "rigl, sparsity=0.5, multiplier=1.0": ["rigl-a", "rigl-b"],
        "rigl, sparsity=0.8, multiplier=1.0": ["rigl-sparser"],
        "rigl, sparsity=0.5, multiplier=2.0": ["longer"],
        "static, sparsity=0.5, multiplier=1.0": ["static"],
    }
    assert {setting.label: setting.steps for setting in settings}["rigl, sparsity=0.5, multiplier=2.0"] == 6


def test_what_is_the_same_everywhere_is_in_no_label(folder: Path) -> None:
    runs = read_runs([folder / "runs" / "rigl-a", folder / "runs" / "static"])[0]
    assert sorted(setting.label for setting in group(runs)) == ["rigl", "static"]


def test_mean_and_sample_deviation_are_those_by_hand(folder: Path) -> None:
    (setting,) = group(read_runs([folder / "runs" / "rigl-a", folder / "runs" / "rigl-b"])[0])
    a, b = (summary_of(folder / "runs" / name)["bits_per_character"] for name in ("rigl-a", "rigl-b"))
    found = setting.statistic("bits_per_character")
    assert found is not None
    assert found.mean == pytest.approx((a + b) / 2, rel=1e-12)
    assert found.deviation == pytest.approx(abs(a - b) / math.sqrt(2), rel=1e-9)
    assert found.count == 2
    assert statistic([1.0, 2.0, 3.0, 6.0]).deviation == pytest.approx(math.sqrt(14 / 3))
    assert statistic([5.0]).deviation is None


def test_runs_that_start_from_one_of_their_own_seed_are_one_setting() -> None:
    def names(*of_runs: tuple[int, str]) -> list[str]:
        configs = [parse_config({"run": {"seed": s}, "start": {"weights": w}}, "c").to_dict() for s, w in of_runs]
        shorten_places(configs)
        return [config["start"]["weights"] for config in configs]

    first, second = "a/method=static,seed=1", "a/method=static,seed=21"
    assert names((1, first), (21, second)) == ["method=static", "method=static"]
    assert names((1, second), (2, first)) == ["method=static,seed=21", "method=static,seed=1"]
    assert names((1, f"{first},lr=2/step_0"), (2, "b/dense")) == ["method=static,lr=2/step_0", "dense"]


def test_a_number_that_one_run_lacks_has_no_mean(folder: Path) -> None:
    (setting,) = group(read_runs([folder / "runs" / "rigl-a"])[0])
    assert setting.statistic("characters_per_second") is None  # only ten steps and more are timed
    header, row = table([setting])
    assert "characters per second" not in header
    assert row[0] == "rigl"
    assert len(row) == len(header)


def test_the_table_has_the_best_setting_first_in_columns_of_equal_width(folder: Path) -> None:
    rows = table(group(read_runs([folder / "runs"])[0]))
    bits = [float(row[2].partition(" ")[0]) for row in rows[1:]]
    assert bits == sorted(bits)
    assert sum("±" in row[2] for row in rows) == 1, "a deviation needs two seeds"
    lines = as_text(rows).splitlines()
    assert len({len(line) for line in lines}) == 1


def test_markdown_cells_cannot_break_the_table() -> None:
    assert as_markdown([["a|b", "n"], ["c\\|", "1"]]) == "| a\\|b | n |\n| --- | ---: |\n| c\\\\\\| | 1 |"


def test_the_csv_has_every_number_of_every_summary(folder: Path) -> None:
    text = as_csv(group(read_runs([folder / "runs"])[0]))
    rows = {row["run"]: row for row in csv.DictReader(io.StringIO(text))}
    assert rows.keys() == {"rigl-a", "rigl-b", "rigl-sparser", "static", "dense", "longer"}
    for name, row in rows.items():
        for key, value in summary_of(folder / "runs" / name).items():
            assert row[key] == ("" if value is None else str(value)), f"{name}: {key}"
    assert (rows["rigl-sparser"]["sparsity.sparsity"], rows["dense"]["sparsity.sparsity"]) == ("0.8", "")


def test_results_tell_all_that_the_runs_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    some = [str(folder / "runs" / "rigl-a"), str(slim(folder / "runs" / "rigl-sparser", tmp_path / "slim"))]
    assert main(["compare", *some, "--out", str(first)]) == 0
    told = capsys.readouterr().out
    assert main(["compare", str(first / "results.json"), "--out", str(second)]) == 0
    assert capsys.readouterr().out.replace(str(second), str(first)) == told
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert "bits_by_sparsity.png" in names
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert str(folder) not in (first / "results.json").read_text(), "paths of one machine do not belong into it"


def test_the_score_on_the_test_text_is_that_of_evaluate_and_kept(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = folder / "runs" / "rigl-a", folder / "runs" / "static"
    assert main(["evaluate", str(run), "--split", "test", "--json"]) == 0
    score = json.loads(capsys.readouterr().out)["bits_per_character"]
    assert main(["compare", str(run), "--test", "--out", str(tmp_path / "out")]) == 0
    header, *_ = capsys.readouterr().out.splitlines()
    assert "on test" in header
    kept = tmp_path / "out" / "results.json"
    (setting, untested) = group(read_runs([kept, other])[0])
    assert {setting.method, untested.method} == {"rigl", "static"}
    scores = {s.method: s.statistic("test_bits_per_character") for s in (setting, untested)}
    assert scores == {"rigl": statistic([score]), "static": None}


def test_a_run_without_a_checkpoint_is_named_and_not_measured_on_the_test_text(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slim(folder / "runs" / "rigl-a", tmp_path / "runs" / "a")
    copy(folder / "runs" / "static", tmp_path / "runs" / "b")
    assert main(["compare", str(tmp_path / "runs"), "--test", "--markdown"]) == 0
    out, err = capsys.readouterr()
    assert err == "rnnsparse: a: has no checkpoint any more, so it is not measured on the test text\n"
    assert [row.split(" | ")[3] == "–" for row in out.splitlines()[2:]].count(True) == 1


def test_dense_networks_in_other_bases_are_other_settings(folder: Path, tmp_path: Path) -> None:
    dct = ["sparsity.method=dense", "sparsity.basis=dct", f"run.dir={tmp_path / 'dct'}"]
    assert main(["train", str(folder / "tiny.yaml"), *dct]) == 0
    settings = group(read_runs([folder / "runs" / "dense", tmp_path / "dct"])[0])
    assert sorted(setting.label for setting in settings) == ["dense, basis=canonical", "dense, basis=dct"]


def test_a_run_of_earlier_results_gets_no_pictures_of_a_namesake(folder: Path, tmp_path: Path) -> None:
    run = slim(folder / "runs" / "rigl-a", tmp_path / "a" / "seed1")
    assert main(["compare", str(run), "--out", str(tmp_path / "out")]) == 0
    namesake = copy(folder / "runs" / "rigl-sparser", tmp_path / "b" / "seed1")
    runs, _ = read_runs([tmp_path / "out" / "results.json", namesake])
    pictured = {run.config["sparsity"]["sparsity"]: run.pictures is not None for run in runs}
    assert pictured == {0.5: False, 0.8: True}


@pytest.mark.parametrize(
    ("method", "start", "steps", "shown"),
    [
        ("static", {}, 3, 0.5),
        ("static", {"topology": "x"}, 3, 0.8),
        ("static", {"weights": "x", "add": True}, 3, 0.5),
        ("prune", {}, 2, 0.8),
        ("small_dense", {}, 2, 0.5),
        ("dense", {}, 2, 0.0),
    ],
)
def test_a_setting_has_the_sparsity_it_came_to_where_its_own_did_not_decide(
    folder: Path, method: str, start: dict[str, Any], steps: int, shown: float
) -> None:
    runs, _ = read_runs([folder / "runs" / name for name in ("static", "rigl-sparser")])
    run, sparser = sorted(runs, key=lambda run: run.name, reverse=True)
    assert (run.config["sparsity"]["sparsity"], run.config["training"]["steps"]) == (0.5, 3)
    config = run.config | {"start": run.config["start"] | start}
    config["sparsity"] = {k: config["sparsity"][k] for k in ("sparsity", "distribution")} | {"method": method}
    summary = replace(run.summary, method=method, steps=steps, sparsity=0.80004)
    settings = group([replace(run, config=config, summary=summary), sparser])
    (setting,) = [setting for setting in settings if setting.method == method]
    assert setting.sparsity == shown
    assert (f"sparsity={shown}" in setting.label) == (method != "dense")


def test_other_runs_are_called_by_as_much_of_their_paths_as_tells_them_apart(folder: Path, tmp_path: Path) -> None:
    places = ["/somewhere/a/base", "/somewhere/b/base", "/somewhere/a/base/step_3", None]
    for number, place in enumerate(places):
        config = slim(folder / "runs" / "static", tmp_path / "runs" / str(number)) / "config.yaml"
        config.write_text(config.read_text().replace("weights: null", f"weights: {place or 'null'}"))

    def settings_of(*names: str) -> list[str]:
        return sorted(setting.label for setting in group(read_runs([tmp_path / "runs" / name for name in names])[0]))

    assert settings_of("0", "3") == ["static, weights=base", "static, weights=null"]
    assert settings_of("2", "3") == ["static, weights=base/step_3", "static, weights=null"]
    assert settings_of("0", "1") == ["static, weights=a/base", "static, weights=b/base"]

    assert main(["compare", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert "somewhere" not in (tmp_path / "out" / "results.json").read_text()
    again = read_results(tmp_path / "out" / "results.json").runs
    assert sorted(str(run.config["start"]["weights"]) for run in again) == [
        "None",
        "a/base",
        "a/base/step_3",
        "b/base",
    ]


def test_results_and_runs_can_be_mixed(folder: Path, compared: Path) -> None:
    runs, _ = read_runs([compared / "results.json", folder / "runs" / "rigl-b"])
    (setting,) = group(runs)
    assert [run.summary.seed for run in setting.runs] == [1, 2]
    assert [run.pictures is not None for run in setting.runs] == [True, False], "one run of each setting has pictures"


def test_results_of_a_version_without_a_setting_get_its_default(compared: Path, tmp_path: Path) -> None:
    data = json.loads((compared / "results.json").read_text())
    del data["runs"][0]["config"]["training"]["multiplier"]
    (tmp_path / "older.json").write_text(json.dumps(data))
    assert read_results(tmp_path / "older.json") == read_results(compared / "results.json")


def test_unfinished_runs_are_named_and_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy(folder / "runs" / "rigl-a", tmp_path / "done")
    (copy(folder / "runs" / "static", tmp_path / "running") / "summary.json").unlink()
    assert main(["compare", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert captured.err == "rnnsparse: running: not finished, so it is left out (it has logged 3 steps)\n"
    assert "static" not in captured.out
    assert main(["compare", str(tmp_path / "running")]) == 2


def test_the_rounds_of_an_unfinished_recipe_are_no_runs(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "recipe"
    recipe = ["sparsity.method=lottery", "sparsity.prune_share=1.0", f"run.dir={run}"]
    assert main(["train", str(folder / "tiny.yaml"), *recipe]) == 0
    for path in ("summary.json", "metrics.jsonl"):
        (run / path).unlink()
    shutil.rmtree(run / "last")
    runs, left_out = read_runs([tmp_path / "runs"])
    assert (runs, left_out) == ([], ["recipe: not finished, so it is left out"])
    assert [found.name for found in read_runs([run / "rounds"])[0]] == ["0"], "who names rounds compares them"


def test_the_same_dense_network_of_a_sweep_over_sparsities_counts_once(folder: Path, tmp_path: Path) -> None:
    other = copy(folder / "runs" / "dense", tmp_path / "other")
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("sparsity: 0.5", "sparsity: 0.9"))
    runs, left_out = read_runs([folder / "runs" / "dense", other])
    assert [run.name for run in runs] == ["dense"]
    assert left_out[0].startswith("other: has the same settings and the same seed as dense")


def test_runs_without_a_checkpoint_are_compared_without_pictures(folder: Path, tmp_path: Path) -> None:
    slim(folder / "runs" / "rigl-a", tmp_path / "slim")
    assert main(["compare", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert [run.pictures for run in read_results(tmp_path / "out" / "results.json").runs] == [None]


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    """Folders and files that cannot be compared."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "list.json").write_text("[1, 2]")
    run = folder / "runs" / "rigl-a"
    (copy(run, tmp_path / "no_number") / "summary.json").write_text(
        json.dumps(summary_of(run) | {"bits_per_character": math.nan})
    )
    (copy(run, tmp_path / "torn") / "summary.json").write_text('{"bits_per')
    (copy(run, tmp_path / "foreign") / "config.yaml").write_text("hello: 1\n")
    (copy(run, tmp_path / "damaged") / "last" / "model.safetensors").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "there is no such folder"),
        ("empty", "neither a run nor a folder of runs"),
        ("text.txt", "not results of"),
        ("list.json", "not results of"),
        ("no_number", "bits_per_character"),
        ("torn", "summary.json: not the summary of a run"),
        ("foreign", "unknown section"),
        ("damaged", "model.safetensors"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    broken: Path, name: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(broken / name)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"rnnsparse: {broken / name}")
    assert reason in captured.err
    assert captured.err.count("\n") == 1


def test_a_run_named_twice_or_copied_counts_once(folder: Path, tmp_path: Path) -> None:
    run = folder / "runs" / "rigl-a"
    runs, lines = read_runs([folder / "runs", run])
    assert [one.name for one in runs].count("rigl-a") == 1
    assert lines == [f"{run}: this run is named twice, and counts once"]
    runs, lines = read_runs([run, copy(run, tmp_path / "again")])
    assert [one.name for one in runs] == ["rigl-a"]
    assert lines == [
        "again: has the same settings and the same seed as rigl-a, so it is no second measurement, left out"
    ]


def test_of_two_equal_runs_the_one_that_was_measured_on_the_test_text_counts(folder: Path, tmp_path: Path) -> None:
    run = folder / "runs" / "static"
    assert main(["compare", str(slim(run, tmp_path / "slim")), "--out", str(tmp_path / "untested")]) == 0
    assert main(["compare", str(run), "--test", "--out", str(tmp_path / "tested")]) == 0
    runs, lines = read_runs([tmp_path / name / "results.json" for name in ("untested", "tested")])
    assert [one.summary.test_bits_per_character is not None for one in runs] == [True]
    assert len(lines) == 1


# ---- texts


def test_runs_on_other_texts_of_one_name_are_other_settings_and_a_moved_copy_is_not(
    folder: Path, tmp_path: Path
) -> None:
    for name, seed, text in (("A", 1, TEXT), ("B", 1, TEXT.replace("fox", "cat")), ("C", 2, TEXT)):
        place = tmp_path / name / "input.txt"
        place.parent.mkdir()
        place.write_text(text, encoding="utf-8")
        overrides = [f"run.dir={tmp_path / 'runs' / name}", f"run.seed={seed}", f"data.path={place}"]
        assert main(["train", str(folder / "tiny.yaml"), *overrides]) == 0
        shutil.rmtree(tmp_path / "runs" / name / "last")
    expected = {"rigl, text=A/input.txt": ["A", "C"], "rigl, text=B/input.txt": ["B"]}
    runs, lines = read_runs([tmp_path / "runs"])
    assert (labels(runs), lines) == (expected, [])
    assert main(["compare", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert str(tmp_path) not in (tmp_path / "out" / "results.json").read_text()
    assert labels(read_runs([tmp_path / "out" / "results.json"])[0]) == expected
    assert list(labels(read_runs([tmp_path / "runs" / name for name in "AC"])[0])) == ["rigl"]


def labels(runs: list[Run]) -> dict[str, list[str]]:
    return {setting.label: [run.name for run in setting.runs] for setting in group(runs)}


@pytest.fixture
def on_text(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a run of its own on what is said to be a text at a place, with a fingerprint or none."""

    def make(name: str, place: str, fingerprint: str | None, seed: int, method: str = "rigl-a") -> Path:
        run = copy(folder / "runs" / method, tmp_path / "runs" / name)
        config = run / "config.yaml"
        config.write_text(config.read_text().replace(str(folder / "text.txt"), place))
        summary = summary_of(run) | {"seed": seed, "text": fingerprint}
        if fingerprint is None:
            del summary["text"]  # as earlier versions wrote it
        (run / "summary.json").write_text(json.dumps(summary))
        return run

    return make


ONE, TWO = "1" * 64, "2" * 64


def test_texts_of_one_place_are_told_apart_by_their_fingerprints(on_text: Callable[..., Path]) -> None:
    runs = [on_text("a", "/x/in.txt", ONE, 1), on_text("b", "/x/in.txt", TWO, 1)]
    assert labels(read_runs(runs)[0]) == {"rigl, text=in.txt 11111111": ["a"], "rigl, text=in.txt 22222222": ["b"]}


def test_texts_of_other_names_are_called_by_them(on_text: Callable[..., Path]) -> None:
    runs = [on_text("a", "/x/in.txt", ONE, 1), on_text("b", "/x/other.txt", TWO, 1), on_text("c", "/y/3.txt", ONE, 2)]
    assert labels(read_runs(runs)[0]) == {"rigl, text=in.txt": ["a", "c"], "rigl, text=other.txt": ["b"]}


def test_a_run_that_does_not_know_its_text_is_taken_for_one_on_the_only_text_of_that_name(
    on_text: Callable[..., Path],
) -> None:
    known, unknown = on_text("known", "/x/in.txt", ONE, 1), on_text("older", "/y/in.txt", None, 2)
    runs, lines = read_runs([known, unknown])
    assert labels(runs) == {"rigl": ["known", "older"]}
    assert lines == [
        "older: an earlier version trained it, which does not tell its text: it is taken for that of known, which has "
        "the same name"
    ]
    assert labels(read_runs([on_text("copy", "/y/in.txt", None, 1), known])[0]) == {"rigl": ["known"]}
    runs, lines = read_runs([known, unknown, on_text("third", "/z/in.txt", TWO, 2)])
    assert labels(runs) == {
        "rigl, text=x/in.txt": ["known"],
        "rigl, text=in.txt": ["older"],
        "rigl, text=z/in.txt": ["third"],
    }
    assert lines == [
        "older: an earlier version trained it, which does not tell its text: it may be that of known or of third, so "
        "it is taken for another one"
    ]


def test_runs_of_earlier_versions_in_several_places_are_compared_by_the_name_and_that_is_said(
    on_text: Callable[..., Path],
) -> None:
    runs, lines = read_runs([on_text("a", "/x/in.txt", None, 1), on_text("b", "/y/in.txt", None, 2)])
    assert labels(runs) == {"rigl": ["a", "b"]}
    assert lines == [
        "a, b: earlier versions trained them, which do not tell their texts: /x/in.txt and /y/in.txt are taken for the "
        "same, as both are called in.txt"
    ]
    assert read_runs([on_text("c", "/x/in.txt", None, 1), on_text("d", "/x/in.txt", None, 2)])[1] == []


def test_nothing_is_measured_on_the_test_text_if_that_of_one_run_has_changed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, run = tmp_path / "input.txt", tmp_path / "run"
    text.write_text(TEXT, encoding="utf-8")
    assert main(["train", str(folder / "tiny.yaml"), f"run.dir={run}", f"data.path={text}"]) == 0
    text.write_text(TEXT[: len(TEXT) // 2], encoding="utf-8")
    capsys.readouterr()
    assert main(["compare", str(folder / "runs" / "dense"), str(run), "--test"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"rnnsparse: {run / 'last'}: data.path={text}: is no longer the text that")
    assert err.count("\n") == 1, "not even a bar of progress"
    assert main(["compare", str(folder / "runs" / "dense"), str(run)]) == 0


def test_foreign_files_are_not_overwritten_and_old_results_are(folder: Path, tmp_path: Path) -> None:
    runs = [slim(folder / "runs" / name, tmp_path / name) for name in ("rigl-a", "rigl-sparser")]
    out = tmp_path / "out"
    out.mkdir()
    foreign = out / "report.html"
    foreign.write_text("mine")
    arguments = ["compare", str(runs[0]), "--out", str(out)]
    assert main(arguments) == 2
    assert [path.name for path in out.iterdir()] == ["report.html"]
    assert foreign.read_text() == "mine"
    foreign.unlink()
    assert main(["compare", str(runs[1]), *arguments[1:]]) == 0
    assert (out / "bits_by_sparsity.png").exists()
    (out / "notes.txt").write_text("mine")
    assert main(arguments) == 0
    assert not (out / "bits_by_sparsity.png").exists(), "a plot of the earlier comparison would lie"
    assert (out / "notes.txt").read_text() == "mine"


def test_results_that_cannot_be_written_leave_those_that_were_there(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = slim(folder / "runs" / "rigl-a", tmp_path / "rigl-a")
    out = tmp_path / "out"
    assert main(["compare", str(run), "--out", str(out)]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before["results.json"]) // 2, hard))
        assert main(["compare", str(out / "results.json"), "--out", str(out)]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capsys.readouterr().err == (
        f"rnnsparse: {out / 'results.json'}: cannot be written (File too large) and is what it was; free some space, "
        "or name another folder as --out\n"
    )
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_file_is_no_folder_to_write_to(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["compare", str(folder / "runs" / "dense"), "--out", str(tmp_path / "file")]) == 2
    assert "--out: " in capsys.readouterr().err


def test_curves_are_means_of_the_steps_between_their_points(folder: Path, tmp_path: Path) -> None:
    run = copy(folder / "runs" / "rigl-a", tmp_path / "long")
    lines = [{"step": step, "bits_per_character": float(step), "moved": 0.5} for step in range(1, 202)]
    for line in lines:  # of each three, one is far out and one was not finite
        line["gradient_norm"] = [7.0, None, 900.0][int(line["step"]) % 3]
    (run / "metrics.jsonl").write_text("torn\n" + "\n".join(map(json.dumps, lines)) + '\n{"step": 300, "bits')
    curves = read_runs([run])[0][0].curves
    assert curves.steps == [*range(3, 202, 3)]
    assert curves.bits_per_character == [step - 1.0 for step in curves.steps]
    assert curves.moved == [0.5] * 67
    assert (curves.ever_active, curves.validation) == ([], [])
    assert curves.gradient_norm == [453.5] * 67


def test_pictures_tell_where_connections_were_and_are(folder: Path) -> None:
    run = folder / "runs" / "rigl-a"
    pictures = read_runs([run])[0][0].pictures
    assert pictures is not None
    records = [json.loads(line) for line in (run / "connectivity.jsonl").read_text().splitlines()]
    assert pictures.steps == [record["step"] for record in records] == [0, 1, 2, 3]
    for block in pictures.blocks:
        assert block.over_time == [record["blocks"][block.name] for record in records]
        assert sum(block.inputs.counts) == block.rows
        assert sum(block.outputs.counts) == block.cols
    symbols = {symbol.symbol: symbol.over_time for symbol in pictures.symbols}
    letter = 1 + sorted(set((folder / "text.txt").read_text(encoding="utf-8"))).index("a")  # behind the unknown symbol
    assert symbols["61"] == [record["embedding"][letter] for record in records]
    (units,) = pictures.units
    last = [row[-1] for row in units.inputs]
    assert last == sorted(records[-1]["units"]["rnn.0"]["in"], reverse=True)


def test_a_run_survives_the_way_through_json(folder: Path, tmp_path: Path) -> None:
    runs, _ = read_runs([folder / "runs" / "longer"])
    hostile = [replace(run, name='<script>"|,\n$x$') for run in runs]
    (tmp_path / "results.json").write_text(Results(runs=hostile).to_json(), encoding="utf-8")
    found: list[Run] = read_results(tmp_path / "results.json").runs
    assert [asdict(run) for run in found] == [asdict(run) for run in hostile]
