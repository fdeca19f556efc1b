"""The update that SET, RigL and SNFS share: drop the smallest connections, grow as many elsewhere.

Exact semantics: per group of n connections, every `interval` steps and only before `stop`, the d = int(n * share)
connections with the smallest |w| are dropped, and d positions among all not kept are grown, the ones just dropped
included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from typing_extensions import Doc

from rnnsparse.nn.weight import DenseGradient, SparseWeight, Tile
from rnnsparse.sparsity.group import Group
from rnnsparse.sparsity.method import Method, Moment
from rnnsparse.sparsity.schedule import annealed
from rnnsparse.sparsity.topology import best_absent, draw_absent


@dataclass(kw_only=True)
class DropGrow(Method):
    """Drop by magnitude; grow by `grow_score` where a method has one, else at random. Budgets stay as they are."""

    interval: Annotated[int, Gt(0), Doc("steps between two updates")] = 100
    drop_fraction: Annotated[float, Ge(0), Le(1), Doc("share of connections replaced by an update at the start")] = 0.3
    schedule: Annotated[Literal["cosine", "linear", "constant"], Doc("how drop_fraction goes to zero")] = "cosine"
    stop: Annotated[float, Ge(0), Le(1), Doc("share of training after which the topology is fixed")] = 0.75
    skip_optimizer_step: Annotated[
        bool, Doc("an update replaces its batch's optimizer step, instead of following it")
    ] = False

    def grow_score(self, tile: Tile) -> Tensor:
        """Return how much each position of a tile deserves to grow, >= 0 (only for methods with a dense gradient)."""
        raise NotImplementedError

    def growth_gradient(self, weight: SparseWeight) -> DenseGradient:
        """Return what the tiles of `grow_score` are made from: the dense gradient of this step's batch."""
        assert weight.dense_gradient is not None, f"{weight.name}: no dense gradient was collected"
        return weight.dense_gradient

    @property
    def replaces_optimizer_step(self) -> bool:
        return self.skip_optimizer_step

    def updates_at(self, moment: Moment) -> bool:
        return moment.step % self.interval == 0 and self.is_before_stop(moment)

    def is_before_stop(self, moment: Moment) -> bool:
        """Return whether the topology may still change at this step or later."""
        return moment.step < self._stop_step(moment)

    def _stop_step(self, moment: Moment) -> Fraction:
        # Exact: 0.28 * 25 in floating point lies above 7, and step 7 would count as before it.
        return Fraction(str(self.stop)) * moment.total_steps

    def update(self, groups: Sequence[Group], moment: Moment) -> list[Tensor]:
        share = annealed(self.schedule, self.drop_fraction, moment.step, float(self._stop_step(moment)))
        return [self._update_group(group, share, moment) for group in groups]

    def _update_group(self, group: Group, share: float, moment: Moment) -> Tensor:
        indices = group.indices()
        count = int(indices.numel() * share)
        # Ties are broken by position (stable), so that devices and resumed runs agree.
        order = group.values().abs().argsort(stable=True)
        kept = indices[order[count:].sort().values]
        chosen = torch.cat([kept, self._grow(group, kept, count, moment)]).sort().values
        assert chosen.shape == indices.shape, f"{group.name}: an update changed the number of connections"
        return chosen

    def _grow(self, group: Group, kept: Tensor, count: int, moment: Moment) -> Tensor:
        """Return `count` distinct positions outside the sorted `kept`."""
        grown = kept.new_empty(0)
        if self.dense_gradient != "never":
            grown = best_absent(group.tiles(self.growth_gradient), self.grow_score, kept, count)
            kept = torch.cat([kept, grown]).sort().values
        # Scores of zero do not choose: what they leave open is drawn, and so is everything where there is no score.
        rest = draw_absent(count - grown.numel(), kept, group.positions, moment.generator(group))
        return torch.cat([grown, rest])
