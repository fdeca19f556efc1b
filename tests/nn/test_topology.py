"""A topology says where connections are once, and all else about them follows from that."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnnsparse.nn.topology import Topology, column_type

#  . x . x
#  . . . .
#  x x x x
DRAWN = Topology(3, 4, torch.tensor([1, 3, 8, 9, 10, 11]))


def test_rows_and_columns_follow_from_positions() -> None:
    assert DRAWN.row_pointers.tolist() == [0, 2, 2, 6]
    assert DRAWN.columns.tolist() == [1, 3, 0, 1, 2, 3]
    assert [DRAWN.bounds(*rows) for rows in ((0, 3), (0, 1), (1, 2), (1, 3), (3, 3))] == [
        (0, 6), (0, 2), (2, 2), (2, 6), (6, 6),
    ]  # fmt: skip
    assert (DRAWN.positions, DRAWN.connections, DRAWN.is_full) == (12, 6, False)


def test_what_follows_is_worked_out_once() -> None:
    assert DRAWN.row_pointers is DRAWN.row_pointers
    assert DRAWN.columns is DRAWN.columns
    assert DRAWN.matrix is DRAWN.matrix


@given(rows=st.integers(1, 5), cols=st.sampled_from([1, 3, 256, 257, 70_000]), data=st.data())
def test_positions_come_back_from_rows_and_columns(rows: int, cols: int, data: st.DataObject) -> None:
    positions = data.draw(st.sets(st.integers(0, rows * cols - 1), max_size=20))
    topology = Topology(rows, cols, torch.tensor(sorted(positions), dtype=torch.int64))
    topology.check()
    assert topology.columns.dtype == column_type(cols)
    back = Topology.from_rows(cols, topology.row_pointers.int(), topology.columns)
    assert (back.rows, back.cols) == (rows, cols)
    assert torch.equal(back.indices, topology.indices)


def test_columns_take_the_smallest_type() -> None:
    assert [column_type(cols) for cols in (1, 256, 257, 65_536, 65_537)] == [
        torch.uint8, torch.uint8, torch.uint16, torch.uint16, torch.int32,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("indices", "reason"),
    [([-1, 2], "outside"), ([0, 6], "outside"), ([2, 1], "sorted"), ([1, 1], "repeat"), ([[0, 1]], "one position")],
)
def test_what_is_no_list_of_positions_is_refused(indices: list[int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Topology(2, 3, torch.tensor(indices)).check()
