from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnsparse import yaml12
from rnnsparse.config import load_config
from rnnsparse.errors import UserError
from rnnsparse.recipes.grid import draws
from rnnsparse.recipes.search import parse_search
from rnnsparse.recipes.sweep import Sweep, is_sweep, load_sweep, shard

BASE = "model: {embedding_dim: 4, hidden_size: 8}\nsparsity: {method: rigl, sparsity: 0.5}\n"


def sweep(folder: Path, **keys: Any) -> Sweep:
    (folder / "base.yaml").write_text(BASE)
    (folder / "my_sweep.yaml").write_text(yaml12.write({"config": "base.yaml", **keys}))
    return load_sweep(folder / "my_sweep.yaml")


def names(found: Sweep) -> list[str]:
    return [run.name for run in found.runs]


def test_every_combination_is_a_run_and_the_last_key_varies_fastest(tmp_path: Path) -> None:
    found = sweep(tmp_path, dir="runs", grid={"sparsity.method": ["static", "set"], "run.seed": [1, 2]})
    assert names(found) == ["method=static,seed=1", "method=static,seed=2", "method=set,seed=1", "method=set,seed=2"]
    assert [(run.config.method.name, run.config.run.seed) for run in found.runs] == [
        *itertools.product(["static", "set"], [1, 2])
    ]
    assert [run.config.folder for run in found.runs] == [Path("runs") / name for name in names(found)]


def test_a_run_is_what_its_overrides_make_of_the_base(tmp_path: Path) -> None:
    grid = {
        "training.learning_rate": [1e-3, 1e-8],
        "training.grad_clip": [None, 1],
        "model.readout_dims": [[], [4, 3]],
        "logging.sample_prompt": ["", "true", "a: b # c", "1.0", "ünd\n"],
        "sparsity.overrides": [{"output": 0.25}],
    }
    found = sweep(tmp_path, overrides={"training.steps": 7}, grid=grid)
    assert len(found.runs) == len(set(names(found))) == 40
    for run in found.runs:
        assert load_config(found.base, run.overrides) == run.config
        assert run.config.training.steps == 7
    prompts = [run.config.logging.sample_prompt for run in found.runs[:5]]
    assert prompts == ["", "true", "a: b # c", "1.0", "ünd\n"]


def test_a_number_in_the_place_of_a_text_is_what_is_written(tmp_path: Path) -> None:
    sweep(tmp_path, grid={"run.seed": [1]})
    path = tmp_path / "my_sweep.yaml"
    base = "config: base.yaml\ndir: 2024\noverrides: {data.cache: 1e5}\n"
    grid = "{logging.sample_prompt: [007, true, a]}"
    for grids in (grid, f"[{grid}]"):
        path.write_text(f"{base}grid: {grids}\n")
        found = load_sweep(path, ["data.cache=08"] if grids is grid else [])
        assert found.folder == Path("2024")
        assert [run.config.logging.sample_prompt for run in found.runs] == ["007", "true", "a"]
        assert {run.config.data.cache for run in found.runs} == {"08" if grids is grid else "1e5"}


def test_what_is_typed_after_the_file_comes_after_what_it_says(tmp_path: Path) -> None:
    sweep(tmp_path, overrides={"training.steps": 7, "training.batch_size": 3}, grid={"run.seed": [1, 2]})
    found = load_sweep(tmp_path / "my_sweep.yaml", ["training.steps=9", "logging.sample_prompt='a: b'"])
    for run in found.runs:
        training = run.config.training
        assert (training.steps, training.batch_size, run.config.logging.sample_prompt) == (9, 3, "a: b")
    assert names(found) == ["seed=1", "seed=2"]


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("run.seed=3", "run.seed: the grid sets it"),
        ("run.dir=x", "run.dir: the sweep names its runs itself"),
        ("steps=3", "steps=3: an override looks like"),
        ("training.steps=-1", "training.steps"),
    ],
)
def test_what_is_typed_wrongly_is_one_line(tmp_path: Path, override: str, complaint: str) -> None:
    sweep(tmp_path, grid={"run.seed": [1, 2]})
    with pytest.raises(UserError) as error:
        load_sweep(tmp_path / "my_sweep.yaml", [override])
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_by_default_the_runs_go_to_checkpoints_and_use_what_the_machine_has(tmp_path: Path) -> None:
    found = sweep(tmp_path, grid={"run.seed": [1]})
    assert (found.folder, found.processes, found.memory_bytes) == (Path("checkpoints/my_sweep"), None, None)
    assert sweep(tmp_path, grid={"run.seed": 1}, memory="1.5GB", processes=3).memory_bytes == 1_500_000_000


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = sweep(tmp_path, dir="~/runs", grid={"run.seed": [1]})
    assert found.folder == tmp_path / "runs"
    assert found.runs[0].config.folder == tmp_path / "runs" / "seed=1"


