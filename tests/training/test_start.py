"""Runs that start from other runs."""

from __future__ import annotations

import io
import json
import os
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rnnsparse.cli import main
from rnnsparse.config import RunConfig
from rnnsparse.errors import UserError
from rnnsparse.nn.language_model import CharLM
from rnnsparse.storage import checkpoint
from rnnsparse.training.banner import banner
from rnnsparse.training.build import restore, vocabulary_size
from rnnsparse.training.run.interrupts import Interrupted
from rnnsparse.training.step.optim import learning_rate
from rnnsparse.training.train import prepare
from rnnsparse.training.trainer import Trainer
from tests.training.test_trainer import (
    STEPS,
    assert_same,
    bits,
    config_in,
    metrics,
    one_line,
    stop_after,
    traces,
    trained,
    without_times,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dense run and two static ones, all with checkpoints of some steps."""
    folder = tmp_path_factory.mktemp("others")
    keep = "checkpoint.keep=[0, 3, 7]"
    trained(config_in(folder, "dense", "sparsity.method=dense", keep))
    trained(config_in(folder, "static", "sparsity.method=static", "sparsity.sparsity=0.7", "run.seed=1", keep))
    trained(config_in(folder, "other", "sparsity.method=static", "sparsity.sparsity=0.7", "run.seed=2"))
    return folder


def started(tmp_path: Path, others: Path, run: str, *overrides: str, **start: str) -> RunConfig:
    """A run in `tmp_path` that starts from checkpoints in `others`."""
    paths = [f"start.{key}={others / path}" for key, path in start.items()]
    return config_in(tmp_path, run, *paths, *overrides)


def topology(model: CharLM) -> dict[str, list[int]]:
    return {name: weight.indices.tolist() for name, weight in model.sparse_weights().items()}


def by_position(model: CharLM, numbers: dict[str, Tensor]) -> dict[str, dict[int, float]]:
    """Per weight and position, a number that each connection has."""
    return {
        name: dict(zip(weight.indices.tolist(), numbers[name].tolist(), strict=True))
        for name, weight in model.sparse_weights().items()
    }


def values(model: CharLM) -> dict[str, dict[int, float]]:
    return by_position(model, {name: weight.values for name, weight in model.sparse_weights().items()})


def biases(model: CharLM) -> list[Any]:
    return [bits(parameter) for name, parameter in model.named_parameters() if "bias" in name]


def moments(model: CharLM, state: dict[int, dict[str, Tensor]], key: str) -> dict[str, dict[int, float]]:
    """Per weight and position, an entry of the optimizer's state."""
    numbers = {id(parameter): number for number, parameter in enumerate(model.parameters())}
    return by_position(
        model, {name: state[numbers[id(weight.values)]][key] for name, weight in model.sparse_weights().items()}
    )


# ---- keep


def test_a_kept_checkpoint_is_what_the_last_one_was_then(tmp_path: Path, others: Path) -> None:
    with pytest.raises(Interrupted):
        trained(config_in(tmp_path, "stopped", "sparsity.method=dense"), stream=stop_after(3))
    kept, last = checkpoint.load(others / "dense" / "step_3"), checkpoint.load(tmp_path / "stopped")
    assert kept.step == last.step == 3
    assert kept.weights_sha256 == last.weights_sha256
    assert bits(without_times(kept.training_state())) == bits(without_times(last.training_state()))


def test_only_the_wanted_steps_are_kept_and_the_first_is_before_training(others: Path) -> None:
    assert sorted(path.name for path in (others / "dense").glob("step_*")) == ["step_0", "step_3", "step_7"]
    state = checkpoint.load(others / "dense" / "step_0").training_state()
    assert (state["step"], state["optimizer"]["state"], state["lanes"]) == (0, {}, {"position": 0})
    assert not (others / "other").joinpath("step_0").exists()


def test_a_step_that_never_comes_is_told(tmp_path: Path) -> None:
    assert "checkpoint.keep has no effect" in str(config_in(tmp_path, "run", "checkpoint.keep=[8]").warnings)
    assert not config_in(tmp_path, "run", "checkpoint.keep=[0, 7]").warnings


# ---- rewinding


AVERAGING = [
    "training.optimizer=sntasgd",
    "training.learning_rate=8",
    "training.nonmonotone=1",
    "evaluation.interval=1",
]


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [
        *product(["dense", "static"], [[], ["training.connection_steps=true"], AVERAGING]),
        *product(["set", "rigl", "snfs", "scout"], [["sparsity.interval=3"]]),
    ],
)
def test_a_run_rewound_with_all_its_connections_ends_as_it_did(
    tmp_path: Path, method: str, optimizer: list[str]
) -> None:
    settings = [f"sparsity.method={method}", *optimizer]
    trained(config_in(tmp_path, "source", *settings, "checkpoint.keep=[5]"))
    source = checkpoint.load(tmp_path / "source" / "step_5").training_state()["optimizer"]
    assert source.get("averaging", True), "else averages are not tested"
    config = started(tmp_path, tmp_path, "again", *settings, rewind="source/step_5")
    trained(config)
    assert checkpoint.load(config.folder).weights_sha256 == checkpoint.load(tmp_path / "source").weights_sha256
    lines = without_times([line for line in metrics(tmp_path / "source") if line["step"] > 5])
    assert without_times(metrics(config.folder)) == lines


