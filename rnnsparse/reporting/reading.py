"""Read finished runs, from their folders or from the results.json of an earlier comparison."""

from __future__ import annotations

import functools
import json
import math
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import pydantic
from tqdm import tqdm

from rnnsparse import files, yaml12
from rnnsparse.config import keys, parse_config
from rnnsparse.errors import UserError
from rnnsparse.reporting.pictures import are_counts, read_pictures
from rnnsparse.reporting.places import short_names, shorten_places, shorten_texts
from rnnsparse.reporting.runs import FORMAT, Curves, Results, Run, Summary, known_texts, settings_of
from rnnsparse.settings.marks import OnOneMachine
from rnnsparse.storage import atomic
from rnnsparse.training.measured_text import require_own_texts
from rnnsparse.training.run.run_folder import LAST

LARGEST_RESULTS, LARGEST_SUMMARY, LARGEST_RECORDS, LARGEST_LINE = 1 << 26, 1 << 16, 1 << 30, 1 << 25  # bytes
CURVE_POINTS = 100  # a curve has at most this many


def read_runs(paths: Sequence[Path], test: Callable[[Path], float] | None = None) -> tuple[list[Run], list[str]]:
    """Return the finished runs at `paths` in order of their seeds, and one line about what is left out or uncertain.

    A path is a run, a folder with runs below it, or a results.json. Of each setting one run has pictures, that with
    the lowest seed: one network of a setting looks like the others. `test` measures the bits per character of a run's
    folder on the test text.

    Raises:
        UserError: nothing there, damaged, or foreign; or, with `test`, a run whose text has changed.
    """
    found: list[_Found] = []
    left_out: list[str] = []
    folders: dict[Path, None] = {}
    for path in paths:
        if path.is_file():
            found += [_Found(run) for run in read_results(path).runs]
            continue
        for folder in _run_folders(path):
            if folder.resolve() in folders:
                left_out.append(f"{folder}: this run is named twice, and counts once")
            folders[folder.resolve()] = None
    here = []
    for folder, name in short_names(list(folders)).items():
        if folder.joinpath("summary.json").exists():
            here.append(_Found(_read_run(folder, name), folder))
        else:
            left_out.append(f"{name}: not finished, so it is left out{_progress(folder)}")
    shorten_places([run.run.config for run in here])
    if test:
        # Not before all are known to be runs on texts that are still there: it takes a while.
        require_own_texts([run.folder for run in here if run.folder and run.has_checkpoint()])
        here = [_tested(run, test, left_out) for run in tqdm(here, "test", unit="run", disable=None)]
    left_out += _uncertain_texts(here)
    found = sorted(found + here, key=_seed_and_what_is_missing)
    shorten_texts([one.run for one in found])
    settings = settings_of([one.run for one in found])
    found = [replace(one, setting=json.dumps(own, sort_keys=True)) for one, own in zip(found, settings, strict=True)]
    left_out += _texts_by_name([one.run for one in found])
    return _with_pictures(_without_copies(found, left_out)), left_out


@dataclass(frozen=True)
class _Found:
    """A run, its folder if it was read from there, and what is the same in all runs of its setting."""

    run: Run
    folder: Path | None = None
    setting: str = ""

    def has_checkpoint(self) -> bool:
        return self.folder is not None and atomic.existing(self.folder / LAST) is not None


def _seed_and_what_is_missing(one: _Found) -> tuple[int, bool, bool]:
    """Of two equal runs the one that says more comes first, and counts."""
    summary = one.run.summary
    return summary.seed, summary.text is None, summary.test_bits_per_character is None


def _tested(found: _Found, test: Callable[[Path], float], left_out: list[str]) -> _Found:
    run = found.run
    if found.folder is None or not found.has_checkpoint():
        left_out.append(f"{run.name}: has no checkpoint any more, so it is not measured on the test text")
        return found
    summary = replace(run.summary, test_bits_per_character=test(found.folder))
    return replace(found, run=replace(run, summary=summary))