def test_a_setting_that_says_nothing_to_a_method_multiplies_no_runs(tmp_path: Path) -> None:
    grid = {
        "sparsity.method": ["dense", "static", "set"],
        "sparsity.sparsity": [0.5, 0.75],
        "sparsity.drop_fraction": [0.1, 0.3],
    }
    assert names(sweep(tmp_path, grid=grid)) == [
        "method=dense",
        "method=static,sparsity=0.5",
        "method=static,sparsity=0.75",
        "method=set,sparsity=0.5,drop_fraction=0.1",
        "method=set,sparsity=0.5,drop_fraction=0.3",
        "method=set,sparsity=0.75,drop_fraction=0.1",
        "method=set,sparsity=0.75,drop_fraction=0.3",
    ]


def test_several_grids_are_one_sweep_and_the_same_run_is_not_trained_twice(tmp_path: Path) -> None:
    grids = [
        {"sparsity.method": ["static", "set"], "run.seed": [1, 1]},
        {"sparsity.method": "set", "sparsity.drop_fraction": [0.3, 0.5], "run.seed": 1},  # 0.3 is the default
    ]
    found = sweep(tmp_path, grid=grids)
    assert names(found) == ["method=static,seed=1", "method=set,seed=1", "method=set,drop_fraction=0.5,seed=1"]


def test_a_new_value_in_the_grid_leaves_the_names_of_the_others(tmp_path: Path) -> None:
    before = sweep(tmp_path, grid={"sparsity.method": ["set"], "run.seed": [1]})
    after = sweep(tmp_path, grid={"sparsity.method": ["rigl", "set"], "run.seed": [0, 1]})
    assert set(names(before)) < set(names(after))


def test_names_are_folders_and_differ_even_where_values_are_long_or_strange(tmp_path: Path) -> None:
    prompts = ["/", "\\", "..", "a" * 300, "a" * 301, "é", "", "a b", "a-b"]
    grid = {"training.momentum": [0.5], "sparsity.momentum": [0.5], "logging.sample_prompt": prompts}
    found = sweep(tmp_path, overrides={"sparsity.method": "snfs", "training.optimizer": "sgd"}, grid=grid)
    assert len(set(names(found))) == len(prompts)
    for name in names(found):
        assert name.startswith("training.momentum=0.5,sparsity.momentum=0.5,sample_prompt=")
        (tmp_path / "runs" / f"{name}.log").mkdir(parents=True)
    assert len(list((tmp_path / "runs").iterdir())) == len(prompts)


@given(count=st.integers(1, 12), runs=st.lists(st.integers(), unique=True, max_size=30))
def test_shards_are_disjoint_and_complete(count: int, runs: Any) -> None:
    parts = [shard(runs, index, count) for index in range(1, count + 1)]
    assert sorted(itertools.chain(*parts)) == sorted(runs)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


# ---- a search


OFFER = {
    "sparsity.method": ["static", "set"],
    "training.learning_rate": {"low": 1e-3, "high": 2e-2, "log": True},
    "training.batch_size": {"low": 3, "high": 5},
    "sparsity.drop_fraction": [0.1, {"low": 0.4, "high": 0.6}],
    "training.grad_clip": 1.0,
}


