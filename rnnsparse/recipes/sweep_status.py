"""How far the runs of a sweep are, and what those to come will cost, going by those that are done."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rnnsparse import yaml12
from rnnsparse.config import RunConfig, parse_config
from rnnsparse.data.corpus import text_fingerprint
from rnnsparse.errors import UserError
from rnnsparse.recipes.sweep import Run, needs
from rnnsparse.reporting.reading import read_summary
from rnnsparse.settings.data import DataConfig
from rnnsparse.settings.marks import OfOneRun, OtherRun, Repetition
from rnnsparse.sparsity.allocation import Budget
from rnnsparse.sparsity.methods.lottery import Lottery
from rnnsparse.training.build import named_teacher, vocabulary_size
from rnnsparse.training.device import CPU
from rnnsparse.training.inspection import inspect
from rnnsparse.training.run import lifeline, lock, run_folder
from rnnsparse.training.run.record import ENVIRONMENT, told
from rnnsparse.training.start import final_model

PROGRAM_BYTES = 560_000_000  # measured: Python, torch, and kernels being compiled, in a run of configs/quickstart.yaml

State = Literal["new", "interrupted", "done", "running elsewhere", "refused"]


@dataclass(frozen=True)
class Status:
    """What a run's folder tells: `detail` says who runs it elsewhere, or why it is refused."""

    state: State
    detail: str = ""
    summary: dict[str, Any] | None = None


class Fingerprints(dict[DataConfig, str]):
    """Those of the texts of some runs, each read once, when it is first asked for."""

    def __missing__(self, data: DataConfig) -> str:
        self[data] = found = text_fingerprint(data)
        return found


def status(run: Run, fingerprints: Fingerprints | None = None) -> Status:
    """Look at the run's folder, without changing it.

    Args:
        fingerprints: of the texts as they are now, by which a finished run is one on the text that its settings name.
    """
    folder = run.config.folder
    fingerprints = Fingerprints() if fingerprints is None else fingerprints
    if (other := lock.holder(folder)) is not None:
        return Status("running elsewhere", other)
    try:
        if folder.joinpath("summary.json").is_file():
            was, summary = _recorded(folder), read_summary(folder)
            run_folder.refuse_another_run(was, run.config)
            if summary.text is not None:  # as it is in those of earlier versions
                _refuse_another_text(summary.text, fingerprints[run.config.data], run.config)
            _refuse_other_runs(run.config)
            if not _goes_on(summary.steps, was, run.config):
                return Status("done", summary=asdict(summary))
        if run_folder.has_checkpoint(folder):
            run_folder.last_checkpoint(run.config)
            _refuse_other_runs(run.config)
            return Status("interrupted")
        if run.config.method.recipe and folder.joinpath("config.yaml").is_file():
            run_folder.refuse_another_run(_recorded(folder), run.config)
            return Status("interrupted")
        run_folder.claim(folder)
        return Status("new")
    except UserError as error:
        return Status("refused", str(error))
    except (OSError, ValueError) as error:
        return Status("refused", f"{folder}: cannot be read: {error}; choose another dir")


def _refuse_another_text(trained: str, now: str, config: RunConfig) -> None:
    if trained != now:
        raise UserError(
            f"{config.folder}: {config.data.told}: is not the text that this run was trained on: fingerprint then "
            f"{trained[:8]}, now {now[:8]}; bring that text back, or choose another dir"
        )


def _refuse_other_runs(config: RunConfig) -> None:
    """Make sure that the runs which a run is to start or learn from are those that it did; they may have moved."""
    used, named = told(config.folder / ENVIRONMENT, "others"), config.marked(OtherRun)
    for key, now in run_folder.others(config).items():
        then = used.get(key, now) if isinstance(used, dict) else now  # earlier versions did not tell
        if then != now:
            raise UserError(
                f"{config.folder}: {key}: {named[key]}: is not what this run was given: SHA-256 then "
                f"{str(then)[:8]}, now {now[:8]}; name that one, or choose another dir"
            )


