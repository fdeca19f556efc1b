from __future__ import annotations

import dataclasses
import io
import json
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, kl_div

import rnnsparse as rs
from rnnsparse.cli import main
from rnnsparse.config import RunConfig
from rnnsparse.data.batches import Lanes
from rnnsparse.data.corpus import load_corpus
from rnnsparse.errors import UserError
from rnnsparse.nn.initial import draw_connections
from rnnsparse.recipes import ticket_rounds
from rnnsparse.recipes.sweep import Run
from rnnsparse.recipes.sweep_status import status
from rnnsparse.sparsity.methods.kd_ticket import KDTicket
from rnnsparse.sparsity.methods.lottery import Lottery
from rnnsparse.storage import checkpoint
from rnnsparse.training.build import Restored, restore
from rnnsparse.training.run.interrupts import Interrupted
from rnnsparse.training.train import prepare
from tests.training.test_trainer import (
    STEPS,
    SUMMARY_KEYS,
    Killed,
    assert_same,
    config_in,
    metrics,
    one_line,
    traces,
)

CPU = torch.device("cpu")
REWIND = 2  # int(0.3 * STEPS)
LAST = 2  # the number of the last round, with these settings
SETTINGS = ["sparsity.rewind=0.3", "sparsity.prune_share=0.5", "sparsity.sparsity=0.6", "model.dropout=0.1"]


def ticket_config(tmp_path: Path, run: str, method: str = "lottery", *overrides: str) -> RunConfig:
    return config_in(tmp_path, run, f"sparsity.method={method}", *SETTINGS, *overrides)


def trained(config: RunConfig, *, resume: bool = False, stream: io.StringIO | None = None) -> list[str]:
    """Return what it told."""
    told: list[str] = []
    ticket_rounds.train(config, resume=resume, tell=told.append, stream=stream or io.StringIO())
    return told


class Recipe(NamedTuple):
    """One that ran through, and what it told."""

    config: RunConfig
    told: list[str]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recipe]:
    found = {}
    for method in ("lottery", "kd_ticket"):
        config = ticket_config(tmp_path_factory.mktemp(method), "run", method)
        found[method] = Recipe(config, trained(config))
    return found


@pytest.fixture(scope="module", params=["lottery", "kd_ticket"])
def finished(request: pytest.FixtureRequest, recipes: dict[str, Recipe]) -> RunConfig:
    return recipes[request.param].config


def rounds_of(config: RunConfig) -> list[Restored]:
    rounds = ticket_rounds.plan(config)
    return [restore(rounds.folder(number), CPU) for number in range(rounds.last + 1)]


def connections(restored: Restored) -> list[int]:
    return [budget.group.connections for budget in restored.budgets]


def magnitudes(restored: Restored) -> list[dict[int, float]]:
    """Of each group, |w| by position."""
    groups = [budget.group for budget in restored.budgets]
    return [dict(zip(g.indices().tolist(), g.values().abs().tolist(), strict=True)) for g in groups]


# ---- how many


counts = st.lists(st.tuples(st.integers(1, 10_000), st.floats(0, 1)), min_size=1, max_size=5)


@given(counts, st.floats(0.01, 1))
def test_every_round_keeps_the_share_or_the_budget_and_the_last_is_the_budget(
    groups: list[tuple[int, float]], prune_share: float
) -> None:
    positions = [n for n, _ in groups]
    budget = [int(n * share) for n, share in groups]
    rounds = Lottery(prune_share=prune_share).rounds(positions, budget)
    assert (rounds[0], rounds[-1]) == (positions, budget)
    for before, after in pairwise(rounds):
        assert before != after
        for n, m, b in zip(before, after, budget, strict=True):
            assert b <= m <= n
            assert m == b or m == pytest.approx(n * (1 - prune_share), abs=1)


