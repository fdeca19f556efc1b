"""The kinds of files that come from strangers: for each, valid ones to start from, and how it is changed and read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.fuzz import checkpoints, comparisons, configurations, mutate, texts
from tests.fuzz.workplace import FINISHED, RUN, SWEEP, TEXT


@dataclass(frozen=True)
class Kind:
    """`run` and `read` return whether an input was accepted; they are called in a folder made by `workplace`.

    `run` gives the input to the command line. Where that also reads much that stays the same, `read` calls what the
    command calls for this input alone, a hundred times as fast; then `run` gets one input of a hundred, and those
    with a new outcome. What `read` refuses, `run` refuses as well.
    """

    seeds: Callable[[], list[bytes]]
    change: Callable[[Random, bytes, bytes], bytes]
    run: Callable[[bytes], bool]
    read: Callable[[bytes], bool] | None = None
    quick: int = 12  # inputs in the tests


def kinds() -> dict[str, Kind]:
    """Return every kind by name; in a workplace."""
    last = FINISHED / "last"
    of_run, prompt = comparisons.OfRun(), checkpoints.Prompt()
    found = {
        "configuration": Kind(
            configurations.config_seeds,
            mutate.change_yaml,
            configurations.validate,
            configurations.read_config,
            quick=60,
        ),
        "overrides": Kind(
            lambda: [configurations.OVERRIDES.encode(), *configurations.OVERRIDES.encode().split(b"\n")],
            configurations.change_overrides,
            configurations.overrides,
            configurations.read_overrides,
            quick=60,
        ),
        "sweep": Kind(
            lambda: [SWEEP.encode()],
            configurations.change_sweep,
            configurations.validate,
            configurations.read_sweep,
            quick=30,
        ),
        "weights": Kind(_reads(last / "model.safetensors"), mutate.change_safetensors, checkpoints.of_weights),
        "config.yaml of a checkpoint": Kind(_reads(last / "config.yaml"), mutate.change_yaml, checkpoints.of_config),
        "tokenizer.json": Kind(
            _reads(last / "tokenizer.json"),
            mutate.change_json,
            checkpoints.of_tokenizer,
            checkpoints.read_tokenizer,
            quick=60,
        ),
        "manifest.json": Kind(
            _reads(last / "manifest.json"),
            checkpoints.change_manifest,
            checkpoints.of_manifest,
            checkpoints.read_manifest,
            quick=60,
        ),
        "training state": Kind(_reads(RUN / "last/training_state.pt"), mutate.change_torch, checkpoints.of_state),
        "links, pipes, names": Kind(lambda: [b""], checkpoints.change_folder, checkpoints.of_folder),
        "summary.json": Kind(
            _reads(FINISHED / "summary.json"),
            mutate.change_json,
            comparisons.compared("summary.json"),
            of_run.read_summary,
            quick=60,
        ),
        "config.yaml of a run": Kind(
            _reads(FINISHED / "config.yaml"), mutate.change_yaml, comparisons.compared("config.yaml")
        ),
        "metrics.jsonl": Kind(
            _reads(FINISHED / "metrics.jsonl"),
            mutate.change_lines,
            comparisons.compared("metrics.jsonl"),
            of_run.read_metrics,
            quick=60,
        ),
        "connectivity.jsonl": Kind(
            _reads(FINISHED / "connectivity.jsonl"), mutate.change_lines, comparisons.compared("connectivity.jsonl")
        ),
        "results.json": Kind(
            _reads(comparisons.RESULTS),
            mutate.change_json,
            comparisons.results,
            comparisons.read_results_json,
            quick=60,
        ),
        "text, gzip, xz": Kind(texts.text_seeds, texts.change_text, texts.of_text, quick=60),
    }
    for file, change in (
        ("meta.json", mutate.change_json),
        ("tokens.bin", mutate.change_bytes),
        ("tokenizer.json", mutate.change_json),
    ):
        cache = texts.Cache(file)
        found[f"cache: {file}"] = Kind(cache.seeds, change, cache.run, quick=60)
    found["prompt"] = Kind(
        lambda: [b"the ", TEXT.encode(), b""], mutate.change_bytes, prompt.run, prompt.read, quick=60
    )
    return found


def _reads(*paths: Path) -> Callable[[], list[bytes]]:
    return lambda: [path.read_bytes() for path in paths]
