from __future__ import annotations

import contextlib
import io
import json
import math
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.nn.functional import cross_entropy

from rnnsparse.cli.train import closing_lines
from rnnsparse.config import RunConfig, parse_config
from rnnsparse.data.batches import Lanes
from rnnsparse.data.corpus import load_corpus
from rnnsparse.errors import RunFailed, UserError
from rnnsparse.evaluation import evaluate
from rnnsparse.flops import forward_flops
from rnnsparse.reporting.reading import read_runs
from rnnsparse.sparsity.method import METHODS
from rnnsparse.storage import checkpoint, manifest
from rnnsparse.training.banner import banner
from rnnsparse.training.build import new_model, restore
from rnnsparse.training.inspection import counted_in, inspect
from rnnsparse.training.measured_text import other_text, own_text
from rnnsparse.training.run import lock
from rnnsparse.training.run.interrupts import Interrupted
from rnnsparse.training.train import prepare, train

CPU = torch.device("cpu")
TEXT = "pack my box with five dozen liquor jugs. the quick brown fox jumps over the lazy dog, ünd ein ß.\n" * 20
STEPS = 7
# Updates at steps 2, 4 and 6; two layers, so that dropout draws numbers; two micro-batches per step.
TINY: dict[str, dict[str, Any]] = {
    "data": {"source": "text", "tokenizer": "char"},
    "model": {"embedding_dim": 4, "hidden_size": 6, "num_layers": 2, "dropout": 0.3},
    "sparsity": {"method": "rigl", "sparsity": 0.5, "interval": 2, "drop_fraction": 0.5, "stop": 1.0},
    "training": {"steps": STEPS, "batch_size": 3, "sequence_length": 5, "accumulate": 2, "learning_rate": 1e-2},
    "evaluation": {"interval": 3, "lanes": 2, "priming": 4, "symbols": 60},
    "logging": {"interval": 1, "tensorboard": False, "pictures": None},
}
SUMMARY_KEYS = {
    "text",
    "bits_per_character",
    "bits_per_byte",
    "best_bits_per_character",
    "steps",
    "characters_seen",
    "connections",
    "positions",
    "sparsity",
    "ever_active",
    "flops_per_character",
    "training_flops",
    "training_flops_vs_dense",
    "seconds",
    "characters_per_second",
    "peak_memory_bytes",
    "method",
    "seed",
    "ranks",
    "communicated_bytes_per_step",
    "communicated_vs_dense",
}
TIMES = {"records", "seconds", "timed_seconds", "characters_per_second", "validation_seconds", "peak_memory_bytes"}


