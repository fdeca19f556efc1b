"""A sweep: one YAML file -> many runs, each an ordinary run with a name of its own.

base: other_sweep.yaml                # another sweep, whose keys hold where this one says nothing; optional
config: quickstart.yaml               # what all runs start from; relative to this file
dir: checkpoints/methods              # where the runs go; by default checkpoints/NAME OF THIS FILE
overrides: {training.steps: 500}      # the same in every run
grid:                                 # every combination is a run; or a list of such grids
  sparsity.method: [static, set, rigl]
  sparsity.drop_fraction: [0.1, 0.3]  # says nothing to static, of which one run per seed is left
  run.seed: [1, 2]
search: {trials: 20, halving: 4}      # draw from the grid instead, which may then have ranges (`search`); optional
processes: 2                          # runs at the same time; by default as many as there are cores for
memory: 8GB                           # do not start another run beyond it, by estimate; by default no limit
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnnsparse import layered, yaml12
from rnnsparse.config import SECTIONS, RunConfig, is_text, load_config, parse_override
from rnnsparse.errors import UserError, suggest
from rnnsparse.layered import Layers
from rnnsparse.recipes.grid import Grid, different, draws, grids_in, points, settings_in
from rnnsparse.recipes.search import DECIDED, Search, parse_search
from rnnsparse.settings.marks import OfOneRun, OtherRun, Repetition
from rnnsparse.training.build import require_buildable
from rnnsparse.training.speed import require_timeable

KEYS = ("config", "dir", "overrides", "grid", "search", "processes", "memory")
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
LONGEST_NAME = 120  # file systems stop at 255 bytes, and a log has the name too
LONGEST_VALUE = 40
MOST_DRAWS = 20  # for each trial of a search: what is drawn may say nothing to a method, and the run be the same again
FURTHER_DRAWS = 200  # looked at before a search is told that something has no effect


@dataclass(frozen=True)
class Run:
    """One point of the grid; `overrides` make `config` from the sweep's base file."""

    name: str
    overrides: tuple[str, ...]
    config: RunConfig


