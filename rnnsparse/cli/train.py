"""`train`: train a model as a YAML file says."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnnsparse.cli.messages import warn
from rnnsparse.errors import UserError
from rnnsparse.streams import lasting_output
from rnnsparse.training.run.interrupts import Interrupted, interrupts_for_all_signals
from rnnsparse.training.run.lifeline import follow_parent

if TYPE_CHECKING:
    from rnnsparse.config import RunConfig
    from rnnsparse.training.step.distributed import Ranks


def run(arguments: argparse.Namespace) -> int:
    follow_parent()
    with contextlib.ExitStack() as stack:
        stack.enter_context(lasting_output("stdout"))
        if "LOCAL_RANK" not in os.environ:  # torchrun ends ranks by SIGTERM, also those that wait for others
            stack.enter_context(interrupts_for_all_signals())
        from rnnsparse.training.step.distributed import join_ranks

        return _train_on(stack.enter_context(join_ranks()), arguments)


def _train_on(ranks: Ranks, arguments: argparse.Namespace) -> int:
    from rnnsparse.config import load_config
    from rnnsparse.recipes import ticket_rounds
    from rnnsparse.training.train import train

    def tell(text: str) -> None:
        print(text, flush=True)

    config = load_config(arguments.config, arguments.overrides)
    if ranks.is_first:
        warn(config.warnings)
    try:
        with writer_errors_told_once():
            if config.method.recipe:
                if ranks.several:
                    raise UserError(
                        f"sparsity.method: {config.method.name} is a recipe of several runs, for one process alone; "
                        "start it without torchrun"
                    )
                summary = ticket_rounds.train(config, resume=arguments.resume, tell=tell)
            else:
                summary = train(config, resume=arguments.resume, ranks=ranks, tell=tell)
    except Interrupted as stopped:
        if ranks.is_first:
            again = [*_program(), "train", str(arguments.config), *arguments.overrides, "--resume"]
            print(f"{stopped}; continue with\n  {shlex.join(again)}", file=sys.stderr)
        return 130
    if not ranks.is_first:
        return 0
    print(closing_lines(summary, config))
    return 0


def closing_lines(summary: dict[str, Any], config: RunConfig) -> str:
    """Return what a run says at its end."""
    rate, steps, planned = summary["characters_per_second"], summary["steps"], config.training.steps
    # A method that prunes gradually may then be far from the sparsity that it was to end with.
    early = f"stopped early, after step {steps} of {planned}, with a sparsity of {summary['sparsity']:.4f}\n"
    return (
        f"{early if steps < planned else ''}"
        f"validation: {summary['bits_per_character']:.4f} bits per character, {summary['bits_per_byte']:.4f} per byte, "
        f"best {summary['best_bits_per_character']:.4f}\n"
        f"training: {summary['characters_seen']:,} characters in {summary['seconds']:,.0f} s"
        + (f", {rate:,.0f} per second" if rate else "")
        + f"\n{config.folder / 'summary.json'}"
    )


@contextlib.contextmanager
def writer_errors_told_once() -> Iterator[None]:
    """Keep the traceback of TensorBoard's writer thread off the terminal: it raises the same OSError in ours."""
    previous = threading.excepthook

    def hook(raised: threading.ExceptHookArgs) -> None:
        if not issubclass(raised.exc_type, OSError):
            previous(raised)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = previous


def _program() -> list[str]:
    """Return how this program was called: by torchrun, as the script, or as a module."""
    if ranks := os.environ.get("LOCAL_WORLD_SIZE"):
        return ["torchrun", f"--nproc-per-node={ranks}", "-m", "rnnsparse"]
    called = Path(sys.argv[0])
    return [str(called)] if called.stem == "rnnsparse" else [sys.executable, "-m", "rnnsparse"]