def is_results(path: Path) -> bool:
    """Whether a file is a results.json of this program."""
    try:
        return path.is_file() and json.loads(files.read(path, LARGEST_RESULTS))["format"] == FORMAT
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def read_results(path: Path) -> Results:
    """Read a results.json.

    Raises:
        UserError: it is none.
    """
    results = _parsed(Results, path, LARGEST_RESULTS, "results of `rnnsparse compare --out`")
    for run in results.runs:
        # A later version may have keys that this file has not: they get their defaults, as in a run's folder.
        run.config.update(_portable(parse_config(run.config, f"{path}: {run.name}").to_dict()))
        _require_method(run, path)
    shorten_places([run.config for run in results.runs])
    return results


def _run_folders(path: Path) -> list[Path]:
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder; name a run, a folder of runs, or a results.json")
    found = list(_search(path))
    if not found:
        raise UserError(
            f"{path}: neither a run nor a folder of runs: a run holds config.yaml and metrics.jsonl or summary.json"
        )
    return found


def _search(path: Path) -> Iterator[Path]:
    for folder, below, names in os.walk(path):
        # A recipe trains its rounds before it has anything of its own to tell; they are no runs beside it.
        if "config.yaml" in names and ("summary.json" in names or "metrics.jsonl" in names or "rounds" in below):
            below.clear()
            yield Path(folder)
        below.sort()


def _read_run(folder: Path, name: str) -> Run:
    config_path = folder / "config.yaml"
    try:
        data = yaml12.read_file(config_path)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{config_path}: cannot be read: {' '.join(str(error).split())}; leave this run out") from None
    config = parse_config(data, str(config_path))
    records = read_records(folder / "metrics.jsonl")
    run = Run(
        name=name,
        config=_portable(config.to_dict()),
        summary=read_summary(folder),
        curves=_curves(records),
    )
    _require_method(run, folder / "summary.json")
    return run


def read_summary(folder: Path) -> Summary:
    """Read what a finished run's folder says of its end.

    Raises:
        UserError: it is damaged.
    """
    return _parsed(Summary, folder / "summary.json", LARGEST_SUMMARY, "the summary of a run")


def _require_method(run: Run, path: Path) -> None:
    if run.summary.method != run.config["sparsity"]["method"]:
        raise UserError(
            f"{path}: {run.name}: method: {run.summary.method!r} is not that of its configuration, "
            f"{run.config['sparsity']['method']!r}; leave this run out"
        )


def _portable(config: dict[str, Any]) -> dict[str, Any]:
    """Leave out what only means something on one machine.

    What texts and other runs are called is for `shorten_texts` and `shorten_places`, which look at all of a comparison.
    """
    sections = {section: dict(keys) for section, keys in config.items()}
    for section, key in (key.split(".") for key in keys(OnOneMachine)):
        sections[section].pop(key, None)
    # Of WikiText, and of nothing else, a path is one of several places of the same text.
    if sections["data"]["source"] in ("wikitext103", "wikitext2"):
        sections["data"]["path"] = None
    return sections


T = TypeVar("T")


