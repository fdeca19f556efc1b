"""Lottery tickets in anybody's training loop: rounds of the same steps, each with fewer connections."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from rnnsparse.sparsity.methods.kd_ticket import KDTicket
from rnnsparse.sparsity.methods.lottery import Lottery
from rnnsparse.sparsity.sparsifier import Sparsifier


class Tickets(Sparsifier):
    """A Sparsifier whose method takes several rounds.

    It remembers model, optimizer and scaler as they are after the step to rewind to, and gives them back, without the
    connections that a round loses, when the next one begins.

    Raises:
        ValueError: the budgets leave nothing to prune.
    """

    method: Lottery

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        budgets = self._sparse_budgets()
        self._counts = self.method.rounds([b.group.positions for b in budgets], [b.connections for b in budgets])
        if len(self._counts) == 1:
            raise ValueError("sparsity: leaves nothing to prune; raise it, or use method dense")
        self._rewind_step = self.method.rewind_step(self.total_steps)
        self._round = 0
        self._has_begun = False
        self._early: dict[str, Any] | None = None
        self._taught: nn.Module | None = None
        self._remember()

    @property
    def teacher(self) -> nn.Module | None:
        return self._taught if self._round == len(self._counts) - 1 else None

    def rounds(self) -> Iterator[int]:
        self._has_begun = True
        yield self._round
        while self._round < len(self._counts) - 1:
            self._begin_next()
            yield self._round

    def step(self) -> None:
        if not self._has_begun:
            raise RuntimeError(
                f"method {self.method.name} takes {len(self._counts)} rounds; train in `for number in "
                "sparsifier.rounds():`, in each of them from sparsifier.steps_taken to sparsifier.total_steps"
            )
        super().step()
        self._remember()

    def _remember(self) -> None:
        if self._round == 0 and self.steps_taken == self._rewind_step:
            scaler = self._scaler.state_dict() if self._scaler else None
            state = {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict(), "scaler": scaler}
            self._early = copy.deepcopy(state)

    @torch.no_grad()
    def _begin_next(self) -> None:
        if self.steps_taken != self.total_steps or self._early is None:
            raise RuntimeError(
                f"round {self._round}: ended after step {self.steps_taken}, but every round has to go on from "
                f"sparsifier.steps_taken to step {self.total_steps}"
            )
        if self._round == 0 and isinstance(self.method, KDTicket):
            self._taught = self._copy()
        self._round += 1
        kept = self.method.ticket(self._groups, self._counts[self._round])
        self._model.load_state_dict(self._early["model"])
        self._optimizer.load_state_dict(copy.deepcopy(self._early["optimizer"]))  # which would use these very tensors
        if self._scaler:
            self._scaler.load_state_dict(self._early["scaler"])
        self._rewire(kept)
        self.steps_taken = self._rewind_step

    def _copy(self) -> nn.Module:
        """Return the model as it is, to be asked only."""
        return copy.deepcopy(self._model).eval().requires_grad_(False)

    def state_dict(self) -> dict[str, Any]:
        taught = self._taught.state_dict() if self._taught else None
        return super().state_dict() | {"round": self._round, "early": self._early, "teacher": taught}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._round, self._early, self._taught = state["round"], state["early"], None
        if state["teacher"] is not None:
            self._taught = self._copy()
            self._taught.load_state_dict(state["teacher"])
