"""Rows of a group that have as many connections as each other. A row with blocks is one of blocks.

Shape suffix: K rows of a group, through all of its parts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rnnsparse.sparsity.group import Group


def row_edges(group: Group) -> Tensor:
    """Return where each row's positions start, and the number of all [K + 1]."""
    widths = [part.weight.cols for part in group.parts for _ in range(part.rows // group.block_rows)]
    return torch.tensor([0, *widths]).cumsum(0)


def rows_of(positions: Tensor, edges_K: Tensor) -> Tensor:
    """Return the row of each group position."""
    return torch.searchsorted(edges_K, positions, right=True) - 1


def count_in_rows(positions: Tensor, edges_K: Tensor) -> Tensor:
    """Return how many of some group positions are in each row [K]."""
    return torch.bincount(rows_of(positions, edges_K), minlength=len(edges_K) - 1)


def constant_fan_in(total: int, widths_K: Tensor, order_K: Tensor) -> Tensor:
    """Return numbers that add up to a total and are as equal as they can be [K], none above its width.

    What is left of an equal division goes to the first rows of `order`, one to each.
    """
    fan_in_K = torch.zeros_like(widths_K)
    while left := total - int(fan_in_K.sum()):
        is_open_K = fan_in_K < widths_K
        each = left // int(is_open_K.sum())
        if each == 0:
            fan_in_K[order_K[is_open_K[order_K]][:left]] += 1
            break
        fan_in_K += is_open_K * (widths_K - fan_in_K).clamp(max=each)
    return fan_in_K


def largest_of_rows(positions: Tensor, scores: Tensor, fan_in_K: Tensor, edges_K: Tensor) -> Tensor:
    """Return the sorted ones of some positions that have the largest scores of their row, at most its fan-in."""
    order = scores.argsort(descending=True, stable=True)
    order = order[rows_of(positions[order], edges_K).argsort(stable=True)]  # by row, and in it by score
    row_n, count_K = rows_of(positions[order], edges_K), count_in_rows(positions, edges_K)
    place_n = torch.arange(len(order), device=order.device) - (count_K.cumsum(0) - count_K)[row_n]
    return positions[order[place_n < fan_in_K[row_n]]].sort().values
