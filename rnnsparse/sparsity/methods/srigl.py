"""The rigged lottery with a constant fan-in. Shape suffixes: K rows of a group, R rows, C columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor, arange, cat
from typing_extensions import Doc

from rnnsparse.randomness import draw_positions
from rnnsparse.settings.marks import OnlyWith
from rnnsparse.sparsity.allocation import is_named, select
from rnnsparse.sparsity.fan_in import constant_fan_in, count_in_rows, largest_of_rows, row_edges, rows_of
from rnnsparse.sparsity.group import Group
from rnnsparse.sparsity.method import StepContext, register
from rnnsparse.sparsity.methods.rigl import RigL
from rnnsparse.sparsity.selection import draw_absent, keep_largest

SPARED = ("embedding", "output")


@register("srigl")
@dataclass(kw_only=True)
class SRigL(RigL):
    """RigL with as many connections in every row, but none in rows where too few matter.

    Connections matter that are among those RigL would keep or among as many of the largest gradients as it would grow.
    Budgets are exact, so fan-ins may differ by one. Connections taken from elsewhere follow from the first update on.
    """

    paper = "Lasby et al. 2023"
    ablation: Annotated[
        float, Ge(0), Le(1), Doc("a row where fewer connections matter than this share of its fan-in loses all")
    ] = 0.3
    spared: Annotated[
        tuple[str, ...], OnlyWith("ablation"), Doc("groups whose rows all stay in use: names, prefixes or globs")
    ] = SPARED

    def require_groups(self, groups: Sequence[Group], granularity: str) -> None:
        select(groups, [name for name in self.spared if name not in SPARED], "sparsity.spared", granularity)

    def draw_connections(self, group: Group, count: int, generator: torch.Generator) -> Tensor:
        edges_K = row_edges(group)
        fan_in_K = constant_fan_in(count, edges_K.diff(), arange(len(edges_K) - 1))
        rows = zip(edges_K.tolist(), edges_K.diff().tolist(), fan_in_K.tolist(), strict=False)
        return cat([start + draw_positions(fan_in, width, generator) for start, width, fan_in in rows])

    def _update_group(self, group: Group, keep: int, grow: int, context: StepContext) -> Tensor:
        present, scores = group.indices(), self.keep_score(group, context)
        edges_K = row_edges(group).to(present.device)
        largest = keep_largest(present, scores, keep)
        matter = cat([largest, self.best(group, present[:0], grow, context)]).unique()
        fan_in_K = self._fan_in(group, keep + grow, count_in_rows(matter, edges_K), edges_K.diff())
        kept = largest_of_rows(largest, scores[torch.isin(present, largest)], fan_in_K, edges_K)
        lacks_K = fan_in_K - count_in_rows(kept, edges_K)
        chosen = cat([kept, *self._best_of_rows(group, kept, lacks_K, edges_K)]).sort().values
        # What the best leave open is drawn.
        drawn, numbers = [chosen], context.generator(group)
        lacks_K = fan_in_K - count_in_rows(chosen, edges_K)
        for row in lacks_K.nonzero().flatten().tolist():
            start, stop = edges_K[row : row + 2].tolist()
            inside = chosen[(chosen >= start) & (chosen < stop)] - start
            drawn.append(start + draw_absent(int(lacks_K[row]), inside, stop - start, numbers))
        return cat(drawn).sort().values

    def _fan_in(self, group: Group, total: int, matter_K: Tensor, widths_K: Tensor) -> Tensor:
        """Return how many connections each row gets [K]: as many as the others, or none."""
        order_K = matter_K.argsort(descending=True, stable=True)
        if self.ablation and not is_named(group, self.spared):
            enough = max(1, int(self.ablation * total / len(widths_K)))
            room_before_K = torch.zeros_like(widths_K)
            room_before_K[order_K] = widths_K[order_K].cumsum(0) - widths_K[order_K]
            # Where too few rows would be left for all, those with the most that matter stay.
            widths_K = widths_K * ((matter_K >= enough) | (room_before_K < total))
        return constant_fan_in(total, widths_K, order_K)

    def _best_of_rows(self, group: Group, kept: Tensor, lacks_K: Tensor, edges_K: Tensor) -> Iterator[Tensor]:
        """Yield positions outside the sorted `kept`: of each row those of the best scores, as many as it lacks."""
        for strip in group.strips(self.growth_gradient):
            scores_RC = self.scores(group, strip.gradient_RC).clone()
            rows, cols = scores_RC.shape
            inside = kept[(kept >= strip.start) & (kept < strip.start + rows * cols)] - strip.start
            scores_RC.view(-1)[inside] = 0
            best_RC = scores_RC.sort(dim=1, descending=True, stable=True)
            first = int(rows_of(edges_K.new_tensor([strip.start]), edges_K))
            is_wanted_RC = arange(cols, device=kept.device) < lacks_K[first : first + rows, None]
            row_n, place_n = (is_wanted_RC & (best_RC.values > 0)).nonzero(as_tuple=True)
            yield strip.start + row_n * cols + best_RC.indices[row_n, place_n]
