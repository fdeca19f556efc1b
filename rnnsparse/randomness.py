"""Random generators that depend on what they are for and on nothing else, and random sets of positions."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def generator_for(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a CPU generator seeded by `seed` and a purpose such as ("grow", step, block).

    A choice made with it is the same on every rank, device and execution, after any resume, and does not shift when
    another choice is added before it. Always on the CPU: CUDA generators give other numbers.
    """
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def draw_positions(count: int, positions: int, generator: torch.Generator) -> Tensor:
    """Return an exactly uniform random subset: `count` sorted distinct numbers below `positions`.

    Time and memory grow with `count`, not with `positions`, unless most positions are wanted.
    """
    if not 0 <= count <= positions:
        raise ValueError(f"{count} of {positions} positions cannot be drawn")
    if 4 * count >= positions:
        return torch.randperm(positions, generator=generator, device="cpu")[:count].sort().values
    drawn = torch.empty(0, dtype=torch.int64, device="cpu")
    # Asking for just what is missing keeps the subset uniform: there is never a surplus to throw away.
    while drawn.numel() < count:
        more = torch.randint(positions, (count - drawn.numel(),), generator=generator, device="cpu")
        drawn = torch.cat([drawn, more]).unique()
    return drawn