@dataclass(frozen=True)
class Sweep:
    """All runs of a sweep file, in the order of its grid, and how many may run at once.

    With a `search`, these are its trials, as long as the file says; what is trained is of its rungs.
    """

    path: Path
    base: Path
    folder: Path
    runs: tuple[Run, ...]
    processes: int | None
    memory_bytes: int | None
    search: Search | None = None


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
        layers = layered.read(path, is_text=_is_text, merge=_merged, places=("config",))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; name the YAML file of a sweep") from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    try:
        return _parse(layers, path, overrides)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two sweeps: what overrides and search say, each holds by itself, a grid as a whole."""
    merged = {**base, **own}
    for key in ("overrides", "search"):
        if isinstance(base.get(key), dict) and isinstance(own.get(key), dict):
            merged[key] = {**base[key], **own[key]}
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


def _parse(layers: Layers, path: Path, overrides: Sequence[str]) -> Sweep:
    data = layers.data
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
    search = parse_search(data["search"]) if data.get("search") is not None else None
    grids = grids_in(data.get("grid"), drawn=search is not None)
    in_grid = {key for grid in grids for key in grid}
    written = settings_in(data.get("overrides") or {}, "overrides")
    _refuse_hidden(set(written).intersection(*grids), layers)
    fixed = written | _typed(overrides, in_grid)
    if search:
        runs = _trials(base_path, Path(folder), fixed, grids, search)
    else:
        runs = list(_runs(base_path, Path(folder), fixed, in_grid, list(points(grids))))
    _require_effect(in_grid, runs, _further(base_path, fixed, grids, search) if search else ())
    return Sweep(
        path=path,
        base=base_path,
        folder=Path(folder),
        runs=tuple(runs),
        processes=processes,
        memory_bytes=_bytes(data.get("memory")),
        search=search,
    )


def _refuse_hidden(keys: set[str], layers: Layers) -> None:
    """Refuse overrides of `keys` that all grids set too; the grid of a file may replace what its base says of them."""
    for key in sorted(keys):
        of_override, of_grid = (layers.files.index(layers.origins[name]) for name in (f"overrides.{key}", "grid"))
        if of_override <= of_grid:
            raise UserError(f"overrides: {key}: the grid sets it, run by run; change it there, or leave it out here")


def _typed(overrides: Sequence[str], in_grid: set[str]) -> dict[str, Any]:
    """Return what was typed after the name of the file."""
    settings = settings_in(dict(map(parse_override, overrides)), "overrides")
    if twice := settings.keys() & in_grid:
        raise UserError(f"{min(twice)}: the grid sets it, run by run; change it there")
    return settings


def _trials(base: Path, folder: Path, fixed: dict[str, Any], grids: Sequence[Grid], search: Search) -> list[Run]:
    """Return as many different runs as a search wants, drawn from the grids."""
    in_grid = {key for grid in grids for key in grid}
    if search.minutes is not None:
        for key in DECIDED:
            if key in fixed or key in in_grid:
                raise UserError(f"{key}: search.minutes decide how many steps each run has; leave it out")
    drawn = itertools.islice(different(draws(grids, search.seed)), MOST_DRAWS * search.trials)
    runs = list(itertools.islice(_runs(base, folder, fixed, in_grid, drawn), search.trials))
    if len(runs) < search.trials:
        raise UserError(
            f"search: trials: {search.trials}: the grid offers only {len(runs)} different runs, or hardly more; use "
            "fewer trials, or offer more values"
        )
    for run in runs if search.minutes is not None else []:
        try:
            require_timeable(run.config)
        except UserError as error:
            raise UserError(f"search: minutes: run {run.name}: {error}") from None
    return runs


def _runs(
    base: Path, folder: Path, fixed: dict[str, Any], in_grid: set[str], points: Iterable[dict[str, Any]]
) -> Iterator[Run]:
    """Yield each different run once; settings that say nothing to a run are no part of it or of its name."""
    labels = _labels(in_grid)
    seen: set[str] = set()
    valid: set[str] = set()
    for point in points:
        config = _load(base, fixed | point)
        own = {key: value for key, value in point.items() if key not in config.idle}
        name = _name(own, labels)
        settings = fixed | own | placed(folder, name)
        config = _load(base, settings)
        if (what := json.dumps(config.settings(OfOneRun), sort_keys=True)) in seen:
            continue
        seen.add(what)
        if (what := json.dumps(config.settings(OfOneRun, Repetition), sort_keys=True)) not in valid:
            valid.add(what)
            _check(config, name)
        yield Run(name, overrides_of(settings), config)


def _require_effect(in_grid: set[str], runs: Iterable[Run], further: Iterable[set[str]]) -> None:
    """Refuse what does nothing in any run; nor in `further` ones, which only chance has left out."""
    idle = in_grid - {override.partition("=")[0] for run in runs for override in run.overrides}
    for effective in further if idle else ():
        if not (idle := idle - effective):
            break
    if idle:
        raise UserError(f"grid: {min(idle)} has no effect in any run; leave it out")


def _further(base: Path, fixed: dict[str, Any], grids: Sequence[Grid], search: Search) -> Iterator[set[str]]:
    """Yield which keys have an effect in what a search would go on to draw."""
    for point in itertools.islice(draws(grids, search.seed), search.trials, search.trials + FURTHER_DRAWS):
        with contextlib.suppress(UserError):  # it is none of the trials
            yield point.keys() - _load(base, fixed | point).idle


def placed(folder: Path, name: str) -> dict[str, Any]:
    """Return the settings that give a run its place in the folder of a sweep."""
    return {"run.name": name, "run.dir": str(folder / name)}


def _load(base: Path, settings: Mapping[str, Any]) -> RunConfig:
    return load_config(base, overrides_of(settings))


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


def overrides_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return settings as the command line takes them."""
    return tuple(_override(*item) for item in settings.items())


def _override(key: str, value: Any) -> str:
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
