"""The share of positions that were ever active, against sets of positions kept by hand."""

from __future__ import annotations

import io
from math import gcd
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rnnsparse.nn.weight import SparseWeight
from rnnsparse.settings.sparsity import BudgetConfig
from rnnsparse.sparsity import ever_active
from rnnsparse.sparsity.ever_active import EverActive
from rnnsparse.sparsity.group import make_groups
from rnnsparse.sparsity.methods.dense import Dense
from rnnsparse.sparsity.methods.set import SET
from rnnsparse.sparsity.methods.static import Static

STEPS = 12


def positions(numbers: set[int]) -> Tensor:
    return torch.tensor(sorted(numbers), dtype=torch.int64)


def weight_with(rows: int, cols: int, connections: set[int]) -> SparseWeight:
    weight = SparseWeight("w", rows, cols)
    weight.connect(positions(connections))
    return weight


def follow(weight: SparseWeight, topologies: list[set[int]], seed: int = 0) -> EverActive:
    """Let the weight go through topologies as the sparsifier does: counted, then connected."""
    found = EverActive(make_groups([weight], "matrix"), seed)
    for topology in topologies:
        found.add(weight, positions(topology))
        weight.connect(positions(topology))
    return found


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, int, list[set[int]]]:
    """Rows, columns, and topologies of a weight so small that all positions are followed."""
    rows, cols = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    return rows, cols, draw(st.lists(st.sets(st.integers(0, rows * cols - 1)), min_size=1, max_size=6))


@given(histories())
def test_what_fits_into_the_bits_is_the_exact_union_of_all_topologies(case: tuple[int, int, list[set[int]]]) -> None:
    rows, cols, (first, *later) = case
    weight = weight_with(rows, cols, first)
    found = follow(weight, later)
    union = first.union(*later)
    assert found.share == len(union) / (rows * cols)
    assert found.positions(weight).tolist() == sorted(union)


