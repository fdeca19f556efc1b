"""The update that SET, RigL, SNFS and their relatives share: drop the smallest connections, grow others elsewhere.

Exact semantics: per group of n connections, every `interval` steps and only before `stop`, the d = int(n * share)
connections with the smallest |w| are dropped, and d positions among all not kept are grown, the ones just dropped
included. A block counts as one connection, by the Euclidean norms of its weights and of its gradients. A method may
change n at an update, and redistribution moves what grows from group to group.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from torch import Tensor, cat
from torch.linalg import vector_norm
from typing_extensions import Doc

from rnnsparse.nn.gradients import DenseGradient
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.settings.marks import Changeable, Steps
from rnnsparse.sparsity.allocation import Budget
from rnnsparse.sparsity.group import Group, magnitudes
from rnnsparse.sparsity.method import Method, StepContext
from rnnsparse.sparsity.redistribution import Redistribute, fewer_drops, shared_out
from rnnsparse.sparsity.schedule import Schedule, annealed, share_of
from rnnsparse.sparsity.selection import best_absent, draw_absent, keep_largest


@dataclass(kw_only=True)
class DropGrow(Method):
    """Drop by magnitude, grow at random; a method may say what grows first (`best`). Budgets stay as they are."""

    depends_on_length = True
    interval: Annotated[int, Gt(0), Steps, Doc("steps between two updates")] = 100
    drop_fraction: Annotated[
        float, Ge(0), Le(1), Changeable, Doc("share of connections replaced by an update at the start")
    ] = 0.3
    schedule: Annotated[Schedule, Changeable, Doc("how drop_fraction goes to zero")] = "cosine"
    stop: Annotated[float, Ge(0), Le(1), Changeable, Doc("share of training after which the topology is fixed")] = 0.75
    drop_score: Annotated[
        Literal["magnitude", "saliency"],
        Doc("what the smallest go by: magnitude: |w|; saliency: |w| times the root of Adam's second moment"),
    ] = "magnitude"
    skip_optimizer_step: Annotated[
        bool, Doc("an update replaces its batch's optimizer step, instead of following it")
    ] = False
    redistribute: Annotated[
        Redistribute,
        Doc("what groups regrow by: none keeps each budget; else the mean size of their gradients, momenta or weights"),
    ] = "none"

    def warnings(self, steps: int) -> Iterator[str]:
        if self.makes_up_updates:
            return  # which comes to its counts by an update in any case
        if self.interval >= share_of(steps, self.stop):
            yield (
                f"sparsity.interval: {self.interval}: no update comes before sparsity.stop, step "
                f"{self.stop * steps:g}; the connections stay those of the start"
            )
        elif self.drop_fraction == 0:
            yield "sparsity.drop_fraction: 0: updates replace nothing; the connections stay those of the start"

    def targets(self, budgets: Sequence[Budget], context: StepContext) -> list[int]:
        """Return how many connections each group has after an update, before redistribution."""
        return [budget.group.connections for budget in budgets]

    @property
    def shifts_budgets(self) -> bool:
        return self.redistribute != "none"

    @property
    def needs_momenta(self) -> bool:
        return self.redistribute == "momentum"

    @property
    def needs_second_moments(self) -> bool:
        return self.drop_score == "saliency"

    @property
    def replaces_optimizer_step(self) -> bool:
        return self.skip_optimizer_step

    def updates_at(self, context: StepContext) -> bool:
        return context.step % self.interval == 0 and self.is_before_stop(context)

    def is_before_stop(self, context: StepContext) -> bool:
        """Return whether the topology may still change at this step or later."""
        return context.step < self._stop_step(context)

    def _stop_step(self, context: StepContext) -> Fraction:
        return share_of(context.total_steps, self.stop)

    def update(self, budgets: Sequence[Budget], context: StepContext) -> list[Tensor]:
        share = annealed(self.schedule, self.drop_fraction, context.step, float(self._stop_step(context)))
        groups = [budget.group for budget in budgets]
        targets = self.targets(budgets, context)
        drops = [int(target * share) for target in targets]
        grows = list(drops)
        if self.redistribute != "none":
            free = [i for i, budget in enumerate(budgets) if not budget.overridden]
            activity = [self.activity(groups[i], context) for i in free]
            # An empty group would matter to nobody, and stay empty.
            fewer = [min(drops[i], max(0, targets[i] - 1)) for i in free]
            fewer = fewer_drops([groups[i] for i in free], fewer, activity)
            room = [groups[i].positions - targets[i] + drop for i, drop in zip(free, fewer, strict=True)]
            rows = [groups[i].block_rows for i in free]
            total = sum(drop * height for drop, height in zip(fewer, rows, strict=True))
            for i, drop, grow in zip(free, fewer, shared_out(total, activity, room, rows), strict=True):
                drops[i], grows[i] = drop, grow
        return [
            self._update_group(group, target - drop, grow, context)
            for group, target, drop, grow in zip(groups, targets, drops, grows, strict=True)
        ]

    def activity(self, group: Group, context: StepContext) -> float:
        """Return how much a group's connections matter on average, by what `redistribute` names."""
        if self.redistribute == "weight":
            numbers = group.values()
        else:
            numbers = group.gradients() if self.redistribute == "gradient" else self.momenta(group, context)
        return float(numbers.abs().mean()) if numbers.numel() else 0.0

    def momenta(self, group: Group, context: StepContext) -> Tensor:
        """Return the running average of the gradient of each value."""
        return context.momentum(group)

    def keep_score(self, group: Group, context: StepContext) -> Tensor:
        """Return how much each connection deserves to stay [n], >= 0; that of a block is the norm of its entries'."""
        if self.drop_score == "magnitude":
            return group.magnitudes()
        return magnitudes(group.values() * context.second_moment(group).sqrt())

    def _update_group(self, group: Group, keep: int, grow: int, context: StepContext) -> Tensor:
        kept = keep_largest(group.indices(), self.keep_score(group, context), keep)
        chosen = cat([kept, self.grow(group, kept, grow, context)]).sort().values
        if chosen.numel() != keep + grow:
            raise ValueError(f"{group.name}: an update of method {self.name} lost count of the connections")
        return chosen

    def grow(self, group: Group, kept: Tensor, count: int, context: StepContext) -> Tensor:
        """Return `count` distinct positions outside the sorted `kept`."""
        grown = self.best(group, kept, count, context)
        if grown.numel():
            kept = cat([kept, grown]).sort().values
        # What the best leave open is drawn.
        rest = draw_absent(count - grown.numel(), kept, group.positions, context.generator(group))
        return cat([grown, rest])

    def best(self, group: Group, kept: Tensor, count: int, context: StepContext) -> Tensor:
        """Return the sorted positions, outside the sorted `kept`, that are to grow first: `count`, or fewer."""
        return kept.new_empty(0)


