"""How many positions were ever a connection: the in-time over-parameterisation rate R_s (Liu et al. 2021, section 3).

Of each weight whose topology changes, one bit per position remembers whether it was ever active. Where positions
outnumber connections so much that even bits would outgrow what training holds, only every `stride`-th position is
followed: a systematic sample with a random start, in which every position is as likely as every other. The stride has
no factor in common with the number of columns, so that the sample runs through all of them. What is active from the
start is known without a sample, so only what grew later is estimated, without bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import gcd
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnnsparse.nn.weight import SparseWeight
from rnnsparse.randomness import generator_for
from rnnsparse.sparsity.group import Group

# With one bit each, at most 8 bytes per connection: as many as its place in `indices` takes.
FOLLOWED_PER_CONNECTION = 64


class EverActive:
    """Counts over the positions of `groups`; call `add` before each change of a topology. Takes O(connections) memory.

    Nothing is kept of a weight that never changes.
    """

    def __init__(self, groups: Sequence[Group], seed: int) -> None:
        self._weights = list(dict.fromkeys(part.weight for group in groups for part in group.parts))
        self._positions = sum(group.matrix_entries for group in groups)
        self._seed = seed
        self._histories: dict[str, _History] = {}

    def add(self, weight: SparseWeight, indices: Tensor) -> None:
        """Count the sorted positions that `weight` is about to get, at the first call also those that it has."""
        if weight.name not in self._histories:
            self._histories[weight.name] = _History.of(weight, self._seed)
        self._histories[weight.name].add(indices)

    @property
    def share(self) -> float:
        """The share of the groups' positions that were ever active; exact unless a weight is followed by a sample."""
        if not self._positions:
            return 1.0
        # Rows of these weights that are in no group are dense by name: active from the start, and not counted.
        uncounted = sum(weight.positions for weight in self._weights) - self._positions
        return (sum(map(self._count, self._weights)) - uncounted) / self._positions

    def _count(self, weight: SparseWeight) -> int:
        history = self._histories.get(weight.name)
        # An estimate may exceed what is possible.
        return min(history.count * weight.block_rows, weight.positions) if history else weight.connections

    def positions(self, weight: SparseWeight) -> Tensor:
        """Return the sorted flat positions of `weight` that were ever active, as far as they are followed (int64)."""
        history = self._histories.get(weight.name)
        return history.followed() if history else weight.indices.cpu()

    def state_dict(self) -> dict[str, Any]:
        return {
            name: asdict(history) | {"bits": torch.from_numpy(history.bits)}
            for name, history in self._histories.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._histories = {
            name: _History(**{**history, "bits": history["bits"].numpy().copy()}) for name, history in state.items()
        }


@dataclass(kw_only=True)
class _History:
    """Which of one weight's positions start, start + stride, ... were ever active: bit i of byte j is number 8j + i.

    `initial` connections were there first, followed or not; `grown` counts the followed positions that came later.
    """

    stride: int
    start: int
    initial: int
    grown: int
    bits: NDArray[np.uint8]

    @classmethod
    def of(cls, weight: SparseWeight, seed: int) -> Self:
        """Begin with the connections that `weight` has."""
        topology = weight.topology
        stride = -(-topology.positions // (FOLLOWED_PER_CONNECTION * max(1, topology.connections)))
        while gcd(stride, weight.cols) > 1:
            stride += 1
        start = int(torch.randint(stride, (), device="cpu", generator=generator_for(seed, "ever active", weight.name)))
        followed = len(range(start, topology.positions, stride))
        bits = np.zeros(-(-followed // 8), dtype=np.uint8)
        history = cls(stride=stride, start=start, initial=topology.connections, grown=0, bits=bits)
        history.add(topology.indices)
        history.grown = 0
        return history

    @property
    def count(self) -> int:
        return self.initial + self.grown * self.stride

    def add(self, indices: Tensor) -> None:
        """Set the bits of sorted positions."""
        positions = indices.cpu().numpy()
        numbers = positions[positions % self.stride == self.start] // self.stride
        byte_of_each = numbers >> 3
        # Numbers are sorted, so those of one byte stand together.
        firsts = np.flatnonzero(np.diff(byte_of_each, prepend=-1))
        places = byte_of_each[firsts]
        new = np.bitwise_or.reduceat((1 << (numbers & 7)).astype(np.uint8), firsts) & ~self.bits[places]
        self.bits[places] |= new
        self.grown += int(np.bitwise_count(new).sum())

    def followed(self) -> Tensor:
        places = np.flatnonzero(self.bits)
        place, bit = np.nonzero(np.unpackbits(self.bits[places, None], axis=1, bitorder="little"))
        return torch.from_numpy((places[place] * 8 + bit) * self.stride + self.start)
