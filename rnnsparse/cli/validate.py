"""`validate`: check YAML files."""

from __future__ import annotations

import argparse

from rnnsparse.cli.messages import complain, warn
from rnnsparse.config import load_config
from rnnsparse.errors import UserError
from rnnsparse.recipes.sweep import is_sweep, load_sweep
from rnnsparse.training.build import require_buildable


def run(arguments: argparse.Namespace) -> int:
    failed = 0
    for path in arguments.configs:
        try:
            if is_sweep(path):
                print(f"{path}: valid, {len(load_sweep(path).runs)} runs")
                continue
            config = load_config(path)
            warn([f"{path}: {warning}" for warning in config.warnings])
            require_buildable(config)
        except UserError as error:
            named = str(error).startswith(f"{path}: ")
            complain(error if named else f"{path}: {error}")
            failed += 1
        else:
            print(f"{path}: valid")
    return 2 if failed else 0
