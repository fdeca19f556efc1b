"""Pruning before training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor
from typing_extensions import Doc

from rnnsparse.sparsity.allocation import Budget
from rnnsparse.sparsity.group import Group
from rnnsparse.sparsity.method import Method, StepContext, register
from rnnsparse.sparsity.selection import keep_largest


@register("snip")
@dataclass(kw_only=True)
class SNIP(Method):
    """Keep the connections whose removal would change the first batch's loss most; that batch makes no other step."""

    paper = "Lee et al. 2019, algorithm 1"
    makes_up_updates = True
    scope: Annotated[
        Literal["block", "global"],
        Doc("block: each group keeps its budget; global: all compete for the total, which can empty gates"),
    ] = "block"

    @property
    def shifts_budgets(self) -> bool:
        return self.scope == "global"

    @property
    def replaces_optimizer_step(self) -> bool:
        return True

    def initial_connections(self, budget: Budget) -> int:
        return budget.group.positions

    def updates_at(self, context: StepContext) -> bool:
        return context.step == 1

    def update(self, budgets: Sequence[Budget], context: StepContext) -> list[Tensor]:
        groups = [budget.group for budget in budgets]
        scores = [_sensitivity(group) for group in groups]
        counts = [budget.connections for budget in budgets]
        # Blocks compete with those of their height, so that the total stays exact.
        for height in sorted({group.block_rows for group in groups}) if self.scope == "global" else []:
            free = [i for i, b in enumerate(budgets) if not b.overridden and b.group.block_rows == height]
            if not free:
                continue
            scores_of_all = torch.cat([scores[i] for i in free])
            numbers = torch.arange(scores_of_all.numel(), device=scores_of_all.device)
            kept = torch.zeros(numbers.shape, dtype=torch.bool, device=numbers.device)
            kept[keep_largest(numbers, scores_of_all, sum(counts[i] for i in free))] = True
            for i, keep in zip(free, kept.split([scores[i].numel() for i in free]), strict=True):
                counts[i] = int(keep.sum())
        return [
            keep_largest(group.indices(), score, count)
            for group, score, count in zip(groups, scores, counts, strict=True)
        ]


def _sensitivity(group: Group) -> Tensor:
    """Return how much the loss would change, to first order, without each connection [n]."""
    changes = group.values() * group.gradients()
    return changes.abs() if changes.dim() == 1 else changes.sum(1).abs()
