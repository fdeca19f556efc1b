"""Sparse networks from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_types import Ge, Lt
from torch import Tensor
from typing_extensions import Doc

from rnnsparse.nn.gradients import DenseGradient, MatrixGradient
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.sparsity.drop_grow import DropGrowByGradient
from rnnsparse.sparsity.group import Group
from rnnsparse.sparsity.method import StepContext, register


@register("snfs")
@dataclass(kw_only=True)
class SNFS(DropGrowByGradient):
    """Grow where the moving average of dense gradients over all steps is largest."""

    paper = "Dettmers & Zettlemoyer 2019"
    dense_gradient = "always"
    momentum: Annotated[float, Ge(0), Lt(1), Doc("weight of the past in the average of dense gradients")] = 0.9
    # By the name of a weight, the average of its dense gradient [R, C], from zeros on.
    _averages: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def needs_momenta(self) -> bool:
        return False  # it has averages of its own

    def needs_dense_gradient(self, context: StepContext) -> bool:
        return self.is_before_stop(context)

    def observe(self, weights: Sequence[SparseWeight]) -> None:
        for weight in weights:
            gradient_RC = super().growth_gradient(weight).rows(0, weight.rows)
            average_RC = self._averages.get(weight.name, torch.zeros_like(gradient_RC))
            # A checkpoint may come from another device.
            self._averages[weight.name] = average_RC.to(gradient_RC).lerp_(gradient_RC, 1 - self.momentum)

    def growth_gradient(self, weight: SparseWeight) -> DenseGradient:
        return DenseGradient(MatrixGradient(self._averages[weight.name]))

    def grow_score(self, gradient_RC: Tensor) -> Tensor:
        return gradient_RC.abs()

    def momenta(self, group: Group, context: StepContext) -> Tensor:
        averages = [self._averages[part.weight.name].view(-1) for part in group.parts]
        places = [part.of(part.weight.topology.entries) for part in group.parts]
        return torch.cat([average[place] for average, place in zip(averages, places, strict=True)])

    def training_flops(self, sparse: float, dense: float, steps: int) -> float:
        return 2 * sparse + dense

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {"average": dict(self._averages)}

    def state_shapes(self, weights: Iterable[SparseWeight]) -> dict[str, dict[str, Tensor]]:
        return {"average": {w.name: w.values.new_empty(w.rows, w.cols, device="meta") for w in weights}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._averages = {name: average_RC.clone() for name, average_RC in state["average"].items()}