def test_twenty_per_cent_per_round_are_rounded_down() -> None:
    rounds = Lottery().rounds([1000, 10], [400, 10])
    assert rounds == [[1000, 10], [800, 10], [640, 10], [512, 10], [409, 10], [400, 10]]


def test_the_whole_share_is_pruning_in_one_shot() -> None:
    assert Lottery(prune_share=1.0).rounds([1000, 10], [400, 0]) == [[1000, 10], [400, 0]]


def test_the_rewind_step_is_an_exact_share_of_the_steps() -> None:
    assert Lottery(rewind=0.29).rewind_step(100) == 29  # 28.999999999999996 in floating point
    assert Lottery().rewind_step(200_000) == 2000
    assert KDTicket().rewind_step(200_000) == 0


def test_nothing_to_prune_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sparsity\.sparsity: 0\.0 leaves nothing to prune") as error:
        trained(ticket_config(tmp_path, "run", "lottery", "sparsity.sparsity=0"))
    one_line(error)
    assert not (tmp_path / "run").exists()


# ---- which


def test_every_round_has_exactly_its_connections_and_the_last_one_the_budgets(finished: RunConfig) -> None:
    rounds = rounds_of(finished)
    plan = ticket_rounds.plan(finished)
    assert len(rounds) == LAST + 1
    assert [connections(restored) for restored in rounds] == plan.counts
    assert connections(rounds[-1]) == [budget.connections for budget in rounds[-1].budgets]
    assert all(weight.is_full for weight in rounds[0].model.sparse_weights().values())


def test_every_ticket_lacks_the_smallest_weights_of_its_round_and_no_others(finished: RunConfig) -> None:
    rounds, plan = rounds_of(finished), ticket_rounds.plan(finished)
    dropped = 0
    text = load_corpus(finished.data).identity
    for number in range(plan.last):
        assert restore(plan.ticket(number), CPU).saved.trained_text() == text
        ticket = magnitudes(restore(plan.ticket(number), CPU))
        for trained_group, kept, next_group in zip(
            magnitudes(rounds[number]), ticket, magnitudes(rounds[number + 1]), strict=True
        ):
            assert kept.items() <= trained_group.items()
            assert kept.keys() == next_group.keys()
            gone = [size for position, size in trained_group.items() if position not in kept]
            assert max(gone, default=0) <= min(kept.values())
            dropped += len(gone)
    assert dropped == sum(plan.counts[0]) - sum(plan.counts[-1])


def test_every_round_begins_with_the_dense_run_of_the_rewind_step(finished: RunConfig, tmp_path: Path) -> None:
    plan = ticket_rounds.plan(finished)
    source = restore(plan.folder(0) / f"step_{REWIND}", CPU)
    state = source.saved.training_state()
    early = {name: weight.values for name, weight in source.model.sparse_weights().items()}
    for number in range(1, plan.last + 1):
        last = number == plan.last
        run = dataclasses.replace(finished.run, dir=str(tmp_path / "again"))
        config = dataclasses.replace(plan.run(number), run=run)
        trainer = prepare(config, recorded=finished if last else None, stream=io.StringIO())
        assert (trainer.step, trainer.learner.lanes.state_dict()) == (REWIND, state["lanes"])
        for name, weight in trainer.model.sparse_weights().items():
            assert torch.equal(weight.values, early[name][weight.indices])  # the source is dense: position = number
        weights = {id(weight.values): weight for weight in trainer.model.sparse_weights().values()}
        entries = trainer.learner.optimizer.state_dict()["state"].values(), state["optimizer"]["state"].values()
        for parameter, found, saved in zip(trainer.model.parameters(), *entries, strict=True):
            survivors = weights[id(parameter)].indices if id(parameter) in weights else slice(None)
            assert torch.equal(found["exp_avg"], saved["exp_avg"][survivors])
            assert torch.equal(found["exp_avg_sq"], saved["exp_avg_sq"][survivors])
            assert found["step"] == saved["step"] == REWIND


