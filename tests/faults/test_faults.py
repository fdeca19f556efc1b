"""A quick share of what scripts/faults.sh injects."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Iterator

import pytest

from tests.faults.bench import Bench, bench
from tests.faults.campaigns import CAMPAIGNS, harm, impossible

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what a process has open is found in /proc")


@pytest.fixture(scope="module")
def the_bench() -> Iterator[Bench]:
    with bench(seed=0) as found:
        yield found


@pytest.mark.parametrize("kind", CAMPAIGNS)
def test_nothing_is_lost(the_bench: Bench, kind: str) -> None:
    if (reason := impossible(the_bench, kind)) is not None:
        pytest.skip(reason)
    campaign, count, _ = CAMPAIGNS[kind]
    the_bench.numbers = random.Random(kind)
    results = list(campaign(the_bench, count))
    assert results
    assert [result for result in results if result.lost is not None] == []


def test_a_loss_would_be_noticed(the_bench: Bench) -> None:
    place = the_bench.place(like=the_bench.interrupted)
    shutil.rmtree(place / "run" / "previous")
    harm(the_bench, place / "run" / "last" / "model.safetensors", "flip")
    assert "last is not whole" in (the_bench.loss(place) or "")

    place = the_bench.place(like=the_bench.interrupted)
    assert the_bench.loss(place) is None
    lines = (place / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (place / "run" / "metrics.jsonl").write_text("".join([lines[0], *lines]))
    assert the_bench.difference(place) == "differs from an undisturbed run in metrics.jsonl"
