"""What the type of a setting says about it, beside its range (`annotated_types`) and its help text (`Doc`).

    teacher: Annotated[PathName | None, OtherRun, ChosenByRecipe, Doc("run whose predictions are learned")] = None

Whoever resumes, compares, sweeps or warns asks for these marks. A setting without any helps to decide the numbers of a
run: it stays what it is as long as the run goes on, and runs that differ in it are compared as different ones.
"""

from __future__ import annotations

import os
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator

# The ~ of a home folder is expanded here: no shell does it in a file, nor behind `section.key=`.
PathName = Annotated[str, AfterValidator(os.path.expanduser)]


class Steps:
    """A number of training steps, which extended training multiplies.

    Steps between two evaluations, saves or lines of a log are not of the training, and not marked.
    """


# ---- what else it may be when a run is resumed


class Incidental:
    """Decides no number: where things are, how fast it goes, what is told. It may change, and is not compared."""


class OnOneMachine(Incidental):
    """Means nothing on another machine, so that what is told of a run there leaves it out."""


class Limit:
    """Decides when a run ends, and no step before that. It may change, but is compared."""


class Changeable:
    """May change from a step on, if that is asked for; a new stretch of the run begins with it."""


class OtherRun:
    """The path of another run or checkpoint. It may have moved; a sweep makes what it needs before."""


# ---- what it means among several runs


class Repetition:
    """Runs that differ in nothing else measure the same once more."""


class OfOneRun:
    """Every run has its own, which a sweep chooses."""


class ChosenByRecipe:
    """A recipe of several runs chooses it for each of them."""


class KeptOnRewind:
    """Without it, the optimizer state and the place in the text of another run mean something else."""


class OfSparse:
    """Says nothing about a dense network."""


# ---- when it does nothing


@dataclass(frozen=True)
class OnlyWith:
    """Has an effect only where another setting of its section is one of `values`, or is there at all.

    Attributes:
        otherwise: why there is none, where the other setting alone does not say it.
    """

    other: str
    values: Container[Any] = ()
    otherwise: str = ""

    def why_idle(self, key: str, values: Mapping[str, Any]) -> str:
        """Return why the setting `key` has no effect among the values of a run, by section.key; "" if it has one."""
        other = f"{key.partition('.')[0]}.{self.other}"
        value = values[other]
        if value in self.values if self.values else value:
            return ""
        if self.otherwise:
            return self.otherwise
        return f"with {other}={value}" if self.values else f"without {other}{'=true' if value is False else ''}"


@dataclass(frozen=True)
class UpTo:
    """A number, or several, that have no effect beyond another setting.

    Attributes:
        limit: its section.key.
        called: what it is, if that is clearer.
    """

    limit: str
    called: str = ""

    def why_idle(self, key: str, values: Mapping[str, Any]) -> str:
        """Return why the setting `key` has no effect among the values of a run, by section.key; "" if it has one."""
        value, limit = values[key], values[self.limit]
        largest = max(value, default=0) if isinstance(value, tuple) else value or 0
        return f"beyond {self.called or self.limit}, {limit}" if largest > limit else ""
