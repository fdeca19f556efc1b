"""What a model is made of and what it costs: the tables of `inspect` and of the banner before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from rnnsparse.config import RunConfig
from rnnsparse.flops import earlier_flops, forward_flops, training_flops
from rnnsparse.nn.language_model import CharLM
from rnnsparse.sparsity.allocation import Budget, Counted
from rnnsparse.storage.checkpoint import Checkpoint
from rnnsparse.storage.training_state import as_counted
from rnnsparse.training.build import choose_execution, sparsity_of
from rnnsparse.training.memory import memory_bytes


def inspect(
    config: RunConfig,
    model: CharLM,
    budgets: Sequence[Budget],
    teacher: CharLM | None = None,
    taken: int | None = None,
    device: torch.device | None = None,
    planned: int | None = None,
    counted: Counted | None = None,
) -> dict[str, Any]:
    """Return blocks, totals, FLOPs and memory as plain data; `positions` leaves out blocks that are dense by name.

    Training FLOPs are those of a whole run, or of its first `taken` steps: with all runs that a recipe makes, and with
    the forward passes of the `teacher` that the configuration names, but without what another run cost that this one
    starts from; a run that is rewound counts as one of its whole length. A method that prunes by the steps that the run
    was `planned` with, before it was trained longer, is counted by these. One that shifts connections from group to
    group goes by the connections that it `counted`, and by its budgets before its first step. Execution and memory are
    those of a run on `device`, which this machine need not have; by default it is the model's.
    """
    own = model.embedding.values.device
    device, execution = device or own, model.execution
    taken = config.training.steps if taken is None else taken
    if device.type != own.type:
        execution, _ = choose_execution(config, device, sparsity_of(budgets))
    blocks = []
    for weight in model.sparse_weights().values():
        for gate in weight.gates:
            rows, count = gate.stop_row - gate.start_row, weight.connections_in(gate)
            blocks.append(
                {
                    "name": gate.name,
                    "rows": rows,
                    "cols": weight.cols,
                    "connections": count,
                    "density": count / (rows * weight.cols),
                }
            )
    groups = [budget.group for budget in budgets if not budget.dense]
    connections, positions = sum(g.entries for g in groups), sum(g.matrix_entries for g in groups)
    parameters = sum(p.numel() for p in model.parameters())
    forward = forward_flops(model)
    symbols, micro_batches = config.training.batch_size * config.training.sequence_length, config.training.accumulate
    training = training_flops(
        config.method,
        model,
        budgets,
        config.training.steps if planned is None else planned,
        symbols * micro_batches,
        config.model,
        micro_batches,
        taken,
        counted,
    )
    extra = earlier_flops(config.method, model, budgets, config.training.steps, symbols)
    if teacher is not None:
        extra += forward_flops(teacher).sparse
    training = replace(training, per_character=training.per_character + extra)
    return {
        "blocks": blocks,
        "connections": connections,
        "positions": positions,
        "sparsity": 1 - connections / positions if positions else 0.0,
        "parameters": parameters,
        "flops_per_character": forward.sparse,
        "dense_flops_per_character": forward.dense,
        "steps": taken,
        "training_flops": training.total,
        "training_flops_vs_dense": training.ratio,
        "execution": execution,
        "device": device.type,
        "memory_bytes": memory_bytes(config, model, budgets, teacher, execution=execution, device=device),
    }


def counted_in(saved: Checkpoint, config: RunConfig, budgets: Sequence[Budget]) -> Counted | None:
    """Return what the run that a checkpoint is of has counted, or None if it does not tell.

    Raises:
        UserError: it cannot be read.
    """
    if not (config.method.shifts_budgets and saved.has_training_state):
        return None
    return saved.told_by_state(lambda state: as_counted(state["sparsifier"].get("counted"), len(budgets)))


def table(report: dict[str, Any]) -> list[str]:
    """Return the report of `inspect` as lines of text."""
    width = max(len(block["name"]) for block in report["blocks"])
    lines = [f"{'block':{width}} {'shape':>13} {'connections':>13} {'density':>8}"]
    for block in report["blocks"]:
        shape = f"{block['rows']} x {block['cols']}"
        lines.append(f"{block['name']:{width}} {shape:>13} {block['connections']:>13,} {block['density']:>8.4f}")
    memory = report["memory_bytes"]
    basis = f"{memory['bases'] / 1e6:,.1f} MB bases, " if memory["bases"] else ""
    teacher = f"{memory['teacher'] / 1e6:,.1f} MB teacher, " if memory["teacher"] else ""
    ratio = report["flops_per_character"] / report["dense_flops_per_character"]
    buffers = f"{memory['dense_buffers'] / 1e6:,.1f} MB dense buffers"
    lines += [
        f"connections {report['connections']:,} of {report['positions']:,} positions "
        f"(sparsity {report['sparsity']:.4f}); {report['parameters']:,} parameters with dense blocks and biases",
        f"FLOPs per character {report['flops_per_character']:,.0f} forward, {ratio:.4f} of dense; "
        f"training {report['training_flops']:.3g} in {report['steps']:,} steps, "
        f"{report['training_flops_vs_dense']:.4f} of dense",
        f"memory on {report['device']}, {report['execution']} execution: "
        f"{(memory['parameters'] + memory['indices']) / 1e6:,.1f} MB parameters and positions, "
        f"{basis}{teacher}{memory['optimizer'] / 1e6:,.1f} MB optimizer, {buffers}, "
        f"{(memory['dense_gradients'] + memory['probes']) / 1e6:,.1f} MB gradients of absent positions",
    ]
    return lines