def test_all_rounds_are_complete_runs_that_go_on_from_the_rewind_step(finished: RunConfig) -> None:
    plan = ticket_rounds.plan(finished)
    for number in range(plan.last + 1):
        folder = plan.folder(number)
        summary = json.loads((folder / "summary.json").read_text())
        assert set(summary) == SUMMARY_KEYS
        assert (summary["steps"], checkpoint.load(folder).step) == (STEPS, STEPS)
        first = 1 if number == 0 else REWIND + 1
        assert [line["step"] for line in metrics(folder)] == list(range(first, STEPS + 1))
        assert (folder / "best").is_dir()
        assert (folder / "environment.json").is_file()


def test_execution_is_chosen_by_the_density_of_each_round(finished: RunConfig) -> None:
    rounds = rounds_of(finished)
    mostly_there = [2 * sum(connections(restored)) > sum(connections(rounds[0])) for restored in rounds]
    assert mostly_there == [True, True, False]
    assert [r.model.execution for r in rounds] == ["masked" if dense else "sparse" for dense in mostly_there]


# ---- what it says


def test_the_run_is_recorded_as_what_the_user_asked_for(finished: RunConfig) -> None:
    assert (finished.folder / "config.yaml").read_text() == finished.to_yaml()
    assert restore(finished.folder, CPU).config == finished