def test_a_rewound_run_goes_on_with_its_teacher_and_with_what_it_has_counted(tmp_path: Path, others: Path) -> None:
    teacher = [f"training.teacher={others / 'dense'}", "training.teacher_weight=0.5"]
    settings = ["sparsity.method=set", "sparsity.redistribute=weight", "sparsity.interval=2", *teacher]
    expected = trained(config_in(tmp_path, "source", *settings, "checkpoint.keep=[5]"))
    config = started(tmp_path, tmp_path, "again", *settings, rewind="source/step_5")
    found = trained(config)
    assert checkpoint.load(config.folder).weights_sha256 == checkpoint.load(tmp_path / "source").weights_sha256
    assert found["training_flops"] == expected["training_flops"]

    another = f"training.teacher={others / 'static'}"  # what it remembers is nothing of the first one's
    config = started(tmp_path, tmp_path, "other", *settings, another, rewind="source/step_5")
    teacher_state = prepare(config, stream=io.StringIO()).state_dict()["teacher"]["recurrent_state"]
    assert not teacher_state.any()


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("step", [0, 3])
def test_a_rewound_run_has_all_of_the_checkpoint_but_the_connections_that_went(
    tmp_path: Path, others: Path, optimizer: str, step: int
) -> None:
    trained(
        config_in(
            tmp_path, "source", "sparsity.method=dense", f"training.optimizer={optimizer}", "checkpoint.keep=[0,3]"
        )
    )
    ticket = others / "static"
    settings = ["sparsity.method=static", f"training.optimizer={optimizer}", "run.seed=9"]
    config = started(tmp_path, tmp_path, "run", *settings, topology=str(ticket), rewind=f"source/step_{step}")
    trainer = prepare(config, stream=io.StringIO())

    source, state = (
        restore(tmp_path / "source" / f"step_{step}", CPU),
        checkpoint.load(tmp_path / "source" / f"step_{step}").training_state(),
    )
    connections = topology(restore(ticket, CPU).model)
    assert topology(trainer.model) == connections

    def survivors(all_of_them: dict[str, dict[int, float]]) -> dict[str, dict[int, float]]:
        return {name: {p: entries[p] for p in connections[name]} for name, entries in all_of_them.items()}

    assert values(trainer.model) == survivors(values(source.model))
    assert biases(trainer.model) == biases(source.model)
    found, saved = trainer.learner.optimizer.state_dict()["state"], state["optimizer"]["state"]
    assert found.keys() == saved.keys()
    for key in next(iter(saved.values()), {}):
        if key == "step":
            assert {float(entry["step"]) for entry in found.values()} == {float(step)}
        else:
            assert moments(trainer.model, found, key) == survivors(moments(source.model, saved, key))
    assert bool(saved) == (step > 0)

    rewound = trainer.state_dict()
    for key in ("step", "lanes", "recurrent_state", "generators", "characters_seen"):
        assert bits(rewound[key]) == bits(state[key]), key
    assert (rewound["step"], rewound["best"], rewound["sparsifier"]["updates"]) == (step, None, 0)
    trainer.train()
    (first, *_) = metrics(config.folder)
    assert first["step"] == step + 1
    assert first["learning_rate"] == learning_rate(config.training, step)
    assert json.loads((config.folder / "summary.json").read_text())["steps"] == STEPS


