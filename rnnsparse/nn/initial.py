"""First connections and first values, each drawn by a generator that depends on the seed and a name alone."""

from __future__ import annotations

from fractions import Fraction
from math import floor
from typing import Literal

import torch
from torch import Tensor, nn

from rnnsparse.nn.weight import SparseWeight
from rnnsparse.randomness import draw_positions, generator_for

# What first values are scaled for: each row's own connections, its gate's on average, or all positions.
Scale = Literal["neuron", "layer", "dense"]


def connections_at(sparsity: float, positions: int) -> int:
    """Return how many of `positions` are connections at a sparsity."""
    # Through the decimal the user wrote: 0.9 as a binary fraction would lose a connection here and there.
    return positions - floor(Fraction(str(sparsity)) * positions)


def draw_connections(weight: SparseWeight, sparsity: float, seed: int) -> None:
    """Give every gate exactly as many random connections, or blocks, as a sparsity leaves, with values of zero.

    Raises:
        ValueError: the sparsity is not in [0, 1).
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"{weight.name}: sparsity={sparsity}: must be at least 0 and below 1")
    size = weight.positions // len(weight.gates) // weight.block_rows
    count = connections_at(sparsity, size)
    pieces = [
        i * size + draw_positions(count, size, generator_for(seed, "topology", gate.name))
        for i, gate in enumerate(weight.gates)
    ]
    weight.connect(torch.cat(pieces) if sparsity else torch.arange(size * len(weight.gates)))


def draw_values(weight: SparseWeight, seed: int, scale: Scale = "neuron") -> None:
    """Draw values for the connections that exist.

    They are uniform in +-1/sqrt(fan), as in PyTorch's LSTM, GRU and Linear. By `scale` the fan counts for as much of it
    as exists, so that sparse neurons start with the signal of dense ones: "neuron", of each row (Evci et al. 2022,
    section 4); "layer", of the row's gate on average. With "dense" all of it counts. The numbers drawn are the same for
    each, up to these factors, and in order of entry, so that full matrices are the same whatever their blocks.
    """
    # On the CPU: a GPU rounds quotients and roots in another way, and the first values would depend on it.
    count_R = weight.topology.row_pointers.diff().repeat_interleave(weight.block_rows)
    bound_R = (weight.fan * _density(weight, count_R, scale)).rsqrt()
    numbers = _uniform(weight.values, weight.name, seed, bound_R.repeat_interleave(count_R))
    weight.values.data.copy_(weight.topology.from_by_row(numbers.to(weight.values.device)))
    weight.mark_untrained()


def draw_uniform(parameter: nn.Parameter, name: str, seed: int, bound: Tensor | float) -> None:
    """Fill a parameter with uniform numbers in +-bound (one for all, or one each)."""
    parameter.data.copy_(_uniform(parameter, name, seed, bound))


def _uniform(like: nn.Parameter, name: str, seed: int, bound: Tensor | float) -> Tensor:
    """Return as many uniform numbers in +-bound as a parameter has, on the CPU."""
    unit = torch.rand(like.numel(), generator=generator_for(seed, "initial", name), dtype=like.dtype, device="cpu")
    return (2 * unit - 1) * bound


def _density(weight: SparseWeight, count_R: Tensor, scale: Scale) -> Tensor:
    """Return for each row [R] what share of its positions counts as existing: its own, its gate's, or all."""
    if scale == "dense":
        return torch.ones(weight.rows)
    if scale == "neuron":
        return count_R / weight.cols
    height = weight.rows // len(weight.gates)
    return (count_R.view(-1, height).sum(1) / (height * weight.cols)).repeat_interleave(height)
