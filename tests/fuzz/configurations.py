"""Configurations, overrides and sweeps."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from random import Random
from typing import Any

from rnnsparse import yaml12
from rnnsparse.config import RunConfig, load_config, parse_config
from rnnsparse.recipes.sweep import load_sweep
from rnnsparse.training.build import require_buildable
from tests.fuzz import mutate
from tests.fuzz.judge import command, lines_of, require, require_printable, required
from tests.fuzz.workplace import FINISHED, TINY

OVERRIDES = """\
training.steps=100
sparsity.overrides.rnn.0.recurrent.n=0.5
model.readout_dims=[3, 4]
training.betas=[0.9, 0.99]
sparsity.dense=[output, embedding]
run.name="a b"
sparsity.method=prune
training.learning_rate=1e-3
"""
MOST_RUNS = 40  # of a sweep in the search; many more are refused, and some more only take time


def config_seeds() -> list[bytes]:
    """Return a configuration, and each section with all of its keys: the less a file holds, the faster it is read."""
    whole = yaml12.read_file(FINISHED / "last/config.yaml")
    return [TINY.encode(), *(yaml12.write({section: keys}).encode() for section, keys in whole.items())]


def read_config(data: bytes) -> bool:
    path = Path("input.yaml")
    path.write_bytes(data)
    config = load_config(path)
    _require_buildable(config)
    with required("what is kept is read as the same"):
        require(parse_config(config.to_dict(), "again") == config, "what is kept is read as the same")
    return True


def validate(data: bytes) -> bool:
    path = Path("input.yaml")
    path.write_bytes(data)
    accepted, out = command("validate", path)
    lines_of(out)
    if accepted and "valid, " not in out:
        _require_same_again(load_config(path))
    return accepted


def read_overrides(data: bytes) -> bool:
    words = data.decode("utf-8", "replace").replace("\0", "").split("\n")
    config = parse_config(copy.deepcopy(_TREE), "tiny.yaml", words, name="tiny")
    _require_buildable(config)
    return True


def overrides(data: bytes) -> bool:
    words = data.decode("utf-8", "replace").replace("\0", "").split("\n")
    config = load_config(Path("tiny.yaml"), words)
    _require_buildable(config)
    _require_same_again(config)
    return True


_TREE = yaml12.read(TINY)


def change_overrides(random: Random, data: bytes, other: bytes) -> bytes:
    """Change bytes, or give one setting another value, or another setting this value."""
    if random.random() < 0.4:
        return mutate.change_bytes(random, data, other)
    lines = data.decode("utf-8", "replace").split("\n")
    at = random.randrange(len(lines))
    key, _, value = lines[at].partition("=")
    if random.random() < 0.7:
        value = json.dumps(mutate.value(random), ensure_ascii=random.random() < 0.5)
    if random.random() < 0.5:
        key = random.choice(_KEYS)
    lines[at] = f"{key}={value}"
    return "\n".join(lines).encode("utf-8", "replace")


_KEYS = [f"{section}.{key}" for section, keys in parse_config({}, "none").to_dict().items() for key in keys]
_KEYS += ["sparsity.overrides.rnn.0.input", "sparsity.overrides.*", "sparsity.drop_fraction", "sparsity.interval"]


def _require_buildable(config: RunConfig) -> None:
    for warning in config.warnings:
        require_printable(warning)
    require_buildable(config)


def _require_same_again(config: RunConfig) -> None:
    with required("what is written can be read"):
        again = parse_config(yaml12.read(config.to_yaml()), "again")
    require(again == config, "what is written is read as the same")
    require(again.to_yaml() == config.to_yaml(), "what is read is written as the same")


def read_sweep(data: bytes) -> bool:
    path = Path("input.yaml")
    path.write_bytes(data)
    sweep = load_sweep(path)
    require(len({run.name for run in sweep.runs}) == len(sweep.runs), "every run has a name of its own")
    return True


def change_sweep(random: Random, data: bytes, other: bytes) -> bytes:
    """Change it so that it makes few runs, or more than are allowed."""
    return mutate.change_yaml(random, data, other, lambda tree: not MOST_RUNS < _points(tree) <= 10_000)


def _points(tree: Any) -> int:
    grid = tree.get("grid") if isinstance(tree, dict) else None
    parts = [part for part in (grid if isinstance(grid, list) else [grid]) if isinstance(part, dict)]
    return sum(math.prod(len(v) if isinstance(v, list) else 1 for v in part.values()) for part in parts)