def test_a_search_draws_its_trials_from_the_grid_and_every_time_the_same(tmp_path: Path) -> None:
    found = sweep(tmp_path, search={"trials": 12}, grid=OFFER)
    assert len(set(names(found))) == 12
    for run in found.runs:
        assert load_config(found.base, run.overrides) == run.config
        training, drop = run.config.training, getattr(run.config.method, "drop_fraction", 0.1)
        assert 1e-3 <= training.learning_rate <= 2e-2
        assert training.batch_size in (3, 4, 5)
        assert drop == 0.1 or 0.4 <= drop <= 0.6
        assert ("drop_fraction" in run.name) == (run.config.method.name == "set")
    assert names(found) == names(sweep(tmp_path, search={"trials": 12}, grid=OFFER))
    assert names(found) == names(sweep(tmp_path, search={"trials": 20}, grid=OFFER))[:12]
    assert names(found) != names(sweep(tmp_path, search={"trials": 12, "seed": 1}, grid=OFFER))


def test_another_key_leaves_what_is_drawn_for_the_others() -> None:
    few, more = draws([OFFER], seed=3), draws([OFFER | {"run.seed": [1, 2]}], seed=3)
    for one, other in itertools.islice(zip(few, more, strict=False), 20):
        assert one.items() < other.items()


@given(low=st.floats(1e-6, 1e3), factor=st.floats(1.001, 1e6), log=st.booleans(), seed=st.integers(0, 99))
def test_what_is_drawn_lies_within_its_range(low: float, factor: float, log: bool, seed: int) -> None:
    offer = {"low": low, "high": low * factor, "log": log}
    assert low <= next(draws([{"key": offer}], seed))["key"] <= low * factor
    whole = {"low": 7, "high": 7 + int(factor), "log": log}
    number = next(draws([{"key": whole}], seed))["key"]
    assert type(number) is int
    assert 7 <= number <= 7 + int(factor)


def test_ranges_are_drawn_from_evenly_or_by_their_logarithm() -> None:
    def share_below(offer: dict[str, Any], middle: float) -> float:
        return sum(draw["key"] < middle for draw in itertools.islice(draws([{"key": offer}], 0), 1000)) / 1000

    assert share_below({"low": 0.0, "high": 1.0}, 0.25) == pytest.approx(0.25, abs=0.05)
    assert share_below({"low": 1e-4, "high": 1.0, "log": True}, 1e-2) == pytest.approx(0.5, abs=0.05)
    assert share_below({"low": 1, "high": 4}, 2) == pytest.approx(0.25, abs=0.05)
    assert share_below({"low": 1, "high": 15, "log": True}, 4) == pytest.approx(0.5, abs=0.05)
    assert share_below({"low": -3, "high": 0}, 0) == pytest.approx(0.75, abs=0.05)


def test_of_several_grids_each_trial_is_of_one(tmp_path: Path) -> None:
    grids = [{"model.num_layers": 1, "model.hidden_size": [8, 16]}, {"model.num_layers": 3, "model.hidden_size": 4}]
    found = sweep(tmp_path, search={"trials": 3}, grid=grids)
    assert {(run.config.model.num_layers, run.config.model.hidden_size) for run in found.runs} == {
        (1, 8),
        (1, 16),
        (3, 4),
    }


@pytest.mark.parametrize(
    ("keys", "ladder"),
    [
        ({"trials": 5}, [(5, 1.0)]),
        ({"trials": 3, "halving": 4}, [(3, 1.0)]),
        ({"trials": 64, "halving": 4}, [(64, 1 / 16), (16, 1 / 4), (4, 1.0)]),
        ({"trials": 50, "halving": 2, "rungs": 3}, [(50, 1 / 4), (25, 1 / 2), (12, 1.0)]),
        ({"trials": 9, "halving": 3, "rungs": 3}, [(9, 1 / 9), (3, 1 / 3), (1, 1.0)]),
    ],
)
def test_each_rung_has_a_share_of_the_trials_and_the_last_the_whole_length(
    keys: dict[str, Any], ladder: list[tuple[int, float]]
) -> None:
    assert [(rung.trials, rung.share) for rung in parse_search(keys).ladder()] == [
        (trials, pytest.approx(share)) for trials, share in ladder
    ]


