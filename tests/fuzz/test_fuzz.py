"""A few hundred inputs of the search, the same ones every time; `python -m tests.fuzz` goes on from there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.kinds import kinds, workplace
from tests.fuzz.search import search


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
    assert outcome.lines > 0
