"""`rnnsparse compare`: runs that differ only in their seed are one setting; its mean, its deviation, and the table."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from rnnsparse.config import RunConfig, parse_config
from rnnsparse.errors import printable
from rnnsparse.reporting.runs import TEXT, Run, Summary, settings_of
from rnnsparse.settings.sparsity import BudgetConfig

SHARED_SPARSITY_KEYS = {"sparsity.method", *(f"sparsity.{field.name}" for field in fields(BudgetConfig))}
_SPECIAL = re.compile(r"[\\|`\[\]]")  # what would break a table, or make code or links of a name
SPARSITY = "sparsity.sparsity"
LENGTH_KEYS = ("training.steps", "training.multiplier")


@dataclass(frozen=True)
class Statistic:
    """Mean and sample standard deviation (None for one number) of `count` numbers."""

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed only, and what is special about them among the others."""

    runs: tuple[Run, ...]
    special: dict[str, Any]

    @cached_property
    def label(self) -> str:
        return self.label_without()

    @property
    def method(self) -> str:
        return self.runs[0].summary.method

    @property
    def sparsity(self) -> float:
        """The sparsity that was asked for, which a small dense network meets in its size; 0 for `dense`.

        Where connections of another run or early stopping decided instead, what it has come to.
        """
        if self.method == "dense":
            return 0.0
        config = self._config
        taken = config.start.is_elsewhere and not config.start.add
        stopped_early = any(run.summary.steps < config.training.steps for run in self.runs)
        reached = self.statistic("sparsity")
        if config.method.stays_dense or not (taken or stopped_early) or reached is None:
            return config.budget.sparsity
        return round(reached.mean, 3)  # without what rounding to whole connections adds

    @property
    def steps(self) -> int:
        """The steps that the run was to have; early stopping may have ended it before."""
        return self._config.training.steps

    @cached_property
    def bits(self) -> Statistic:
        """Bits per character on the validation text at the end of training."""
        return statistic([run.summary.bits_per_character for run in self.runs])

    @cached_property
    def _config(self) -> RunConfig:
        return parse_config(self.runs[0].config, self.runs[0].name)

    def label_without(self, *keys: str) -> str:
        """Return the method and what else is special, leaving out `keys` (which a plot has on an axis)."""
        names = [key.partition(".")[2] for key in self.special]
        words = [self.method]
        for key, value in self.special.items():
            if key not in keys:
                name = key.partition(".")[2]
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                words.append(f"{name if names.count(name) == 1 else key}={text}")
        return printable(", ".join(words))

    def statistic(self, field: str) -> Statistic | None:
        """Return mean and deviation over the runs of what a summary calls `field`; None if a run lacks it."""
        values = [getattr(run.summary, field) for run in self.runs]
        return None if None in values else statistic(values)


def statistic(values: Sequence[float]) -> Statistic:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Statistic(math.fsum(values) / len(values), deviation, len(values))


def group(runs: Iterable[Run]) -> list[Setting]:
    """Return the settings of `runs`, the fewest bits per character first."""
    runs = list(runs)
    together: dict[str, tuple[dict[str, Any], list[Run]]] = {}
    for run, own in zip(runs, settings_of(runs), strict=True):
        together.setdefault(json.dumps(own, sort_keys=True), (own, []))[1].append(run)
    special = _special([own for own, _ in together.values()])
    texts = _names_of_texts(together.values())
    settings = []
    for own, members in together.values():
        setting = Setting(
            tuple(sorted(members, key=lambda run: run.summary.seed)),
            {key: value for key, value in own.items() if key in special},
        )
        if SPARSITY in setting.special:
            setting.special[SPARSITY] = setting.sparsity
        if TEXT in setting.special:
            setting.special[TEXT] = texts[own["data.source"], own[TEXT]]
        if setting.special.get(TEXT, "") is None:
            del setting.special[TEXT]  # its source says all about it
        settings.append(setting)
    return sorted(settings, key=lambda setting: (setting.bits.mean, setting.label))


