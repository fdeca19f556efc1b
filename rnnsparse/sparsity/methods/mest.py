"""Memory-economic sparse training."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import Annotated

from annotated_types import Ge, Le
from torch import Tensor
from typing_extensions import Doc

from rnnsparse.errors import UserError
from rnnsparse.settings.marks import Changeable
from rnnsparse.sparsity.allocation import Budget
from rnnsparse.sparsity.drop_grow import DropGrow
from rnnsparse.sparsity.group import Group, magnitudes
from rnnsparse.sparsity.method import StepContext, register
from rnnsparse.sparsity.schedule import Schedule, annealed, share_of


@register("mest")
@dataclass(kw_only=True)
class MEST(DropGrow):
    """Drop by weight and gradient together, fewer in stages; grow at random.

    With a soft bound (EM&S) what is grown comes on top of the budget, and an update begins by dropping as much: what is
    new has an interval to prove itself. The last update, at `stop`, only drops.
    """

    paper = "Yuan et al. 2021"
    drop_fraction: Annotated[
        float, Ge(0), Le(1), Changeable, Doc("share of connections replaced by an update at the start")
    ] = 0.2
    schedule: Annotated[Schedule, Changeable, Doc("how drop_fraction goes to zero")] = "stages"
    gradient_weight: Annotated[float, Ge(0), Doc("how much |gradient| counts beside |w|")] = 1.0
    soft_bound: Annotated[
        bool, Doc("grow first and drop at the next update: until then drop_fraction more than the budget")
    ] = False

    def __post_init__(self) -> None:
        if self.soft_bound and self.redistribute != "none":
            raise UserError(
                f"sparsity.redistribute: {self.redistribute}: with sparsity.soft_bound every group comes back to its "
                "own budget; use none, or set soft_bound to false"
            )

    @property
    def makes_up_updates(self) -> bool:  # type: ignore[override]
        return self.soft_bound

    def keep_score(self, group: Group, context: StepContext) -> Tensor:
        return super().keep_score(group, context) + self.gradient_weight * magnitudes(group.gradients())

    def updates_at(self, context: StepContext) -> bool:
        return super().updates_at(context) or (self.soft_bound and context.step == self._last_step(context.total_steps))

    def targets(self, budgets: Sequence[Budget], context: StepContext) -> list[int]:
        return [b.connections for b in budgets] if self.soft_bound else super().targets(budgets, context)

    def _update_group(self, group: Group, keep: int, grow: int, context: StepContext) -> Tensor:
        if self.soft_bound:
            keep += grow  # the budget
            is_last = context.step >= self._last_step(context.total_steps)
            grow = 0 if is_last else min(grow, group.positions - keep)
        return super()._update_group(group, keep, grow, context)

    # ---- how many there are meanwhile

    def _last_step(self, total_steps: int) -> int:
        return max(1, floor(share_of(total_steps, self.stop)))

    def initial_connections(self, budget: Budget) -> int:
        share = self.drop_fraction if self.soft_bound and self.stop else 0.0
        return min(budget.connections + int(budget.connections * share), budget.group.positions)

    def mean_forward_flops(self, sparse: float, first: float, steps: int, taken: int) -> float:
        if not (self.soft_bound and self.stop and self.drop_fraction):
            return sparse
        last, stop = self._last_step(steps), float(share_of(steps, self.stop))
        more = 0.0
        for start in range(0, min(last, taken), self.interval):
            until = min(start + self.interval, last, taken)
            more += annealed(self.schedule, self.drop_fraction, start, stop) * (until - start)
        return sparse + (first - sparse) * more / (self.drop_fraction * taken)
