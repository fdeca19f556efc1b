"""Arithmetic per character, counted from the connections that exist (Evci et al. 2020, appendix H).

A matrix with n connections costs 2n FLOPs per time step, an embedding look-up nothing; biases and
element-wise work are left out, as in the papers. A character is one symbol of the model's vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rnnsparse.nn.language_model import CharLM, ModelConfig
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.sparsity.allocation import Budget
from rnnsparse.sparsity.method import Method


@dataclass(frozen=True)
class ForwardFlops:
    """FLOPs of one forward pass per character: of the connections that exist, and of all positions."""

    sparse: int
    dense: int


@dataclass(frozen=True)
class TrainingFlops:
    """FLOPs of a whole training run, average per character and in total, and the same of dense training."""

    per_character: float
    dense_per_character: float
    characters: int

    @property
    def total(self) -> float:
        return self.per_character * self.characters

    @property
    def dense_total(self) -> float:
        return self.dense_per_character * self.characters

    @property
    def ratio(self) -> float:
        """Share of what dense training of the same shape costs."""
        return self.per_character / self.dense_per_character


def _multiplied(model: CharLM) -> list[SparseWeight]:
    """Return the weights that take part in matrix products."""
    weights = list(model.sparse_weights().values())
    # A tied embedding is no work where it is looked up, and a matrix product where it is the output.
    if not model.config.tie_embeddings:
        weights.remove(model.embedding)
    return weights


def forward_flops(model: CharLM) -> ForwardFlops:
    """Return what one character costs with the connections that `model` has now, and with all."""
    return ForwardFlops(
        sparse=sum(2 * weight.connections for weight in _multiplied(model)),
        dense=sum(2 * weight.positions for weight in _multiplied(model)),
    )


def training_flops(
    method: Method,
    model: CharLM,
    budgets: Sequence[Budget],
    steps: int,
    characters_per_step: int,
    reference: ModelConfig | None = None,
) -> TrainingFlops:
    """Return the cost of `steps` optimizer steps by `method`, which ends with the connections in `budgets`.

    Args:
        characters_per_step: symbols per optimizer step, over all lanes, ranks and accumulated micro-batches.
        reference: the dense model to compare with, by default one of this model's shape.
    """
    weights = _multiplied(model)
    # Groups lie within one weight or span several that are all multiplied, so their first part decides.
    sparse = sum(2 * budget.connections for budget in budgets if budget.group.parts[0].weight in weights)
    dense = forward_flops(model).dense
    yardstick = dense if reference is None else forward_flops(CharLM(reference, model.vocab_size)).dense
    return TrainingFlops(
        per_character=method.training_flops(sparse, dense, steps),
        dense_per_character=3 * yardstick,
        characters=steps * characters_per_step,
    )


def earlier_flops(method: Method, model: CharLM, budgets: Sequence[Budget], steps: int) -> float:
    """Return what the runs before the last one of a recipe cost, per character of a whole run of `steps` steps."""
    weights = _multiplied(model)
    multiplied = [budget.group.parts[0].weight in weights for budget in budgets]
    connections = sum(
        run_steps * sum(n for n, counts in zip(connections, multiplied, strict=True) if counts)
        for run_steps, connections in method.earlier_runs(budgets, steps)
    )
    return 3 * 2 * connections / steps
