"""Settings as their dataclasses declare them: what each means, values for it, what extended training makes of that."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import floor
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

import pydantic
from typing_extensions import Doc

from rnnsparse import yaml12
from rnnsparse.errors import UserError, suggest
from rnnsparse.settings.marks import OnlyWith, Steps, UpTo

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")


@dataclass(frozen=True, eq=False)
class Setting:
    """One field of a dataclass of settings. `hint` is its type, with all that this says."""

    name: str
    hint: Any
    default: Any

    @property
    def help(self) -> str:
        return next((mark.documentation for mark in self.marks if isinstance(mark, Doc)), "")

    @property
    def marks(self) -> tuple[Any, ...]:
        return get_args(self.hint)[1:] if hasattr(self.hint, "__metadata__") else ()

    def means(self, *marks: type) -> bool:
        """Return whether its type has one of these marks."""
        return any(issubclass(mark if isinstance(mark, type) else type(mark), marks) for mark in self.marks)

    def why_idle(self, key: str, values: Mapping[str, Any]) -> str:
        """Return why its value does nothing beside the others of a run, all by section.key; "" if it does something."""
        if values[key] == self.default:
            return ""
        conditions = [mark for mark in self.marks if isinstance(mark, OnlyWith | UpTo)]
        return next(filter(None, (condition.why_idle(key, values) for condition in conditions)), "")

    @cached_property
    def adapter(self) -> pydantic.TypeAdapter[Any]:
        # Kept: making one takes longer than all the rest of reading a key, and a sweep reads each key for every run.
        return pydantic.TypeAdapter(self.hint, config=pydantic.ConfigDict(allow_inf_nan=False))

    def validated(self, value: Any, key: str) -> Any:
        """Return a value of a file as one of the setting's type, strictly.

        Raises:
            UserError: it is none; `key` is what that calls the setting.
        """
        try:
            # YAML has the data model of JSON; in JSON mode lists may become tuples, while "5" still is no number.
            return self.adapter.validate_json(json.dumps(value), strict=True)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            inner = "".join(f".{part}" for part in first["loc"] if not str(part).startswith("function"))
            reason = first["msg"].removeprefix("Value error, ")
            if first["type"] in ("list_type", "tuple_type"):
                reason = f"must be a list, such as [{shown(first['input'])}]"
            if first["type"] == "string_type":
                reason = f"must be text; put it in quotes, such as {yaml12.quoted(shown(first['input']))}"
            raise UserError(
                f"{key}{inner}: {shown(first['input'])}: {reason[0].lower()}{reason[1:]} ({self.help})"
            ) from None


@functools.cache
def settings_of(cls: type[DataclassInstance]) -> Mapping[str, Setting]:
    """Return the settings that a dataclass declares, by name."""
    hints = get_type_hints(cls, include_extras=True)
    found = {}
    for f in dataclasses.fields(cls):
        if f.init:
            default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
            found[f.name] = Setting(f.name, hints[f.name], default)
    return found


@functools.cache
def marked(cls: type[DataclassInstance], *marks: type) -> list[str]:
    """Return the names of those settings of a dataclass whose types have one of these marks."""
    return [name for name, setting in settings_of(cls).items() if setting.means(*marks)]


def made_of(cls: type[C], values: Mapping[str, Any], section: str) -> C:
    """Return a dataclass of settings with values of a file, validated.

    Raises:
        UserError: a key or a value is wrong.
    """
    known = settings_of(cls)
    for name in values:
        if name not in known:
            raise UserError(f"{section}.{name}: unknown key{suggest(name, known)}; there are {', '.join(known)}")
    return cls(**{name: known[name].validated(value, f"{section}.{name}") for name, value in values.items()})


def plain(component: DataclassInstance) -> dict[str, Any]:
    """Return the values of a dataclass of settings as plain data."""
    values = {name: getattr(component, name) for name in settings_of(type(component))}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def shown(value: Any) -> str:
    """Return a value of a file as an error shows it."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def extended(settings: C, multiplier: float) -> C:
    """Return settings for training `multiplier` times as long: all `Steps` are scaled, those between updates too.

    Evci et al. 2020, section 4, name the learning rate's steps and the last update. What counts evaluations (early
    stopping, the start of averaging) counts as many as before, since their interval stays.
    They are rounded to the nearest whole number (a half up) and are at least 1; 0 and None stay what they are.
    """
    written = {name: getattr(settings, name) for name in marked(type(settings), Steps)}
    # Through the decimal the user wrote: 1.1 as a binary fraction times 5 lies above 5.5.
    factor = Fraction(str(multiplier))
    return dataclasses.replace(
        settings, **{name: max(1, floor(steps * factor + Fraction(1, 2))) for name, steps in written.items() if steps}
    )
