"""Guided stochastic exploration. Shape suffixes: K rows of a group's blocks, C columns, n drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor
from typing_extensions import Doc

from rnnsparse.settings.marks import Changeable, OnlyWith
from rnnsparse.sparsity.group import Group
from rnnsparse.sparsity.method import StepContext, register
from rnnsparse.sparsity.methods.scout import Scout, Window
from rnnsparse.sparsity.selection import contains


@register("gse")
@dataclass(kw_only=True)
class GSE(Scout):
    """Grow where the gradient is largest among few candidates, drawn evenly or where it is likely to be large.

    Likely (GraBo) is a position by how active its column's input and how large its row's gradient were, one step before
    its own gradient is looked at; then masked execution takes that step as the textbook does. An embedding, which
    multiplies nothing, has candidates drawn evenly.
    """

    paper = "Heddes et al. 2024"
    drop_fraction: Annotated[
        float, Ge(0), Le(1), Changeable, Doc("share of connections replaced by an update at the start")
    ] = 0.2
    stop: Annotated[float, Ge(0), Le(1), Changeable, Doc("share of training after which the topology is fixed")] = 0.6
    window: Annotated[Window, Doc("steps whose gradients are summed, up to the update; null: interval")] = 1
    pool: Annotated[
        Annotated[float, Ge(0)] | None, Doc("absent positions in the pool per connection; null: all, at dense cost")
    ] = 1.0
    candidates: Annotated[
        Literal["uniform", "grabo"],
        OnlyWith("pool"),
        OnlyWith("basis", ("canonical",)),
        Doc("how the pool is drawn; grabo: in proportion to the sum of |input| of a column times that of |gradient|"),
    ] = "uniform"

    @property
    def watches_factors(self) -> bool:
        return self.candidates == "grabo" and self.pool is not None

    def needs_marginals(self, context: StepContext) -> bool:
        window = self._window_to_come(context.step + 1)
        return self.watches_factors and context.step + 1 == window[0] and self.is_before_stop(context.at(window[-1]))

    def draw_pools(self, groups: Sequence[Group], context: StepContext) -> list[Tensor] | None:
        if self.watches_factors and context.step == self._window_to_come(context.step)[0]:
            pools = [part.weight.pool for group in groups for part in group.parts]
            # They were drawn after the step before, by its marginals, unless it was left out; then some may be old.
            if all(pool and not pool.total.any() for pool in pools):
                return None
        return super().draw_pools(groups, context)

    def _draw_pool(self, group: Group, generator: torch.Generator) -> Tensor:
        marginals = [part.weight.marginals for part in group.parts] if self.watches_factors else []
        present = group.indices()
        count = self._size(group.positions, present.numel())
        # On the CPU, where the generator is; each row of blocks by the sum of its rows.
        factors = [
            (m.rows_R[part.start_row : part.stop_row].view(-1, group.block_rows).sum(1).cpu(), m.cols_C.cpu())
            for m, part in zip(marginals, group.parts, strict=False)
            if m is not None
        ]
        chances = [rows_K * cols_C.sum() for rows_K, cols_C in factors]
        if count == 0 or len(factors) < len(group.parts) or not sum(float(chance_K.sum()) for chance_K in chances):
            return super()._draw_pool(group, generator)
        drawn_K = torch.multinomial(torch.cat(chances).double(), count, replacement=True, generator=generator)
        drawn, first, first_row = [], 0, 0
        for part, (rows_K, cols_C) in zip(group.parts, factors, strict=True):
            row_n = drawn_K[(drawn_K >= first_row) & (drawn_K < first_row + len(rows_K))] - first_row
            if len(row_n):
                column_n = torch.multinomial(cols_C.double(), len(row_n), replacement=True, generator=generator)
                drawn.append(first + row_n * part.weight.cols + column_n)
            first, first_row = first + part.positions, first_row + len(rows_K)
        candidates: Tensor = torch.cat(drawn).unique().to(present.device)
        return candidates[~contains(present, candidates)[0]]
