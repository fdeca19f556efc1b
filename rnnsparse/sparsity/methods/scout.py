"""Growth by gradients that are summed over many steps, at a random pool of absent positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from typing_extensions import Doc

from rnnsparse.sparsity.allocation import Budget
from rnnsparse.sparsity.drop_grow import DropGrow
from rnnsparse.sparsity.group import Group
from rnnsparse.sparsity.method import Moment, register
from rnnsparse.sparsity.topology import best_among, draw_absent
from rnnsparse.steps import Steps


@register("scout")
@dataclass(kw_only=True)
class Scout(DropGrow):
    """Grow where the signed gradient, summed over a window of steps at a random pool of positions, is largest."""

    paper = "this project"
    window: Annotated[
        Annotated[int, Gt(0)] | None,
        Steps,
        Doc("steps whose gradients are summed, up to the update; null for the interval"),
    ] = None
    pool: Annotated[
        Annotated[float, Ge(0)] | None,
        Doc("absent positions that are watched, per connection; null for every position, in dense time and memory"),
    ] = 3.0

    @property
    def works_sparse(self) -> bool:
        return self.pool is not None

    def probed(self, budget: Budget) -> int:
        absent = budget.group.positions - budget.connections
        return budget.group.positions if self.pool is None else min(round(self.pool * budget.connections), absent)

    @property
    def _window(self) -> int:
        return min(self.window or self.interval, self.interval)

    def probe(self, groups: Sequence[Group], moment: Moment) -> list[Tensor] | None:
        last_step = -(-moment.step // self.interval) * self.interval
        first_step = last_step - self._window + 1
        if moment.step < first_step or not self.is_before_stop(moment.at(last_step)):
            return None
        # A run that was rewound into a window watches for the rest of it.
        if moment.step > first_step and all(part.weight.probe for group in groups for part in group.parts):
            return None
        return [self._pool(group, moment) for group in groups]

    def _pool(self, group: Group, moment: Moment) -> Tensor:
        indices = group.indices()
        if self.pool is None:
            return torch.arange(group.positions, device=indices.device)
        count = min(round(self.pool * indices.numel()), group.positions - indices.numel())
        return draw_absent(count, indices, group.positions, moment.generator(group, "pool"))

    def best(self, group: Group, kept: Tensor, count: int) -> Tensor:
        positions, total = group.probed()
        return best_among(positions, total.abs(), kept, count)

    @property
    def probed_share(self) -> float:
        return self._window / self.interval