@pytest.mark.parametrize(("rows", "cols"), [(70, 90), (128, 64), (1, 6000), (6000, 1)])
def test_few_connections_are_followed_by_a_sample_of_equally_likely_positions(rows: int, cols: int) -> None:
    generator = torch.Generator().manual_seed(1)
    drawn = [set(torch.randint(rows * cols, (n,), generator=generator).tolist()) for n in (9, 400, 300, 500)]
    first, union = drawn[0], set[int]().union(*drawn)
    stride = -(-rows * cols // (64 * len(first)))
    stride = next(s for s in range(stride, 2 * stride + 9) if gcd(s, cols) == 1)
    assert stride > 8
    shares, followed = {}, {}
    for seed in range(200):
        weight = weight_with(rows, cols, first)
        found = follow(weight, drawn[1:], seed)
        (state,) = found.state_dict().values()
        assert state["stride"] == stride
        assert len(state["bits"]) <= 8 * len(first)
        shares[state["start"]], followed[state["start"]] = found.share, found.positions(weight).tolist()
    assert shares.keys() == set(range(stride)), "every start is drawn"
    together = sorted(position for sample in followed.values() for position in sample)
    assert together == sorted(union), "each position is in one of the samples, and none in two"
    assert sum(shares.values()) / stride == pytest.approx(len(union) / (rows * cols), rel=1e-12), "no bias"
    assert len(set(shares.values())) > 1, "each is an estimate"


def test_the_sample_of_a_seed_is_near_the_truth() -> None:
    rows, cols, count = 300, 400, 400
    generator = torch.Generator().manual_seed(2)
    drawn = [set(torch.randint(rows * cols, (count,), generator=generator).tolist()) for _ in range(40)]
    truth = len(set[int]().union(*drawn)) / (rows * cols)
    shares = []
    for seed in range(3):
        weight = weight_with(rows, cols, drawn[0])
        shares.append(follow(weight, drawn[1:], seed).share)
        assert shares[-1] == pytest.approx(truth, rel=0.05)
        assert len(follow(weight_with(rows, cols, drawn[0]), drawn[1:], seed).positions(weight)) < truth * rows * cols
    assert len(set(shares)) > 1, "the seed decides where it starts"


def test_what_a_sampled_weight_begins_with_is_exact() -> None:
    first = set(range(0, 6000, 601))
    weight = weight_with(60, 1000, first)
    assert follow(weight, [first, first]).share == len(first) / 60_000


def test_a_static_network_keeps_its_density_and_stores_nothing(tiny_run: Any) -> None:
    run = tiny_run(Static(), total_steps=STEPS)
    density = sum(b.group.connections for b in run.budgets) / sum(b.group.positions for b in run.budgets)
    for step in range(1, STEPS + 1):
        assert run.sparsifier.ever_active.share == density
        run.step(step)
    assert run.sparsifier.ever_active.state_dict() == {}


@pytest.mark.parametrize("granularity", ["gate", "matrix", "cell"])
def test_every_connection_that_a_run_ever_had_is_counted_but_for_dense_blocks(tiny_run: Any, granularity: Any) -> None:
    dense = ("embedding", "rnn.0.recurrent.n") if granularity == "gate" else ("embedding",)
    budget = BudgetConfig(sparsity=0.8, granularity=granularity, dense=dense)
    run = tiny_run(SET(interval=2, drop_fraction=0.5), total_steps=STEPS, budget=budget)
    counted = [b.group for b in run.budgets if not b.dense]

    def now() -> set[tuple[str, int]]:
        return {(group.name, position) for group in counted for position in group.indices().tolist()}

    ever, shares = now(), []
    for step in range(1, STEPS + 1):
        run.step(step)
        ever |= now()
        shares.append(run.sparsifier.ever_active.share)
        assert shares[-1] == len(ever) / sum(group.positions for group in counted)
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]
    for name, weight in run.weights.items():
        found = run.sparsifier.ever_active.positions(weight).tolist()
        assert set(found) >= set(weight.indices.tolist()), name
        assert (found == weight.indices.tolist()) == (name == "embedding")


def test_a_dense_network_and_one_that_is_dense_by_name_are_active_everywhere(tiny_run: Any) -> None:
    assert tiny_run(Dense()).sparsifier.ever_active.share == 1
    assert tiny_run(SET(), budget=BudgetConfig(dense=("*",))).sparsifier.ever_active.share == 1


@pytest.mark.parametrize("followed", [64, 1])
def test_a_run_reloaded_at_every_step_counts_as_one_that_went_through(
    tiny_run: Any, followed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ever_active, "FOLLOWED_PER_CONNECTION", followed)  # with 1, small weights are sampled too

    def make() -> Any:
        return tiny_run(SET(interval=2, drop_fraction=0.5), total_steps=STEPS)

    through, reloaded = make(), make()
    for step in range(1, STEPS + 1):
        file = io.BytesIO()
        torch.save(reloaded.state_dict(), file)
        file.seek(0)
        reloaded = make()
        reloaded.load_state_dict(torch.load(file, weights_only=True))
        through.step(step)
        reloaded.step(step)
        ours, theirs = through.sparsifier.ever_active, reloaded.sparsifier.ever_active
        assert ours.share == theirs.share
        for name, weight in through.weights.items():
            assert torch.equal(ours.positions(weight), theirs.positions(reloaded.weights[name]))
    strides = {history["stride"] for history in through.sparsifier.ever_active.state_dict().values()}
    assert (strides == {1}) == (followed == 64)


def test_a_loaded_state_is_a_copy() -> None:
    weight = weight_with(4, 4, {1, 2})
    one = follow(weight, [{1, 3}])
    other = EverActive(make_groups([weight], "matrix"), 0)
    other.load_state_dict(one.state_dict())
    other.add(weight, positions({9}))
    assert (one.share, other.share) == (3 / 16, 4 / 16)