@dataclass(kw_only=True)
class DropGrowByGradient(DropGrow):
    """Drop by magnitude; grow by a score of the dense gradient, and where all scores are zero, at random."""

    @abstractmethod
    def grow_score(self, gradient_RC: Tensor) -> Tensor:
        """Return how much each entry of some rows deserves to grow [R, C], >= 0, by its gradient [R, C]."""

    def growth_gradient(self, weight: SparseWeight) -> DenseGradient:
        """Return the gradient that is scored: the dense one of this step's batch."""
        if weight.dense_gradient is None or not weight.dense_gradient.sources:
            raise ValueError(
                f"{weight.name}: no dense gradient was collected: no backward pass came to it; leave it out"
            )
        return weight.dense_gradient

    def best(self, group: Group, kept: Tensor, count: int, context: StepContext) -> Tensor:
        """Return the positions of the best scores above zero."""
        return best_absent(
            group.strips(self.growth_gradient), lambda gradient_RC: self.scores(group, gradient_RC), kept, count
        )

    def scores(self, group: Group, gradient_RC: Tensor) -> Tensor:
        """Return the scores of connections in some rows; that of a block is the norm of those of its entries."""
        scores_RC = self.grow_score(gradient_RC)
        if group.block_rows == 1:
            return scores_RC
        blocks: Tensor = vector_norm(scores_RC.unflatten(0, (-1, group.block_rows)), dim=1)
        return blocks
