from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from rnnsparse import yaml12
from rnnsparse.config import parse_config
from rnnsparse.training.run import run_folder
from rnnsparse.training.run.record import Record, write_json
from rnnsparse.training.step.distributed import Ranks


def test_a_described_run_has_its_resolved_settings_and_its_machine(tmp_path: Path) -> None:
    config = parse_config({"run": {"dir": str(tmp_path / "run")}}, "c.yaml")
    run_folder.make(config.folder)
    Record(config, Ranks(0, 2)).begin(torch.device("cpu"))
    assert sorted(os.listdir(config.folder)) == ["config.yaml", "environment.json"]
    written = (config.folder / "config.yaml").read_text(encoding="utf-8")
    assert parse_config(yaml12.read(written), "config.yaml") == config
    environment = yaml12.read((config.folder / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert (environment["device"], environment["ranks"], environment["torchrun"]) == ("cpu", 2, None)
    assert {"rnnsparse", "python", "numpy", "platform", "processor", "threads"} < set(environment)


def test_a_small_file_may_be_replaced_by_several_at_once(tmp_path: Path) -> None:
    path, size = tmp_path / "search.json", 20_000
    with ThreadPoolExecutor(4) as writers:
        for _ in writers.map(lambda i: write_json(path, {str(i): "x" * size}), range(40)):
            assert [*json.loads(path.read_text()).values()] == ["x" * size]
    assert os.listdir(tmp_path) == ["search.json"]


def test_a_small_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert yaml12.read(path.read_text()) == {"a": 1}
    write_json(path, {"a": None, "b": 0.5})
    assert yaml12.read(path.read_text()) == {"a": None, "b": 0.5}
    assert os.listdir(tmp_path) == ["summary.json"]
