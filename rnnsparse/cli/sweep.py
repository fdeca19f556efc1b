"""`sweep`: train every combination of settings in a grid, or search it."""

from __future__ import annotations

import argparse

from rnnsparse.cli.messages import complain
from rnnsparse.streams import lasting_output
from rnnsparse.training.run.interrupts import interrupts_for_all_signals


def run(arguments: argparse.Namespace) -> int:
    if arguments.dry_run:
        return _sweep(arguments)
    with lasting_output("stdout"), interrupts_for_all_signals():
        return _sweep(arguments)


def _sweep(arguments: argparse.Namespace) -> int:
    from rnnsparse.recipes.search_run import run_search, search_plan
    from rnnsparse.recipes.sweep import load_sweep, shard
    from rnnsparse.recipes.sweep_run import run_sweep
    from rnnsparse.recipes.sweep_status import plan

    sweep = load_sweep(arguments.sweep, arguments.overrides)
    runs = shard(sweep.runs, *arguments.shard)
    if arguments.dry_run:
        lines = search_plan(sweep, arguments.shard) if sweep.search else plan(runs)
        print("\n".join(lines))
        return 0

    def say(line: str) -> None:
        print(line, flush=True)

    outcome = run_search(sweep, arguments.shard, say) if sweep.search else run_sweep(sweep, runs, say)
    of_all = "" if sweep.search else f" of {len(runs)}"
    told = [f"{len(outcome.done)}{of_all} runs are done, in {sweep.folder}"]
    told += [f"{len(outcome.failed)} failed"] if outcome.failed else []
    told += [f"{len(outcome.elsewhere)} run elsewhere"] if outcome.elsewhere else []
    print("; ".join(told))
    for name, reason in outcome.failed.items():
        complain(f"{name}: {reason}")
    if outcome.interrupted:
        complain("interrupted; the same command goes on")
        return 130
    return 1 if outcome.failed else 0
