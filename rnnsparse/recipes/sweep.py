"""A sweep: one YAML file -> many runs, each an ordinary run with a name of its own.

base: other_sweep.yaml                # another sweep, whose keys hold where this one says nothing; optional
config: quickstart.yaml               # what all runs start from; relative to this file
dir: checkpoints/methods              # where the runs go; by default checkpoints/NAME OF THIS FILE
overrides: {training.steps: 500}      # the same in every run
grid:                                 # every combination is a run; or a list of such grids
  sparsity.method: [static, set, rigl]
  sparsity.drop_fraction: [0.1, 0.3]  # says nothing to static, of which one run per seed is left
  run.seed: [1, 2]
processes: 2                          # runs at the same time; by default as many as there are cores for
memory: 8GB                           # do not start another run beyond it, by estimate; by default no limit
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnnsparse import layered, yaml12
from rnnsparse.config import SECTIONS, RunConfig, is_text, keys, load_config, parse_override
from rnnsparse.errors import UserError, suggest
from rnnsparse.settings.marks import OfOneRun, OtherRun, Repetition
from rnnsparse.training.build import require_buildable

KEYS = ("config", "dir", "overrides", "grid", "processes", "memory")
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
LONGEST_NAME = 120  # file systems stop at 255 bytes, and a log has the name too
LONGEST_VALUE = 40
MOST_POINTS = 10_000  # of a grid; each is validated before the first run starts


@dataclass(frozen=True)
class Run:
    """One point of the grid; `overrides` make `config` from the sweep's base file."""

    name: str
    overrides: tuple[str, ...]
    config: RunConfig


@dataclass(frozen=True)
class Sweep:
    """All runs of a sweep file, in the order of its grid, and how many may run at once."""

    path: Path
    base: Path
    folder: Path
    runs: tuple[Run, ...]
    processes: int | None
    memory_bytes: int | None


def is_sweep(path: Path) -> bool:
    """Return whether a file looks like a sweep and not like the configuration of one run."""
    try:
        data = layered.read(path).data
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and "grid" in data


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep file and validate every run of it. Nothing is written.

    Args:
        overrides: settings such as "training.steps=100" that come after those of the file, in every run.

    Raises:
        UserError: anything wrong in the file, its base or any of its runs; one line.
    """
    try:
        data = layered.read(path, is_text=_is_text, merge=_merged, places=("config",)).data
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; name the YAML file of a sweep") from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    try:
        return _parse(data, path, overrides)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two sweeps: of the overrides each holds by itself, a grid as a whole."""
    merged = {**base, **own}
    if isinstance(base.get("overrides"), dict) and isinstance(own.get("overrides"), dict):
        merged["overrides"] = {**base["overrides"], **own["overrides"]}
    return merged


def _is_text(key: str) -> bool:
    """Return whether what stands at a place in a sweep file is to be text, as in `yaml12.read`."""
    return key in ("config", "dir") or is_text(key.removeprefix("grid.").removeprefix("overrides."))


def shard(runs: Sequence[Run], index: int, count: int) -> Sequence[Run]:
    """Return part `index` (from 1) of `count`: every run is in exactly one part, whatever has been run so far."""
    return runs[index - 1 :: count]


def needs(run: Run, others: Iterable[Run]) -> bool:
    """Return whether a run starts or learns from one of `others`, or is written in its basis or vocabulary."""
    places = [Path(place).resolve() for place in run.config.marked(OtherRun).values() if place is not None]
    folders = [other.config.folder.resolve() for other in others] if places else []
    return any(place.is_relative_to(folder) for place in places for folder in folders)


def _parse(data: Any, path: Path, overrides: Sequence[str]) -> Sweep:
    if not isinstance(data, dict):
        raise UserError(f"is not a sweep: its top level must be keys such as {', '.join(KEYS)}")
    if "grid" not in data and data.keys() & SECTIONS.keys():
        raise UserError("is the configuration of one run, which `rnnsparse train` makes; a sweep has a grid")
    for key in data:
        if key not in KEYS:
            raise UserError(f"{key}: unknown key{suggest(key, KEYS)}; there are {', '.join(KEYS)}")
    base, folder = data.get("config"), data.get("dir", f"checkpoints/{path.stem}")
    if not isinstance(base, str) or not base:
        raise UserError("config: missing; name the configuration that all runs start from, relative to this file")
    if not isinstance(folder, str) or not folder:
        raise UserError(f"dir: {_shown(folder)} is not the name of a folder")
    processes = data.get("processes")
    if processes is not None and (type(processes) is not int or processes < 1):
        raise UserError(
            f"processes: {_shown(processes)} is not a whole number above 0; null means what the cores allow"
        )
    base_path, folder = path.parent / os.path.expanduser(base), os.path.expanduser(folder)
    points = list(_points(data.get("grid")))
    fixed = _settings(data.get("overrides") or {}, "overrides") | _typed(overrides, {key for p in points for key in p})
    return Sweep(
        path=path,
        base=base_path,
        folder=Path(folder),
        runs=tuple(_runs(base_path, Path(folder), fixed, points)),
        processes=processes,
        memory_bytes=_bytes(data.get("memory")),
    )