def test_a_run_that_is_rewound_into_a_window_watches_for_the_rest_of_it(tmp_path: Path, others: Path) -> None:
    settings = ["sparsity.method=scout", "sparsity.interval=5", "sparsity.stop=1"]
    trained(started(tmp_path, others, "run", *settings, rewind="static/step_3"))
    assert max(line["moved"] for line in metrics(tmp_path / "run")) > 0


@pytest.mark.parametrize(
    "method", [["snip"], ["low_rank"], ["prune", "sparsity.stop=0.4"], ["granet", "sparsity.stop=0.4"]]
)
def test_a_run_rewound_past_all_that_would_prune_it_is_refused(tmp_path: Path, others: Path, method: list[str]) -> None:
    config = started(tmp_path, others, "run", f"sparsity.method={method[0]}", *method[1:], rewind="dense/step_3")
    with pytest.raises(UserError, match=r"step_3: was saved after step 3, when all updates of method .* are past"):
        prepare(config)


def test_the_optimizer_of_a_rewound_run_has_the_settings_of_the_new_one(tmp_path: Path, others: Path) -> None:
    config = started(
        tmp_path, others, "run", "training.weight_decay=0.25", "sparsity.method=dense", rewind="dense/step_3"
    )
    trainer = prepare(config, stream=io.StringIO())
    assert [group["weight_decay"] for group in trainer.learner.optimizer.param_groups] == [0.25]


# ---- topology, weights


@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_a_given_topology_takes_the_place_of_a_random_one_and_decides_the_budgets(
    tmp_path: Path, others: Path, execution: str
) -> None:
    config = started(
        tmp_path, others, "run", "sparsity.method=static", f"model.execution={execution}", topology="static"
    )
    trainer = prepare(config, stream=io.StringIO())
    source = restore(others / "static", CPU)
    assert topology(trainer.model) == topology(source.model)
    assert [b.connections for b in trainer.learner.sparsifier.budgets] == [b.connections for b in source.budgets]
    drawn = source.model
    drawn.reset_parameters(config.run.seed)
    assert values(trainer.model) == values(drawn)
    assert biases(trainer.model) == biases(drawn)
    summary = trainer.train()
    assert summary["sparsity"] == pytest.approx(0.7, abs=0.01)
    assert topology(restore(config.folder, CPU).model) == topology(source.model)


def test_given_weights_are_taken_with_their_connections_and_nothing_else(tmp_path: Path, others: Path) -> None:
    trainer = prepare(started(tmp_path, others, "run", weights="static"), stream=io.StringIO())
    source = restore(others / "static", CPU)
    assert values(trainer.model) == values(source.model)
    assert biases(trainer.model) == biases(source.model)
    assert (trainer.step, trainer.learner.lanes.position, trainer.learner.optimizer.state_dict()["state"]) == (0, 0, {})


def test_given_weights_may_be_restricted_to_a_topology(tmp_path: Path, others: Path) -> None:
    config = started(tmp_path, others, "run", "sparsity.method=static", topology="static", weights="dense/best")
    trainer = prepare(config, stream=io.StringIO())
    all_values = values(restore(others / "dense" / "best", CPU).model)
    expected = {
        name: {p: all_values[name][p] for p in positions}
        for name, positions in topology(restore(others / "static", CPU).model).items()
    }
    assert values(trainer.model) == expected


