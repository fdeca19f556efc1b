"""Random generators that depend on what they are for and on nothing else."""

from __future__ import annotations

import hashlib

import torch


def generator_for(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a CPU generator seeded by `seed` and a purpose such as ("grow", step, block).

    A choice made with it is the same on every rank, device and execution, after any resume, and does not shift when
    another choice is added before it. Always on the CPU: CUDA generators give other numbers.
    """
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
