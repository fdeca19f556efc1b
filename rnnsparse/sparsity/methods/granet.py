"""Gradual pruning with neuroregeneration."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le, Lt
from typing_extensions import Doc

from rnnsparse.nn.initial import connections_at
from rnnsparse.sparsity.allocation import Budget
from rnnsparse.sparsity.method import StepContext, register
from rnnsparse.sparsity.methods.rigl import RigL
from rnnsparse.sparsity.redistribution import with_fewer_in_all
from rnnsparse.sparsity.schedule import GradualPruning


@register("granet")
@dataclass(kw_only=True)
class GraNet(RigL):
    """Prune each group gradually, and at each update also replace connections as RigL does."""

    paper = "Liu et al. 2021b"
    mostly_dense = True
    makes_up_updates = True
    drop_fraction: Annotated[float, Ge(0), Le(1), Doc("share of connections replaced by an update at the start")] = 0.5
    skip_optimizer_step: Annotated[bool, Doc("an update replaces its batch's optimizer step")] = False
    start: Annotated[float, Ge(0), Le(1), Doc("share of training before connections begin to go")] = 0.0
    initial_sparsity: Annotated[float, Ge(0), Lt(1), Doc("sparsity that every group starts with")] = 0.0

    def __post_init__(self) -> None:
        self._schedule(1)  # refuses what makes no sense

    def _schedule(self, total_steps: int) -> GradualPruning:
        return GradualPruning(self.interval, self.start, self.stop, total_steps)

    def initial_connections(self, budget: Budget) -> int:
        return max(budget.connections, connections_at(self.initial_sparsity, budget.group.positions))

    def updates_at(self, context: StepContext) -> bool:
        return super().updates_at(context) or self._schedule(context.total_steps).last_step == context.step

    def targets(self, budgets: Sequence[Budget], context: StepContext) -> list[int]:
        share = self._schedule(context.total_steps).share_to_go(context.step)
        to_go = [self.initial_connections(budget) - budget.connections for budget in budgets]
        planned = [budget.connections + round(count * share) for budget, count in zip(budgets, to_go, strict=True)]
        return planned if self.redistribute == "none" else with_fewer_in_all(budgets, planned)

    final_counts = targets

    def mean_forward_flops(self, sparse: float, first: float, steps: int, taken: int) -> float:
        return sparse + (first - sparse) * self._schedule(steps).mean_share_to_go(taken)
