"""Gradual magnitude pruning."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le
from torch import Tensor
from typing_extensions import Doc

from rnnsparse.settings.marks import Steps
from rnnsparse.sparsity.allocation import Budget
from rnnsparse.sparsity.method import Method, StepContext, register
from rnnsparse.sparsity.schedule import GradualPruning
from rnnsparse.sparsity.selection import keep_largest


@register("prune")
@dataclass(kw_only=True)
class Prune(Method):
    """Start with every connection and take away the smallest, many at first and few in the end."""

    paper = "Zhu & Gupta 2017"
    mostly_dense = True
    makes_up_updates = True
    depends_on_length = True
    interval: Annotated[int, Gt(0), Steps, Doc("steps between two updates")] = 100
    start: Annotated[float, Ge(0), Le(1), Doc("share of training before connections begin to go")] = 0.25
    stop: Annotated[float, Ge(0), Le(1), Doc("share of training after which the topology is fixed")] = 0.75

    def __post_init__(self) -> None:
        self._schedule(1)  # refuses what makes no sense

    def _schedule(self, total_steps: int) -> GradualPruning:
        return GradualPruning(self.interval, self.start, self.stop, total_steps)

    def initial_connections(self, budget: Budget) -> int:
        return budget.group.positions

    def updates_at(self, context: StepContext) -> bool:
        return self._schedule(context.total_steps).updates_at(context.step)

    def update(self, budgets: Sequence[Budget], context: StepContext) -> list[Tensor]:
        share = self._schedule(context.total_steps).share_to_go(context.step)
        counts = [b.connections + round((b.group.positions - b.connections) * share) for b in budgets]
        return [
            keep_largest(budget.group.indices(), budget.group.magnitudes(), count)
            for budget, count in zip(budgets, counts, strict=True)
        ]

    def mean_forward_flops(self, sparse: float, first: float, steps: int, taken: int) -> float:
        return sparse + (first - sparse) * self._schedule(steps).mean_share_to_go(taken)