def _names_of_texts(groups: Iterable[tuple[dict[str, Any], list[Run]]]) -> dict[tuple[str, str | None], str | None]:
    """Return what to call each text, by its source and what identifies it: its path, as far as that is known.

    Where texts have the same path, or none, the begin of the fingerprint tells them apart.
    """
    paths: dict[tuple[str, str | None], str | None] = {}
    for own, members in groups:
        run = next((member for member in members if member.summary.text), members[0])
        paths.setdefault((own["data.source"], own[TEXT]), run.config["data"]["path"])
    names = {}
    for (source, text), path in paths.items():
        alone = [other for (of, _), other in paths.items() if of == source].count(path) == 1
        fingerprint = text[:8] if text and text != path else "unknown"
        names[source, text] = path if alone else f"{path} {fingerprint}" if path else fingerprint
    return names


def _special(settings: Sequence[dict[str, Any]]) -> set[str]:
    """Return the keys, besides the method, in which settings differ; of a method's own, those that differ within it.

    That another method has other defaults is no news beside its name.
    """
    special = set()
    for key in {key for setting in settings for key in setting} - {"sparsity.method"}:
        own = key.startswith("sparsity.") and key not in SHARED_SPARSITY_KEYS
        values: dict[str, set[str]] = {}
        for setting in settings:
            if key in setting:
                values.setdefault(setting["sparsity.method"] if own else "", set()).add(json.dumps(setting[key]))
        if any(len(different) > 1 for different in values.values()):
            special.add(key)
    return special


# ---- the table


def _with_deviation(form: str) -> Callable[[Statistic], str]:
    def show(number: Statistic) -> str:
        if number.deviation is None:
            return format(number.mean, form)
        return f"{number.mean:{form}} ± {number.deviation:{form}}"

    return show


def _mean(form: str, unit: float = 1) -> Callable[[Statistic], str]:
    return lambda number: format(number.mean / unit, form)


COLUMNS: list[tuple[str, str, Callable[[Statistic], str]]] = [
    ("bits per character", "bits_per_character", _with_deviation(".4f")),
    ("on test", "test_bits_per_character", _with_deviation(".4f")),
    ("connections", "connections", _mean(",.0f")),
    ("ever active", "ever_active", _mean(".1%")),
    ("training FLOPs / dense", "training_flops_vs_dense", _mean(".4f")),
    ("FLOPs per character", "flops_per_character", _mean(",.0f")),
    ("characters per second", "characters_per_second", _mean(",.0f")),
    ("memory (MB)", "peak_memory_bytes", _mean(",.0f", 1e6)),
]
ABOUT_TABLE = (
    "Bits per character at the end of training on the whole validation text, and on the test text if measured: mean ± "
    "sample standard deviation over seeds. Other numbers are means."
)


def table(settings: Sequence[Setting]) -> list[list[str]]:
    """Return the rows of the table, the header first; a column that no setting has is left out."""
    columns = [c for c in COLUMNS if any(setting.statistic(c[1]) for setting in settings)]
    rows = [["setting", "seeds", *(title for title, _, _ in columns)]]
    for setting in settings:
        numbers = [(setting.statistic(field), show) for _, field, show in columns]
        cells = [show(number) if number else "–" for number, show in numbers]
        rows.append([setting.label, str(len(setting.runs)), *cells])
    return rows


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """Return a table for a terminal: the first column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    escaped = [[_SPECIAL.sub(r"\\\g<0>", cell).replace("<", "&lt;") for cell in row] for row in rows]
    rule = ["---", *("---:" for _ in rows[0][1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in [escaped[0], rule, *escaped[1:]])


def as_csv(settings: Sequence[Setting]) -> str:
    """Return one row per run: its name, its setting, its configuration's special keys, and its whole summary."""
    special = sorted({key for setting in settings for key in setting.special})
    summary = [field.name for field in fields(Summary)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", "setting", *special, *summary])
    for setting in settings:
        for run in setting.runs:
            values = asdict(run.summary)
            chosen = [setting.special.get(key, "") for key in special]
            cells = [value if isinstance(value, str) else json.dumps(value) for value in chosen]
            words = [_as_text(word) for word in (run.name, setting.label, *cells)]
            writer.writerow([*words, *(_as_text(v) if isinstance(v, str) else v for v in map(values.get, summary))])
    return out.getvalue()


def _as_text(word: str) -> str:
    """Keep spreadsheets from taking a word for a formula."""
    return f"'{word}" if word.startswith(("=", "+", "-", "@")) else word
