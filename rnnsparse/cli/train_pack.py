"""The command that `sweep` starts for each pack of runs; nobody types it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from rnnsparse.cli.messages import complain
from rnnsparse.cli.train import closing_lines, writer_errors_told_once
from rnnsparse.streams import lasting, lasting_output
from rnnsparse.training.run.interrupts import Interrupted, interrupts_for_all_signals
from rnnsparse.training.run.lifeline import follow_parent


def run(arguments: argparse.Namespace) -> int:
    """Train the runs together; what each alone would print goes to its own log.

    Each run is given as JSON: `config`, `overrides` and `resume` as for `train`, and the path of its `log`.
    """
    follow_parent()
    with lasting_output("stdout"), interrupts_for_all_signals():
        return _train_pack(arguments)


def _train_pack(arguments: argparse.Namespace) -> int:
    from rnnsparse.config import load_config
    from rnnsparse.training.pack import PackedRun, train_packed

    with ExitStack() as logs:
        runs = []
        for text in arguments.runs:
            given = json.loads(text)
            log = logs.enter_context(_log(Path(given["log"])))
            config = load_config(Path(given["config"]), given["overrides"])
            for warning in config.warnings:
                complain(f"warning: {warning}", log)
            runs.append(PackedRun(config, given["resume"], log))
        try:
            with writer_errors_told_once():
                outcomes = train_packed(runs)
        except BaseException as error:
            for run in runs:
                complain(f"{type(error).__name__} in the pack of this run: {error}", run.stream)
            raise
        for run, outcome in zip(runs, outcomes, strict=True):
            if isinstance(outcome, Exception):
                complain(outcome, run.stream)
            else:
                print(closing_lines(outcome, run.config), file=run.stream)
    if any(isinstance(outcome, Interrupted) for outcome in outcomes):
        return 130
    return 1 if any(isinstance(outcome, Exception) for outcome in outcomes) else 0


@contextmanager
def _log(path: Path) -> Iterator[TextIO]:
    """Open the log of a run. If it cannot be written, as on a full disk, the run goes on without."""
    log = lasting(path.open("a", encoding="utf-8", buffering=1))
    try:
        yield log
    finally:
        log.close()