def test_more_trials_leave_the_runs_of_those_before_where_rungs_are_set(tmp_path: Path) -> None:
    def rungs(**keys: int) -> tuple[list[str], list[float]]:
        found = sweep(tmp_path, search={"halving": 2, **keys}, grid=OFFER)
        assert found.search is not None
        return [run.name for run in found.runs][:4], [rung.share for rung in found.search.ladder()]

    assert rungs(trials=8, rungs=2) == rungs(trials=4, rungs=2) == rungs(trials=4)
    assert rungs(trials=8) == (rungs(trials=4)[0], [0.25, 0.5, 1.0]), "if unset, the first rung gets shorter"


def test_what_only_chance_leaves_without_effect_in_a_search_is_no_mistake(tmp_path: Path) -> None:
    grid = {"sparsity.method": ["static", "rigl"], "sparsity.drop_fraction": [0.1, 0.2]}
    drawn = [sweep(tmp_path, search={"trials": 1, "seed": seed}, grid=grid).runs[0] for seed in range(8)]
    assert {run.config.method.name for run in drawn} == {"static", "rigl"}


def test_a_grid_goes_before_the_overrides_of_its_base_and_hides_none_of_its_own(tmp_path: Path) -> None:
    sweep(tmp_path, overrides={"training.steps": 7}, grid=[{"run.seed": [1]}, {"training.steps": [8]}])
    child = tmp_path / "child.yaml"
    child.write_text("base: my_sweep.yaml\ngrid: {training.steps: [9]}\n")
    assert [run.config.training.steps for run in load_sweep(child).runs] == [9]
    child.write_text("base: my_sweep.yaml\noverrides: {training.steps: 9}\n")
    assert [run.config.training.steps for run in load_sweep(child).runs] == [9, 8], "one of the grids leaves it open"
    sweep(tmp_path, grid={"training.steps": [8]})
    with pytest.raises(UserError, match=r"child\.yaml: overrides: training\.steps: the grid sets it, run by run"):
        load_sweep(child)


def test_a_search_may_build_on_another(tmp_path: Path) -> None:
    sweep(tmp_path, search={"trials": 4, "halving": 2}, grid=OFFER)
    (tmp_path / "longer.yaml").write_text("base: my_sweep.yaml\nsearch: {minutes: 2}\n")
    search = load_sweep(tmp_path / "longer.yaml").search
    assert search is not None
    assert (search.trials, search.halving, search.rungs, search.minutes) == (4, 2, 2, 2.0)