@pytest.mark.parametrize("method", ["rigl", "prune", "dense"])
def test_connections_are_added_to_given_weights_without_a_change_of_what_is_computed(
    tmp_path: Path, others: Path, method: str
) -> None:
    settings = [f"sparsity.method={method}", "sparsity.sparsity=0.4", "start.add=true"]
    trainer = prepare(started(tmp_path, others, "run", *settings, weights="static"), stream=io.StringIO())
    source = restore(others / "static", CPU)
    budgets = trainer.learner.sparsifier.budgets
    first = {budget.group.name: trainer.config.method.initial_connections(budget) for budget in budgets}
    assert {budget.group.name: budget.group.connections for budget in budgets} == first
    assert sum(first.values()) > sum(budget.group.connections for budget in source.budgets)
    for name, before in values(source.model).items():
        after = values(trainer.model)[name]
        assert {position: after[position] for position in before} == before
        assert all(after[position] == 0 for position in after.keys() - before.keys())
    assert biases(trainer.model) == biases(source.model)
    tokens = torch.arange(10).view(5, 2)
    with torch.no_grad():  # without dropout
        for ours, theirs in zip(trainer.model.eval()(tokens), source.model.eval()(tokens), strict=True):
            torch.testing.assert_close(ours, theirs)
    trainer.model.train()
    trainer.train()
    after = restore(trainer.config.folder, CPU)
    assert [b.group.connections for b in after.budgets] == [b.connections for b in after.budgets]


def test_added_connections_follow_the_seed(tmp_path: Path, others: Path) -> None:
    settings = ["sparsity.sparsity=0.4", "start.add=true"]
    found = [
        topology(prepare(started(tmp_path, others, run, *settings, f"run.seed={seed}", weights="static")).model)
        for run, seed in [("a", 1), ("b", 1), ("c", 2)]
    ]
    assert found[0] == found[1] != found[2]


def test_rigl_goes_on_from_the_solution_of_a_static_run(tmp_path: Path, others: Path) -> None:
    trained(started(tmp_path, others, "undisturbed", weights="static"))
    shutil.copytree(others / "static", tmp_path / "static")
    config = started(tmp_path, tmp_path, "stopped", weights="static")
    for step in range(1, STEPS):
        with pytest.raises(Interrupted):
            trained(config, resume=step > 1, stream=stop_after(step))
        shutil.rmtree(tmp_path / "static", ignore_errors=True)  # a resumed run needs it no more
    trained(config, resume=True)
    assert_same(traces(tmp_path / "stopped"), traces(tmp_path / "undisturbed"))

    before, after = restore(others / "static", CPU), restore(config.folder, CPU)
    assert [b.connections for b in after.budgets] == [b.connections for b in before.budgets]
    assert [b.group.connections for b in after.budgets] == [b.connections for b in before.budgets]
    assert topology(after.model) != topology(before.model)
    assert max(line["moved"] for line in metrics(config.folder)) > 0


def test_a_resumed_run_counts_the_connections_that_it_began_with_wherever_they_are_now(
    tmp_path: Path, others: Path
) -> None:
    settings = ["sparsity.method=set", "sparsity.redistribute=weight", "sparsity.interval=2", "sparsity.stop=1"]
    expected = trained(started(tmp_path, others, "undisturbed", *settings, weights="static"))
    config = started(tmp_path, others, "stopped", *settings, weights="static")
    with pytest.raises(Interrupted):
        trained(config, stream=stop_after(5))
    before, now = restore(others / "static", CPU), restore(config.folder, CPU)
    assert [b.group.connections for b in now.budgets] != [b.group.connections for b in before.budgets]
    assert without_times([trained(config, resume=True)]) == without_times([expected])


