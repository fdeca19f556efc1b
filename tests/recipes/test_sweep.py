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


GRID = {"run.seed": [1, 2]}


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
