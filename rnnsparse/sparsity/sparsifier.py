"""Runs a method over the weights and the optimizer; all of sparsity that a training loop sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rnnsparse.sparsity.allocation import Budget
from rnnsparse.sparsity.group import weight_topologies
from rnnsparse.sparsity.method import Method, Moment
from rnnsparse.sparsity.topology import rewire


class Sparsifier:
    """Carries out topology updates.

    A training step calls, in this order: `before_backward`, all backward passes, `after_backward`, the optimizer if
    that returned True, `after_step`. Steps count from 1. Release the loss before `after_backward`: a graph that is
    still alive remembers the shapes from before an update. A step whose gradients overflowed leaves out all but the
    first two, so that nothing of it enters topology or averages.
    """

    def __init__(
        self,
        method: Method,
        budgets: Sequence[Budget],
        optimizer: torch.optim.Optimizer,
        *,
        seed: int,
        total_steps: int,
    ) -> None:
        self.method = method
        self._groups = [budget.group for budget in budgets if not budget.dense]
        self._fixed = [budget.group for budget in budgets if budget.dense]
        self._weights = list(dict.fromkeys(part.weight for group in self._groups for part in group.parts))
        self._optimizer = optimizer
        self._seed, self._total_steps = seed, total_steps
        self.updates = 0
        self.connections_moved = 0
        self.last_moved_share = 0.0

    def before_backward(self, step: int) -> None:
        """Arm or disarm the collection of dense gradients for the backward passes of this step."""
        collect = self.method.needs_dense_gradient(self._moment(step))
        for weight in self._weights:
            weight.start_dense_gradient(collect)

    def after_backward(self, step: int, gradient_scale: float = 1.0) -> bool:
        """Update if this step's update replaces the optimizer step; return whether the optimizer steps.

        `gradient_scale` is what the loss was multiplied with (mixed precision); dense gradients are divided by it.
        """
        moment = self._moment(step)
        if self.method.needs_dense_gradient(moment):
            for weight in self._weights:
                if weight.dense_gradient is not None:
                    weight.dense_gradient.scale = 1 / gradient_scale
            self.method.observe(self._weights)
        replaces = self.method.replaces_optimizer_step and self.method.updates_at(moment)
        if replaces:
            self._update(moment)
        return not replaces

    def after_step(self, step: int) -> None:
        """Update if this step's update follows the optimizer step; let go of dense gradients."""
        moment = self._moment(step)
        if self.method.updates_at(moment) and not self.method.replaces_optimizer_step:
            self._update(moment)
        for weight in self._weights:
            weight.start_dense_gradient(False)

    def _moment(self, step: int) -> Moment:
        return Moment(step, self._total_steps, self._seed)

    @torch.no_grad()
    def _update(self, moment: Moment) -> None:
        chosen = list(zip(self._groups, self.method.update(self._groups, moment), strict=True))
        chosen += [(group, group.indices()) for group in self._fixed]
        # Groups read weights, so all choices are made before the first weight changes.
        topologies = [(weight, indices) for weight, indices in weight_topologies(chosen) if weight in self._weights]
        moved = sum(rewire(weight, indices, self._optimizer) for weight, indices in topologies)
        self.updates += 1
        self.connections_moved += moved
        self.last_moved_share = moved / max(1, sum(group.connections for group in self._groups))

    def state_dict(self) -> dict[str, Any]:
        return {
            "method": self.method.state_dict(),
            "updates": self.updates,
            "connections_moved": self.connections_moved,
            "last_moved_share": self.last_moved_share,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.method.load_state_dict(state["method"])
        self.updates = state["updates"]
        self.connections_moved = state["connections_moved"]
        self.last_moved_share = state["last_moved_share"]
