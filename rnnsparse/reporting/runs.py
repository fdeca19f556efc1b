"""Finished runs as small plain data: read from run folders, or from the results.json of an earlier comparison.

Whatever is told about runs is made from this data alone, so a results.json tells as much as the runs did.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from annotated_types import Ge, Le, Lt
from pydantic import FiniteFloat
from tqdm import tqdm

from rnnsparse import files, yaml12
from rnnsparse.config import parse_config
from rnnsparse.errors import UserError
from rnnsparse.reporting.pictures import Pictures, are_counts, read_pictures
from rnnsparse.reporting.places import short_names, shorten_places
from rnnsparse.training import atomic
from rnnsparse.training.run_folder import LAST

LARGEST_RESULTS, LARGEST_SUMMARY, LARGEST_RECORDS, LARGEST_LINE = 1 << 26, 1 << 16, 1 << 30, 1 << 25  # bytes
CURVE_POINTS = 100  # a curve has at most this many
FORMAT: Literal["rnnsparse results 1"] = "rnnsparse results 1"
# What decides no number, or only by the seed: where things are, how fast it goes, what it tells.
ALIKE = {
    "run.name", "run.dir", "run.seed", "data.path", "data.cache", "training.device", "training.threads",
}  # fmt: skip
OF_DENSE = {"sparsity.method", "sparsity.basis", "sparsity.basis_from"}
ALIKE_SECTIONS = {"logging", "checkpoint"}


# What can be added up, plotted and printed; far beyond all that is ever measured.
Count = Annotated[int, Ge(0), Lt(1 << 63)]
Number = Annotated[FiniteFloat, Ge(0), Le(1e60)]
Step = Annotated[int, Ge(0), Lt(1 << 53)]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What `summary.json` says; a run of an earlier version may lack what may be None.

    `test_bits_per_character` is measured by `compare --test`, not by the run.
    """

    bits_per_character: Number
    test_bits_per_character: Number | None = None
    bits_per_byte: Number
    best_bits_per_character: Number | None = None
    steps: Count
    characters_seen: Count
    connections: Count
    positions: Count
    sparsity: Number
    ever_active: Number | None = None
    flops_per_character: Count | None = None
    training_flops: Number
    training_flops_vs_dense: Number
    seconds: Number
    characters_per_second: Number | None = None
    peak_memory_bytes: Count | None = None
    method: str
    seed: Count
    ranks: Count = 1
    communicated_bytes_per_step: Number = 0.0
    communicated_vs_dense: Number = 0.0


