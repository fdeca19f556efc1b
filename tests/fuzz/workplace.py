"""A folder with everything that inputs are read beside: a text, configurations, a finished run, one to resume."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rnnsparse.storage import manifest
from tests.fuzz.judge import command

TEXT = "the quick brown fox jumps over the lazy dog, ünd ein ß.\n" * 20
TINY = """\
data: {source: text, tokenizer: char, path: text.txt, cache: cache}
model: {embedding_dim: 4, hidden_size: 6, readout_dims: [3], execution: masked}
sparsity: {method: rigl, sparsity: 0.5, interval: 2, dense: [output], overrides: {rnn.0.input: 0.2}}
training: {steps: 3, batch_size: 3, sequence_length: 5, threads: 1}
evaluation: {interval: 1, lanes: 1, symbols: 100}
checkpoint: {keep: [2]}
logging: {interval: 1, tensorboard: false, pictures: null}
"""
SWEEP = """\
config: small.yaml
dir: runs
overrides: {training.steps: 4}
grid: {sparsity.method: [static, set], sparsity.drop_fraction: [0.1], run.seed: [1]}
processes: 2
memory: 4GB
"""
SMALL = """\
data: {source: text, path: text.txt}
model: {embedding_dim: 4, hidden_size: 6}
"""
RUN, FINISHED = Path("run"), Path("finished")


@contextmanager
def workplace() -> Iterator[Path]:
    """Work in a new folder that holds a text, configurations, a finished run, and one to be resumed."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            Path("text.txt").write_text(TEXT, encoding="utf-8")
            Path("tiny.yaml").write_text(TINY)
            Path("small.yaml").write_text(SMALL)
            Path("sweep.yaml").write_text(SWEEP)
            assert command("train", "tiny.yaml", f"run.dir={FINISHED}")[0]
            shutil.copytree(FINISHED, RUN)
            for file in ("summary.json", "metrics.jsonl", "connectivity.jsonl"):
                (RUN / file).unlink()
            shutil.rmtree(RUN / "last")
            shutil.copytree(FINISHED / "step_2", RUN / "last")
            command("compare", FINISHED, "--out", "comparison")
            yield Path(name)
        finally:
            os.chdir(before)


@contextmanager
def in_place_of(file: Path, data: bytes) -> Iterator[None]:
    """Give a file of a checkpoint other content, and the checkpoint a manifest that says so."""
    before, old_manifest = file.read_bytes(), (file.parent / manifest.NAME).read_bytes()
    file.write_bytes(data)
    try:
        if file.name != manifest.NAME:
            (file.parent / manifest.NAME).unlink()
            manifest.write(file.parent, step=json.loads(old_manifest)["step"])
        yield
    finally:
        file.write_bytes(before)
        (file.parent / manifest.NAME).write_bytes(old_manifest)
