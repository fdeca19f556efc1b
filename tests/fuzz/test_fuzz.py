"""Several hundred inputs of the search, the same ones every time; `python -m tests.fuzz` goes on from there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rnnsparse.errors import UserError
from tests.fuzz import lines
from tests.fuzz.kinds import Kind, kinds
from tests.fuzz.mutate import change_bytes
from tests.fuzz.search import search
from tests.fuzz.workplace import workplace


@pytest.fixture(scope="module", autouse=True)
def _work() -> Iterator[None]:
    with workplace():
        yield


@pytest.mark.parametrize("name", kinds())
def test_no_input_leads_to_anything_but_a_valid_result_or_one_line(name: str) -> None:
    kind = kinds()[name]
    outcome = search(kind, name, inputs=kind.quick)
    assert outcome.crashes == {}
    assert outcome.accepted + outcome.refused == kind.quick
    assert outcome.accepted > 0, "what is valid is accepted"
    assert outcome.whole > 0, "and goes through the command line"


def refuse(data: bytes) -> bool:
    raise UserError(f"input: {data!r} is refused")


def test_the_same_seed_gives_the_same_inputs() -> None:
    kind = Kind(lambda: [b"some text"], change_bytes, refuse)
    fed: list[list[bytes]] = [[], []]
    for inputs in fed:
        search(kind, "any", inputs=50, before_each=inputs.append)
    assert fed[0] == fed[1]
    assert len(set(fed[0])) > 40


def test_what_a_command_accepts_but_its_reader_refuses_is_a_crash() -> None:
    kind = Kind(lambda: [b"some text"], change_bytes, run=lambda data: True, read=refuse)
    outcome = search(kind, "any", inputs=20)
    assert outcome.inputs == 20
    (crash,) = outcome.crashes
    assert "the command accepts what is refused alone" in crash


def test_a_statement_counts_once_it_has_run() -> None:
    source = 'def sign(x):\n    """Its text."""\n    if x < 0:\n        return -1\n    return 1\n'
    module: dict[str, Any] = {lines.NAME: lines._reached}
    exec(compile(lines.instrumented(source, "sign.py"), "sign.py", "exec"), module)
    lines.forget()
    assert lines.reached() == 0
    assert (module["sign"](2), lines.reached()) == (1, 2)
    assert (module["sign"](3), lines.reached()) == (1, 2)
    assert (module["sign"](-2), lines.reached()) == (-1, 3)
    assert module["sign"].__doc__ == "Its text."
