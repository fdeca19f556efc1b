"""Moving averages of the dense gradients of whole weights, existing connections or not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rnnsparse.nn.weight import DenseGradient, DenseRows
from rnnsparse.sparsity.group import Group


class DenseAverages:
    """By the name of a weight, the exponential moving average of its dense gradient [R, C], from zeros on."""

    def __init__(self) -> None:
        self._average: dict[str, Tensor] = {}

    def add(self, name: str, gradient_RC: Tensor, decay: float) -> None:
        """Let the average keep `decay` of itself and take the rest from a gradient."""
        average_RC = self._average.get(name, torch.zeros_like(gradient_RC))
        # A checkpoint may come from another device.
        self._average[name] = average_RC.to(gradient_RC).lerp_(gradient_RC, 1 - decay)

    def as_gradient(self, name: str) -> DenseGradient:
        """Return the average of a weight as what positions grow by."""
        return DenseGradient(DenseRows(self._average[name]))

    def at_connections(self, group: Group) -> Tensor:
        """Return the averages of the existing connections of a group [n]."""
        averages = [self._average[part.weight.name].view(-1) for part in group.parts]
        places = [part.weight.indices[slice(*part.bounds)] for part in group.parts]
        return torch.cat([average[place] for average, place in zip(averages, places, strict=True)])

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._average = {name: average_RC.clone() for name, average_RC in state.items()}
