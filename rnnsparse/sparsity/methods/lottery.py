"""Lottery tickets: the connections that are largest after training, trained again from early on."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated

from annotated_types import Ge, Le, Lt
from torch import Tensor
from typing_extensions import Doc

from rnnsparse.sparsity.allocation import Budget
from rnnsparse.sparsity.group import Group
from rnnsparse.sparsity.method import Method, register
from rnnsparse.sparsity.schedule import share_of
from rnnsparse.sparsity.selection import keep_largest


@register("lottery")
@dataclass(kw_only=True)
class Lottery(Method):
    """Train densely, drop the smallest weights, rewind the rest and train again, round by round to the budgets."""

    paper = "Frankle & Carbin 2019; rewinding: Frankle et al. 2020"
    recipe = "lottery"
    prune_share: Annotated[float, Ge(0.01), Le(1), Doc("share of a group's connections dropped after a round")] = 0.2
    rewind: Annotated[
        float,
        Ge(0),
        Lt(1),
        Doc("share of training after which a round takes the dense run up again; 0: initial values"),
    ] = 0.01

    def rewind_step(self, steps: int) -> int:
        return int(share_of(steps, self.rewind))

    def rounds(self, positions: Sequence[int], budget: Sequence[int]) -> list[list[int]]:
        """Return the connections of each group in each round, from all positions to the budget."""
        kept = 1 - Fraction(str(self.prune_share))
        counts = [list(positions)]
        while counts[-1] != list(budget):
            # Rounded down: rounding to nearest would never get from two connections to one.
            counts.append([max(b, int(kept * n)) for b, n in zip(budget, counts[-1], strict=True)])
        return counts

    def ticket(self, groups: Sequence[Group], counts: Sequence[int]) -> list[Tensor]:
        """Return what a round leaves for the next one: the positions of the largest weights of each group."""
        return [keep_largest(g.indices(), g.magnitudes(), n) for g, n in zip(groups, counts, strict=True)]

    def earlier_runs(self, budgets: Sequence[Budget], steps: int) -> list[tuple[int, list[int]]]:
        dense, *tickets = self.rounds([b.group.positions for b in budgets], [b.connections for b in budgets])
        return [(steps, dense), *((steps - self.rewind_step(steps), ticket) for ticket in tickets[:-1])]

    def training_flops(self, sparse: float, dense: float, steps: int) -> float:
        return 3 * sparse * (steps - self.rewind_step(steps)) / steps
