"""Growth by gradients that are summed over many steps, at a random pool of absent positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from typing_extensions import Doc

from rnnsparse.settings.marks import Steps, UpTo
from rnnsparse.sparsity.allocation import Budget
from rnnsparse.sparsity.drop_grow import DropGrow
from rnnsparse.sparsity.group import Group, magnitudes
from rnnsparse.sparsity.method import StepContext, register
from rnnsparse.sparsity.selection import best_among, draw_absent

Window = Annotated[Annotated[int, Gt(0)] | None, Steps, UpTo("sparsity.interval")]


@register("scout")
@dataclass(kw_only=True)
class Scout(DropGrow):
    """Grow where the signed gradient, summed over a window of steps at a random pool of positions, is largest.

    Its parts are published: random candidates that are scored by gradients (Heddes et al. 2024, method `gse`), and
    signed sums of gradients over several steps (Ansell et al. 2024; `grad_accumulation_n` of rigl-torch). New is what
    they make together: a random pool, summed over the whole interval, from scratch, and never a dense gradient. With
    `pool: 1` and `window: 1` it is nearly `gse`; with `pool: null` and `window: n`, nearly rigl-torch.
    """

    paper = "combines Heddes et al. 2024, Ansell et al. 2024 and rigl-torch"
    window: Annotated[Window, Doc("steps whose gradients are summed, up to the update; null: interval")] = None
    pool: Annotated[
        Annotated[float, Ge(0)] | None, Doc("absent positions in the pool per connection; null: all, at dense cost")
    ] = 3.0

    @property
    def works_sparse(self) -> bool:
        return self.pool is not None

    @property
    def _window(self) -> int:
        return min(self.window or self.interval, self.interval)

    def _window_to_come(self, step: int) -> range:
        """Return the steps whose gradients are summed for the next update, at this step or later."""
        update = -(-step // self.interval) * self.interval
        return range(update - self._window + 1, update + 1)

    def draw_pools(self, groups: Sequence[Group], context: StepContext) -> list[Tensor] | None:
        window = self._window_to_come(context.step)
        # A run that was rewound into a window has pools for the rest of it.
        goes_on = context.step > window[0] and all(part.weight.pool for group in groups for part in group.parts)
        if goes_on or context.step not in window or not self.is_before_stop(context.at(window[-1])):
            return None
        return [self._draw_pool(group, context.generator(group, "pool")) for group in groups]

    def _draw_pool(self, group: Group, generator: torch.Generator) -> Tensor:
        present = group.indices()
        if self.pool is None:
            return torch.arange(group.positions, device=present.device)
        return draw_absent(self._size(group.positions, present.numel()), present, group.positions, generator)

    def _size(self, positions: int, connections: int) -> int:
        return positions if self.pool is None else min(round(self.pool * connections), positions - connections)

    def pool_size(self, budget: Budget) -> int:
        return self._size(budget.group.positions, budget.connections)

    @property
    def pool_share(self) -> float:
        return self._window / self.interval

    def best(self, group: Group, kept: Tensor, count: int, context: StepContext) -> Tensor:
        positions, total = group.pooled()
        return best_among(positions, magnitudes(total), kept, count)
