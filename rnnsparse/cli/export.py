"""`export`: write a model for use elsewhere."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from rnnsparse import files
from rnnsparse.cli.messages import warn
from rnnsparse.errors import UserError
from rnnsparse.evaluation import evaluate
from rnnsparse.storage.exports import FORMATS, Options, Rounding, export
from rnnsparse.storage.html.packing import rounded
from rnnsparse.training.build import Restored, restore
from rnnsparse.training.device import CPU
from rnnsparse.training.measured_text import own_text


def run(arguments: argparse.Namespace) -> int:
    rounds = FORMATS[arguments.format].rounds
    if arguments.weights and not rounds:
        raise UserError(f"--weights {arguments.weights}: --format {arguments.format} rounds no weights; leave it out")
    files.require_new(arguments.out)
    restored = restore(arguments.checkpoint, CPU)
    options, measured = Options(), ""
    if rounds:
        rounding: Rounding = arguments.weights or "fp16"
        measured = _measured(restored, rounding)
        facts = [*_facts(restored), *([("Bits per character", measured)] if measured else [])]
        options = Options(rounding=rounding, title=restored.config.run.name or Options.title, facts=facts)
    export(arguments.format, restored.model, restored.tokenizer, arguments.out, options)
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")
    if measured:
        print(f"bits per character: {measured}")
    return 0


def _measured(restored: Restored, rounding: Rounding) -> str:
    """Return what rounding does to the bits per character of the run's validation text, "" if that is not at hand."""
    data, config = restored.config.data, restored.config.evaluation
    try:
        if data.path is None and data.source != "python_docs":
            raise UserError(f"data.source={data.source} would have to be downloaded")
        found = own_text(restored, "validation")
    except UserError as error:
        warn([f"bits per character are not measured, for the run's text is not at hand: {error}"])
        return ""
    warn([found.warning] if found.warning else [])
    text = found.text if config.symbols is None else found.text.head(config.symbols, restored.tokenizer)
    models = (restored.model, rounded(restored.model, rounding))
    before, after = (evaluate(m, text, restored.tokenizer, config).bits_per_character for m in models)
    return f"{after:.4f} on {text.characters:,} characters of its validation text ({before:.4f} before {rounding})"


def _facts(restored: Restored) -> Iterator[tuple[str, str]]:
    """Yield what a reader of the page may want to know of the run; a path on this machine is none of it."""
    config, training = restored.config, restored.config.training
    lengths = f"{training.batch_size * training.accumulate:,} × {training.sequence_length:,}"
    yield "Method", config.method.name
    yield "Training", f"{restored.step:,} steps of {lengths} symbols by {training.optimizer}, seed {config.run.seed}"
    yield "Training text", Path(config.data.path).name if config.data.path else config.data.place
