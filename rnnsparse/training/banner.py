"""What a run says before it starts."""

from __future__ import annotations

import math

import torch

from rnnsparse.training.build import choose_execution
from rnnsparse.training.inspection import table
from rnnsparse.training.run import stretches
from rnnsparse.training.run.record import SUMMARY
from rnnsparse.training.trainer import Trainer


def banner(trainer: Trainer) -> list[str]:
    """Return what a user wants to check before waiting for hours, as lines."""
    config, corpus, record, device = trainer.config, trainer.corpus, trainer.record, trainer.learner.device
    step, report = trainer.step if record.is_resumed else 0, trainer.inspect(taken=config.training.steps)
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
        *_stretch_lines(trainer),
        f"data        {corpus.description}",
        *(f"            {note}" for note in corpus.notes),
        f"vocabulary  {vocabulary} {corpus.tokenizer.kind}s{taken}; a uniform guess costs {uniform_bits:.2f} bits each",
        *([f"unknown     {trainer.unknown}"] if trainer.unknown else []),
        f"method      {config.method.name}{basis}; {training.steps:,} steps{extended} of {training.batch_size} lanes x "
        f"{training.sequence_length} symbols{micro_batches}: {passes:,.2f} times the training text",
        *([_round_and_round(read, length)] if read > length else []),
        *([f"start       {start}{taught}"] if start or taught else []),
        f"device      {machine}, {training.precision}",
        f"ranks       {trainer.ranks.line(trainer.model)}",
        f"execution   {execution}: {reason}",
        f"tensorboard {f'tensorboard --logdir {config.folder}' if config.logging.tensorboard else 'off'}",
        *table(report),
    ]


def _stretch_lines(trainer: Trainer) -> list[str]:
    """Return lines on what a run goes on with that is resumed with other settings."""
    if not trainer.begins_stretch:
        return []
    lines = stretches.explained(trainer.record.was, trainer.record.config, trainer.stretches)
    best = f"best/ ({trainer.best:.4f} bits per character) until validation is better, " if trainer.best else ""
    lines += [
        f"goes on     checkpoints: {best}step_N/; previous/ is what last/ was, which is saved anew at once",
    ]
    if patience := trainer.config.training.early_stopping:
        gainless = trainer.evaluations_without_gain
        lines.append(f"goes on     early stopping: {gainless} of {patience} evaluations without a better one")
    if trainer.record.folder.joinpath(SUMMARY).exists():
        lines.append(f"anew        {SUMMARY}, of the whole run; the one there becomes summary_N.json")
    return lines


def _round_and_round(read: int, length: int) -> str:
    return (
        f"warning     a step reads {read:,} symbols, and the training text has {length:,}: each is read "
        f"{read / length:,.1f} times in a step; use more text, or lower training.batch_size or training.sequence_length"
    )
