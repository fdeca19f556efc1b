"""`evaluate`: measure bits per character."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
from dataclasses import asdict
from pathlib import Path

from rnnsparse import code_lengths
from rnnsparse.cli.messages import warn
from rnnsparse.dynamic import Dynamic
from rnnsparse.errors import RunFailed, UserError
from rnnsparse.evaluation import Evaluation, Record, evaluate
from rnnsparse.training.build import restore
from rnnsparse.training.device import choose_device
from rnnsparse.training.measured_text import MeasuredText, other_text, own_text


def run(arguments: argparse.Namespace) -> int:
    wanted = {"--per-character": arguments.per_character, "--per-line": arguments.per_line}
    outs = {key: path for key, path in wanted.items() if path is not None}
    for key, path in outs.items():
        code_lengths.require_writable(path, key)
    if len({os.path.abspath(path) for path in outs.values()}) < len(outs):
        raise UserError(f"--per-line: {arguments.per_line}: is that of --per-character as well; choose another name")
    # On the disk that must have room for what comes of them.
    with code_lengths.Recorder(next(iter(outs.values())).parent) if outs else contextlib.nullcontext() as recorder:
        record = recorder.record if recorder else None
        dynamic = _dynamic(arguments)
        step, text, result = measure(
            arguments.checkpoint, arguments.device, arguments.split, arguments.data, record, dynamic
        )
        _tell(arguments, step, text, result, dynamic)
        for key, path in outs.items():
            assert recorder is not None
            write = code_lengths.write_characters if key == "--per-character" else code_lengths.write_lines
            write(path, text.text, text.tokenizer, recorder)
            if not arguments.json:
                print(path)
    return 0


def _dynamic(arguments: argparse.Namespace) -> Dynamic | None:
    """Return how the network is to learn while it is measured, if it is."""
    settings = {"rate": arguments.dynamic_rate, "lanes": arguments.dynamic_lanes}
    given = {name: value for name, value in settings.items() if value is not None}
    if given and not arguments.dynamic:
        raise UserError(f"--dynamic-{next(iter(given))}: has an effect only with --dynamic; add that, or leave it out")
    return Dynamic(**given) if arguments.dynamic else None


def _tell(
    arguments: argparse.Namespace, step: int, text: MeasuredText, result: Evaluation, dynamic: Dynamic | None
) -> None:
    """Print what was measured."""
    report = {
        "split": text.split or text.path,
        # Without --data it is the text of the run, without --split it stands above.
        **({"text": text.path} if arguments.data and arguments.split else {}),
        "bits_per_character": result.bits_per_character,
        "bits_per_byte": result.bits_per_byte,
        "characters": result.characters,
        "bytes": result.bytes,
        "nats": result.nats,
        "seconds": result.seconds,
        **({"dynamic": asdict(dynamic)} if dynamic else {}),
    }
    if arguments.json:
        print(json.dumps(report))
    else:
        how = "dynamic, " if dynamic else ""
        print(
            f"{text.name}: {how}{result.bits_per_character:.4f} bits per character, {result.bits_per_byte:.4f} per "
            f"byte, {result.characters:,} characters in {result.seconds:.1f} s (step {step})"
        )


def measure(
    checkpoint: Path,
    device: str,
    split: str | None = None,
    path: Path | None = None,
    record: Record | None = None,
    dynamic: Dynamic | None = None,
) -> tuple[int, MeasuredText, Evaluation]:
    """Return the step of a checkpoint, a text, and how well it predicts it."""
    restored = restore(checkpoint, choose_device(device))
    measured = own_text(restored, split or "test") if path is None else other_text(restored, str(path), split)
    text = measured.text
    warn([measured.warning] if measured.warning else [])
    if text.unknown_bytes:
        share = f"{text.unknown_bytes:,} of {text.bytes:,} bytes"
        warn(
            [
                f"{checkpoint}: {measured.name}: {share} are characters that its training text has not; they all count "
                "as one symbol, which is easier to predict than they are"
            ]
        )
    result = evaluate(
        restored.model, text, restored.tokenizer, restored.config.evaluation, record=record, dynamic=dynamic
    )
    if not math.isfinite(result.nats):
        if dynamic and dynamic.rate:
            raise RunFailed(f"{checkpoint}: --dynamic-rate={dynamic.rate}: learning diverged; lower it")
        raise RunFailed(f"{checkpoint}: its predictions are not numbers: the training diverged; use another")
    return restored.step, measured, result
