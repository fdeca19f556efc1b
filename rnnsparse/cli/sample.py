"""`sample`: write text."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from rnnsparse import files
from rnnsparse.cli.messages import warn
from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.errors import UserError
from rnnsparse.sampling import Sampler, SamplingConfig
from rnnsparse.training.build import restore
from rnnsparse.training.device import choose_device

LONGEST_PROMPT = 1 << 20  # bytes of a file


def run(arguments: argparse.Namespace) -> int:
    restored = restore(arguments.checkpoint, choose_device(arguments.device))
    prompt = _prompt(arguments.prompt)
    config = SamplingConfig(
        length=arguments.length,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
        stop=tuple(arguments.stop),
    )
    warn(_never_written(arguments.stop, restored.tokenizer))
    try:
        sampler = Sampler(restored.model, restored.tokenizer, prompt)
    except UserError as error:
        raise UserError(f"--prompt: {error}") from None
    for number in range(arguments.num_samples):
        if number:
            print(f"\n--- sample {number + 1} ---")
        print(prompt, end="")
        for text in sampler.stream(config, number):
            print(text, end="", flush=True)
        print()
    return 0


def _never_written(stop: Sequence[str], tokenizer: Tokenizer) -> Iterator[str]:
    """Yield a line for each stop string that a model cannot write."""
    for text in stop:
        try:
            tokenizer.encode(text)
        except UserError as error:
            yield f"--stop {text!r}: never comes: {error}"


def _prompt(text: str) -> str:
    """Return the prompt itself, or the text of the file that `@FILE` names; `@@` stands for an @ that names none."""
    if not text.startswith("@"):
        return text
    if text.startswith("@@"):
        return text[1:]
    try:
        return files.read(Path(text[1:]), LONGEST_PROMPT, pipes=True).decode("utf-8")
    except OSError as error:
        raise UserError(
            f"--prompt: {text[1:]}: cannot be read: {error.strerror}; name a text file, or, for a prompt that begins "
            "with an @, type two: @@"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt: {text[1:]}: is not UTF-8 at byte {error.start}; convert it") from None