@dataclass(frozen=True, kw_only=True)
class Curves:
    """What changed while a run trained: one number per step in `steps`, each the mean since the step before it.

    `validation` has a (step, bits per character) for each evaluation.
    """

    steps: list[Step]
    bits_per_character: list[Number]
    moved: list[Number]
    ever_active: list[Number]
    validation: list[tuple[Step, Number]]

    def __post_init__(self) -> None:
        for values in (self.bits_per_character, self.moved, self.ever_active):
            if len(values) not in (len(self.steps), 0) or (self.steps and not self.bits_per_character):
                raise ValueError("curves need a number for each step")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished run. `name` is that of its folder; `config` holds its sections, without paths of its machine."""

    name: str
    config: dict[str, dict[str, Any]]
    summary: Summary
    curves: Curves
    pictures: Pictures | None = None

    def settings(self) -> dict[str, Any]:
        """Return, by key, what makes this run another setting than a run that differs from it."""
        flat = {f"{section}.{key}": value for section, keys in self.config.items() for key, value in keys.items()}
        if flat["data.source"] == "text":
            flat["data.text"] = flat["data.path"]
        if self.summary.method == "dense":
            flat = {k: v for k, v in flat.items() if not k.startswith("sparsity.") or k in OF_DENSE}
        return {k: v for k, v in flat.items() if k not in ALIKE and k.partition(".")[0] not in ALIKE_SECTIONS}


@dataclass(frozen=True, kw_only=True)
class Results:
    """What results.json holds."""

    format: Literal["rnnsparse results 1"] = FORMAT
    runs: list[Run]

    def to_json(self) -> str:
        """Return one line per run, so that version control shows which runs changed."""
        runs = ",\n".join(json.dumps(asdict(run), ensure_ascii=False) for run in self.runs)
        return f'{{"format": {json.dumps(self.format)}, "runs": [\n{runs}\n]}}\n'


def read_runs(paths: Sequence[Path], test: Callable[[Path], float] | None = None) -> tuple[list[Run], list[str]]:
    """Return the finished runs at `paths` in order of their seeds, and one line about each run that is left out.

    A path is a run, a folder with runs below it, or a results.json. Of each setting one run has pictures, that with
    the lowest seed: one network of a setting looks like the others. `test` measures the bits per character of a run's
    folder on the test text.

    Raises:
        UserError: nothing there, damaged, foreign, or the same run twice.
    """
    runs: list[Run] = []
    from_folders: list[Run] = []
    left_out: list[str] = []
    folders: dict[Path, None] = {}
    for path in paths:
        if path.is_file():
            runs += read_results(path).runs
            continue
        for folder in _run_folders(path):
            if folder.resolve() in folders:
                raise UserError(f"{folder}: this run is named twice; name it once")
            folders[folder.resolve()] = None
    names = short_names(list(folders))
    folder_of = {name: folder for folder, name in names.items()}
    for folder in folders:
        if folder.joinpath("summary.json").exists():
            from_folders.append(_read_run(folder, names[folder]))
        else:
            left_out.append(f"{names[folder]}: not finished, so it is left out{_progress(folder)}")
    shorten_places([run.config for run in from_folders])
    if test:
        # Not before all are known to be runs: it takes a while.
        for i, run in enumerate(tqdm(from_folders, "test", unit="run", disable=None)):
            if atomic.existing(folder_of[run.name] / LAST) is None:
                left_out.append(f"{run.name}: has no checkpoint any more, so it is not measured on the test text")
                continue
            summary = replace(run.summary, test_bits_per_character=test(folder_of[run.name]))
            from_folders[i] = replace(run, summary=summary)
    places = {id(run): folder_of[run.name] for run in from_folders}
    runs += from_folders
    runs.sort(key=lambda run: run.summary.seed)
    runs = _without_copies(runs, left_out)
    return _with_pictures(runs, places), left_out


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
    """Leave out what only means something on one machine; of the path of a text, keep the file's name.

    What other runs are called is for `shorten_places`, which looks at all of a comparison.
    """
    sections = {section: dict(keys) for section, keys in config.items()}
    for section, key in (("run", "dir"), ("data", "cache"), ("training", "threads")):
        del sections[section][key]
    path = sections["data"]["path"]
    sections["data"]["path"] = Path(path).name if path and sections["data"]["source"] == "text" else None
    return sections


T = TypeVar("T")


def _parsed(kind: type[T], path: Path, largest: int, what: str) -> T:
    adapter: pydantic.TypeAdapter[T] = pydantic.TypeAdapter(kind)
    try:
        return adapter.validate_json(files.read(path, largest))
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

    key = "validation_bits_per_character"
    return Curves(
        steps=[part[-1]["step"] for part in bins],
        bits_per_character=means("bits_per_character"),
        moved=means("moved"),
        ever_active=means("ever_active"),
        validation=[(r["step"], _rounded(r[key])) for r in records if _is_number(r.get(key))],
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1e60


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")  # as much as a picture shows


def _progress(folder: Path) -> str:
    steps = [record["step"] for record in read_records(folder / "metrics.jsonl")]
    return f" (it has logged {steps[-1]:,} steps)" if steps else ""


def _without_copies(runs: Sequence[Run], left_out: list[str]) -> list[Run]:
    """The same setting with the same seed is no second measurement."""
    seen: dict[str, Run] = {}
    for run in runs:
        first = seen.setdefault(json.dumps([run.settings(), run.summary.seed], sort_keys=True), run)
        if first is run:
            continue
        copy = f"{run.name}: has the same settings and the same seed as {first.name}, so it is no second measurement"
        if run.summary.method != "dense":
            raise UserError(f"{copy}; leave one of them out")
        left_out.append(f"{copy}, left out")  # a sweep over sparsities trains the same dense network for each
    return list(seen.values())


def _with_pictures(runs: Sequence[Run], places: Mapping[int, Path]) -> list[Run]:
    """Give the first run of each setting its pictures, if its checkpoint is still there.

    `places` has the folders, by `id`: names of runs from elsewhere may be the same.
    """
    pictured = {_setting_key(run) for run in runs if run.pictures}
    result = []
    for run in runs:
        key, folder = _setting_key(run), places.get(id(run))
        if key not in pictured and folder and folder.joinpath("last").exists():
            pictures = read_pictures(folder, read_records(folder / "connectivity.jsonl", are_counts))
            run = replace(run, pictures=pictures)
            pictured.add(key)
        result.append(run)
    return result


def _setting_key(run: Run) -> str:
    return json.dumps(run.settings(), sort_keys=True)
