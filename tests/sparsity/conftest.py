"""A training loop reduced to what sparsity touches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from rnnsparse.nn.language_model import CharLM
from rnnsparse.randomness import generator_for
from rnnsparse.settings.model import ModelConfig
from rnnsparse.settings.sparsity import BudgetConfig
from rnnsparse.sparsity.allocation import allocate, connect_randomly
from rnnsparse.sparsity.blocks import set_block_rows
from rnnsparse.sparsity.method import Method
from rnnsparse.sparsity.updater import Updater

VOCAB = 11


def adamw(parameters: Any) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01)


class TinyRun:
    """A CharLM of eight units that learns random symbols: step t sees the same ones in every run."""

    def __init__(
        self,
        method: Method,
        cell: str = "gru",
        optimizer: Callable[[Any], Optimizer] = adamw,
        seed: int = 1,
        total_steps: int = 12,
        budget: BudgetConfig | None = None,
        block_rows: int = 1,
        **shape: Any,
    ) -> None:
        self.method, self.total_steps = method, total_steps
        config = ModelConfig(**{"cell": cell, "embedding_dim": 6, "hidden_size": 8} | shape)
        budget = budget or BudgetConfig(sparsity=0.7)
        trained = method.model_config(config, budget, VOCAB)
        self.model = CharLM(trained, VOCAB)
        self.weights = self.model.sparse_weights()
        if trained is config:
            set_block_rows(list(self.weights.values()), block_rows)
        if method.stays_dense:
            budget = replace(budget, sparsity=0.0, overrides=dict.fromkeys(budget.overrides, 0.0))
        self.budgets = allocate(list(self.weights.values()), budget)
        connect_randomly(self.budgets, seed, method.initial_connections, method.draw_connections)
        self.model.reset_parameters(seed)
        self.optimizer = optimizer(self.model.parameters())
        self.sparsifier = Updater(method, self.budgets, self.optimizer, seed=seed, total_steps=total_steps)

    def loss(self, step: int, lanes: slice = slice(None)) -> Tensor:
        """Return the mean loss of this step's batch of 8 lanes, or of some of its lanes."""
        text_TB = torch.randint(VOCAB, (6, 8), generator=generator_for(0, "text", step))[:, lanes]
        return cross_entropy(self.model(text_TB[:-1])[0].flatten(0, 1), text_TB[1:].flatten())

    def backward(self, step: int) -> None:
        self.optimizer.zero_grad()
        self.sparsifier.before_backward(step)
        self.loss(step).backward()

    def step(self, step: int) -> dict[str, dict[int, tuple[float, ...]]]:
        """Train one step; return the snapshot from right before the moment at which an update may happen."""
        self.backward(step)
        before = self.snapshot()
        if self.sparsifier.after_backward(step):
            self.optimizer.step()
            before = self.snapshot()
        self.sparsifier.after_step(step)
        return before

    def snapshot(self) -> dict[str, dict[int, tuple[float, ...]]]:
        """Return per weight and position: values, then every number of the optimizer for these."""
        result = {}
        for name, weight in self.weights.items():
            state = self.optimizer.state.get(weight.values, {})
            columns = [v for v in state.values() if isinstance(v, Tensor) and v.shape == weight.values.shape]
            rows = torch.stack([weight.values.detach(), *columns], dim=1).flatten(1).tolist()
            result[name] = dict(zip(weight.indices.tolist(), map(tuple, rows), strict=True))
        return result

    def topology(self) -> dict[str, list[int]]:
        return {name: weight.indices.tolist() for name, weight in self.weights.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "indices": {name: weight.indices for name, weight in self.weights.items()},
            "optimizer": self.optimizer.state_dict(),
            "sparsifier": self.sparsifier.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, weight in self.weights.items():
            weight.connect(state["indices"][name])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sparsifier.load_state_dict(state["sparsifier"])


@pytest.fixture
def tiny_run() -> type[TinyRun]:
    return TinyRun
