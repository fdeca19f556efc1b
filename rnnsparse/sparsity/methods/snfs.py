"""Sparse networks from scratch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_types import Ge, Lt
from torch import Tensor
from typing_extensions import Doc

from rnnsparse.nn.weight import DenseGradient, DenseRows, SparseWeight, Tile
from rnnsparse.sparsity.drop_grow import DropGrow
from rnnsparse.sparsity.group import Group
from rnnsparse.sparsity.method import Moment, register


@register("snfs")
@dataclass(kw_only=True)
class SNFS(DropGrow):
    """Grow where the moving average of dense gradients over all steps is largest."""

    paper = "Dettmers & Zettlemoyer 2019"
    dense_gradient = "always"
    momentum: Annotated[float, Ge(0), Lt(1), Doc("weight of the past in the average of dense gradients")] = 0.9
    _average: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def needs_momenta(self) -> bool:
        return False  # it has averages of its own

    def needs_dense_gradient(self, moment: Moment) -> bool:
        return self.is_before_stop(moment)

    def observe(self, weights: Sequence[SparseWeight]) -> None:
        for weight in weights:
            gradient_RC = super().growth_gradient(weight).rows(0, weight.rows)
            average_RC = self._average.get(weight.name)
            if average_RC is None:
                average_RC = torch.zeros_like(gradient_RC)
            # A checkpoint may come from another device.
            self._average[weight.name] = average_RC.to(gradient_RC).lerp_(gradient_RC, 1 - self.momentum)

    def growth_gradient(self, weight: SparseWeight) -> DenseGradient:
        return DenseGradient(DenseRows(self._average[weight.name]))

    def momenta(self, group: Group, moment: Moment) -> Tensor:
        averages = [self._average[part.weight.name].view(-1) for part in group.parts]
        places = [part.weight.indices[slice(*part.bounds)] for part in group.parts]
        return torch.cat([average[place] for average, place in zip(averages, places, strict=True)])

    def grow_score(self, tile: Tile) -> Tensor:
        return tile.gradient_RC.abs()

    def training_flops(self, sparse: float, dense: float, steps: int) -> float:
        return 2 * sparse + dense

    def state_dict(self) -> dict[str, Any]:
        return {"average": dict(self._average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._average = {name: average.clone() for name, average in state["average"].items()}