def test_a_resumed_run_prunes_from_the_connections_that_it_began_with(tmp_path: Path, others: Path) -> None:
    even = ["sparsity.distribution=uniform", "sparsity.sparsity=0.5"]
    trained(config_in(tmp_path, "even", "sparsity.method=static", *even))
    granet = ["sparsity.method=granet", "sparsity.initial_sparsity=0.5", "sparsity.redistribute=weight"]
    settings = [*even, *granet, "sparsity.interval=2", "sparsity.stop=1"]
    trained(started(tmp_path, tmp_path, "undisturbed", *settings, weights="even"))
    config = started(tmp_path, tmp_path, "stopped", *settings, weights="even")
    with pytest.raises(Interrupted):
        trained(config, stream=stop_after(3))
    trained(config, resume=True)
    assert_same(traces(tmp_path / "stopped"), traces(tmp_path / "undisturbed"))


def test_pruning_begins_with_a_trained_dense_model_and_ends_with_its_own_budgets(tmp_path: Path, others: Path) -> None:
    settings = ["sparsity.method=prune", "sparsity.sparsity=0.8", "sparsity.interval=2"]
    config = started(tmp_path, others, "run", *settings, weights="dense")
    trainer = prepare(config, stream=io.StringIO())
    assert all(weight.is_full for weight in trainer.model.sparse_weights().values())
    assert trainer.train()["sparsity"] == pytest.approx(0.8, abs=0.01)
    after = restore(config.folder, CPU)
    assert [b.group.connections for b in after.budgets] == [b.connections for b in after.budgets]


@pytest.mark.parametrize(("source", "execution"), [("static", "sparse"), ("dense", "masked")])
def test_execution_follows_the_connections_that_were_given(
    tmp_path: Path, others: Path, source: str, execution: str
) -> None:
    config = started(tmp_path, others, "run", "sparsity.method=static", weights=source)
    trainer = prepare(config, stream=io.StringIO())
    assert trainer.model.execution == execution
    lines = banner(trainer)
    assert any(line.startswith(f"execution   {execution}: ") for line in lines)
    assert f"start       weights of {others / source}" in lines
    trainer.train()
    assert prepare(config, resume=True).model.execution == restore(config.folder, CPU).model.execution == execution


