from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated

import pytest
from annotated_types import Ge
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import Doc

from rnnsparse.settings.marks import Steps
from rnnsparse.settings.setting import extended, marked


@dataclass(frozen=True, kw_only=True)
class Settings:
    interval: Annotated[int, Ge(1), Steps, Doc("steps between two")] = 10
    start: Annotated[int, Ge(0), Steps] = 0
    stop: Annotated[Annotated[int, Ge(1)] | None, Steps] = None
    width: Annotated[int, Ge(1), Doc("no steps")] = 10
    share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class More(Settings):
    rest: Annotated[int, Steps] = 4


def test_fields_are_marked_by_their_type_and_inherited() -> None:
    assert marked(Settings, Steps) == ["interval", "start", "stop"]
    assert marked(More, Steps) == ["interval", "start", "stop", "rest"]


def test_marked_fields_are_scaled_and_all_others_kept() -> None:
    settings = More(interval=10, start=3, stop=7, width=9)
    assert extended(settings, 3) == More(interval=30, start=9, stop=21, width=9, rest=12)


def test_none_stays_none() -> None:
    assert extended(Settings(), 5.0).stop is None


@pytest.mark.parametrize(
    ("steps", "multiplier", "expected"),
    [
        (5, 0.5, 3),  # 2.5: a half goes up
        (7, 0.5, 4),  # 3.5
        (5, 1.1, 6),  # 5.5 in decimals
        (45, 0.1, 5),  # 4.5 in decimals
        (3, 0.1, 1),  # 0.3: at least one
        (1, 1e-9, 1),
        (0, 100.0, 0),
        (3, 1e6, 3_000_000),
    ],
)
def test_steps_are_rounded_to_the_nearest_whole_number(steps: int, multiplier: float, expected: int) -> None:
    assert extended(Settings(start=steps), multiplier).start == expected


@given(st.integers(1, 10**9), st.floats(1e-6, 1e6))
def test_rounding_errs_by_half_a_step_at_most_but_keeps_one(steps: int, multiplier: float) -> None:
    found, exact = extended(Settings(interval=steps), multiplier).interval, steps * Fraction(str(multiplier))
    assert found >= 1
    assert abs(found - exact) <= Fraction(1, 2) or (found == 1 and exact < 1)


@given(st.integers(1, 10**9), st.integers(0, 10**9))
def test_training_once_as_long_changes_nothing(interval: int, start: int) -> None:
    settings = Settings(interval=interval, start=start)
    assert extended(settings, 1.0) == settings
