"""Sparse networks from scratch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, Lt
from torch import Tensor
from typing_extensions import Doc

from rnnsparse.nn.weight import DenseGradient, SparseWeight, Tile
from rnnsparse.sparsity.averages import DenseAverages
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
    _averages: DenseAverages = field(default_factory=DenseAverages, init=False, repr=False, compare=False)

    @property
    def needs_momenta(self) -> bool:
        return False  # it has averages of its own

    def needs_dense_gradient(self, moment: Moment) -> bool:
        return self.is_before_stop(moment)

    def observe(self, weights: Sequence[SparseWeight]) -> None:
        for weight in weights:
            self._averages.add(weight.name, super().growth_gradient(weight).rows(0, weight.rows), self.momentum)

    def growth_gradient(self, weight: SparseWeight) -> DenseGradient:
        return self._averages.as_gradient(weight.name)

    def momenta(self, group: Group, moment: Moment) -> Tensor:
        return self._averages.at_connections(group)

    def grow_score(self, tile: Tile) -> Tensor:
        return tile.gradient_RC.abs()

    def training_flops(self, sparse: float, dense: float, steps: int) -> float:
        return 2 * sparse + dense

    def state_dict(self) -> dict[str, Any]:
        return {"average": self._averages.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._averages.load_state_dict(state["average"])