def test_inspect_counts_the_given_connections(tmp_path: Path, others: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = started(tmp_path, others, "run", topology="static")
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    reports = []
    for target in (tmp_path / "c.yaml", others / "static"):
        assert main(["inspect", str(target), "--json"]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert reports[0]["blocks"] == reports[1]["blocks"]
    assert reports[0]["connections"] == reports[1]["connections"]


# ---- another text


NEW_TEXT = "the Fox jumps over the läzy dog, and the Quick brown fox over the läzy one\n" * 30


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """The folder of a run on a text with characters that the others have not."""
    (tmp_path / "text.txt").write_text(NEW_TEXT, encoding="utf-8")
    return tmp_path


def test_another_text_is_told_from_another_model_with_the_way_out(elsewhere: Path, others: Path) -> None:
    for key in ("weights", "topology"):
        way_out = rf"on this one: data\.vocabulary={others / 'static'}$"
        message = (
            rf"^start\.{key}: .*: its \d+ symbols are the characters of another text than this run's \d+; .*{way_out}"
        )
        with pytest.raises(UserError, match=message) as error:
            prepare(started(elsewhere, others, "run", **{key: "static"}))
        one_line(error)
    with pytest.raises(UserError, match=r"^start\.rewind: .* on the same text, with the same data\.vocabulary$"):
        prepare(started(elsewhere, others, "run", rewind="static/step_3"))


@pytest.mark.parametrize("where", ["static", "static/best", "static/best/tokenizer.json"])
def test_a_model_goes_on_with_its_vocabulary_on_another_text(elsewhere: Path, others: Path, where: str) -> None:
    vocabulary = f"data.vocabulary={others / where}"
    config = started(elsewhere, others, "run", "sparsity.method=static", vocabulary, weights="static")
    stream = io.StringIO()
    trainer, other = prepare(config, stream=stream), restore(others / "static", CPU)
    assert trainer.corpus.tokenizer == other.tokenizer
    assert values(trainer.model) == values(other.model)
    train, validation = (
        f"{sum(character in 'FäQ' for character in text)} of {len(text):,} characters of the {name} text"
        for name, text in (("training", read(trainer, "train")), ("validation", read(trainer, "validation")))
    )
    told = "\n".join(banner(trainer))
    assert f"chars of {others / where}; a uniform guess" in told
    assert f"\nunknown     {train} and {validation}\n" in told
    trainer.train()
    assert f"warning: data.vocabulary: lacks {train} and {validation}; all" in stream.getvalue()
    assert checkpoint.load(config.folder).tokenizer_json == other.saved.tokenizer_json


def read(trainer: Trainer, part: str) -> str:
    """The text of a part, read anew: characters that have no symbol are none of the tokens."""
    start, stop = {"train": (0, 90), "validation": (90, 95)}[part]
    whole = NEW_TEXT.encode()
    text = whole[len(whole) * start // 100 : len(whole) * stop // 100].decode()
    assert len(getattr(trainer.corpus, part).tokens) == len(text)
    return text


def test_a_run_with_a_vocabulary_of_another_goes_on_without_that_one(elsewhere: Path, others: Path) -> None:
    shutil.copytree(others / "static", elsewhere / "static")
    vocabulary = f"data.vocabulary={elsewhere / 'static'}"
    trained(started(elsewhere, elsewhere, "undisturbed", vocabulary, weights="static"))
    config = started(elsewhere, elsewhere, "run", vocabulary, weights="static")
    with pytest.raises(Interrupted):
        trained(config, stream=stop_after(3))
    shutil.rmtree(elsewhere / "static")
    trained(config, resume=True)
    assert_same(traces(elsewhere / "run"), traces(elsewhere / "undisturbed"))
    with pytest.raises(UserError, match=r"data\.vocabulary: the run to resume has .*, not None"):
        trained(started(elsewhere, elsewhere, "run", weights="static"), resume=True)


def test_a_vocabulary_serves_topologies_and_teachers_too(elsewhere: Path, others: Path) -> None:
    vocabulary, teacher = (f"{key}={others / 'static'}" for key in ("data.vocabulary", "training.teacher"))
    trained(started(elsewhere, others, "run", vocabulary, teacher, topology="static"))
    with pytest.raises(UserError, match=r"training\.teacher: .* with its symbols: data\.vocabulary=.*static$"):
        prepare(config_in(elsewhere, "taught", teacher))


def test_of_a_vocabulary_that_has_all_characters_nothing_is_said(tmp_path: Path, others: Path) -> None:
    stream = io.StringIO()
    trainer = prepare(config_in(tmp_path, "run", f"data.vocabulary={others / 'static'}"), stream=stream)
    trainer.train()
    assert "unknown" not in "\n".join(banner(trainer))
    assert "warning" not in stream.getvalue()


def test_what_is_no_vocabulary_is_refused(tmp_path: Path, others: Path) -> None:
    trained(config_in(tmp_path, "bytes", "data.tokenizer=byte"))
    (tmp_path / "tokenizer.json").write_text("{}")
    for place, message in (
        (
            tmp_path / "nowhere",
            "nowhere: there is no such file or folder; name a run, a checkpoint, or a tokenizer.json",
        ),
        (others, "others.*: holds no tokenizer.json; name a run"),
        (tmp_path / "bytes", "bytes: its symbols are bytes, .*; use data.tokenizer=byte instead"),
        (tmp_path / "tokenizer.json", "tokenizer.json: not a tokenizer "),
        (tmp_path / "text.txt", "text.txt: not a tokenizer "),
    ):
        with pytest.raises(UserError, match=rf"^data\.vocabulary: .*{message}") as error:
            prepare(config_in(tmp_path, "run", f"data.vocabulary={place}"))
        one_line(error)
    warnings = config_in(tmp_path, "run", "data.tokenizer=byte", "data.vocabulary=x").warnings
    assert warnings == ("data.vocabulary has no effect with data.tokenizer=byte",)


def test_the_size_of_a_given_vocabulary_takes_no_text_to_know(elsewhere: Path, others: Path) -> None:
    config = config_in(elsewhere, "run", f"data.vocabulary={others / 'static'}", "data.path=nowhere")
    assert vocabulary_size(config.data) == restore(others / "static", CPU).tokenizer.vocab_size


# ---- what makes no sense


@pytest.mark.parametrize(
    ("start", "overrides", "message"),
    [
        ({"topology": "nowhere"}, [], r"start\.topology: .*nowhere: there is no such folder"),
        ({"weights": "static"}, ["model.hidden_size=7"], r"start\.weights: .*input is 18 x 4, this run's is 21 x 4"),
        ({"weights": "static"}, ["model.cell=lstm"], r"its rnn\.0\.input is 18 x 4, this run's is 24 x 4"),
        ({"weights": "static"}, ["model.num_layers=3"], r"its rnn\.2\.input is missing, this run's is 18 x 6"),
        (
            {"weights": "static"},
            ["model.skip_connections=true"],
            r"its rnn\.1\.input is 18 x 6, this run's is 18 x 10; name a run with the same model",
        ),
        (
            {"weights": "static"},
            ["model.layer_norm=true"],
            r"start\.weights: .*static: was trained with model\.layer_norm=false, this run has true; use the same",
        ),
        ({"weights": "static"}, ["model.num_layers=1"], r"its rnn\.1\.input is 18 x 6, this run's is missing"),
        (
            {"topology": "static"},
            ["data.tokenizer=byte"],
            r"its symbols are chars, this run's are bytes; use the same data\.tokenizer$",
        ),
        ({"topology": "static"}, ["sparsity.method=dense"], r"but method dense begins with 132"),
        ({"weights": "static"}, ["sparsity.method=prune"], r"but method prune begins with 132"),
        (
            {"weights": "static"},
            ["start.add=true", "sparsity.sparsity=0.8"],
            r"start\.add: the other run has \d+ connections in .*, and this one would begin with \d+; use a lower",
        ),
        ({"topology": "static"}, ["sparsity.dense=[output]"], r"connections in output, but sparsity\.dense names it"),
        ({"topology": "other", "weights": "static"}, [], r"start\.topology: .*other: has \d+ conn.*static has not"),
        ({"topology": "other", "rewind": "static/step_3"}, [], r"start\.topology: .*that .*step_3 has not"),
        ({"rewind": "dense/best"}, ["training.steps=8"], r"start\.rewind: .*best: has no training_state\.pt"),
        ({"rewind": "static/step_7"}, [], r"start\.rewind: .*after step 7, and this run ends with training\.steps=7"),
        ({"rewind": "static/step_3"}, ["training.optimizer=sgd"], r"training\.optimizer=adam, this run has sgd"),
        ({"rewind": "static/step_3"}, ["training.batch_size=2"], r"training\.batch_size=3, this run has 2"),
        ({"rewind": "static/step_3"}, ["training.precision=fp64"], r"training\.precision=fp32, this run has fp64"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, others: Path, start: dict[str, str], overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        prepare(started(tmp_path, others, "run", *overrides, **start))
    one_line(error)
    assert not os.path.exists(tmp_path / "run")


def test_connections_are_not_added_to_those_of_another_basis(tmp_path: Path, others: Path) -> None:
    settings = ["sparsity.method=static", "sparsity.basis=dct", "model.execution=masked", "start.add=true"]
    with pytest.raises(
        UserError, match=r"static: its connections are in another basis .* or leave out start\.add"
    ) as e:
        prepare(started(tmp_path, others, "run", *settings, weights="static"))
    one_line(e)


def test_two_sources_of_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"start\.weights: start\.rewind has values of its own") as error:
        config_in(tmp_path, "run", "start.weights=a", "start.rewind=b")
    one_line(error)


@pytest.mark.parametrize("start", [[], ["start.rewind=a"], ["start.weights=a", "start.topology=b"]])
def test_there_must_be_weights_to_add_to(tmp_path: Path, start: list[str]) -> None:
    with pytest.raises(UserError, match=r"start\.add: connections are added to those of start\.weights") as error:
        config_in(tmp_path, "run", *start, "start.add=true")
    one_line(error)


def test_another_alphabet_of_the_same_size_is_refused(tmp_path: Path, others: Path) -> None:
    text = (others / "text.txt").read_text(encoding="utf-8")
    (tmp_path / "text.txt").write_text(text.replace("q", "Q"), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"start\.weights: .*symbols are the characters of another text than this"
    ) as error:
        prepare(started(tmp_path, others, "run", weights="static"))
    one_line(error)


def test_a_run_is_not_rewound_on_another_text(tmp_path: Path, others: Path) -> None:
    text = (others / "text.txt").read_text(encoding="utf-8")
    (tmp_path / "text.txt").write_text(text + "the fox", encoding="utf-8")
    with pytest.raises(UserError, match="this is not the text") as error:
        prepare(started(tmp_path, others, "run", rewind="static/step_3"))
    one_line(error)


def test_a_run_that_started_elsewhere_is_not_resumed_as_one_that_did_not(tmp_path: Path, others: Path) -> None:
    trained(started(tmp_path, others, "run", weights="static"))
    with pytest.raises(UserError, match=r"start\.weights: the run to resume has .*, not None"):
        prepare(config_in(tmp_path, "run"), resume=True)


@pytest.mark.parametrize("key", ["topology", "weights", "rewind"])
def test_another_run_with_other_blocks_is_refused(tmp_path: Path, others: Path, key: str) -> None:
    config = started(
        tmp_path, others, "run", "sparsity.method=static", "sparsity.sparsity=0.7", "sparsity.block_rows=2",
        **{key: "static"},
    )  # fmt: skip
    with pytest.raises(UserError) as error:
        prepare(config)
    assert one_line(error).startswith(f"start.{key}: ")
    assert "its connections in rnn.0.input are of 1 rows, this run's of 2 (sparsity.block_rows)" in one_line(error)


def test_a_ticket_of_blocks_starts_from_a_dense_run_in_blocks(tmp_path: Path) -> None:
    trained(config_in(tmp_path, "dense", "sparsity.method=dense", "sparsity.block_rows=2"))
    prune = ("sparsity.method=snip", "sparsity.block_rows=2", f"start.weights={tmp_path / 'dense'}")
    trained(config_in(tmp_path, "run", *prune))
    dense, sparse = (restore(tmp_path / run, CPU).model.sparse_weights() for run in ("dense", "run"))
    for name, weight in sparse.items():
        assert weight.block_rows == dense[name].block_rows == (2 if name.startswith("rnn") else 1)
        assert (dense[name].is_full, weight.is_full) == (True, False)


def test_a_checkpoint_with_too_few_connections_is_named_by_key_and_place(tmp_path: Path) -> None:
    prune = ["sparsity.method=prune", "sparsity.start=0.1", "sparsity.stop=0.9", "sparsity.interval=2"]
    trained(config_in(tmp_path, "source", *prune, "checkpoint.keep=[1, 5]"))
    trained(started(tmp_path, tmp_path, "early", *prune, rewind="source/step_1"))
    with pytest.raises(UserError, match=rf"^start\.rewind: {tmp_path}/source/step_5: has \d+ of \d+ connections in "):
        trained(started(tmp_path, tmp_path, "late", *prune, rewind="source/step_5"))
