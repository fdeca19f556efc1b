"""`inspect`: show blocks, connections, FLOPs and memory without training."""

from __future__ import annotations

import argparse
import json

from rnnsparse.cli.messages import warn
from rnnsparse.config import load_config
from rnnsparse.errors import UserError
from rnnsparse.training.build import named_teacher, require_execution, restore, vocabulary_size
from rnnsparse.training.device import CPU, named_device
from rnnsparse.training.inspection import counted_in, inspect, table
from rnnsparse.training.run.record import SUMMARY, told
from rnnsparse.training.run.stretches import planned_in
from rnnsparse.training.start import final_model


def run(arguments: argparse.Namespace) -> int:
    if arguments.target.is_dir():
        if arguments.overrides:
            raise UserError(f"{arguments.overrides[0]}: overrides apply to a configuration, not to {arguments.target}")
        restored = restore(arguments.target, CPU)
        config, model, budgets = restored.config, restored.model, restored.budgets
        planned, counted = planned_in(restored.saved, config), counted_in(restored.saved, config, budgets)
        ended = told(arguments.target / SUMMARY, "steps")  # which may have been before the last step
        taken = ended if type(ended) is int else None
    else:
        config = load_config(arguments.target, arguments.overrides)
        planned, counted, taken = config.training.steps, None, None
        warn(config.warnings)
        model, budgets = final_model(config, vocabulary_size(config.data), CPU)
        require_execution(config, named_device(config.training))
    try:
        teacher = named_teacher(config, CPU)
    except UserError as error:
        teacher = None
        warn([f"{error}; training FLOPs are shown without it"])
    taught = teacher.model if teacher else None
    device = named_device(config.training)
    report = inspect(config, model, budgets, taught, taken, device, planned, counted)
    print(json.dumps(report) if arguments.json else "\n".join(table(report)))
    return 0