def test_training_flops_are_those_of_all_rounds(finished: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    forward = [
        sum(2 * w.connections for name, w in r.model.sparse_weights().items() if name != "embedding")
        for r in rounds_of(finished)
    ]
    symbols = 2 * 3 * 5
    total = 3 * forward[0] * STEPS * symbols + sum(3 * f * (STEPS - REWIND) * symbols for f in forward[1:])
    if finished.method.name == "kd_ticket":
        total += forward[0] * (STEPS - REWIND) * symbols
    summary = json.loads((finished.folder / "summary.json").read_text())
    assert summary["method"] == finished.method.name
    assert summary["training_flops"] == pytest.approx(total)
    assert summary["training_flops_vs_dense"] == pytest.approx(total / (3 * forward[0] * STEPS * symbols))

    (finished.folder.parent / "c.yaml").write_text(finished.to_yaml())
    for target in (finished.folder, finished.folder.parent / "c.yaml"):
        assert main(["inspect", str(target), "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["training_flops"] == pytest.approx(total)
        assert report["connections"] == summary["connections"] == sum(ticket_rounds.plan(finished).counts[-1])


def test_a_kd_ticket_is_a_lottery_ticket_until_its_last_run(recipes: dict[str, Recipe]) -> None:
    lottery, kd_ticket = (recipes[method].config.folder for method in ("lottery", "kd_ticket"))
    for path in [f"rounds/{number}/{name}" for number in range(LAST) for name in ("last", "ticket")]:
        found = {checkpoint.load(folder / path).weights_sha256 for folder in (lottery, kd_ticket)}
        assert len(found) == 1, path
    teachers = [checkpoint.load(folder).training_state()["teacher"] for folder in (lottery, kd_ticket)]
    assert teachers[0] is None
    assert teachers[1]["sha256"] == checkpoint.load(kd_ticket / "rounds" / "0").weights_sha256
    assert metrics(lottery)[0]["loss"] != metrics(kd_ticket)[0]["loss"]


def test_every_round_says_what_it_is(recipes: dict[str, Recipe]) -> None:
    config, told = recipes["kd_ticket"]
    titles = [text for text in told if text.startswith("round ")]
    assert [title.split()[1] for title in titles] == ["0", "1", "2"]
    assert f"teacher {config.folder / 'rounds' / '0'}" in told[-1]


# ---- interruptions


class StopEveryStep(io.StringIO):
    """Progress that asks for a stop, as Ctrl-C does, after the first step that it reads of."""

    def write(self, text: str) -> int:
        if text.startswith("step "):
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


def test_a_recipe_stopped_after_every_step_of_every_round_ends_as_an_undisturbed_one(
    tmp_path: Path, finished: RunConfig
) -> None:
    config = ticket_config(tmp_path, "stopped", finished.method.name)
    stops = 0
    while not (config.folder / "summary.json").exists():
        with pytest.raises(Interrupted):
            trained(config, resume=stops > 0, stream=StopEveryStep())
        stops += 1
        if checkpoint_step(config) == STEPS:
            trained(config, resume=True)
    assert stops == STEPS + LAST * (STEPS - REWIND)
    assert_same(traces(config.folder), traces(finished.folder))


def checkpoint_step(config: RunConfig) -> int | None:
    """The step of the last run's checkpoint, if it has one."""
    return checkpoint.load(config.folder).step if (config.folder / "last").exists() else None


class InRound(io.StringIO):
    """Progress that does something when it reads that a step of the round in a folder is done."""

    def __init__(self, folder: Path, step: int, action: Callable[[], object]) -> None:
        super().__init__()
        self.folder, self.start, self.action = folder, f"step {step}/", action

    def write(self, text: str) -> int:
        if text.startswith(self.start) and (self.folder / "last").exists():
            self.action()
        return super().write(text)


@pytest.mark.parametrize(("number", "has_checkpoint"), [(0, True), (1, True), (1, False), (LAST, True)])
def test_a_recipe_killed_in_a_round_ends_as_an_undisturbed_one(
    tmp_path: Path, finished: RunConfig, number: int, has_checkpoint: bool
) -> None:
    config = ticket_config(tmp_path, "killed", finished.method.name)
    plan = ticket_rounds.plan(config)

    def kill() -> None:
        raise Killed

    with pytest.raises(Killed):
        # Before the first checkpoint of the round but that of its beginning.
        trained(config, stream=InRound(plan.folder(number), 4, kill))
    assert checkpoint.load(plan.folder(number)).step == (REWIND if number else 0)
    if not has_checkpoint:  # as if it had been killed even before that one
        shutil.rmtree(plan.folder(number) / "last")
    trained(config, resume=True)
    assert_same(traces(config.folder), traces(finished.folder))
    assert [line["step"] for line in metrics(plan.folder(number))][-1] == STEPS


def test_a_recipe_killed_before_it_drew_a_ticket_draws_it(tmp_path: Path, finished: RunConfig) -> None:
    shutil.copytree(finished.folder, tmp_path / "run")
    config = ticket_config(tmp_path, "run", finished.method.name)
    before = checkpoint.load(config.folder / f"rounds/{LAST - 1}/ticket").weights_sha256
    for gone in (f"rounds/{LAST - 1}/ticket", "last", "best"):
        shutil.rmtree(config.folder / gone)
    trained(config, resume=True)
    assert checkpoint.load(config.folder / f"rounds/{LAST - 1}/ticket").weights_sha256 == before
    assert_same(traces(config.folder), traces(finished.folder))


def test_a_recipe_that_has_moved_goes_on(tmp_path: Path, finished: RunConfig) -> None:
    config = ticket_config(tmp_path, "here", finished.method.name)
    in_round_1 = InRound(ticket_rounds.plan(config).folder(1), 4, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted):
        trained(config, stream=in_round_1)
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = ticket_config(tmp_path, "there", finished.method.name)
    trained(moved, resume=True)
    assert_same(traces(moved.folder), traces(finished.folder))


def test_resuming_a_finished_recipe_changes_nothing(tmp_path: Path, finished: RunConfig) -> None:
    before = traces(finished.folder)
    trained(finished, resume=True)
    assert_same(traces(finished.folder), before)


def test_a_recipe_is_neither_overwritten_nor_resumed_with_other_settings(tmp_path: Path) -> None:
    config = ticket_config(tmp_path, "run")
    with pytest.raises(UserError, match="holds no run to resume"):
        trained(config, resume=True)
    with pytest.raises(Interrupted):
        trained(config, stream=StopEveryStep())
    assert status(Run("run", (), config)).state == "interrupted"  # to a sweep
    with pytest.raises(UserError, match=r"exists already .*; continue it with --resume") as error:
        trained(config)
    one_line(error)
    with pytest.raises(UserError, match=r"sparsity\.prune_share: the run to resume has 0\.5, not 0\.4") as error:
        trained(ticket_config(tmp_path, "run", "lottery", "sparsity.prune_share=0.4"), resume=True)
    one_line(error)


def test_the_command_line_trains_interrupts_and_resumes(
    tmp_path: Path, finished: RunConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ticket_config(tmp_path, "run", finished.method.name)
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    with monkeypatch.context() as patch:
        progress = StopEveryStep()
        patch.setattr(sys, "stderr", progress)
        assert main(["train", str(tmp_path / "c.yaml")]) == 130
    command = shlex.split(progress.getvalue().splitlines()[-1])
    assert command[-1] == "--resume"
    capsys.readouterr()
    assert main(command[command.index("train") :]) == 0
    captured = capsys.readouterr()
    assert "resumed after step 1" in captured.out
    assert f"round       {LAST} of {LAST} (0 is dense), method {finished.method.name}" in captured.out
    assert_same(traces(config.folder), traces(finished.folder))


@pytest.mark.parametrize(
    "setting",
    ["start.topology=x", "start.weights=x", "start.rewind=x", "training.teacher=x", "training.early_stopping=2"],
)
def test_what_the_recipe_decides_cannot_be_set(tmp_path: Path, setting: str) -> None:
    with pytest.raises(UserError, match=rf"{setting.split('=')[0]}: .*method kd_ticket trains several runs") as error:
        ticket_config(tmp_path, "run", "kd_ticket", setting)
    one_line(error)


@pytest.mark.parametrize("method", ["lottery", "kd_ticket"])
def test_a_loop_of_ones_own_comes_to_the_recipes_ticket(tmp_path: Path, method: str) -> None:
    plain = ["model.dropout=0", "training.accumulate=1", "training.precision=fp64", "training.lr_schedule=constant"]
    config = ticket_config(tmp_path, "run", method, *plain, "training.grad_clip=null", "training.reset_probability=0")
    trained(config)

    training, corpus = config.training, load_corpus(config.data)
    model = rs.CharLM(config.model, corpus.tokenizer.vocab_size).double()
    for weight in model.sparse_weights().values():
        draw_connections(weight, 0.0, seed=0)  # all
    model.reset_parameters(config.run.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=training.learning_rate)
    sparsifier = rs.sparsify(
        model, method, optimizer, steps=STEPS, sparsity=config.budget.sparsity, prune_share=0.5, rewind=0.3
    )
    states = {0: model.initial_state(training.batch_size)}
    for _ in sparsifier.rounds():
        step, taught = sparsifier.steps_taken, states[0]
        state, lanes = states[step], Lanes(corpus.train.tokens, 3, 5, position=5 * step)
        while sparsifier.steps_taken < STEPS:
            optimizer.zero_grad()
            inputs_TB, targets_TB = next(lanes)
            logits_TBV, state = model(inputs_TB, state)
            state = state.detach()
            loss = cross_entropy(logits_TBV.flatten(0, 1), targets_TB.flatten())
            if sparsifier.teacher:
                a, t = training.teacher_weight, training.teacher_temperature
                wanted_TBV, taught = sparsifier.teacher(inputs_TB, taught)
                logs = [(each / t).log_softmax(-1).flatten(0, 1) for each in (logits_TBV, wanted_TBV)]
                loss = (1 - a) * loss + a * t**2 * kl_div(*logs, reduction="batchmean", log_target=True)
            sparsifier.backward(loss)
            sparsifier.step()
            states[sparsifier.steps_taken] = state

    recipe = restore(config.folder, CPU).model.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, recipe[name], rtol=0, atol=1e-10, msg=name)