def config_in(tmp_path: Path, run: str = "run", *overrides: str) -> RunConfig:
    if not (tmp_path / "text.txt").exists():
        (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    data = TINY | {"run": {"dir": str(tmp_path / run)}}
    data["data"] = TINY["data"] | {"path": str(tmp_path / "text.txt"), "cache": str(tmp_path / "cache")}
    return parse_config(data, "c.yaml", overrides)


def trained(config: RunConfig, *, resume: bool = False, stream: io.StringIO | None = None) -> dict[str, Any]:
    return train(config, resume=resume, stream=stream or io.StringIO())


class AfterStep(io.StringIO):
    """Progress that does something when it reads that a step is done, before that step is evaluated or saved."""

    def __init__(self, step: int, action: Any) -> None:
        super().__init__()
        self.start, self.action = f"step {step}/", action

    def write(self, text: str) -> int:
        if text.startswith(self.start):
            self.action()
        return super().write(text)


def stop_after(step: int) -> AfterStep:
    """Ask for a stop, as Ctrl-C does, while `step` is under way."""
    return AfterStep(step, lambda: signal.raise_signal(signal.SIGINT))


class Killed(Exception):
    """The process is gone; nothing more is saved."""


def kill_after(step: int) -> AfterStep:
    def kill() -> None:
        raise Killed

    return AfterStep(step, kill)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_times(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: without_times(value) for key, value in data.items() if key not in TIMES}
    return [without_times(value) for value in data] if isinstance(data, list | tuple) else data


def bits(data: Any) -> Any:
    """Plain data that is equal exactly if all tensors in `data` have the same bytes."""
    if isinstance(data, Tensor):
        return (
            str(data.dtype),
            tuple(data.shape),
            data.contiguous().view(torch.uint8).tolist() if data.dim() else data.item(),
        )
    if isinstance(data, dict):
        return {key: bits(value) for key, value in data.items()}
    return [bits(value) for value in data] if isinstance(data, list | tuple) else data


def traces(folder: Path) -> dict[str, Any]:
    """All that a run leaves behind, but for times."""
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "last": (folder / "last" / "model.safetensors").read_bytes(),
        "best": (folder / "best" / "model.safetensors").read_bytes(),
        "state": bits(without_times(checkpoint.load(folder / "last").training_state())),
        "metrics": without_times(metrics(folder)),
        "summary": without_times(summary),
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in expected:
        assert found[name] == expected[name], name


def train_in_pieces(config: RunConfig) -> None:
    """Train, but stop after every step and go on with the next."""
    for step in range(1, config.training.steps):
        with pytest.raises(Interrupted, match=rf"stopped after step {step}, saved in {config.folder}/last"):
            trained(config, resume=step > 1, stream=stop_after(step))
        assert checkpoint.load(config.folder).step == step
    trained(config, resume=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """An undisturbed run to compare with, which no test changes."""
    config = config_in(tmp_path_factory.mktemp("finished"))
    trained(config)
    return config


def copied(finished: RunConfig, tmp_path: Path) -> RunConfig:
    config = config_in(tmp_path)
    shutil.copytree(finished.folder, config.folder)
    return config


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- determinism


def test_the_same_configuration_gives_the_same_run_bit_for_bit(tmp_path: Path, finished: RunConfig) -> None:
    trained(config_in(tmp_path))
    assert_same(traces(tmp_path / "run"), traces(finished.folder))


def test_another_seed_gives_another_run(tmp_path: Path, finished: RunConfig) -> None:
    trained(config_in(tmp_path, "run", "run.seed=1"))
    assert traces(tmp_path / "run")["last"] != traces(finished.folder)["last"]


def test_what_a_run_tells_changes_nothing_that_it_computes(tmp_path: Path, finished: RunConfig) -> None:
    loud = ["logging.tensorboard=true", "logging.pictures=2", "logging.sample_length=5", "checkpoint.interval=2"]
    trained(config_in(tmp_path, "run", *loud, 'logging.sample_prompt=""', "logging.interval=3"))
    a, b = traces(finished.folder), traces(tmp_path / "run")
    assert (a["last"], a["state"], a["summary"]) == (b["last"], b["state"], b["summary"])


# Without a wish, execution is sparse on a CPU for all methods that allow it.
# Recipes are tested in tests/recipes.
PLAIN = sorted(name for name, method in METHODS.items() if not method.recipe)
STOPPED = [(method, "gru", "adam", "gate", "auto") for method in PLAIN]
STOPPED += [(method, "lstm", "sgd", "cell", "masked") for method in PLAIN]
STOPPED += [("rigl", "lstm", "adamw", "matrix", "auto"), ("rigl", "gru", "adam", "gate", "masked")]
STOPPED = [(*kind, 1) for kind in STOPPED]
STOPPED += [("rigl", "gru", "adam", "gate", "masked", 2), ("scout", "lstm", "adamw", "cell", "sparse", 2)]
STOPPED += [("snfs", "gru", "sgd", "matrix", "masked", 2), ("granet", "gru", "adam", "gate", "sparse", 2)]
STOPPED = [(*kind, False) for kind in STOPPED]
STOPPED += [("rigl", "lstm", "adamw", "gate", "masked", 1, True), ("scout", "gru", "adam", "gate", "sparse", 2, True)]

TWO_UPDATES = "training.steps=5"  # and an evaluation between


@pytest.mark.parametrize(("method", "cell", "optimizer", "granularity", "execution", "block_rows", "more"), STOPPED)
def test_a_run_stopped_after_every_step_ends_as_an_undisturbed_one(
    tmp_path: Path, method: str, cell: str, optimizer: str, granularity: str, execution: str, block_rows: int,
    more: bool,
) -> None:  # fmt: skip
    settings = [f"sparsity.method={method}", f"model.cell={cell}", f"training.optimizer={optimizer}"]
    settings += [f"sparsity.granularity={granularity}", f"model.execution={execution}"]
    settings += [f"sparsity.block_rows={block_rows}", TWO_UPDATES]
    settings += [f"model.layer_norm={more}", f"model.skip_connections={more}"]
    trained(config_in(tmp_path, "undisturbed", *settings))
    train_in_pieces(config_in(tmp_path, "stopped", *settings))
    assert_same(traces(tmp_path / "stopped"), traces(tmp_path / "undisturbed"))


def optimizer_state(config: RunConfig) -> dict[str, Any]:
    state: dict[str, Any] = checkpoint.load(config.folder / "last").training_state()["optimizer"]
    return state


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_a_run_with_step_counts_per_connection_stopped_after_every_step_ends_as_an_undisturbed_one(
    tmp_path: Path, kind: str
) -> None:
    settings = [f"training.optimizer={kind}", "training.connection_steps=true", "training.connection_warmup=2"]
    settings += [TWO_UPDATES]
    trained(config_in(tmp_path, "undisturbed", *settings))
    config = config_in(tmp_path, "stopped", *settings)
    train_in_pieces(config)
    assert_same(traces(tmp_path / "stopped"), traces(tmp_path / "undisturbed"))
    counts = [entry["connection_steps"] for entry in optimizer_state(config)["state"].values()]
    assert {int(count) for of_weight in counts for count in of_weight} == {1, 2, 3}  # updates replace two of five


# So fast that validation gets worse before step 5, which starts the averages; updates are at steps 2, 4 and 6.
AVERAGED = ["training.optimizer=sntasgd", "training.nonmonotone=0", "evaluation.interval=1"]
AVERAGED += ["training.learning_rate=10", "training.lr_schedule=constant", "training.grad_clip=1"]


@pytest.mark.parametrize(("method", "precision"), [("rigl", "fp32"), ("set", "fp64")])
def test_an_averaging_run_stopped_after_every_step_ends_as_an_undisturbed_one(
    tmp_path: Path, method: str, precision: str
) -> None:
    settings = [*AVERAGED, f"sparsity.method={method}", f"training.precision={precision}"]
    # Pictures show the averages, and change nothing.
    trained(config_in(tmp_path, "undisturbed", *settings, "logging.pictures=1", "logging.sample_length=3"))
    config = config_in(tmp_path, "stopped", *settings)
    averaging = []
    for step in range(1, STEPS):
        with pytest.raises(Interrupted):
            trained(config, resume=step > 1, stream=stop_after(step))
        averaging.append(optimizer_state(config)["averaging"])
    trained(config, resume=True)
    assert averaging == sorted(averaging)
    assert 2 <= sum(averaging) < STEPS - 1, "the averages start during the run"
    assert_same(traces(tmp_path / "stopped"), traces(tmp_path / "undisturbed"))


def test_an_averaging_run_scores_and_saves_the_averages_and_keeps_what_it_trains(tmp_path: Path) -> None:
    config = config_in(tmp_path, "run", *AVERAGED, "evaluation.symbols=null")
    summary = trained(config)
    state = optimizer_state(config)
    lines = metrics(config.folder)
    assert state["averaging"]
    assert state["evaluations"] == [line["validation_bits_per_character"] for line in lines]

    found = restore(config.folder, CPU)
    validation = load_corpus(config.data).validation
    for folder in ("last", "best"):
        model = restore(config.folder / folder, CPU).model
        score = evaluate(model, validation, found.tokenizer, config.evaluation).bits_per_character
        assert score == summary["bits_per_character" if folder == "last" else "best_bits_per_character"]
    assert summary["bits_per_character"] == lines[-1]["validation_bits_per_character"]

    # The iterates have the connections of the averages, other values, and another score.
    for number, parameter in enumerate(found.model.parameters()):
        iterate = state["state"][number]["iterate"]
        assert iterate.shape == parameter.shape
        assert not torch.equal(iterate, parameter)
        parameter.data = iterate
    score = evaluate(found.model, validation, found.tokenizer, config.evaluation).bits_per_character
    assert score != summary["bits_per_character"]


@pytest.mark.parametrize(("method", "interval", "saved"), [("rigl", 2, 4), ("snfs", 2, 4), ("rigl", 100, 0)])
def test_a_run_killed_between_checkpoints_ends_as_an_undisturbed_one(
    tmp_path: Path, finished: RunConfig, method: str, interval: int, saved: int
) -> None:
    undisturbed = finished
    if method != "rigl":
        undisturbed = config_in(tmp_path, "undisturbed", f"sparsity.method={method}")
        trained(undisturbed)
    config = config_in(tmp_path, "killed", f"sparsity.method={method}", f"checkpoint.interval={interval}")
    with pytest.raises(Killed):
        trained(config, stream=kill_after(6))
    assert checkpoint.load(config.folder).step == saved
    assert [line["step"] for line in metrics(config.folder)] == [1, 2, 3, 4, 5, 6]
    trained(config, resume=True)
    assert_same(traces(tmp_path / "killed"), traces(undisturbed.folder))
    assert [line["step"] for line in metrics(config.folder)] == [1, 2, 3, 4, 5, 6, 7]


def test_a_stopped_run_whose_reader_has_left_saves_itself(tmp_path: Path) -> None:
    config = config_in(tmp_path, "run", "checkpoint.interval=100", "logging.interval=1")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as gone:
        trainer = prepare(config, stream=gone)
        take_step = trainer.learner.take_step

        def stop_in_step_3() -> dict[str, Any]:
            if trainer.step == 2:
                signal.raise_signal(signal.SIGINT)
            return take_step()

        trainer.learner.take_step = stop_in_step_3  # type: ignore[method-assign]
        with pytest.raises(Interrupted, match="stopped after step 3, saved in "):
            trainer.train()
        os.dup2(os.open(os.devnull, os.O_WRONLY), gone.fileno())
    assert checkpoint.load(config.folder).step == 3


@pytest.mark.parametrize(("stops_at", "name"), [(3, "last"), (STEPS, "last"), (4, "best")])
def test_a_second_interrupt_loses_no_checkpoint_that_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops_at: int, name: str
) -> None:
    """At the last step both come while the run saves itself as it would anyway."""
    save, saved = checkpoint.save, []

    def interrupted(folder: Path, **arguments: Any) -> None:
        if (arguments["step"], folder.name) == (stops_at, name):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        save(folder, **arguments)
        saved.append((arguments["step"], folder.name))

    monkeypatch.setattr(checkpoint, "save", interrupted)
    settings = ["checkpoint.interval=100", "evaluation.interval=2"]
    config = config_in(tmp_path, "run", *settings)
    stream = stop_after(3) if stops_at == 3 else None
    with pytest.raises(Interrupted, match=f"stopped after step {stops_at}, "):
        trained(config, stream=stream)
    assert (stops_at, name) in saved
    assert checkpoint.load(config.folder).step == stops_at
    monkeypatch.undo()
    trained(config, resume=True)
    trained(config_in(tmp_path, "undisturbed", *settings))
    assert_same(traces(config.folder), traces(tmp_path / "undisturbed"))


def test_extended_training_is_the_run_with_more_steps_and_resumes_as_it(tmp_path: Path) -> None:
    trained(config_in(tmp_path, "longer", "training.steps=14", "training.warmup=4", "sparsity.interval=4"))
    config = config_in(tmp_path, "extended", "training.multiplier=2", "training.warmup=2")
    with pytest.raises(Interrupted):
        trained(config, stream=stop_after(9))
    trained(config, resume=True)
    assert_same(traces(tmp_path / "extended"), traces(tmp_path / "longer"))


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path, finished: RunConfig) -> None:
    config = copied(finished, tmp_path)
    before = traces(config.folder)
    trained(config, resume=True)
    assert_same(traces(config.folder), before)