def _goes_on(steps: int, was: RunConfig, config: RunConfig) -> bool:
    """Return whether a run has steps left that `training.early_stopping` kept from it and now does not."""
    before, now = was.training.early_stopping, config.training.early_stopping
    return steps < config.training.steps and before is not None and (now is None or now > before)


def is_ending(run: Run) -> bool:
    """Return whether a run is still being saved by a process of a sweep that has ended; it will soon be free."""
    other = lock.holder(run.config.folder)
    return other is not None and lifeline.is_ending(other)


def _recorded(folder: Path) -> RunConfig:
    path = folder / "config.yaml"
    return parse_config(yaml12.read_file(path), str(path))


@dataclass(frozen=True)
class Cost:
    """What `inspect` says of a run; `steps` are optimizer steps of all the runs that a recipe makes."""

    steps: int
    connections: int
    training_flops: float
    training_flops_vs_dense: float
    memory_bytes: int


class VocabularySizes(dict[DataConfig, int]):
    """How many symbols each text of some runs has; where that is for another of them to find, when it is asked for.

    Raises:
        UserError: a text is not there; when it is asked for, the other run.
    """

    def __init__(self, runs: Sequence[Run], size: Callable[[DataConfig], int]) -> None:
        super().__init__()
        for run in runs:
            data = run.config.data
            if data not in self and not (data.vocabulary and needs(run, runs)):
                self[data] = size(data)

    def __missing__(self, data: DataConfig) -> int:
        self[data] = size = vocabulary_size(data)
        return size


@dataclass
class _Rates:
    """Symbols per second of finished runs that have the same settings: their sum, and how many they are."""

    settings: dict[str, Any]
    total: float = 0.0
    number: int = 0


class Estimator:
    """Costs of runs to come. Times and memory go by what finished runs took, so they are unknown at first.

    Args:
        vocab_sizes: how many symbols each text has.
        program_bytes: memory of the program itself, for as long as no run has told what it is.
    """

    def __init__(self, vocab_sizes: Mapping[DataConfig, int], program_bytes: int = PROGRAM_BYTES) -> None:
        self._vocab_sizes = vocab_sizes
        self._rates: dict[str, _Rates] = {}  # by settings, which those of several seeds share
        self._expected: dict[str, float] = {}
        self._overhead_bytes = program_bytes
        self._measured = False
        self._costs: dict[str, Cost] = {}

    def learn(self, run: Run, summary: dict[str, Any], with_memory: bool = False) -> None:
        """Take note of a finished run."""
        if rate := summary.get("characters_per_second"):
            # What is to come is known in symbols, of which a character may have several.
            symbols = summary["steps"] * _symbols_per_step(run.config)
            settings = _settings(run.config)
            found = self._rates.setdefault(_key(settings), _Rates(settings))
            found.total, found.number = found.total + rate * symbols / summary["characters_seen"], found.number + 1
            self._expected.clear()
        if with_memory and (peak := summary.get("peak_memory_bytes")):
            try:
                overhead = max(peak - self.cost(run.config).memory_bytes, 0)
            except UserError:
                return  # what it started from is there no more
            self._overhead_bytes = max(overhead, self._overhead_bytes) if self._measured else overhead
            self._measured = True

    def seconds(self, config: RunConfig) -> float | None:
        """Return how long all training steps take, by the mean rate of the finished runs most like this one.

        Those of a recipe are the steps of all its runs.
        """
        try:
            steps = self.cost(config).steps if config.method.recipe else config.training.steps
        except UserError:
            return None
        if not self._rates:
            return None
        wanted = _settings(config)
        if (key := _key(wanted)) not in self._expected:
            unlike = {own: _differing(rates.settings, wanted) for own, rates in self._rates.items()}
            fewest = min(unlike.values())
            alike = [self._rates[own] for own, number in unlike.items() if number == fewest]
            self._expected[key] = sum(rates.total for rates in alike) / sum(rates.number for rates in alike)
        return steps * _symbols_per_step(config) / self._expected[key]

    def memory(self, config: RunConfig) -> int:
        """Return bytes for a run: what `inspect` counts, and the most that one had in use beyond that.

        Raises:
            UserError: as `cost`.
        """
        return self._overhead_bytes + self.cost(config).memory_bytes

    def cost(self, config: RunConfig) -> Cost:
        """Return what `inspect` says; it is the same for every seed, and kept.

        Raises:
            UserError: there is no such network, or another run that it starts or learns from is not there (yet).
        """
        key = _key(_settings(config))
        if key not in self._costs:
            model, budgets = final_model(config, self._vocab_sizes[config.data], CPU)
            teacher = named_teacher(config, CPU)
            report = inspect(config, model, budgets, teacher.model if teacher else None)
            self._costs[key] = Cost(
                steps=_steps(config, budgets),
                connections=report["connections"],
                training_flops=report["training_flops"],
                training_flops_vs_dense=report["training_flops_vs_dense"],
                memory_bytes=sum(report["memory_bytes"].values()),
            )
        return self._costs[key]


