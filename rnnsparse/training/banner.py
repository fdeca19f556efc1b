"""What a run says before it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from rnnsparse.config import RunConfig
from rnnsparse.data.corpus import Corpus
from rnnsparse.training.assembly import choose_execution
from rnnsparse.training.inspection import table


def banner(
    config: RunConfig,
    corpus: Corpus,
    device: torch.device,
    step: int,
    report: dict[str, Any],
    ranks: str,
    unknown: str = "",
    stretch: Sequence[str] = (),
) -> list[str]:
    """Return lines for a run that has made `step` steps.

    Args:
        report: that of `inspect`.
        ranks: who trains.
        unknown: how much of the text is not in a vocabulary that is not its own.
        stretch: lines on what a run goes on with that is resumed with other settings.
    """
    taken = f" of {config.data.vocabulary}" if config.data.vocabulary and config.data.tokenizer == "char" else ""
    training, vocabulary = config.training, corpus.tokenizer.vocab_size
    on_cuda = device.type == "cuda"
    machine = torch.cuda.get_device_name(device) if on_cuda else f"CPU, {torch.get_num_threads()} threads"
    started = report["sparsity"] if config.start.is_elsewhere else None
    execution, reason = choose_execution(config, device, started)
    uniform_bits = math.log2(vocabulary)
    basis = "" if config.budget.basis == "canonical" else f" in basis {config.budget.basis}"
    micro_batches = f" x {training.accumulate} micro-batches" if training.accumulate > 1 else ""
    extended = f" ({config.written_training.steps:,} x {training.multiplier:g})" if training.multiplier != 1 else ""
    start = ", ".join(f"{key} of {path}" for key, path in config.start.runs.items())
    read = training.batch_size * training.sequence_length * training.accumulate  # symbols, in a step
    length = len(corpus.train.tokens)
    passes = training.steps * read / length
    taught = f"; teacher {training.teacher}" if training.teacher else ""
    return [
        f"run         {config.folder} ({f'resumed after step {step}' if step else 'new'}), seed {config.run.seed}",
        *stretch,
        f"data        {corpus.description}",
        *(f"            {note}" for note in corpus.notes),
        f"vocabulary  {vocabulary} {corpus.tokenizer.kind}s{taken}; a uniform guess costs {uniform_bits:.2f} bits each",
        *([f"unknown     {unknown}"] if unknown else []),
        f"method      {config.method.name}{basis}; {training.steps:,} steps{extended} of {training.batch_size} lanes x "
        f"{training.sequence_length} symbols{micro_batches}: {passes:,.2f} times the training text",
        *([_round_and_round(read, length)] if read > length else []),
        *([f"start       {start}{taught}"] if start or taught else []),
        f"device      {machine}, {training.precision}",
        f"ranks       {ranks}",
        f"execution   {execution}: {reason}",
        f"tensorboard {f'tensorboard --logdir {config.folder}' if config.logging.tensorboard else 'off'}",
        *table(report),
    ]


def _round_and_round(read: int, length: int) -> str:
    return (
        f"warning     a step reads {read:,} symbols, and the training text has {length:,}: each is read "
        f"{read / length:,.1f} times in a step; use more text, or lower training.batch_size or training.sequence_length"
    )