# ---- what a step is


def test_training_is_the_textbook_loop(tmp_path: Path) -> None:
    settings = ["sparsity.method=static", "model.dropout=0", "training.optimizer=sgd", "training.precision=fp64"]
    settings += ["training.lr_schedule=constant", "training.momentum=0.5", "training.grad_clip=0.1"]
    config = config_in(tmp_path, "run", *settings)
    trained(config)

    corpus = load_corpus(config.data)
    model, _ = new_model(config, corpus.tokenizer.vocab_size, CPU)
    lanes = Lanes(corpus.train.tokens, batch_size=3, sequence_length=5)
    velocities = [torch.zeros_like(parameter) for parameter in model.parameters()]
    state = model.initial_state(3)
    losses = []
    for _ in range(STEPS):
        loss = torch.zeros((), dtype=torch.float64)
        for _ in range(2):
            inputs_TB, targets_TB = next(lanes)
            logits_TBV, state = model(inputs_TB, state.detach())
            loss = loss + cross_entropy(logits_TBV.flatten(0, 1), targets_TB.flatten()) / 2
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        losses.append(loss.item())
        norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
        assert norm > 0.1
        for parameter, gradient, velocity in zip(model.parameters(), gradients, velocities, strict=True):
            velocity.mul_(0.5).add_(gradient * (0.1 / norm))
            parameter.data.sub_(0.01 * velocity)

    assert [line["loss"] for line in metrics(config.folder)] == pytest.approx(losses, rel=1e-6)
    found = restore(config.folder, CPU).model
    for (name, expected), parameter in zip(model.named_parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-5, atol=1e-9, msg=name)


