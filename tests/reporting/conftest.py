from __future__ import annotations

from pathlib import Path

import pytest

from rnnsparse.cli import main

TEXT = "pack my box with five dozen liquor jugs. the quick brown fox jumps over the lazy dog, ünd ein ß.\n" * 20
CONFIG = """
data: {{source: text, tokenizer: char, path: {folder}/text.txt, cache: {folder}/cache}}
model: {{embedding_dim: 4, hidden_size: 6, execution: masked}}
sparsity: {{method: rigl, sparsity: 0.5, interval: 1}}
training: {{steps: 3, batch_size: 3, sequence_length: 5}}
evaluation: {{interval: 1, lanes: 1, symbols: 100}}
logging: {{interval: 1, tensorboard: false, pictures: null}}
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small real runs below `runs`, and their text."""
    folder = tmp_path_factory.mktemp("comparison")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    (folder / "tiny.yaml").write_text(CONFIG.format(folder=folder))
    for name, *overrides in [
        ("rigl-a", "run.seed=1"),
        ("rigl-b", "run.seed=2", "training.threads=1"),
        ("rigl-sparser", "sparsity.sparsity=0.8"),
        ("static", "sparsity.method=static", "logging.interval=2"),
        ("dense", "sparsity.method=dense"),
        ("longer", "training.multiplier=2"),
    ]:
        run = f"run.dir={folder / 'runs' / name}"
        assert main(["train", str(folder / "tiny.yaml"), run, *overrides]) == 0
    return folder
