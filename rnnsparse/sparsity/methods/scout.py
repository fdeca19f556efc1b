"""Growth by gradients that are summed over many steps, at a random pool of absent positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor
from typing_extensions import Doc

from rnnsparse.settings.marks import Steps, UpTo
from rnnsparse.sparsity.allocation import Budget
from rnnsparse.sparsity.drop_grow import DropGrow
from rnnsparse.sparsity.group import Group
from rnnsparse.sparsity.method import Moment, register
from rnnsparse.sparsity.pool import draw_pool, pool_size
from rnnsparse.sparsity.topology import best_among

Window = Annotated[Annotated[int, Gt(0)] | None, Steps, UpTo("sparsity.interval")]


@register("scout")
@dataclass(kw_only=True)
class Scout(DropGrow):
    """Grow where the signed gradient, summed over a window of steps at a random pool of positions, is largest."""

    paper = "this project"
    window: Annotated[Window, Doc("steps whose gradients are summed, up to the update; null: interval")] = None
    pool: Annotated[
        Annotated[float, Ge(0)] | None, Doc("absent positions watched per connection; null: all, at dense cost")
    ] = 3.0

    @property
    def works_sparse(self) -> bool:
        return self.pool is not None

    def probed(self, budget: Budget) -> int:
        return pool_size(self.pool, budget.group.positions, budget.connections)

    @property
    def _window(self) -> int:
        return min(self.window or self.interval, self.interval)

    def probe(self, groups: Sequence[Group], moment: Moment) -> list[Tensor] | None:
        update = -(-moment.step // self.interval) * self.interval  # the next one
        window = range(update - self._window + 1, update + 1)
        # A run that was rewound into a window watches for the rest of it.
        watches = moment.step > window[0] and all(part.weight.probe for group in groups for part in group.parts)
        if watches or moment.step not in window or not self.is_before_stop(moment.at(update)):
            return None
        return [draw_pool(self.pool, group, moment.generator(group, "pool")) for group in groups]

    def best(self, group: Group, kept: Tensor, count: int) -> Tensor:
        positions, total = group.probed()
        return best_among(positions, total.abs(), kept, count)

    @property
    def probed_share(self) -> float:
        return self._window / self.interval