def _settings(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise UserError(f"{where}: must hold settings such as `training.steps: 500`, but is {_shown(values)}")
    for key in sorted(keys(OfOneRun)):
        if key in values:
            raise UserError(f"{where}: {key}: the sweep names its runs itself; see the key dir")
    return values


def _typed(overrides: Sequence[str], in_grid: set[str]) -> dict[str, Any]:
    """Return what was typed after the name of the file."""
    settings = _settings(dict(map(parse_override, overrides)), "overrides")
    if twice := settings.keys() & in_grid:
        raise UserError(f"{min(twice)}: the grid sets it, run by run; change it there")
    return settings


def _points(grid: Any) -> Iterator[dict[str, Any]]:
    """Yield every combination, the last key varying fastest; a value that is no list stands for itself."""
    grids = grid if isinstance(grid, list) else [grid]
    if not grids or not all(isinstance(part, dict) and part for part in grids):
        raise UserError("grid: must hold lists of values such as `run.seed: [1, 2]`, or be a list of such grids")
    for part in grids:
        choices = [value if isinstance(value, list) else [value] for value in _settings(part, "grid").values()]
        if not all(choices):
            raise UserError(f"grid: {list(part)[choices.index([])]}: has no values; give at least one")
        if math.prod(map(len, choices)) > MOST_POINTS:
            raise UserError(f"grid: has {math.prod(map(len, choices)):,} combinations; use at most {MOST_POINTS:,}")
        for point in itertools.product(*choices):
            yield dict(zip(part, point, strict=True))


def _runs(base: Path, folder: Path, fixed: dict[str, Any], points: Sequence[dict[str, Any]]) -> Iterator[Run]:
    """Yield each different run once; settings that say nothing to a run are no part of it or of its name."""
    labels = _labels({key for point in points for key in point})
    seen: set[str] = set()
    effective: set[str] = set()
    valid: set[str] = set()
    for point in points:
        config = _load(base, fixed | point)
        own = {key: value for key, value in point.items() if key not in config.idle}
        effective |= own.keys()
        name = _name(own, labels)
        settings = fixed | own | {"run.name": name, "run.dir": str(folder / name)}
        config = _load(base, settings)
        if (what := json.dumps(config.settings(OfOneRun), sort_keys=True)) in seen:
            continue
        seen.add(what)
        if (what := json.dumps(config.settings(OfOneRun, Repetition), sort_keys=True)) not in valid:
            valid.add(what)
            _check(config, name)
        yield Run(name, tuple(_override(*item) for item in settings.items()), config)
    if idle := labels.keys() - effective:
        raise UserError(f"grid: {min(idle)} has no effect in any run; leave it out")


def _load(base: Path, settings: Mapping[str, Any]) -> RunConfig:
    return load_config(base, [_override(*item) for item in settings.items()])


def _check(config: RunConfig, name: str) -> None:
    try:
        require_buildable(config)
    except UserError as error:
        raise UserError(f"run {name}: {error}") from None


# ---- names and overrides


def _labels(keys: set[str]) -> dict[str, str]:
    """Return how names call each key: without its section where no other key ends the same."""
    short = [key.partition(".")[2] for key in keys]
    return {key: end if short.count(end := key.partition(".")[2]) == 1 else key for key in keys}


def _name(point: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """Return a name as a folder may have it, another one for every point: `method=rigl,seed=1`."""
    name = ",".join(f"{_word(labels[key])}={_word(value)}" for key, value in point.items()) or "base"
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}~{_digest(name)}"


def _word(value: Any) -> str:
    text = value if isinstance(value, str) else _shown(value)
    word = re.sub(r"[^\w.+-]+", "-", text, flags=re.ASCII)[:LONGEST_VALUE]
    return word if word == text else f"{word}~{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _override(key: str, value: Any) -> str:
    """Return a setting as the command line takes it."""
    if isinstance(value, str):
        try:
            plain = yaml12.read(value) == value
        except ValueError:
            plain = False
        return f"{key}={value if plain else _shown(value)}"
    return f"{key}={_shown(value)}"


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _bytes(size: Any) -> int | None:
    if size is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]B)", size) if isinstance(size, str) else None
    if not match or not (number := float(match[1])):
        raise UserError(f"memory: {_shown(size)} is not a size such as 8GB or 500MB; null means no limit")
    return round(number * UNITS[match[2]])