def test_a_repetitive_text_is_learned_to_almost_nothing(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abcdefgh" * 200)
    settings = ["training.steps=150", "training.learning_rate=0.03", "training.accumulate=1", "evaluation.interval=150"]
    settings += ["model.hidden_size=16", "model.num_layers=1", "model.dropout=0", "training.batch_size=8"]
    config = config_in(tmp_path, "run", *settings, "logging.interval=50")
    summary = trained(config)
    assert metrics(config.folder)[0]["bits_per_character"] > summary["bits_per_character"]
    assert summary["bits_per_character"] < 0.05


@pytest.mark.parametrize("scale", ["neuron", "layer", "dense"])
def test_a_run_starts_with_the_scale_that_is_configured(tmp_path: Path, scale: Any) -> None:
    model, _ = new_model(config_in(tmp_path, "run", f"sparsity.initial_scale={scale}"), 9, CPU)
    found = [parameter.detach().clone() for parameter in model.parameters()]
    model.reset_parameters(0, scale)
    assert all(torch.equal(a, b) for a, b in zip(found, model.parameters(), strict=True))
    model.reset_parameters(0, "layer" if scale == "neuron" else "neuron")
    assert not all(torch.equal(a, b) for a, b in zip(found, model.parameters(), strict=True))


def test_every_update_keeps_the_number_of_connections(finished: RunConfig) -> None:
    summary = traces(finished.folder)["summary"]
    lines = metrics(finished.folder)
    assert {line["density"] for line in lines} == {summary["connections"] / summary["positions"]}
    assert [line["moved"] > 0 for line in lines] == [False, True, True, True, True, True, True]


def test_an_update_of_rigl_takes_the_place_of_the_optimizer_step(tmp_path: Path) -> None:
    trained(config_in(tmp_path, "run", "model.dropout=0"))
    state = checkpoint.load(tmp_path / "run" / "last").training_state()
    biases = [entry for entry in state["optimizer"]["state"].values() if "step" in entry]
    assert {float(entry["step"]) for entry in biases} == {STEPS - 3}
    assert state["sparsifier"]["updates"] == 3


def test_the_recurrent_state_and_the_position_go_on_at_every_step(finished: RunConfig) -> None:
    state = checkpoint.load(finished.folder / "last").training_state()
    assert state["lanes"] == {"position": STEPS * 2 * 5}
    assert state["recurrent_state"].shape == (2, 1, 3, 6)
    assert state["recurrent_state"].abs().min() > 0


# ---- what it leaves


def test_a_run_folder_holds_what_the_contract_says_and_no_more(tmp_path: Path) -> None:
    config = config_in(tmp_path, "run", "logging.tensorboard=true")
    trained(config)
    files = ["config.yaml", "connectivity.jsonl", "environment.json", "metrics.jsonl", "summary.json"]
    expected = sorted([*files, "best", "last", "previous", "previous_best", "tensorboard"])
    assert sorted(os.listdir(config.folder)) == expected
    weights = {"config.yaml", "manifest.json", "model.safetensors", "tokenizer.json"}
    for name in ("best", "previous_best"):
        assert set(os.listdir(config.folder / name)) == weights
    assert checkpoint.load(config.folder / "previous_best").step < checkpoint.load(config.folder / "best").step
    for name in ("last", "previous"):
        assert set(os.listdir(config.folder / name)) == weights | {"training_state.pt"}
    assert (config.folder / "config.yaml").read_text() == config.to_yaml()
    text = load_corpus(config.data).identity
    assert [checkpoint.load(config.folder / name).trained_text() for name in ("last", "previous", "best")] == [text] * 3


def test_the_summary_has_exactly_the_keys_of_the_contract_and_true_numbers(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    returned = trained(config)
    summary = json.loads((config.folder / "summary.json").read_text())
    assert returned == summary
    assert set(summary) == SUMMARY_KEYS
    assert summary["steps"] == STEPS
    assert summary["characters_seen"] == STEPS * 2 * 3 * 5
    assert summary["connections"] == math.ceil(summary["positions"] / 2)
    assert summary["sparsity"] == 1 - summary["connections"] / summary["positions"]
    assert (summary["method"], summary["seed"]) == ("rigl", 0)
    assert (summary["ranks"], summary["communicated_bytes_per_step"], summary["communicated_vs_dense"]) == (1, 0, 0)
    shares = [line["ever_active"] for line in metrics(config.folder)]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (summary["connections"] / summary["positions"], summary["ever_active"])
    assert shares[0] < shares[-1] <= 1
    assert summary["characters_per_second"] is None  # the first ten steps are not timed
    assert summary["seconds"] > 0
    assert summary["peak_memory_bytes"] > 10_000_000
    assert summary["bits_per_byte"] < summary["bits_per_character"]  # ü and ß have two bytes

    restored = restore(config.folder, CPU)
    corpus = load_corpus(config.data)
    assert summary["text"] == corpus.fingerprint
    validation = corpus.validation
    result = evaluate(restored.model, validation, restored.tokenizer, config.evaluation)
    assert summary["bits_per_character"] == result.bits_per_character
    assert summary["bits_per_byte"] == result.bits_per_byte
    report = inspect(config, restored.model, restored.budgets)
    for key in ("flops_per_character", "training_flops", "training_flops_vs_dense"):
        assert summary[key] == report[key]


def test_the_rate_is_that_of_the_steps_after_the_first_ten(tmp_path: Path) -> None:
    summary = trained(config_in(tmp_path, "run", "training.steps=12"))
    assert summary["characters_seen"] == 12 * 30
    assert summary["characters_per_second"] > 60 / summary["seconds"]


def test_metrics_have_a_line_per_interval_and_one_for_the_end(tmp_path: Path) -> None:
    config = config_in(tmp_path, "run", "logging.interval=5")
    trained(config)
    lines = metrics(config.folder)
    assert [line["step"] for line in lines] == [3, 5, 6, 7]
    training = {"loss", "bits_per_character", "learning_rate", "gradient_norm", "density", "moved", "characters_seen"}
    training |= {"ever_active", "skipped", "characters_per_second"}
    validation = {"validation_bits_per_character", "validation_bits_per_byte", "validation_seconds"}
    assert [set(line) - {"step"} for line in lines] == [validation, training, validation, training | validation]


def test_tensorboard_has_scalars_texts_histograms_per_gate_and_connectivity(tmp_path: Path) -> None:
    settings = [
        "logging.tensorboard=true",
        "logging.pictures=4",
        'logging.sample_prompt="the "',
        "logging.sample_length=9",
    ]
    config = config_in(tmp_path, "run", *settings)
    trained(config)
    events = EventAccumulator(str(config.folder / "tensorboard"))
    events.Reload()
    assert {"loss", "validation_bits_per_character"} <= set(events.Tags()["scalars"])
    assert {"weights/embedding", "weights/rnn.1.recurrent.n", "weights/output"} <= set(events.Tags()["histograms"])
    assert "connectivity/rnn.0.recurrent" in events.Tags()["images"]
    (sample,) = events.Tensors("sample/text_summary")
    assert sample.step == 4
    assert sample.tensor_proto.string_val[0].decode().startswith("    the ")


def test_the_banner_tells_what_a_user_wants_to_check(tmp_path: Path) -> None:
    config = config_in(tmp_path, "run", "logging.tensorboard=true")
    trainer = prepare(config, stream=io.StringIO())
    text = "\n".join(banner(trainer))
    vocabulary = len(set(TEXT)) + 1
    for part in [
        f"{config.folder} (new), seed 0",
        str(tmp_path / "text.txt"),
        f"{vocabulary} chars; a uniform guess costs {math.log2(vocabulary):.2f} bits each",
        "rigl; 7 steps of 3 lanes x 5 symbols x 2 micro-batches",
        "CPU, 1 threads, fp32",
        f"tensorboard --logdir {config.folder}",
        "rnn.1.recurrent.n",
        "FLOPs per character",
    ]:
        assert part in text
    passes = 7 * 3 * 5 * 2 / len(trainer.corpus.train.tokens)
    assert f"micro-batches: {passes:.2f} times the training text" in text
    assert "1 file (text.txt) as one text, divided 90/5/5" in text
    assert "warning" not in text
    extended = prepare(config_in(tmp_path, "other", "training.multiplier=2"), stream=io.StringIO())
    assert "rigl; 14 steps (7 x 2) of 3 lanes" in "\n".join(banner(extended))
    trainer.train()
    assert "resumed after step 7" in "\n".join(banner(prepare(config, resume=True)))


def test_a_text_shorter_than_a_step_is_told(tmp_path: Path) -> None:
    config = config_in(tmp_path, "run", "training.sequence_length=1000", "training.batch_size=40")
    trainer = prepare(config, stream=io.StringIO())
    (line,) = [line for line in banner(trainer) if line.startswith("warning")]
    length = len(trainer.corpus.train.tokens)
    assert f"a step reads 80,000 symbols, and the training text has {length:,}" in line
    assert f"{80_000 / length:,.1f} times in a step" in line


# ---- best, early stopping


def flops_of(config: RunConfig) -> float:
    """What the whole run would cost."""
    model, budgets = new_model(config, load_corpus(config.data).tokenizer.vocab_size, CPU)
    return float(inspect(config, model, budgets)["training_flops"])


def overfitting(tmp_path: Path, *overrides: str) -> RunConfig:
    """A run whose validation text has nothing of its training text, so that it gets worse and worse."""
    folder = tmp_path / "splits"
    folder.mkdir()
    for name, text in {"train": "abab" * 100 + "cdef", "valid": "fedc" * 20, "test": "ab" * 20}.items():
        (folder / f"{name}.txt").write_text(text)
    settings = [f"data.path={folder}", "training.learning_rate=0.1", "evaluation.interval=1", "model.dropout=0"]
    return config_in(tmp_path, "run", *settings, *overrides)


def test_the_best_model_is_kept_when_later_ones_are_worse(tmp_path: Path) -> None:
    config = overfitting(tmp_path)
    summary = trained(config)
    assert summary["best_bits_per_character"] < summary["bits_per_character"] - 0.1
    best = restore(config.folder / "best", CPU)
    scores = [line["validation_bits_per_character"] for line in metrics(config.folder)]
    assert best.step == scores.index(min(scores)) + 1 < STEPS
    validation = load_corpus(config.data).validation.head(60, best.tokenizer)
    found = evaluate(best.model, validation, best.tokenizer, config.evaluation).bits_per_character
    assert found == min(scores) == summary["best_bits_per_character"]


def test_early_stopping_ends_a_run_that_gets_worse(tmp_path: Path) -> None:
    config = overfitting(tmp_path, "training.steps=50", "training.early_stopping=2")
    summary = trained(config)
    best = checkpoint.load(config.folder / "best").step
    assert summary["steps"] == best + 2 < 50
    assert checkpoint.load(config.folder / "last").step == best + 2
    assert summary["training_flops"] == pytest.approx(flops_of(config) * summary["steps"] / 50)
    assert trained(config, resume=True)["steps"] == summary["steps"]


def test_a_run_that_stops_before_it_prunes_has_cost_what_dense_training_costs_and_says_so(tmp_path: Path) -> None:
    settings = ["sparsity.method=prune", "sparsity.start=0.9", "training.steps=50", "training.early_stopping=2"]
    config = overfitting(tmp_path, *settings)
    summary = trained(config)
    assert summary["steps"] < 45
    assert summary["training_flops_vs_dense"] == 1
    assert summary["training_flops"] == 3 * summary["flops_per_character"] * summary["characters_seen"]
    told = closing_lines(summary, config)
    assert told.startswith(f"stopped early, after step {summary['steps']} of 50, with a sparsity of 0.0000\n")


def test_the_memory_of_a_run_is_the_most_that_any_of_its_processes_had(tmp_path: Path) -> None:
    config, more_than_here = config_in(tmp_path), 10**14
    first = prepare(config, stream=stop_after(2))
    state = first.state_dict()
    first.load_state_dict({key: state[key] for key in state if key != "peak_memory_bytes"})  # of earlier versions
    assert 0 < first.state_dict()["peak_memory_bytes"] < more_than_here
    first.load_state_dict(state | {"peak_memory_bytes": more_than_here})
    with pytest.raises(Interrupted):
        first.train()
    assert trained(config, resume=True)["peak_memory_bytes"] == more_than_here

    told = config.folder / "summary.json"
    told.write_text(json.dumps(json.loads(told.read_text()) | {"peak_memory_bytes": 2 * more_than_here}))
    assert trained(config, resume=True)["peak_memory_bytes"] == 2 * more_than_here


def test_early_stopping_counts_on_after_a_resume(tmp_path: Path) -> None:
    config = overfitting(tmp_path, "training.steps=50", "training.early_stopping=3")
    with pytest.raises(Interrupted):
        trained(config, stream=stop_after(3))
    summary = trained(config, resume=True)
    assert summary["steps"] == checkpoint.load(config.folder / "best").step + 3


# ---- failures


@contextlib.contextmanager
def disk_as_it_was() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def full_disk(size: int) -> None:
    """Let every write beyond `size` bytes of a file fail from now on."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


# The limits stop metrics.jsonl, and the training state of the next checkpoint.
@pytest.mark.parametrize("size", [50, 5000])
def test_a_full_disk_fails_in_one_line_and_the_run_goes_on_later(
    tmp_path: Path, finished: RunConfig, size: int
) -> None:
    config = config_in(tmp_path, "full", "checkpoint.interval=2")
    with disk_as_it_was(), pytest.raises(RunFailed) as error:
        trained(config, stream=AfterStep(5, lambda: full_disk(size)))
    assert "File too large" in one_line(error)
    assert "intact" in str(error.value)
    assert "--resume" in str(error.value)
    assert checkpoint.load(config.folder).step == 4
    trained(config, resume=True)
    assert_same(traces(tmp_path / "full"), traces(finished.folder))


def test_a_disk_that_is_full_from_the_start_leaves_an_empty_folder_that_may_be_used(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    trainer = prepare(config, stream=io.StringIO())
    with disk_as_it_was():
        full_disk(size=1000)
        with pytest.raises(RunFailed, match="cannot be written: File too large") as error:
            trainer.train()
    assert "there is no earlier one" in one_line(error)
    assert os.listdir(config.folder) == []
    assert trained(config)["steps"] == STEPS


DIVERGING = ["sparsity.method=static", "training.grad_clip=null", "checkpoint.interval=1"]
LOST_AT_ONCE = [*DIVERGING, "training.optimizer=adam", "training.learning_rate=1e38"]


def test_a_loss_that_is_no_number_fails_in_one_line_and_the_last_checkpoint_loads(tmp_path: Path) -> None:
    config = config_in(tmp_path, "run", *DIVERGING, "training.optimizer=sgd", "training.learning_rate=1e30")
    with pytest.raises(
        RunFailed, match=r"step \d, symbols .*lower training.learning_rate or .*grad_clip in a new run"
    ) as error:
        trained(config)
    assert one_line(error).endswith("; the last checkpoint is intact")
    restored = restore(config.folder, CPU)
    assert restored.step >= 1
    assert all(parameter.isfinite().all() for parameter in restored.model.parameters())
    assert not (config.folder / "summary.json").exists()


def test_a_model_that_is_lost_is_never_saved_as_the_last_one(tmp_path: Path) -> None:
    config = config_in(tmp_path, "run", *LOST_AT_ONCE)
    with pytest.raises(RunFailed, match="step 1: parameters are infinite or not numbers") as error:
        trained(config)
    assert one_line(error).endswith("; the last checkpoint is intact")
    assert checkpoint.load(config.folder).step == 0


def test_a_validation_that_is_no_number_fails_too(tmp_path: Path) -> None:
    config = config_in(tmp_path, "run", *LOST_AT_ONCE, "evaluation.interval=1")
    with pytest.raises(RunFailed, match=r"step 1: validation costs (nan|inf) bits per character; lower") as error:
        trained(config)
    one_line(error)
    assert not (config.folder / "best").exists()


@pytest.mark.parametrize("resume", [False, True])
def test_to_prepare_a_run_changes_nothing_on_the_disk(tmp_path: Path, resume: bool) -> None:
    config = config_in(tmp_path)
    if resume:
        with pytest.raises(Interrupted):
            trained(config, stream=stop_after(2))
    before = {path: path.stat().st_mtime_ns for path in config.folder.rglob("*")}
    assert prepare(config, resume=resume).step == (2 if resume else 0)
    assert {path: path.stat().st_mtime_ns for path in config.folder.rglob("*")} == before
    assert config.folder.exists() == resume


def test_an_existing_run_is_refused_and_untouched(finished: RunConfig) -> None:
    before = {path: path.read_bytes() for path in finished.folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="exists already and nothing is overwritten"):
        prepare(finished)
    assert {path: path.read_bytes() for path in finished.folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_where_another_trains_is_refused(tmp_path: Path, resume: bool) -> None:
    config = config_in(tmp_path)
    if resume:
        with pytest.raises(Interrupted):
            trained(config, stream=stop_after(2))
    late = prepare(config, resume=resume, stream=io.StringIO())
    config.folder.mkdir(exist_ok=True)
    with lock.held(config.folder):
        for use in (late.train, lambda: prepare(config, resume=resume)):
            with pytest.raises(UserError, match=rf"process {os.getpid()} on .* trains in this run\.dir"):
                use()
    late.train()
    assert traces(config.folder)["summary"]["steps"] == STEPS


@pytest.mark.parametrize(("resume", "reason"), [(False, "nothing is overwritten"), (True, "has trained in this")])
def test_who_looked_before_another_trained_here_is_refused(tmp_path: Path, resume: bool, reason: str) -> None:
    config = config_in(tmp_path)
    if resume:
        with pytest.raises(Interrupted):
            trained(config, stream=stop_after(2))
    late = prepare(config, resume=resume, stream=io.StringIO())
    trained(config, resume=resume)
    before = traces(config.folder)
    with pytest.raises(UserError, match=reason):
        late.train()
    assert traces(config.folder) == before


def test_a_run_with_other_settings_is_not_resumed(finished: RunConfig) -> None:
    with pytest.raises(UserError, match=r"training\.accumulate: the run to resume has 2, not 3"):
        prepare(config_in(finished.folder.parent, "run", "training.accumulate=3"), resume=True)


@pytest.mark.parametrize("change", ["longer", "shorter", "other"])
def test_a_run_is_not_resumed_on_another_text(tmp_path: Path, change: str) -> None:
    config = config_in(tmp_path)
    with pytest.raises(Interrupted):
        trained(config, stream=stop_after(2))
    text = {"longer": TEXT + "!", "shorter": TEXT[:-1], "other": TEXT.replace("fox", "cat")}[change]
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"data\.path: this is not the text that the run was trained on") as error:
        prepare(config, resume=True)
    one_line(error)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    assert trained(config, resume=True)["steps"] == STEPS


def test_a_run_and_its_text_may_move(tmp_path: Path, finished: RunConfig) -> None:
    with pytest.raises(Interrupted):
        trained(config_in(tmp_path, "moving"), stream=stop_after(3))
    shutil.move(tmp_path / "moving", tmp_path / "moved")
    shutil.copy(tmp_path / "text.txt", tmp_path / "copy.txt")
    moved = [f"data.path={tmp_path / 'copy.txt'}", f"data.cache={tmp_path / 'other'}"]
    trained(config_in(tmp_path, "moved", *moved), resume=True)
    assert_same(traces(tmp_path / "moved"), traces(finished.folder))


@pytest.mark.parametrize("state", [{}, {"corpus": 1}, "emptied", "other optimizer", "other sparsifier", "other method"])
def test_a_foreign_training_state_is_refused_in_one_line(tmp_path: Path, finished: RunConfig, state: Any) -> None:
    config = copied(finished, tmp_path)
    last = config.folder / "last"
    if isinstance(state, str):
        genuine = torch.load(last / "training_state.pt", weights_only=True)
        foreign: dict[str, Any] = {
            "emptied": {"generators": {}},
            "other optimizer": {"optimizer": {"state": {}, "param_groups": []}},
            "other sparsifier": {"sparsifier": {"method": {"average": {}}}},
            "other method": {
                "sparsifier": genuine["sparsifier"] | {"method": {"average": {"embedding": torch.ones(1)}}}
            },
        }[state]
        state = genuine | foreign
    torch.save(state, last / "training_state.pt")
    (last / "manifest.json").unlink()
    manifest.write(last, STEPS)
    with pytest.raises(UserError, match=r"does not fit this run|not the text") as error:
        prepare(config, resume=True)
    one_line(error)


@pytest.mark.parametrize("name", ["rnn.0.input", "not a weight"])
def test_what_a_method_remembers_must_fit_its_weights_and_fill_its_memory(tmp_path: Path, name: str) -> None:
    config = config_in(tmp_path, "run", "sparsity.method=snfs", "model.execution=masked")
    trained(config)
    last = config.folder / "last"
    state = torch.load(last / "training_state.pt", weights_only=True)
    state["sparsifier"]["method"]["average"][name] = torch.zeros(1).expand(1 << 40, 1)
    torch.save(state, last / "training_state.pt")
    (last / "manifest.json").unlink()
    manifest.write(last, STEPS)
    with pytest.raises(UserError, match="does not fit this run"):
        prepare(config, resume=True)


def test_a_text_that_is_too_short_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the training text has .* symbols and must have at least 100001"):
        prepare(config_in(tmp_path, "run", "training.sequence_length=100000"))
    (tmp_path / "text.txt").write_text("short")
    with pytest.raises(UserError, match="too short"):
        prepare(config_in(tmp_path))
    assert not (tmp_path / "run").exists()


def test_a_run_reads_the_first_symbols_of_its_training_text_only_if_told(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    corpus = load_corpus(config_in(tmp_path).data)
    size = len(corpus.train.tokens)
    trainer = prepare(config_in(tmp_path, "run", "data.limit=31"))
    batches = [trainer.learner.next_batch()[0].T.tolist() for _ in range(7)]
    starts = [0, 10, 20]
    wanted = [[corpus.train.tokens[(start + i) % 31] for i in range(35)] for start in starts]
    assert [[symbol for batch in batches for symbol in batch[lane]] for lane in range(3)] == wanted
    for name in ("validation", "test"):
        assert (getattr(trainer.corpus, name).tokens == getattr(corpus, name).tokens).all()
    assert trainer.corpus.identity == corpus.identity
    assert any("; the first 31 symbols of train" in line for line in banner(trainer))
    whole = prepare(config_in(tmp_path, "run", f"data.limit={size}"))
    assert len(whole.corpus.train.tokens) == size
    with pytest.raises(UserError, match=rf"data\.limit: {size + 1}: the training text has {size} symbols") as error:
        prepare(config_in(tmp_path, "run", f"data.limit={size + 1}"))
    one_line(error)
    with pytest.raises(UserError, match=r"has 5 symbols and must have at least 6 .*a larger data\.limit") as error:
        prepare(config_in(tmp_path, "run", "data.limit=5"))
    one_line(error)
    assert not (tmp_path / "run").exists()


def test_a_run_with_another_limit_is_another_run_and_is_measured_as_any(tmp_path: Path) -> None:
    config = config_in(tmp_path, "run", "data.limit=40")
    trained(config)
    for limit in (41, None):
        with pytest.raises(UserError, match=r"data\.limit: the run to resume has 40, not"):
            prepare(config_in(tmp_path, "run", f"data.limit={json.dumps(limit)}"), resume=True)
        rewound = [f"start.rewind={config.folder}", f"data.limit={json.dumps(limit)}", "training.steps=9"]
        with pytest.raises(UserError, match=r"was trained with data\.limit=40"):
            prepare(config_in(tmp_path, "rewound", *rewound))
    (run,) = read_runs([config.folder])[0]
    assert run.settings()["data.limit"] == 40
    restored = restore(config.folder, CPU)
    assert len(own_text(restored, "test").text.tokens) == len(load_corpus(config.data).test.tokens)
    (tmp_path / "tiny.txt").write_text("it is short\n" * 3)
    assert other_text(restored, str(tmp_path / "tiny.txt"), "test").text.bytes


def test_a_validation_text_without_characters_to_score_is_found_before_training(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a" * 90 + "é" * 6)  # in bytes: é is cut off from the rest of nothing
    config = config_in(tmp_path, "run", "data.tokenizer=byte", "training.sequence_length=9")
    summary = trained(config)
    assert math.isfinite(summary["bits_per_character"])


def test_a_failed_dry_run_leaves_a_folder_that_may_be_used_again(tmp_path: Path) -> None:
    settings = ["logging.pictures=5", "logging.sample_prompt=XY"]
    with pytest.raises(UserError, match=r"^logging\.sample_prompt: .*'X', 'Y'.*data\.tokenizer=byte") as error:
        trained(config_in(tmp_path, "run", "logging.tensorboard=true", *settings))
    one_line(error)
    assert os.listdir(tmp_path / "run") == []
    assert trained(config_in(tmp_path))["steps"] == STEPS
    assert trained(config_in(tmp_path, "untold", *settings))["steps"] == STEPS, "nobody would see a sample"


def test_a_precision_that_only_cuda_has_is_refused_without_it(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("here it trains")
    for precision in ("bf16", "fp16", "tf32"):
        with pytest.raises(UserError, match=rf"training\.precision: {precision} needs a CUDA device"):
            prepare(config_in(tmp_path, "run", f"training.precision={precision}"))
    with pytest.raises(UserError, match="device cuda: PyTorch finds none on this machine"):
        prepare(config_in(tmp_path, "run", "training.device=cuda"))


def test_with_everything_dense_by_name_the_density_is_one(tmp_path: Path) -> None:
    config = config_in(tmp_path, "run", 'sparsity.dense=["*"]')
    summary = trained(config)
    assert (summary["connections"], summary["positions"], summary["sparsity"]) == (0, 0, 0)
    assert {line["density"] for line in metrics(config.folder)} == {1.0}


def test_connections_are_recorded_at_the_start_at_evaluations_and_with_pictures(tmp_path: Path) -> None:
    config = config_in(tmp_path, "run", "training.steps=7", "evaluation.interval=4", "logging.pictures=3")
    trained(config)
    lines = [json.loads(line) for line in (config.folder / "connectivity.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 3, 4, 6, 7]


# ---- lanes that forget


def states_before_steps(config: RunConfig) -> list[tuple[Any, Any]]:
    """At each step, the state [L, S, B, H] that the step before has left, and the one that the step begins with."""
    learner = prepare(config, stream=io.StringIO()).learner
    pairs = []
    for _ in range(STEPS):
        left = learner.state
        learner.take_step()
        pairs.append((left, learner._states_before[0]))
    return pairs


def test_lanes_begin_with_zeros_as_often_as_asked_and_otherwise_go_on(tmp_path: Path) -> None:
    forgot = []
    for seed in range(8):
        settings = ["training.reset_probability=0.25", f"run.seed={seed}"]
        for left, begun in states_before_steps(config_in(tmp_path, "run", *settings))[1:]:
            zeros = (begun == 0).all(dim=(0, 1, 3))
            assert torch.equal(begun[:, :, ~zeros], left[:, :, ~zeros])
            forgot.append(zeros)
    share = torch.stack(forgot).double().mean(0)  # of each lane, over 48 steps
    assert ((share > 0.05) & (share < 0.5)).all()
    assert len({tuple(zeros.tolist()) for zeros in forgot}) > 4


@pytest.mark.parametrize(("probability", "all_zero"), [(0.0, False), (1.0, True)])
def test_all_lanes_or_none_forget_at_the_ends_of_the_range(tmp_path: Path, probability: float, all_zero: bool) -> None:
    pairs = states_before_steps(config_in(tmp_path, "run", f"training.reset_probability={probability}"))
    assert all(bool((begun == 0).all()) == all_zero for _, begun in pairs[1:])


def test_a_teacher_forgets_with_the_lanes_that_it_teaches(tmp_path: Path) -> None:
    trained(config_in(tmp_path, "teacher"))
    settings = [f"training.teacher={tmp_path / 'teacher'}", "training.reset_probability=0.5"]
    learner = prepare(config_in(tmp_path, "run", *settings), stream=io.StringIO()).learner
    for _ in range(STEPS):
        learner.take_step()
    learner.begin_step()
    own, taught = learner._states()
    assert taught is not None
    assert torch.equal((own == 0).all(dim=(0, 1, 3)), (taught == 0).all(dim=(0, 1, 3)))


def test_a_run_whose_lanes_forget_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    settings = ["training.reset_probability=0.5"]
    trained(config_in(tmp_path, "undisturbed", *settings))
    config = config_in(tmp_path, "stopped", *settings)
    with pytest.raises(Interrupted):
        trained(config, stream=stop_after(3))
    trained(config, resume=True)
    assert_same(traces(tmp_path / "stopped"), traces(tmp_path / "undisturbed"))


# ---- what connections cost that move from group to group

SHIFTING = ["sparsity.redistribute=weight", "sparsity.distribution=uniform", "sparsity.interval=2", "sparsity.stop=0.6"]


def forward_at(config: RunConfig, step: int) -> int:
    return forward_flops(restore(config.folder / f"step_{step}", CPU).model).sparse


def test_snip_that_moves_connections_to_other_groups_costs_what_they_cost_there(tmp_path: Path) -> None:
    settings = ["sparsity.method=snip", "sparsity.scope=global", "sparsity.distribution=uniform", "checkpoint.keep=[0]"]
    config = config_in(tmp_path, "run", *settings)
    summary = trained(config)
    mean = (forward_at(config, 0) + (STEPS - 1) * summary["flops_per_character"]) / STEPS
    assert summary["training_flops"] / summary["characters_seen"] == pytest.approx(3 * mean, rel=2e-3)
    assert summary["training_flops"] != pytest.approx(flops_of(config), rel=2e-3), "else nothing moved that matters"


def test_redistributed_connections_cost_what_they_cost_where_they_are(tmp_path: Path) -> None:
    keep = f"checkpoint.keep={list(range(STEPS))}"
    config = config_in(tmp_path, "run", "sparsity.method=set", *SHIFTING, keep)
    summary = trained(config)
    mean = sum(forward_at(config, step) for step in range(STEPS)) / STEPS
    assert summary["training_flops"] / summary["characters_seen"] == pytest.approx(3 * mean, rel=2e-3)
    assert summary["training_flops"] != pytest.approx(flops_of(config), rel=2e-3), "else nothing moved that matters"


def test_a_stopped_run_goes_on_counting_what_connections_cost(tmp_path: Path) -> None:
    settings = ["sparsity.method=set", *SHIFTING]
    expected = trained(config_in(tmp_path, "whole", *settings))["training_flops"]
    config = config_in(tmp_path, "run", *settings)
    train_in_pieces(config)
    assert json.loads((config.folder / "summary.json").read_text())["training_flops"] == expected


def test_a_run_rewound_with_another_method_costs_what_its_own_steps_cost(tmp_path: Path) -> None:
    source = config_in(tmp_path, "source", "sparsity.method=static", *SHIFTING[1:2], f"checkpoint.keep=[{STEPS - 1}]")
    trained(source)
    settings = ["sparsity.method=set", *SHIFTING, f"start.rewind={source.folder / f'step_{STEPS - 1}'}"]
    summary = trained(config_in(tmp_path, "rewound", *settings))
    assert summary["training_flops"] == pytest.approx(trained(source, resume=True)["training_flops"])


def test_damaged_counts_are_a_user_error_of_inspect(tmp_path: Path) -> None:
    config = config_in(tmp_path, "run", "sparsity.method=set", *SHIFTING)
    trained(config)
    restored = restore(config.folder, CPU)
    assert counted_in(restored.saved, config, restored.budgets)
    with pytest.raises(UserError, match="does not fit this run"):
        counted_in(restored.saved, config, restored.budgets[1:])
