"""Lanes: what each batch holds, that lanes carry on, that the position resumes, and how ranks share them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnnsparse.data.batches import Lanes
from rnnsparse.errors import UserError

sizes = (
    st.integers(1, 40)
    .flatmap(lambda symbols: st.tuples(st.just(symbols), st.integers(1, symbols), st.integers(0, symbols - 1)))
    .filter(lambda size: size[2] >= 1)
)


def test_lanes_start_evenly_and_run_around_the_text() -> None:
    # 0 1 2 3 4 | 5 6 7 8 9   two lanes, three symbols at a time; after 9 comes 0
    lanes = Lanes(np.arange(10, dtype=np.uint8), batch_size=2, sequence_length=3)
    batches = [next(lanes) for _ in range(3)]
    assert [inputs.T.tolist() for inputs, _ in batches] == [
        [[0, 1, 2], [5, 6, 7]],
        [[3, 4, 5], [8, 9, 0]],
        [[6, 7, 8], [1, 2, 3]],
    ]
    assert [targets.T.tolist() for _, targets in batches] == [
        [[1, 2, 3], [6, 7, 8]],
        [[4, 5, 6], [9, 0, 1]],
        [[7, 8, 9], [2, 3, 4]],
    ]


def test_batches_are_contiguous_int64() -> None:
    for tensor in next(Lanes(np.arange(10, dtype=np.uint16), batch_size=2, sequence_length=3)):
        assert tensor.dtype == torch.int64
        assert tensor.shape == (3, 2)
        assert tensor.is_contiguous()


@given(sizes, st.integers(0, 200))
def test_each_lane_reads_the_circle_without_a_gap(size: tuple[int, int, int], position: int) -> None:
    symbols, batch_size, sequence_length = size
    lanes = Lanes(np.arange(symbols), batch_size, sequence_length, position=position)
    inputs_NB = torch.cat([inputs_TB for (inputs_TB, _), _ in zip(lanes, range(4), strict=False)])
    for lane in range(batch_size):
        start = lane * symbols // batch_size + position
        expected = [(start + step) % symbols for step in range(4 * sequence_length)]
        assert inputs_NB[:, lane].tolist() == expected


@given(sizes)
def test_targets_are_the_inputs_one_symbol_later(size: tuple[int, int, int]) -> None:
    symbols, batch_size, sequence_length = size
    lanes = Lanes(np.arange(symbols), batch_size, sequence_length)
    inputs_TB, targets_TB = next(lanes)
    assert torch.equal(targets_TB, (inputs_TB + 1) % symbols)
    assert torch.equal(next(lanes)[0][0], targets_TB[-1])  # the next batch goes on where this one ended


def test_position_is_all_that_a_resumed_run_needs() -> None:
    tokens = np.random.default_rng(0).integers(0, 256, 1000, dtype=np.uint8)
    lanes = Lanes(tokens, batch_size=4, sequence_length=7)
    for _ in range(50):
        next(lanes)
    resumed = Lanes(tokens, batch_size=4, sequence_length=7)
    resumed.load_state_dict(lanes.state_dict())
    assert resumed.position == lanes.position == 350
    for _ in range(50):
        for one, other in zip(next(lanes), next(resumed), strict=True):
            assert torch.equal(one, other)


def test_ranks_share_the_lanes_of_one_run() -> None:
    tokens = np.arange(100)
    together = Lanes(tokens, batch_size=6, sequence_length=4)
    ranks = [Lanes(tokens, batch_size=6, sequence_length=4, rank=rank, world_size=3) for rank in range(3)]
    for _ in range(30):
        inputs_TB, targets_TB = next(together)
        shares = [next(lanes) for lanes in ranks]
        assert torch.equal(torch.cat([inputs for inputs, _ in shares], dim=1), inputs_TB)
        assert torch.equal(torch.cat([targets for _, targets in shares], dim=1), targets_TB)
    assert {lanes.position for lanes in ranks} == {together.position}


def test_lanes_read_tokens_mapped_from_disk(tmp_path: Path) -> None:
    np.arange(50, dtype=np.uint16).tofile(tmp_path / "tokens.bin")
    tokens = np.memmap(tmp_path / "tokens.bin", dtype=np.uint16, mode="r")
    inputs_TB, _ = next(Lanes(tokens, batch_size=2, sequence_length=2))
    inputs_TB += 1  # a copy: the file is read-only
    assert tokens[0] == 0


def test_the_shortest_text_that_fits_is_taken() -> None:
    inputs_TB, targets_TB = next(Lanes(np.arange(4), batch_size=4, sequence_length=3))
    assert inputs_TB[:, 3].tolist() == [3, 0, 1]
    assert targets_TB[:, 3].tolist() == [0, 1, 2]


@pytest.mark.parametrize(("batch_size", "sequence_length", "least"), [(2, 10, 11), (64, 3, 64)])
def test_a_text_too_short_for_a_batch_says_how_long_it_must_be(
    batch_size: int, sequence_length: int, least: int
) -> None:
    with pytest.raises(UserError, match=rf"has 10 symbols and must have at least {least} "):
        Lanes(np.arange(10), batch_size, sequence_length)


def test_lanes_that_do_not_divide_among_the_ranks_are_a_user_error() -> None:
    with pytest.raises(UserError, match=r"training\.batch_size=8: does not divide among 3 ranks; use 6"):
        Lanes(np.arange(100), batch_size=8, sequence_length=2, world_size=3)


@pytest.mark.parametrize(("batch_size", "sequence_length"), [(0, 4), (4, 0), (-1, 4)])
def test_sizes_below_one_are_a_user_error(batch_size: int, sequence_length: int) -> None:
    with pytest.raises(UserError, match="must be at least 1"):
        Lanes(np.arange(100), batch_size, sequence_length)
