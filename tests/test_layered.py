"""`base: FILE`: what a configuration or a sweep leaves open is what another file says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rnnsparse import layered
from rnnsparse.config import load_config
from rnnsparse.errors import UserError
from rnnsparse.recipes.sweep import is_sweep, load_sweep


def written(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def test_settings_hold_where_the_file_says_nothing(tmp_path: Path) -> None:
    written(
        tmp_path,
        a="base: b.yaml\nmodel: {hidden_size: 8}\ntraining:\n",
        b="base: far/c.yaml\nmodel: {hidden_size: 9, cell: lstm}\ntraining: {steps: 7}\nrun: {seed: 3}\n",
        far__c="model: {cell: gru, embedding_dim: 5}\nsparsity: {overrides: {output: 0.5}}\n"
        "data: {path: x, source: text}\n",
    )
    config = load_config(tmp_path / "a.yaml", ["training.batch_size=2"])
    model, training = config.model, config.training
    assert (model.hidden_size, model.cell, model.embedding_dim) == (8, "lstm", 5)
    assert (training.steps, training.batch_size, config.run.seed) == (7, 2, 3)
    assert config.budget.overrides == {"output": 0.5}
    assert (config.run.name, config.data.path) == ("a", "x")
    assert "base" not in config.to_yaml()


def test_what_is_recorded_needs_no_base(tmp_path: Path) -> None:
    written(tmp_path, a="base: b.yaml\nmodel: {hidden_size: 8}\n", b="training: {steps: 7}\n")
    config = load_config(tmp_path / "a.yaml")
    (tmp_path / "recorded.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "recorded.yaml") == config


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a": "base: a.yaml\n"}, "a.yaml: base: a.yaml: builds on this file itself"),
        ({"a": "base: b.yaml\n", "b": "base: ./a.yaml\n"}, "b.yaml: base: ./a.yaml: builds on this file itself"),
        ({"a": "base: nowhere.yaml\n"}, "a.yaml: base: nowhere.yaml: cannot be read .No such file"),
        ({"a": "base: 3\n"}, "a.yaml: base: 3: must name the YAML file"),
        ({"a": "base: b.yaml\n", "b": "[1]\n"}, "a.yaml: base: b.yaml: its top level must be keys"),
        ({"a": "base: b.yaml\n", "b": "model: {\n"}, "b.yaml: line 2"),
        ({"a": "base: b.yaml\n", "b": "model: {hiden_size: 3}\n"}, r"b\.yaml: model\.hiden_size: unknown key"),
        ({"a": "base: b.yaml\n", "b": "training: {steps: 0}\n"}, r"b\.yaml: training\.steps: 0"),
        ({"a": "base: b.yaml\ntraining: {steps: 0}\n", "b": "training: {steps: 4}\n"}, r"a\.yaml: training\.steps: 0"),
        ({"a": "base: b.yaml\n", "b": "modell: {}\n"}, r"b\.yaml: modell: unknown section"),
        ({"a": "base: b.yaml\n", "b": "grid: {run.seed: [1]}\n"}, r"a\.yaml: is a sweep"),
        ({f"f{i}": f"base: f{i + 1}.yaml\n" for i in range(25)} | {"a": "base: f0.yaml\n"}, "more than 20 files"),
    ],
)
def test_mistakes_name_the_file_in_which_they_stand(tmp_path: Path, files: dict[str, str], said: str) -> None:
    written(tmp_path, **files)
    with pytest.raises(UserError, match=said) as error:
        load_config(tmp_path / "a.yaml")
    assert "\n" not in str(error.value)


def test_settings_for_the_method_of_the_base_are_no_reason_to_warn(tmp_path: Path) -> None:
    written(
        tmp_path,
        rigl="sparsity: {method: rigl, drop_fraction: 0.1}\n",
        prune="base: rigl.yaml\nsparsity: {method: prune}\n",
        both="base: rigl.yaml\nsparsity: {method: prune, drop_fraction: 0.2}\n",
    )
    assert load_config(tmp_path / "prune.yaml").warnings == ()
    warned = ("sparsity.drop_fraction has no effect with method prune",)
    assert load_config(tmp_path / "both.yaml").warnings == warned
    assert load_config(tmp_path / "prune.yaml", ["sparsity.drop_fraction=0.2"]).warnings == warned


def test_a_sweep_builds_on_a_sweep(tmp_path: Path) -> None:
    written(
        tmp_path,
        short="base: far/long.yaml\ndir: here\noverrides: {training.steps: 3}\n",
        far__long="config: tiny.yaml\noverrides: {training.steps: 9, training.batch_size: 2}\n"
        "grid: {run.seed: [1, 2]}\n",
        far__tiny="model: {hidden_size: 4}\n",
    )
    assert is_sweep(tmp_path / "short.yaml")
    sweep = load_sweep(tmp_path / "short.yaml")
    assert sweep.folder == Path("here")
    assert [run.config.run.seed for run in sweep.runs] == [1, 2]
    config = sweep.runs[0].config
    assert (config.model.hidden_size, config.training.steps, config.training.batch_size) == (4, 3, 2)


def test_a_file_without_a_base_is_read_as_ever(tmp_path: Path) -> None:
    data: Any = {"model": {"cell": "gru"}, "training": None}
    written(tmp_path, a="model: {cell: gru}\ntraining:\n")
    layers = layered.read(tmp_path / "a.yaml")
    assert (layers.data, layers.files) == (data, (tmp_path / "a.yaml",))
    written(tmp_path, a="- 1\n")
    assert layered.read(tmp_path / "a.yaml").data == [1]
