"""Training steps whose forward and backward pass is one CUDA graph: the same to the bit as ordinary ones."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rnnsparse.training.step.captured import CapturedPass
from rnnsparse.training.train import prepare
from rnnsparse.training.trainer import Trainer
from tests.training.test_trainer import assert_same, config_in, traces

pytestmark = pytest.mark.cuda

STEPS, INTERVAL = 40, 8
SETTINGS = [f"training.steps={STEPS}", "training.accumulate=1", "training.device=cuda", "evaluation.interval=20"]
UPDATES = [f"sparsity.interval={INTERVAL}"]


@pytest.fixture(autouse=True)
def repeatable() -> Iterator[None]:
    """Kernels that give the same bits each time, or an error where PyTorch has none."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def trainer_in(folder: Path, name: str, *settings: str) -> Trainer:
    trainer = prepare(config_in(folder, name, *SETTINGS, *settings))
    assert isinstance(trainer.learner.forward_and_backward, CapturedPass)
    return trainer


def replays(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> int:
    """Train; return how many of the steps were replayed."""
    count = 0
    replay = torch.cuda.CUDAGraph.replay

    def counted(graph: torch.cuda.CUDAGraph) -> None:
        nonlocal count
        count += 1
        replay(graph)

    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda.CUDAGraph, "replay", counted)
        trainer.train()
    return count


@pytest.mark.parametrize(
    ("settings", "fewest"),
    [
        (["sparsity.method=static", "model.cell=lstm"], STEPS - 1),
        (["sparsity.method=static", "training.precision=fp16", "training.optimizer=adamw"], STEPS - 1),
        (["sparsity.method=scout", *UPDATES], 30),
        (
            [
                "sparsity.method=scout",
                *UPDATES,
                "sparsity.window=3",
                "sparsity.block_rows=2",
                "training.precision=bf16",
            ],
            24,
        ),
        (["sparsity.method=rigl", *UPDATES, "model.cell=lstm", "training.precision=tf32"], 28),
        (
            ["sparsity.method=set", *UPDATES, "model.cell=rnn", "training.optimizer=sntasgd", "training.nonmonotone=1"],
            30,
        ),
        (["sparsity.method=snfs", *UPDATES], 0),
        (["sparsity.method=static", "sparsity.basis=dct"], STEPS - 1),
        (["sparsity.method=static", "training.accumulate=2"], 2 * (STEPS - 1)),
        (["sparsity.method=static", "model.tie_embeddings=true", "model.embedding_dim=6"], STEPS - 1),
    ],
    ids=str,
)
def test_a_captured_run_is_an_ordinary_one_to_the_bit(
    tmp_path: Path, settings: list[str], fewest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = trainer_in(tmp_path, "captured", *settings)
    assert replays(captured, monkeypatch) >= fewest
    ordinary = trainer_in(tmp_path, "ordinary", *settings)
    assert isinstance(ordinary.learner.forward_and_backward, CapturedPass)
    ordinary.learner.forward_and_backward = ordinary.learner.forward_and_backward.compute
    assert replays(ordinary, monkeypatch) == 0
    assert_same(traces(tmp_path / "captured"), traces(tmp_path / "ordinary"))


def test_a_run_without_room_for_a_graph_is_an_ordinary_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_in(tmp_path, "run", "sparsity.method=static")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 1 << 30))
    assert replays(trainer, monkeypatch) == 0


def test_capturing_outlives_the_garbage_of_an_earlier_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["sparsity.method=scout", *UPDATES]
    earlier = [trainer_in(tmp_path, str(number), *settings) for number in range(3)]
    for trainer in earlier:
        replays(trainer, monkeypatch)
    trainer = trainer_in(tmp_path, "last", *settings)
    thresholds = gc.get_threshold()
    gc.set_threshold(1)  # collect wherever Python may
    try:
        earlier.clear()
        assert replays(trainer, monkeypatch) >= 30
    finally:
        gc.set_threshold(*thresholds)
