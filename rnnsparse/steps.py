"""Which settings are numbers of training steps, and what extended training makes of them."""

from __future__ import annotations

import dataclasses
import functools
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")


class Steps:
    """Marks a field of settings as a number of training steps: `Annotated[int, Ge(1), Steps, Doc("...")]`.

    Steps between two evaluations, saves or lines of a log are not of the training, and not marked.
    """


@functools.cache
def step_fields(cls: type) -> list[str]:
    """Return the names of the fields of a dataclass that are marked as `Steps`."""
    hints: dict[str, Any] = get_type_hints(cls, include_extras=True)
    return [f.name for f in dataclasses.fields(cls) if f.init and Steps in get_args(hints[f.name])]


def extended(settings: C, multiplier: float) -> C:
    """Return settings for training `multiplier` times as long: all `Steps` are scaled, those between updates too.

    Evci et al. 2020, section 4, name the learning rate's steps and the last update. What counts evaluations (early
    stopping, the start of averaging) counts as many as before, since their interval stays.
    They are rounded to the nearest whole number (a half up) and are at least 1; 0 and None stay what they are.
    """
    written = {name: getattr(settings, name) for name in step_fields(type(settings))}
    # Through the decimal the user wrote: 1.1 as a binary fraction times 5 lies above 5.5.
    factor = Fraction(str(multiplier))
    return dataclasses.replace(
        settings, **{name: max(1, floor(steps * factor + Fraction(1, 2))) for name, steps in written.items() if steps}
    )
