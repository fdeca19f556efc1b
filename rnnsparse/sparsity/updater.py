"""Runs a method over the weights and the optimizer; all of sparsity that a training loop sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rnnsparse.nn.gradients import DenseGradient, Marginals
from rnnsparse.nn.layers import Embedding
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.sparsity.allocation import Budget, Counted
from rnnsparse.sparsity.ever_active import EverActive
from rnnsparse.sparsity.group import weight_topologies
from rnnsparse.sparsity.method import Method, StepContext
from rnnsparse.sparsity.selection import keep_largest, rewire


class Updater:
    """Carries out topology updates.

    A training step calls, in this order: `before_backward`, all passes, `after_backward`, the optimizer if
    that returned True, `after_step`. Steps count from 1. A step whose gradients overflowed leaves out all but the
    first two, so that nothing of it enters topology or averages; if counts depend on its update, the next step has it,
    or `finish` after the last one. `Sparsifier` does all of this in two lines.
    `budgets` are those that the run began with, and updates go by `total_steps`.
    """

    def __init__(
        self,
        method: Method,
        budgets: Sequence[Budget],
        optimizer: torch.optim.Optimizer,
        *,
        seed: int,
        total_steps: int,
        reduce: Callable[[Tensor], object] | None = None,
    ) -> None:
        self.method = method
        self.budgets = list(budgets)
        self._groups = [budget.group for budget in budgets if not budget.dense]
        self._fixed = [budget.group for budget in budgets if budget.dense]
        self._weights = list(dict.fromkeys(part.weight for group in self._groups for part in group.parts))
        self._optimizer = optimizer
        self._seed = seed
        self.total_steps = total_steps
        # Averages a tensor over all ranks in place, where there are several.
        self._reduce = reduce
        self.updates = 0
        self.connections_moved = 0
        self.last_moved_share = 0.0
        self.ever_active = EverActive(self._groups, seed)
        # Of a method that shifts budgets. None goes on from a checkpoint of an earlier version, which did not count.
        self.counted: Counted | None = (0, [0] * len(self.budgets))
        # The step whose update is still to be made, or to be made up for.
        self._due: int | None = None

    def before_backward(self, step: int) -> None:
        """Arm or disarm the collection of dense gradients for the backward passes of this step."""
        if self.method.makes_up_updates and self.method.updates_at(self._context(step, made_up=False)):
            self._due = step  # it does the work of an earlier one, too
        context = self._context(step)
        collects = self.method.needs_dense_gradient(context)
        for weight in self._weights:
            weight.marginals = None  # a step that came to nothing may have left some
        self._draw_pools(context)
        self._watch_factors(step)
        for weight in self._weights:
            weight.dense_gradient = DenseGradient() if collects else None
            if weight.pool:
                weight.pool.start_step()

    def _watch_factors(self, step: int) -> None:
        """Begin to collect the marginals of a step's gradients, if it needs any; masked forward passes have to know."""
        watches = self.method.needs_marginals(self._context(step))
        for weight in self._weights:
            # What is looked up, or stands in a basis, has no rows and columns that a product would know.
            has_factors = watches and not isinstance(weight, Embedding) and weight.basis is None
            weight.marginals = Marginals(weight.rows, weight.cols, weight.values) if has_factors else None

    def _draw_pools(self, context: StepContext) -> None:
        pools = self.method.draw_pools(self._groups, context)
        if pools is not None:
            for weight, positions in self._by_weight(pools, [group.indices()[:0] for group in self._fixed]):
                weight.start_pool(positions)

    def after_backward(self, step: int, gradient_scale: float = 1.0) -> bool:
        """Update if this step's update replaces the optimizer step; return whether the optimizer steps.

        `gradient_scale` is what the loss was multiplied with (mixed precision); dense gradients are divided by it.
        """
        if self.method.shifts_budgets and self.counted:
            steps, sums = self.counted
            self.counted = (
                steps + 1,
                [n + budget.group.connections for n, budget in zip(sums, self.budgets, strict=True)],
            )
        context = self._context(step)
        if self.method.needs_dense_gradient(context):
            for weight in self._weights:
                if weight.dense_gradient is not None:
                    weight.dense_gradient.scale = 1 / gradient_scale
                    weight.dense_gradient.reduce = self._reduce
            self.method.observe(self._weights)
        for weight in self._weights:
            if weight.pool:
                weight.pool.finish_step(1 / gradient_scale)
        replaces = self.method.replaces_optimizer_step and self.method.updates_at(context)
        if replaces:
            self._update(context)
        return not replaces

    def after_step(self, step: int) -> None:
        """Update if this step's update follows the optimizer step; let go of dense gradients and marginals."""
        context = self._context(step)
        if self.method.updates_at(context) and not self.method.replaces_optimizer_step:
            self._update(context)
        if self.method.needs_marginals(context):
            for marginals in [weight.marginals for weight in self._weights if weight.marginals]:
                if self._reduce:
                    self._reduce(marginals.rows_R)
                    self._reduce(marginals.cols_C)
            self._draw_pools(context.at(step + 1))
        for weight in self._weights:
            weight.dense_gradient = weight.marginals = None

    @torch.no_grad()
    def finish(self) -> None:
        """After the last step: make up for an update that it should have had, by magnitude for want of gradients."""
        if self._due is None:
            return
        budgets = self._sparse_budgets()
        counts = self.method.final_counts(budgets, self._context(self.total_steps))
        groups = [budget.group for budget in budgets]
        self._rewire(
            [keep_largest(g.indices(), g.magnitudes(), count) for g, count in zip(groups, counts, strict=True)]
        )

    def _sparse_budgets(self) -> list[Budget]:
        return [budget for budget in self.budgets if not budget.dense]

    def _context(self, step: int, made_up: bool = True) -> StepContext:
        """Return when a method acts: at an earlier step whose update is `made_up` for now, or at this one."""
        return StepContext((made_up and self._due) or step, self.total_steps, self._seed, self._optimizer)

    def _by_weight(self, chosen: Sequence[Tensor], fixed: Sequence[Tensor]) -> list[tuple[SparseWeight, Tensor]]:
        """Join positions chosen for the groups, and for those that are dense by name, into those of each weight."""
        groups = [*zip(self._groups, chosen, strict=True), *zip(self._fixed, fixed, strict=True)]
        return [(weight, positions) for weight, positions in weight_topologies(groups) if weight in self._weights]

    @torch.no_grad()
    def _update(self, context: StepContext) -> None:
        for weight in self._weights:
            if weight.pool and self._reduce:
                self._reduce(weight.pool.total)
        # Groups read weights, so all choices are made before the first weight changes.
        self._rewire(self.method.update(self._sparse_budgets(), context))

    @torch.no_grad()
    def _rewire(self, chosen: Sequence[Tensor]) -> None:
        topologies = self._by_weight(chosen, [group.indices() for group in self._fixed])
        for weight, indices in topologies:
            self.ever_active.add(weight, indices)
        moved = sum(rewire(weight, indices, self._optimizer) * weight.block_rows for weight, indices in topologies)
        for weight in self._weights:
            weight.pool = None
        self._due = None
        self.updates += 1
        self.connections_moved += moved
        self.last_moved_share = moved / max(1, sum(group.entries for group in self._groups))

    def state_dict(self) -> dict[str, Any]:
        return {
            "method": self.method.state_dict(),
            "budgets": [budget.connections for budget in self.budgets],
            "probes": {w.name: (w.pool.positions, w.pool.total.flatten()) for w in self._weights if w.pool},
            "due": self._due,
            "updates": self.updates,
            "connections_moved": self.connections_moved,
            "last_moved_share": self.last_moved_share,
            "ever_active": self.ever_active.state_dict(),
            "counted": self.counted,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.method.load_state_dict(state["method"])
        # Where connections of another run decide the budgets, those that it began with, wherever they are now.
        if counts := state.get("budgets"):  # which checkpoints of earlier versions do not have
            self.budgets = [replace(b, connections=n) for b, n in zip(self.budgets, counts, strict=True)]
        for weight in self._weights:
            weight.pool = None
            if weight.name in state["probes"]:
                positions, total = state["probes"][weight.name]
                weight.start_pool(positions).total.view(-1).copy_(total)
        self._due = state["due"]
        self.updates = state["updates"]
        self.connections_moved = state["connections_moved"]
        self.last_moved_share = state["last_moved_share"]
        self.ever_active.load_state_dict(state["ever_active"])
        self.counted = state.get("counted")
