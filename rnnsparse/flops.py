"""Arithmetic per character, counted from the connections that exist (Evci et al. 2020, appendix H).

A matrix with n connections costs 2n FLOPs per time step, an embedding look-up nothing; biases and
element-wise work are left out, as in the papers. A character is one symbol of the model's vocabulary.
A matrix whose connections are coefficients in a basis is multiplied as a dense one. While training, it is also made
anew for each batch, and so are the coefficients' gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rnnsparse.nn.language_model import CharLM
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.settings.model import ModelConfig
from rnnsparse.sparsity.allocation import Budget, Counted
from rnnsparse.sparsity.method import Method


@dataclass(frozen=True)
class ForwardFlops:
    """FLOPs of one forward pass per character: with the connections that exist, and with all positions."""

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
        sparse=sum(2 * (w.positions if w.basis else w.connections) for w in _multiplied(model)),
        dense=sum(2 * weight.positions for weight in _multiplied(model)),
    )


def training_flops(
    method: Method,
    model: CharLM,
    budgets: Sequence[Budget],
    steps: int,
    characters_per_step: int,
    reference: ModelConfig | None = None,
    micro_batches: int = 1,
    taken: int | None = None,
    counted: Counted | None = None,
) -> TrainingFlops:
    """Return the cost of a run of `steps` optimizer steps by `method`, which ends with the connections in `budgets`.

    Args:
        characters_per_step: symbols per optimizer step, over all lanes, ranks and accumulated micro-batches.
        reference: the dense model to compare with, by default one of this model's shape.
        micro_batches: into how many parts the characters of a step are divided.
        taken: after how many steps the run has ended, by default all; they may be more than it was planned with.
        counted: by `Updater`, where no plan knows how many connections each budget has.
    """
    is_counted = counted is not None and counted[0] > 0
    if counted is not None and is_counted:
        budgets = [replace(b, connections=round(n / counted[0])) for b, n in zip(budgets, counted[1], strict=True)]
    sparse = _product_flops(model, budgets, [budget.connections for budget in budgets])
    first = _product_flops(
        model, budgets, [b.connections if b.dense else method.initial_connections(b) for b in budgets]
    )
    dense = forward_flops(model).dense
    # Methods count passes, three to a step: each bears its share of getting out of a basis and back into it.
    change = _basis_flops(model) * micro_batches / characters_per_step / 3
    yardstick = dense if reference is None else forward_flops(CharLM(reference, model.vocab_size)).dense
    taken = steps if taken is None else taken
    mean = sparse + change
    if not is_counted:
        mean = method.mean_forward_flops(mean, first + change, steps, taken)
    return TrainingFlops(
        per_character=method.training_flops(mean, dense + change, steps) + _pool_flops(method, model, budgets),
        dense_per_character=3 * yardstick,
        characters=taken * characters_per_step,
    )


def earlier_flops(
    method: Method, model: CharLM, budgets: Sequence[Budget], steps: int, characters_per_batch: int
) -> float:
    """Return what the runs before the last one of a recipe cost, per character of a whole run of `steps` steps."""
    change = _basis_flops(model) / characters_per_batch
    flops = [
        run_steps * (3 * _product_flops(model, budgets, connections) + change)
        for run_steps, connections in method.earlier_runs(budgets, steps)
    ]
    return sum(flops) / steps


def _product_flops(model: CharLM, budgets: Sequence[Budget], connections: Sequence[int]) -> int:
    """Return what one forward pass costs per character if the groups of the budgets have so many connections."""
    weights, flops = _multiplied(model), 0
    for budget, count in zip(budgets, connections, strict=True):
        # Groups lie within one weight or span several that are all multiplied, so their first part decides.
        weight = budget.group.parts[0].weight
        if weight in weights:
            flops += 2 * (budget.group.matrix_entries if weight.basis else count * budget.group.block_rows)
    return flops


def _pool_flops(method: Method, model: CharLM, budgets: Sequence[Budget]) -> float:
    """Return what gradients in pools cost per character; connections have theirs anyway."""
    weights = _multiplied(model)
    pooled = 0
    for budget in budgets:
        weight = budget.group.parts[0].weight
        if weight in weights and not weight.basis:  # coefficients in a basis all have theirs
            room = budget.group.positions - budget.connections
            pooled += min(method.pool_size(budget), room) * budget.group.block_rows
    return 2 * pooled * method.pool_share


def _basis_flops(model: CharLM) -> int:
    """Return what a batch costs in training to get the matrices out of their basis, and their gradients into it."""
    weights = [weight for weight in model.sparse_weights().values() if weight.basis]
    return sum(2 * 2 * w.positions * (w.rows // len(w.gates) + w.cols) for w in weights)