@functools.cache
def _adapter(kind: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(kind)  # kept: a comparison reads many summaries


def _parsed(kind: type[T], path: Path, largest: int, what: str) -> T:
    try:
        read: T = _adapter(cast(Any, kind)).validate_json(files.read(path, largest))
        return read
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; check the path and its permissions") from None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = f"{where}: {first['msg']}" if where else first["msg"]
        raise UserError(f"{path}: not {what}: {reason}; leave it out, or restore it") from None


def read_records(path: Path, keep: Callable[[dict[str, Any]], bool] = lambda record: True) -> list[dict[str, Any]]:
    """Return the lines of a .jsonl file that hold a step; what is torn or foreign is left out, no file is no lines."""
    return [record for record in _records(path) if keep(record)]


def _records(path: Path) -> Iterator[dict[str, Any]]:
    try:
        # Opening a pipe would wait for somebody to write to it.
        if not path.is_file():
            return
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > LARGEST_RECORDS:
                raise UserError(f"{path}: has more than {LARGEST_RECORDS:,} bytes; leave this run out")
            while line := file.readline(LARGEST_LINE):
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(record, dict) and type(step := record.get("step")) is int and 0 <= step < 1 << 53:
                    yield record
    except OSError:
        return


def _curves(records: Sequence[dict[str, Any]]) -> Curves:
    training = [r for r in records if _is_number(r.get("bits_per_character"))]
    size = max(1, math.ceil(len(training) / CURVE_POINTS))
    bins = [training[i : i + size] for i in range(0, len(training), size)]

    def means(key: str) -> list[float]:
        if not all(_is_number(record.get(key)) for record in training):
            return []
        return [_rounded(math.fsum(r[key] for r in part) / len(part)) for part in bins]

    # Of a batch whose gradient was not finite there is no norm.
    norms = [[r["gradient_norm"] for r in part if _is_number(r.get("gradient_norm"))] for part in bins]
    key = "validation_bits_per_character"
    return Curves(
        steps=[part[-1]["step"] for part in bins],
        bits_per_character=means("bits_per_character"),
        moved=means("moved"),
        ever_active=means("ever_active"),
        validation=[(r["step"], _rounded(r[key])) for r in records if _is_number(r.get(key))],
        gradient_norm=[_rounded(statistics.median(part)) for part in norms] if all(norms) else [],
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1e60


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")  # as much as a picture shows


def _progress(folder: Path) -> str:
    steps = [record["step"] for record in read_records(folder / "metrics.jsonl")]
    return f" (it has logged {steps[-1]:,} steps)" if steps else ""


def _without_copies(found: Sequence[_Found], left_out: list[str]) -> list[_Found]:
    """The same setting with the same seed is no second measurement."""
    seen: dict[tuple[str, int], _Found] = {}
    for one in found:
        # Among others, a sweep over sparsities trains the same dense network for each.
        first = seen.setdefault((one.setting, one.run.summary.seed), one)
        if first is not one:
            same = f"has the same settings and the same seed as {first.run.name}"
            left_out.append(f"{one.run.name}: {same}, so it is no second measurement, left out")
    return list(seen.values())


def _uncertain_texts(here: Sequence[_Found]) -> Iterator[str]:
    """Yield a line for each name under which runs of earlier versions were trained on files in several places."""
    places: dict[str, dict[str, str]] = {}
    for one in here:
        name = one.run.named_text[1]
        if one.run.summary.text is None and name:
            place = os.path.abspath(one.run.config["data"]["path"])
            places.setdefault(name, {}).setdefault(place, one.run.name)
    for name, found in places.items():
        if len(found) > 1:
            (place, run), (other_place, other), *_ = found.items()
            yield (
                f"{run}, {other}: earlier versions trained them, which do not tell their texts: {place} and "
                f"{other_place} are taken for the same, as both are called {name}"
            )


def _texts_by_name(runs: Sequence[Run]) -> Iterator[str]:
    """Yield a line for each run that does not tell its text, beside others that do and whose text has the same name."""
    known = known_texts(runs)
    for run in runs:
        if run.summary.text is None and (texts := known.get(run.named_text)):
            names = [other.name for other in texts.values()]
            yield f"{run.name}: an earlier version trained it, which does not tell its text: " + (
                f"it is taken for that of {names[0]}, which has the same name"
                if len(names) == 1
                else f"it may be that of {names[0]} or of {names[1]}, so it is taken for another one"
            )


def _with_pictures(found: Sequence[_Found]) -> list[Run]:
    """Give the first run of each setting its pictures, if its checkpoint is still there."""
    pictured = {one.setting for one in found if one.run.pictures}
    runs = []
    for one in found:
        run = one.run
        if one.setting not in pictured and one.folder and one.has_checkpoint():
            run = replace(
                run, pictures=read_pictures(one.folder, read_records(one.folder / "connectivity.jsonl", are_counts))
            )
            pictured.add(one.setting)
        runs.append(run)
    return runs
