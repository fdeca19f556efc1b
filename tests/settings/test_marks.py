"""What settings say about themselves, over all sections and methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, get_args

import pytest

from rnnsparse.config import SECTIONS, keys
from rnnsparse.settings.marks import Incidental, OnlyWith, OnOneMachine, OtherRun, PathName, UpTo
from rnnsparse.settings.setting import Setting, marked, settings_of
from rnnsparse.sparsity.method import METHODS

ALL = [
    pytest.param(section, setting, id=f"{cls.__name__}.{name}")
    for section, cls in [*SECTIONS.items(), *(("sparsity", method) for method in METHODS.values())]
    for name, setting in settings_of(cls).items()
]


@dataclass(frozen=True, kw_only=True)
class Oven:
    fuel: str = "gas"
    pressure: Annotated[float, OnlyWith("fuel", ("gas",))] = 1.0
    shelf: Annotated[int | None, Incidental] = None
    timer: bool = False
    bell: Annotated[str, OnOneMachine, OnlyWith("timer")] = "ring"
    glass: Annotated[int, OnlyWith("shelf", otherwise="without something to see")] = 1
    alarms: Annotated[tuple[int, ...], UpTo("oven.glass", "the pane")] = ()
    stop: Annotated[int | None, UpTo("oven.glass")] = 0


def why_idle(name: str, **changes: Any) -> str:
    values = {f"oven.{key}": value for key, value in vars(Oven(**changes)).items()}
    return settings_of(Oven)[name].why_idle(f"oven.{name}", values)


def test_a_setting_is_asked_by_meaning_and_a_special_mark_is_also_the_general_one() -> None:
    assert marked(Oven, Incidental) == ["shelf", "bell"]
    assert marked(Oven, OnOneMachine) == ["bell"]
    assert marked(Oven, OnOneMachine, UpTo) == ["bell", "alarms", "stop"]


def test_a_setting_without_effect_says_what_is_in_the_way() -> None:
    assert why_idle("pressure", pressure=2.0, fuel="coal") == "with oven.fuel=coal"
    assert why_idle("pressure", pressure=2.0) == ""
    assert why_idle("bell", bell="buzz") == "without oven.timer=true"
    assert why_idle("bell", bell="buzz", timer=True) == ""
    assert why_idle("glass", glass=2) == "without something to see"
    assert why_idle("glass", glass=2, shelf=1) == ""


def test_numbers_beyond_another_setting_have_no_effect() -> None:
    assert why_idle("alarms", alarms=(1, 5), glass=4) == "beyond the pane, 4"
    assert why_idle("alarms", alarms=(4, 1), glass=4) == ""
    assert why_idle("stop", stop=2) == "beyond oven.glass, 1"
    assert why_idle("stop", stop=None) == ""


def test_a_default_is_never_idle() -> None:
    assert why_idle("pressure", fuel="coal") == why_idle("bell") == why_idle("alarms", glass=0) == ""


@pytest.mark.parametrize(("section", "setting"), ALL)
def test_a_condition_is_about_a_setting_that_exists(section: str, setting: Setting) -> None:
    for mark in setting.marks:
        if isinstance(mark, OnlyWith):
            methods = METHODS.values() if section == "sparsity" else []
            assert any(mark.other in settings_of(holder) for holder in (SECTIONS[section], *methods))
        if isinstance(mark, UpTo):
            assert mark.limit in keys(object)


@pytest.mark.parametrize(("section", "setting"), ALL)
def test_a_path_says_whether_it_is_that_of_another_run_or_decides_no_number(section: str, setting: Setting) -> None:
    kind = get_args(setting.hint)[0]
    if PathName in (kind, *get_args(kind)):
        assert setting.means(Incidental, OtherRun)


@pytest.mark.parametrize("section", ["logging", "checkpoint"])
def test_what_a_run_tells_and_saves_decides_no_number(section: str) -> None:
    assert marked(SECTIONS[section], Incidental) == list(settings_of(SECTIONS[section]))
