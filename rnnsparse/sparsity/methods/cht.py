"""Growth by what the pattern of the connections alone says is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import Tensor
from typing_extensions import Doc

from rnnsparse.nn.gradients import STRIP_ROWS, Strip
from rnnsparse.sparsity.drop_grow import DropGrow
from rnnsparse.sparsity.group import Group
from rnnsparse.sparsity.method import StepContext, register
from rnnsparse.sparsity.selection import best_absent


@register("cht")
@dataclass(kw_only=True)
class CHT(DropGrow):
    """Draw what stays by its weight, and what grows by the paths of three connections that join its ends; no gradient.

    This is the soft rule, CHTs: chances are in proportion to scores (CH3-L3p for growth) to the power 1 / (1 - delta),
    with a delta that rises. Each part of a group is a graph, a gate of a matrix for example. Of the paper without its
    first topologies, and without the removal of units that have lost their inputs or outputs.
    """

    paper = "Zhang et al. 2025"
    delta: Annotated[float, Ge(0), Lt(1), Doc("how sharply chances follow scores at the start")] = 0.5
    final_delta: Annotated[float, Ge(0), Lt(1), Doc("delta at stop")] = 0.75

    def _drawn(self, scores: Tensor, context: StepContext, generator: torch.Generator) -> Tensor:
        """Return numbers whose k largest are a draw of k without replacement, by powers of scores; of zero, zero."""
        progress = min(1.0, context.step / max(1.0, float(self._stop_step(context))))
        delta = self.delta + (self.final_delta - self.delta) * progress
        # Each waits for a time that is exponential with its chance as the rate, and the first ones are drawn. Not the
        # scores are raised to 1 / (1 - delta), but all to 1 - delta: the order is the same, and no number too large.
        waits = torch.empty(scores.shape, dtype=torch.float64, device="cpu").exponential_(generator=generator)
        return scores.double() / waits.to(scores.device) ** (1 - delta)

    def keep_score(self, group: Group, context: StepContext) -> Tensor:
        return self._drawn(super().keep_score(group, context), context, context.generator(group, "drop"))

    def best(self, group: Group, kept: Tensor, count: int, context: StepContext) -> Tensor:
        numbers = context.generator(group, "paths")

        def drawn(scores_RC: Tensor) -> Tensor:
            return self._drawn(scores_RC, context, numbers).to(kept.device)

        return best_absent(_path_scores(group, kept), drawn, kept, count)


def _path_scores(group: Group, positions: Tensor) -> Iterator[Strip]:
    """Yield the scores of all positions of a group that has connections at the sorted ones, some rows at a time."""
    # Imported late: kernels take a second to load.
    from rnnsparse.kernels.paths import PathScores

    first = 0
    for part, flat in group.split(positions):
        rows, cols = part.rows // group.block_rows, part.weight.cols
        graph = PathScores((flat - part.first_position).cpu(), rows, cols)
        for row in range(0, rows, STRIP_ROWS):
            yield Strip(first + row * cols, graph.rows(row, min(row + STRIP_ROWS, rows)))
        first += part.positions
