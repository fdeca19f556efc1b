"""Random pools of absent positions that are watched before an update."""

from __future__ import annotations

import torch
from torch import Tensor

from rnnsparse.sparsity.group import Group
from rnnsparse.sparsity.selection import draw_absent


def pool_size(pool: float | None, positions: int, connections: int) -> int:
    """Return how many positions are watched: `pool` absent ones per connection, or all there are (None)."""
    return positions if pool is None else min(round(pool * connections), positions - connections)


def draw_pool(pool: float | None, group: Group, generator: torch.Generator) -> Tensor:
    """Return the sorted positions of a group that are watched."""
    indices = group.indices()
    if pool is None:
        return torch.arange(group.positions, device=indices.device)
    return draw_absent(pool_size(pool, group.positions, indices.numel()), indices, group.positions, generator)
