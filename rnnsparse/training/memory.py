"""What training holds in memory besides activations, counted from the configuration; nothing is measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rnnsparse.config import RunConfig
from rnnsparse.nn.gradients import STRIP_ROWS
from rnnsparse.nn.language_model import CharLM
from rnnsparse.sparsity.allocation import Budget
from rnnsparse.training.device import COMPUTE_TYPES

OPTIMIZER_MOMENTS = {"adam": 2, "adamw": 2, "sgd": 1, "sntasgd": 2}


def memory_bytes(
    config: RunConfig,
    model: CharLM,
    budgets: Sequence[Budget],
    teacher: CharLM | None,
    *,
    execution: str,
    device: torch.device,
) -> dict[str, int]:
    """Return the bytes of each kind of thing that a run in an `execution` on a `device` has, wherever its model is now.

    What a run starts with, or one that a recipe makes before, may be more than it has in the end, and is what counts.
    """
    weights = model.sparse_weights().values()
    most = [config.method.initial_connections(b) for b in budgets]
    for _, counts in config.method.earlier_runs(budgets, config.training.steps):
        most = [max(pair) for pair in zip(most, counts, strict=True)]
    groups = [(max(0, n - b.group.connections), b.group) for n, b in zip(most, budgets, strict=True) if not b.dense]
    more = sum(count for count, _ in groups)
    parameters = sum(p.numel() for p in model.parameters()) + sum(count * group.block_rows for count, group in groups)
    in_blocks = 0
    if execution != "sparse":
        in_blocks = sum(w.connections for w in weights if w.block_rows > 1)
        in_blocks += sum(count * group.block_rows for count, group in groups if group.block_rows > 1)
    number = model.embedding.values.element_size()
    moments = OPTIMIZER_MOMENTS[config.training.optimizer]
    if config.training.connection_steps and config.training.optimizer in ("adam", "adamw"):
        moments += 1
    if config.method.recipe and config.model.execution != "sparse":
        execution = "masked"  # of its first run, which has all connections
    if config.method.dense_gradient == "never":
        gradients = 0
    elif execution == "sparse":
        gradients = max(min(STRIP_ROWS, w.rows) * w.cols for w in weights)
    else:
        gradients = sum(w.positions for w in weights)
    kept = gradients
    if config.method.dense_gradient == "always":
        gradients *= 2  # and their averages
    compute_type = COMPUTE_TYPES.get(config.training.precision) if device.type == "cuda" else None
    computed = number if compute_type is None else compute_type.itemsize
    return {
        "parameters": parameters * number,
        # Of blocks also the place of each entry, where they are written into a matrix.
        "indices": (sum(len(w.indices) for w in weights) + more + in_blocks) * 8,
        "optimizer": parameters * number * moments,
        "dense_buffers": _dense_numbers(model, execution, kept) * computed,
        "dense_gradients": gradients * number,
        # Each has a position, the gradients of one step and their sums over steps.
        "probes": sum(
            config.method.pool_size(b) * (8 + 2 * number * b.group.block_rows) for b in budgets if not b.dense
        ),
        "teacher": _memory_of(teacher) if teacher is not None else 0,
        "bases": sum(w.basis.left_KRR.numel() + w.basis.right_KCC.numel() for w in weights if w.basis) * number,
    }


def _dense_numbers(model: CharLM, execution: str, kept: int) -> int:
    """Return how many numbers the matrices have that the kernels read as dense ones, and their gradients.

    In masked execution all matrices, from the forward pass to the backward one, which makes the gradients of one layer
    after the other, if the method has them not `kept` anyway; in sparse execution the embedding alone.
    """
    if execution == "sparse":
        return 2 * model.embedding.positions
    biases = sum(p.numel() for name, p in model.named_parameters() if not name.endswith("values"))
    layers: dict[str, int] = {}
    for name, weight in model.sparse_weights().items():
        layer = name.removesuffix(".input").removesuffix(".recurrent")
        layers[layer] = layers.get(layer, 0) + weight.positions
    return sum(layers.values()) + biases + (0 if kept else max(layers.values()))


def _memory_of(model: CharLM) -> int:
    """Return the bytes of a model that is not trained: its parameters, and the positions of its connections."""
    positions = sum(len(weight.indices) for weight in model.sparse_weights().values())
    return sum(p.numel() * p.element_size() for p in model.parameters()) + positions * 8