def _steps(config: RunConfig, budgets: Sequence[Budget]) -> int:
    """Return the optimizer steps of a run, with those of the runs before it if it is the last one of a recipe."""
    method, steps = config.method, config.training.steps
    rewound = method.rewind_step(steps) if isinstance(method, Lottery) else 0
    return sum(earlier for earlier, _ in method.earlier_runs(budgets, steps)) + steps - rewound


def _symbols_per_step(config: RunConfig) -> int:
    training = config.training
    return training.batch_size * training.sequence_length * training.accumulate


def _settings(config: RunConfig) -> dict[str, Any]:
    """Return all settings that can make a run slower or larger."""
    return config.settings(OfOneRun, Repetition)


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def _differing(some: dict[str, Any], others: dict[str, Any]) -> int:
    return sum(some.get(key) != others.get(key) for key in some | others)


def plan(runs: Sequence[Run]) -> list[str]:
    """Return a table of what a sweep would do, as lines; nothing is trained or written.

    Raises:
        UserError: a text is not there, whose characters are the symbols of a run.
    """
    vocab_sizes = VocabularySizes(runs, vocabulary_size)
    estimator, fingerprints = Estimator(vocab_sizes), Fingerprints()
    states = [status(run, fingerprints) for run in runs]
    for run, state in zip(runs, states, strict=True):
        if state.summary:
            estimator.learn(run, state.summary)
    rows = [["run", "status", "connections", "training FLOPs", "of dense", "training time"]]
    total, unknown = 0.0, []
    for run, state in zip(runs, states, strict=True):
        # A recipe's summary has the time of its last run alone.
        known = None if run.config.method.recipe else state.summary
        seconds = known["seconds"] if known else estimator.seconds(run.config)
        try:
            cost = state.summary or vars(estimator.cost(run.config))
            flops, of_dense = cost["training_flops"], cost["training_flops_vs_dense"]
            numbers = [f"{cost['connections']:,}", f"{flops:.3g}", f"{of_dense:.4f}"]
            total += flops if state.state not in ("done", "refused") else 0
        except UserError as error:
            numbers = ["?"] * 3
            unknown.append(f"{run.name}: {error}")
        rows.append([run.name, state.state, *numbers, duration(seconds)])
    lines = aligned(rows, left=[0, 1])
    lines += [
        f"{run.name}: {state.detail.removeprefix(f'{run.config.folder}: ')}"
        for run, state in zip(runs, states, strict=True)
        if state.detail
    ]
    counts = {state: [s.state for s in states].count(state) for state in dict.fromkeys(s.state for s in states)}
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    besides = f" besides the {len(unknown)} unknown" if unknown else ""
    return [*lines, *unknown, f"{len(runs)} runs: {told}; {total:.3g} FLOPs to train{besides}"]


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """Return the rows of a table as lines, with these columns aligned on the left, and numbers in the others."""
    columns = [
        [cell.ljust(width) if number in left else cell.rjust(width) for cell in column]
        for number, column in enumerate(zip(*rows, strict=True))
        for width in [max(map(len, column))]
    ]
    return ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]


def duration(seconds: float | None) -> str:
    """Return seconds in words, "?" for None."""
    if seconds is None:
        return "?"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
