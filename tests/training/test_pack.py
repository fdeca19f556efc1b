"""Runs in a pack are the runs that they are alone, whatever becomes of the others."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from rnnsparse.config import RunConfig, parse_config
from rnnsparse.errors import RunFailed, UserError
from rnnsparse.storage import checkpoint
from rnnsparse.training.build import restore, vocabulary_size
from rnnsparse.training.pack import Outcome, PackedRun, pack_key, take_steps, train_packed
from rnnsparse.training.run import lock
from rnnsparse.training.run.interrupts import Interrupted
from rnnsparse.training.train import prepare, train
from tests.training.test_trainer import AfterStep

CPU = torch.device("cpu")
TEXT = "pack my box with five dozen liquor jugs. the quick brown fox jumps over the lazy dog, ünd ein ß.\n" * 20
# Two layers, so that dropout draws numbers; two micro-batches per step; exact enough to compare.
TINY: dict[str, dict[str, Any]] = {
    "model": {"embedding_dim": 4, "hidden_size": 6, "num_layers": 2, "dropout": 0.3, "execution": "masked"},
    "sparsity": {"method": "rigl", "sparsity": 0.5, "interval": 2, "drop_fraction": 0.5, "stop": 1.0},
    "training": {
        "steps": 8,
        "batch_size": 3,
        "sequence_length": 5,
        "accumulate": 2,
        "learning_rate": 1e-2,
        "precision": "fp64",
    },
    "evaluation": {"interval": 3, "lanes": 2, "priming": 4, "symbols": 60},
    "logging": {"interval": 1, "tensorboard": False, "pictures": None},
}
# All that may differ.
DIFFERENT = [
    ["sparsity.method=static", "sparsity.sparsity=0.9"],
    ["sparsity.method=set", "run.seed=1", "training.learning_rate=1e-3", "training.reset_probability=0.3"],
    ["sparsity.method=rigl", "sparsity.interval=3", "training.optimizer=sgd"],
    ["sparsity.method=snfs", "sparsity.redistribute=momentum", "training.lr_schedule=constant"],
    ["sparsity.method=scout", "sparsity.window=2", "run.seed=2"],
    ["sparsity.method=prune", "training.steps=5", "sparsity.start=0.2", "sparsity.stop=0.8"],
    ["sparsity.method=dense", "training.grad_clip=0.1", "training.steps=11"],
    ["sparsity.method=granet", "training.optimizer=sntasgd", "training.learning_rate=1.0"],
    ["sparsity.basis=dct", "training.connection_steps=true"],
]
FAILING = ["training.optimizer=sgd", "training.learning_rate=1e38", "training.weight_decay=1e38"]


def config_in(folder: Path, run: str, *overrides: str) -> RunConfig:
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    data = {"source": "text", "path": str(folder / "text.txt"), "cache": str(folder / "cache")}
    return parse_config(TINY | {"data": data, "run": {"dir": str(folder / run)}}, "c.yaml", overrides)


def key_of(config: RunConfig) -> Hashable | None:
    return pack_key(config, vocabulary_size(config.data))


def different_runs(folder: Path, cell: str = "gru") -> list[RunConfig]:
    return [config_in(folder, str(i), f"model.cell={cell}", *run) for i, run in enumerate(DIFFERENT)]


def train_together(
    configs: Sequence[RunConfig], *, resume: bool = False, streams: Sequence[io.StringIO] = ()
) -> list[Outcome]:
    streams = streams or [io.StringIO() for _ in configs]
    return train_packed([PackedRun(c, resume, stream) for c, stream in zip(configs, streams, strict=True)])


def train_alone(config: RunConfig, *, resume: bool = False) -> dict[str, Any]:
    return train(config, resume=resume, stream=io.StringIO())


# And the hash of lines that hold them.
TIMES = {"seconds", "timed_seconds", "characters_per_second", "validation_seconds", "peak_memory_bytes", "records"}


def require_close(one: Any, other: Any) -> None:
    """Compare nested data, but for times: numbers up to rounding, all else exactly."""
    ours, theirs = numbers(one), numbers(other)
    assert ours.keys() == theirs.keys()
    for path in ours:
        torch.testing.assert_close(
            ours[path], theirs[path], rtol=1e-9, atol=1e-10, msg=lambda text, path=path: f"{path}: {text}"
        )


def numbers(data: Any, path: str = "") -> dict[str, Any]:
    """Return all numbers and tensors in nested data by their path; what is neither is a part of the path."""
    items: dict[Any, Any] | None = None
    if isinstance(data, dict):
        items = {key: value for key, value in data.items() if key not in TIMES}
    elif isinstance(data, list | tuple):
        items = dict(enumerate(data))
    if items is None:
        return {path: data} if isinstance(data, torch.Tensor | int | float) else {f"{path}={data}": 0}
    return {inner: value for key, part in items.items() for inner, value in numbers(part, f"{path}/{key}").items()}


def require_same(packed: RunConfig, alone: RunConfig) -> None:
    """Compare all that two runs have left, where rounding may differ."""
    one, other = restore(packed.folder, CPU), restore(alone.folder, CPU)
    assert one.step == other.step
    for name, weight in one.model.sparse_weights().items():
        assert torch.equal(weight.indices, other.model.sparse_weights()[name].indices), name
    require_close(dict(one.model.named_parameters()), dict(other.model.named_parameters()))
    require_close(one.saved.training_state(), other.saved.training_state())
    lines = [(config.folder / "metrics.jsonl").read_text().splitlines() for config in (packed, alone)]
    require_close([json.loads(line) for line in lines[0]], [json.loads(line) for line in lines[1]])
    counts = [(config.folder / "connectivity.jsonl").read_text() for config in (packed, alone)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("setting", ["layer_norm", "skip_connections"])
def test_normalised_layers_and_skip_connections_are_trained_alone(tmp_path: Path, setting: str) -> None:
    assert key_of(config_in(tmp_path, "run", f"model.{setting}=true")) is None


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_run_in_a_pack_is_the_run_alone(tmp_path: Path, cell: str) -> None:
    configs = different_runs(tmp_path / "packed", cell)
    summaries = train_together(configs)
    for packed, alone, summary in zip(configs, different_runs(tmp_path / "alone", cell), summaries, strict=True):
        assert isinstance(summary, dict)
        require_close(summary, train_alone(alone))
        assert json.loads((packed.folder / "summary.json").read_text()) == summary
        require_same(packed, alone)


def test_a_stopped_pack_saves_every_run_and_each_goes_on_alone_or_in_another_pack(tmp_path: Path) -> None:
    choice = [1, 2, 4, 5]
    configs, expected = ([different_runs(tmp_path / name)[i] for i in choice] for name in ("stopped", "never_stopped"))
    streams = [io.StringIO() for _ in configs]
    streams[2] = AfterStep(4, lambda: signal.raise_signal(signal.SIGINT))
    outcomes = train_together(configs, streams=streams)
    for config, outcome in zip(configs, outcomes, strict=True):
        assert isinstance(outcome, Interrupted | dict)
        assert isinstance(outcome, Interrupted) == (not (config.folder / "summary.json").exists())
        assert lock.holder(config.folder) is None
    steps = [checkpoint.load(config.folder / "last").step for config in configs]
    assert steps == [5, 5, 4, 4], "those before it had their turn, and stop after the next one"

    train_alone(configs[1], resume=True)
    left = [config for i, config in enumerate(configs) if i != 1]
    assert all(isinstance(outcome, dict) for outcome in train_together(left, resume=True))
    for config, alone in zip(configs, expected, strict=True):
        train_alone(alone)
        require_same(config, alone)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="what a process has open is found in /proc")
def test_a_run_that_fails_leaves_the_others_as_they_are_alone(tmp_path: Path) -> None:
    diverging = config_in(tmp_path, "diverging", *FAILING)
    taken = config_in(tmp_path, "taken")
    taken.folder.mkdir()
    (taken.folder / "thesis.tex").write_text("years of work")
    full = config_in(tmp_path, "full", "run.seed=3", "logging.interval=2")
    metrics = os.path.realpath(full.folder / "metrics.jsonl")

    def no_space() -> None:
        """The disk is full from now on."""
        (opened,) = (n for n in os.listdir("/proc/self/fd") if metrics == os.path.realpath(f"/proc/self/fd/{n}"))
        os.dup2(os.open("/dev/full", os.O_WRONLY), int(opened))

    good = config_in(tmp_path, "good", "sparsity.method=set")
    streams = [io.StringIO(), io.StringIO(), AfterStep(4, no_space), io.StringIO()]
    outcomes = train_together([diverging, taken, full, good], streams=streams)
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [RunFailed, UserError, RunFailed, dict]
    assert "training.learning_rate" in str(outcomes[0])
    assert "run.dir exists already" in str(outcomes[1])
    assert "No space left on device" in str(outcomes[2])
    assert checkpoint.load(full.folder / "last").step == 0
    alone = config_in(tmp_path, "alone", "sparsity.method=set")
    train_alone(alone)
    require_same(good, alone)


def test_an_error_of_the_program_frees_every_folder(tmp_path: Path) -> None:
    def defect() -> None:
        raise ZeroDivisionError

    configs = [config_in(tmp_path, str(seed), f"run.seed={seed}") for seed in range(3)]
    with pytest.raises(ZeroDivisionError):
        train_together(configs, streams=[io.StringIO(), AfterStep(2, defect), io.StringIO()])
    assert [lock.holder(config.folder) for config in configs] == [None] * 3
    assert not any((config.folder / lock.NAME).exists() for config in configs)


def test_the_times_of_all_runs_add_up_to_what_passed(tmp_path: Path) -> None:
    learners = [prepare(config_in(tmp_path, str(seed), f"run.seed={seed}")).learner for seed in range(8)]
    started = time.perf_counter()
    for _ in range(3):
        for rest in take_steps(learners, [nullcontext()] * 8):
            rest()
    passed = time.perf_counter() - started
    assert [learner.step for learner in learners] == [3] * 8
    assert 0 < sum(learner.seconds for learner in learners) <= passed


@pytest.mark.parametrize(
    "override",
    [
        "model.hidden_size=7",
        "model.dropout=0.1",
        "model.tie_embeddings=true",
        "data.tokenizer=char",
        "training.batch_size=4",
        "training.sequence_length=6",
        "training.accumulate=1",
        "training.precision=fp32",
        "training.threads=1",
        "model.num_layers=1",
    ],
)
def test_runs_of_another_shape_are_packed_apart(tmp_path: Path, override: str) -> None:
    base = "model.embedding_dim=6"
    key = key_of(config_in(tmp_path, "one", base))
    other = key_of(config_in(tmp_path, "two", base, override))
    assert None not in (key, other)
    assert key != other


def test_what_changes_no_shape_may_differ(tmp_path: Path) -> None:
    keys = {key_of(config) for config in different_runs(tmp_path)}
    assert len(keys) == 1
    assert keys != {None}


@pytest.mark.parametrize(
    "overrides",
    [
        ["sparsity.method=lottery"],
        ["model.execution=sparse"],
        ["start.weights=elsewhere", "model.execution=auto"],
    ],
)
def test_what_cannot_be_packed_is_alone(tmp_path: Path, overrides: list[str]) -> None:
    assert key_of(config_in(tmp_path, "run", *overrides)) is None
