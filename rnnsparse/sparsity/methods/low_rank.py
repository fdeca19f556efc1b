"""Tickets of low rank."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rnnsparse.sparsity.allocation import Budget
from rnnsparse.sparsity.group import Group
from rnnsparse.sparsity.method import Method, StepContext, register
from rnnsparse.sparsity.selection import keep_largest


@register("low_rank")
@dataclass(kw_only=True)
class LowRank(Method):
    """Keep the top left corner of each gate: of trained matrices in basis svd, the best approximation of its rank.

    The update takes the place of the first step, so that this is what training begins with.
    """

    paper = "its basis: Alabdulmohsin et al. 2021"
    makes_up_updates = True

    @property
    def replaces_optimizer_step(self) -> bool:
        return True

    def initial_connections(self, budget: Budget) -> int:
        return budget.group.positions

    def updates_at(self, context: StepContext) -> bool:
        return context.step == 1

    def update(self, budgets: Sequence[Budget], context: StepContext) -> list[Tensor]:
        return [
            keep_largest(budget.group.indices(), -distance_from_corner(budget.group), budget.connections)
            for budget in budgets
        ]


def distance_from_corner(group: Group) -> Tensor:
    """Return the row or column in its gate, whichever is larger, of each connection [n]: with less than r, rank r.

    The row of a block is its first.
    """
    distances = []
    for part in group.parts:
        weight = part.weight
        indices = part.of(weight.indices)
        rows = indices // weight.cols * weight.block_rows % (weight.rows // len(weight.gates))
        distances.append(torch.maximum(rows, indices % weight.cols))
    return torch.cat(distances)
