"""Finished runs as small plain data.

Whatever is told about runs is made from this data alone, so a results.json tells as much as the runs did.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Lt
from pydantic import FiniteFloat, StringConstraints

from rnnsparse.config import keys
from rnnsparse.reporting.pictures import Pictures
from rnnsparse.settings.marks import Incidental, OfSparse, Repetition

FORMAT: Literal["rnnsparse results 1"] = "rnnsparse results 1"
TEXT = "data.text"  # no key of a configuration: which text it is, wherever it lies


# What can be added up, plotted and printed; far beyond all that is ever measured.
Count = Annotated[int, Ge(0), Lt(1 << 63)]
Number = Annotated[FiniteFloat, Ge(0), Le(1e60)]
Step = Annotated[int, Ge(0), Lt(1 << 53)]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What `summary.json` says; a run of an earlier version may lack what may be None.

    `text` is the fingerprint of what it was trained on. `test_bits_per_character` is measured by `compare --test`, not
    by the run. `stretches` tells which settings it had at first, if it was trained longer, or on, with others and is
    not what it would be with these from the start.
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
    text: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None = None
    ranks: Count = 1
    communicated_bytes_per_step: Number = 0.0
    communicated_vs_dense: Number = 0.0
    stretches: str = ""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """What changed while a run trained: one number per step in `steps`, each the mean since the step before it.

    Of `gradient_norm` it is the median; earlier versions have none. `validation` has a (step, bits per character) for
    each evaluation.
    """

    steps: list[Step]
    bits_per_character: list[Number]
    moved: list[Number]
    ever_active: list[Number]
    validation: list[tuple[Step, Number]]
    gradient_norm: list[Number] = field(default_factory=list)

    def __post_init__(self) -> None:
        for values in (self.bits_per_character, self.moved, self.ever_active, self.gradient_norm):
            if len(values) not in (len(self.steps), 0) or (self.steps and not self.bits_per_character):
                raise ValueError("curves need a number for each step")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished run. `name` is that of its folder; `config` holds its sections, without paths of its machine.

    Of the path of a text, `config` has as much as tells it from others of a comparison.
    """

    name: str
    config: dict[str, dict[str, Any]]
    summary: Summary
    curves: Curves
    pictures: Pictures | None = None

    @property
    def named_text(self) -> tuple[str, str | None]:
        """The source of the text and its name, wherever it lies; None if the source says all about it."""
        data = self.config["data"]
        return data["source"], (Path(data["path"]).name or data["path"]) if data["path"] else data.get("name")

    def settings(self) -> dict[str, Any]:
        """Return, by key, what makes this run another setting than a run that differs from it.

        The text counts by its fingerprint; if that is not known, by its name.
        """
        flat = {f"{section}.{key}": value for section, keys in self.config.items() for key, value in keys.items()}
        flat[TEXT] = self.summary.text or self.named_text[1]
        flat["training.stretches"] = self.summary.stretches or None
        alike = keys(Incidental, Repetition, *([OfSparse] if self.summary.method == "dense" else []))
        return {key: value for key, value in flat.items() if key not in alike}


def known_texts(runs: Iterable[Run]) -> dict[tuple[str, str | None], dict[str, Run]]:
    """Return the texts whose fingerprint is known, each with a run on it, by their source and name."""
    known: dict[tuple[str, str | None], dict[str, Run]] = {}
    for run in runs:
        if run.summary.text:
            known.setdefault(run.named_text, {}).setdefault(run.summary.text, run)
    return known


def settings_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the settings of each of some runs that are compared.

    A run of an earlier version does not know the fingerprint of its text. It is taken for that of the others here
    whose text has the same source and name, if these have only one.
    """
    known = known_texts(runs)
    settings = [run.settings() for run in runs]
    for run, own in zip(runs, settings, strict=True):
        texts = known.get(run.named_text, {})
        if run.summary.text is None and len(texts) == 1:
            (own[TEXT],) = texts
    return settings


@dataclass(frozen=True, kw_only=True)
class Results:
    """What results.json holds."""

    format: Literal["rnnsparse results 1"] = FORMAT
    runs: list[Run]

    def to_json(self) -> str:
        """Return one line per run, so that version control shows which runs changed."""
        runs = ",\n".join(json.dumps(asdict(run), ensure_ascii=False) for run in self.runs)
        return f'{{"format": {json.dumps(self.format)}, "runs": [\n{runs}\n]}}\n'