GRID = {"run.seed": [1, 2]}
RATES = {"training.learning_rate": {"low": 1e-3, "high": 2e-2, "log": True}}
ONE, TIMED = {"trials": 1}, {"trials": 1, "minutes": 1}


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"grid": GRID, "proceses": 2}, "proceses: unknown key (did you mean 'processes'?); there are config, dir"),
        ({"grid": GRID, "processes": 0}, "processes: 0 is not a whole number above 0"),
        ({"grid": GRID, "processes": True}, "processes: true is not a whole number above 0"),
        ({"grid": GRID, "memory": "much"}, 'memory: "much" is not a size such as 8GB'),
        ({"grid": GRID, "memory": "0GB"}, 'memory: "0GB" is not a size such as 8GB'),
        ({"grid": GRID, "memory": 8}, "memory: 8 is not a size such as 8GB"),
        (
            {"grid": {"training.steps": [1]}, "overrides": {"logging.sample_prompt": None}},
            "to YAML this is null, and not",
        ),
        ({"grid": GRID, "dir": [5]}, 'dir: ["5"] is not the name of a folder'),
        ({"grid": GRID, "config": None}, "config: missing"),
        ({"grid": GRID, "config": "nothing.yaml"}, "nothing.yaml: cannot be read"),
        ({"grid": GRID, "overrides": {"run.seed": 3}}, "overrides: run.seed: the grid sets it, run by run; change it"),
        ({"grid": GRID, "overrides": [1]}, "overrides: must hold settings"),
        ({"grid": GRID, "overrides": {"training.stepz": 1}}, "training.stepz: unknown key (did you mean 'steps'?)"),
        ({}, "grid: must hold lists of values"),
        ({"grid": []}, "grid: must hold lists of values"),
        ({"grid": {}}, "grid: must hold lists of values"),
        ({"grid": [GRID, 5]}, "grid: must hold lists of values"),
        ({"grid": {"run.seed": []}}, "grid: run.seed: has no values"),
        ({"grid": {"run.dir": ["a", "b"]}}, "grid: run.dir: the sweep names its runs itself"),
        ({"grid": {"sparsity.intervall": [5]}}, "sparsity.intervall: unknown key (did you mean 'interval'?)"),
        ({"grid": {"seed": [1]}}, "seed=1: an override looks like"),
        ({"grid": {"sparsity.method": ["set", "rigel"]}}, "did you mean 'rigl'?"),
        ({"grid": {"sparsity.sparsity": [0.5, 1.5]}}, "sparsity.sparsity: 1.5: "),
        ({"grid": {"sparsity.sparsity": [0.5, 0.99999]}}, "run sparsity=0.99999: sparsity.sparsity: 0.99999 leaves"),
        (
            {"grid": {"sparsity.method": ["static"], "sparsity.drop_fraction": [0.1, 0.2]}},
            "grid: sparsity.drop_fraction has no effect in any run",
        ),
        (
            {"grid": {"sparsity.method": ["static"], "sparsity.drop_fraction": [0.1, 0.2], **RATES}, "search": ONE},
            "grid: sparsity.drop_fraction has no effect in any run",
        ),
        ({"grid": RATES}, "grid: training.learning_rate: a range is drawn from; say how often in search.trials"),
        ({"search": ONE}, "grid: must hold lists of values"),
        ({"grid": GRID, "search": 5}, "search: must hold keys such as `trials: 20`, but is 5"),
        ({"grid": GRID, "search": {}}, "search: trials: missing"),
        ({"grid": GRID, "search": {"trails": 1}}, "search: trails: unknown key (did you mean 'trials'?)"),
        ({"grid": GRID, "search": {"trials": 0}}, "search: trials: 0 is not a whole number from 1"),
        ({"grid": GRID, "search": {"trials": 2, "halving": 1}}, "search: halving: 1 is not a whole number from 2"),
        ({"grid": GRID, "search": {"trials": 2, "rungs": 2}}, "search: rungs: 2: without halving there is one"),
        (
            {"grid": GRID, "search": {"trials": 2, "halving": 2, "rungs": 3}},
            "search: rungs: 3: of 2 trials, none would be left for the last",
        ),
        ({"grid": GRID, "search": {"trials": 1, "minutes": 0}}, "search: minutes: 0 is not a number above 0"),
        ({"grid": GRID, "search": {"trials": 1, "minutes": 10**400}}, "is not a number above 0, up to 1,000,000"),
        ({"grid": GRID, "search": {"trials": 1, "seed": -1}}, "search: seed: -1 is not a whole number from 0"),
        ({"grid": GRID, "search": {"trials": 3}}, "search: trials: 3: the grid offers only 2 different runs"),
        ({"grid": GRID, "search": TIMED, "overrides": {"training.steps": 5}}, "training.steps: search.minutes decide"),
        ({"grid": {"training.multiplier": [2]}, "search": TIMED}, "training.multiplier: search.minutes decide"),
        (
            {"grid": {"sparsity.method": ["lottery"]}, "search": TIMED},
            "search: minutes: run method=lottery: sparsity.method: lottery: trains several runs",
        ),
        *(
            ({"grid": {"training.grad_clip": [offer]}, "search": ONE}, "is not a range such as {low: 1e-3, high: 2e-2,")
            for offer in (
                {"low": 1},
                {"low": 2, "high": 1},
                {"low": 0, "high": 1, "log": True},
                {"low": 1, "high": 2, "log": 1},
                {"low": "1", "high": 2},
                {"low": 1, "high": 10**400},
                {"low": float("nan"), "high": 1},
            )
        ),
    ],
)
def test_a_mistake_anywhere_is_one_line_before_anything_starts(
    tmp_path: Path, keys: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError) as error:
        sweep(tmp_path, **keys)
    assert str(error.value).startswith(f"{tmp_path / 'my_sweep.yaml'}: ")
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_sweep_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load_sweep(path)
    for content in ("5", "a: [", "config: x\nconfig: y"):
        path.write_text(content)
        with pytest.raises(UserError, match=r"s\.yaml: "):
            load_sweep(path)
        assert not is_sweep(path)
