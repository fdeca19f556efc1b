"""Whole runs on a GPU: the same as on a CPU, method by method; resumed to the bit; sampled and evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rnnsparse.evaluation import evaluate
from rnnsparse.sampling import Sampler, SamplingConfig
from rnnsparse.settings.run import EvaluationConfig
from rnnsparse.training.build import restore
from rnnsparse.training.run.interrupts import Interrupted
from rnnsparse.training.train import prepare
from tests.training.test_trainer import PLAIN, STEPS, assert_same, config_in, metrics, stop_after, traces, trained

pytestmark = pytest.mark.cuda

DEVICE = torch.device("cuda")
CPU = torch.device("cpu")
PRECISIONS = ["fp32", "tf32", "bf16", "fp16", "fp64"]
# Devices draw other units to drop.
EXACT = ["training.precision=fp64", "model.dropout=0", "model.execution=masked"]
MORE = ["model.layer_norm=true", "model.skip_connections=true"]


@pytest.fixture
def repeatable() -> Iterator[None]:
    """Kernels that give the same bits each time, or an error where PyTorch has none."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("method", "cell"), [*((method, "gru") for method in PLAIN), ("rigl", "lstm")])
def test_twenty_updates_choose_the_topology_that_they_choose_on_a_cpu(tmp_path: Path, method: str, cell: str) -> None:
    settings = [*EXACT, f"sparsity.method={method}", f"model.cell={cell}", "training.steps=42"]
    settings.append("evaluation.interval=100")
    models, losses = [], []
    for device in (DEVICE, CPU):
        config = config_in(tmp_path, device.type, *settings, f"training.device={device.type}")
        trained(config)
        models.append(restore(config.folder, CPU).model)
        losses.append([line["loss"] for line in metrics(config.folder)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-8)
    for here, there in zip(*(model.sparse_weights().values() for model in models), strict=True):
        assert torch.equal(here.indices, there.indices), here.name
        torch.testing.assert_close(here.values, there.values, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("repeatable")
@pytest.mark.parametrize("more", [[], MORE])
@pytest.mark.parametrize(("cell", "precision"), [("gru", "fp32"), ("lstm", "fp16"), ("gru", "bf16")])
def test_a_run_on_a_gpu_stopped_after_every_step_ends_as_an_undisturbed_one(
    tmp_path: Path, cell: str, precision: str, more: list[str]
) -> None:
    settings = [f"model.cell={cell}", f"training.precision={precision}", f"training.device={DEVICE.type}", *more]
    trained(config_in(tmp_path, "undisturbed", *settings))
    config = config_in(tmp_path, "stopped", *settings)
    for step in range(1, STEPS):
        with pytest.raises(Interrupted):
            trained(config, resume=step > 1, stream=stop_after(step))
    trained(config, resume=True)
    assert_same(traces(tmp_path / "stopped"), traces(tmp_path / "undisturbed"))


@pytest.mark.parametrize("more", [[], MORE])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_learns_as_a_cpu_does(tmp_path: Path, precision: str, more: list[str]) -> None:
    exact = "fp64" if precision == "fp64" else "fp32"  # those two draw other values to start with
    settings = ["training.steps=60", "model.hidden_size=32", "model.dropout=0", "sparsity.method=static", *more]
    bits = []
    for device, numbers in ((DEVICE, precision), (CPU, exact)):
        where = [f"training.device={device.type}", f"training.precision={numbers}"]
        bits.append(trained(config_in(tmp_path, f"{device.type}-{numbers}", *settings, *where))["bits_per_character"])
    assert bits[0] == pytest.approx(bits[1], rel=0.02)


def test_a_checkpoint_changes_its_device(tmp_path: Path) -> None:
    on_cuda = config_in(tmp_path, "run", f"training.device={DEVICE.type}")
    with pytest.raises(Interrupted):
        trained(on_cuda, stream=stop_after(3))
    trainer = prepare(config_in(tmp_path, "run", "training.device=cpu"), resume=True, stream=stop_after(5))
    assert (trainer.step, trainer.learner.device) == (3, CPU)
    with pytest.raises(Interrupted):
        trainer.train()
    assert trained(on_cuda, resume=True)["steps"] == STEPS


def test_text_and_scores_are_those_of_the_cpu(tmp_path: Path) -> None:
    config = config_in(tmp_path, "run", *EXACT, f"training.device={DEVICE.type}")
    trainer = prepare(config)
    trainer.train()
    restored = [restore(config.folder, device) for device in (DEVICE, CPU)]
    for settings in (SamplingConfig(length=80), SamplingConfig(length=80, temperature=0), SamplingConfig(top_k=3)):
        here, there = ("".join(Sampler(r.model, r.tokenizer, "the ").stream(settings)) for r in restored)
        assert here == there
    split = trainer.corpus.validation
    found, expected = (evaluate(r.model, split, r.tokenizer, EvaluationConfig(lanes=3, priming=4)) for r in restored)
    assert found.symbols == expected.symbols
    assert found.nats == pytest.approx(expected.nats, rel=1e-12)
