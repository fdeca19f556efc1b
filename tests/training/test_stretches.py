"""A run that is resumed with more steps, or other settings, goes on as it says, and leaves a true record."""

from __future__ import annotations

import io
import json
import math
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from rnnsparse.cli import main
from rnnsparse.config import RunConfig, parse_config
from rnnsparse.errors import UserError
from rnnsparse.flops import forward_flops
from rnnsparse.recipes import ticket_rounds
from rnnsparse.recipes.sweep import Run
from rnnsparse.recipes.sweep_status import status
from rnnsparse.reporting.compare import as_csv, group
from rnnsparse.reporting.reading import read_runs
from rnnsparse.sparsity.schedule import Schedule
from rnnsparse.storage import checkpoint, manifest
from rnnsparse.training.banner import banner
from rnnsparse.training.build import restore
from rnnsparse.training.run.interrupts import Interrupted
from rnnsparse.training.step.optim import learning_rate
from rnnsparse.training.train import prepare
from tests.training.test_trainer import (
    Killed,
    assert_same,
    config_in,
    kill_after,
    metrics,
    one_line,
    overfitting,
    stop_after,
    traces,
    trained,
)

CPU = torch.device("cpu")
SHORT, LONG = 4, 10
EVEN = [
    "evaluation.interval=4",
    "training.accumulate=1",
]  # with which the end of the short run is evaluated in the long one, too
CONSTANT = ["training.lr_schedule=constant", *EVEN]


def extended(tmp_path: Path, run: str, settings: list[str], *changes: str) -> RunConfig:
    """A run of SHORT steps that was resumed to have LONG ones."""
    trained(config_in(tmp_path, run, *settings, f"training.steps={SHORT}"))
    config = config_in(tmp_path, run, *settings, f"training.steps={LONG}", *changes)
    trained(config, resume=True)
    return config


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs that several tests look at, or copy to go on with: all of `config_in` and EVEN.

    `short` has SHORT steps, `undisturbed` was resumed to have LONG ones, `killed` was killed at the first of these.
    """
    folder = tmp_path_factory.mktemp("home")
    extended(folder, "undisturbed", EVEN)
    trained(config_in(folder, "short", *EVEN, f"training.steps={SHORT}"))
    shutil.copytree(folder / "short", folder / "killed")
    with pytest.raises(Killed):
        trained(longer_in(folder, "killed"), resume=True, stream=kill_after(SHORT + 1))
    return folder


def longer_in(folder: Path, run: str) -> RunConfig:
    return config_in(folder, run, *EVEN, f"training.steps={LONG}")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody changes."""
    config = config_in(tmp_path_factory.mktemp("finished"))
    trained(config)
    return config.folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that was stopped after step 3."""
    config = config_in(tmp_path_factory.mktemp("stopped"))
    with pytest.raises(Interrupted):
        trained(config, stream=stop_after(3))
    return config.folder


def without_record(found: dict[str, Any]) -> dict[str, Any]:
    del found["state"]["stretches"]
    return found


def summary(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return loaded


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def state(folder: Path) -> dict[str, Any]:
    return checkpoint.load(folder).training_state()


# ---- the same run


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [("static", "adam"), ("dense", "sgd"), ("snip", "adamw"), ("low_rank", "sgd"), ("static", "sntasgd")],
)
def test_where_nothing_depends_on_the_total_a_longer_run_is_that_of_so_many_steps_bit_for_bit(
    tmp_path: Path, method: str, optimizer: str
) -> None:
    settings = [*CONSTANT, f"sparsity.method={method}", f"training.optimizer={optimizer}", "training.nonmonotone=0"]
    trained(config_in(tmp_path, "planned", *settings, f"training.steps={LONG}"))
    extended(tmp_path, "longer", settings)
    assert_same(*(without_record(traces(tmp_path / run)) for run in ("longer", "planned")))


@pytest.mark.parametrize(
    ("method", "change"),
    [
        *((method, "training.weight_decay=0.1") for method in ("rigl", "snfs", "scout", "prune", "granet", "static")),
        *(("set", f"sparsity.schedule={schedule}") for schedule in get_args(Schedule)),
    ],
)
def test_a_longer_run_that_is_stopped_and_resumed_ends_as_one_that_was_not(
    tmp_path: Path, method: str, change: str
) -> None:
    settings = [f"sparsity.method={method}", *EVEN, "sparsity.stop=0.8", "training.warmup=2"]
    changes = ["training.learning_rate=0.005", change]
    undisturbed = extended(tmp_path, "undisturbed", settings, *changes)
    trained(config_in(tmp_path, "stopped", *settings, f"training.steps={SHORT}"))
    config = config_in(tmp_path, "stopped", *settings, f"training.steps={LONG}", *changes)
    for step in (SHORT + 1, LONG - 2):
        with pytest.raises(Interrupted):
            trained(config, resume=True, stream=stop_after(step))
    trained(config, resume=True)
    for run in (config, undisturbed):
        assert [s["after_step"] for s in state(run.folder)["stretches"]] == [SHORT]
    assert_same(*(without_record(traces(run.folder)) for run in (config, undisturbed)))
    assert summary(config.folder)["steps"] == LONG
    assert [line["step"] for line in metrics(config.folder)] == [*range(1, LONG + 1)]


def test_a_stopped_run_goes_on_with_another_total_from_where_it_was(tmp_path: Path) -> None:
    config = config_in(tmp_path, "run", *EVEN)
    with pytest.raises(Interrupted):
        trained(config, stream=stop_after(3))
    trained(config_in(tmp_path, "run", *EVEN, f"training.steps={LONG}"), resume=True)
    assert [line["step"] for line in metrics(config.folder)] == [*range(1, LONG + 1)]
    assert summary(config.folder)["stretches"] == "until 3 steps=7"


# ---- what changes at which step


def test_from_the_new_stretch_on_the_learning_rate_is_that_of_the_new_total(tmp_path: Path) -> None:
    settings = ["training.warmup=2", *EVEN, "training.multiplier=2"]
    short = config_in(tmp_path, "run", *settings, f"training.steps={SHORT}")
    config = extended(tmp_path, "run", settings, "training.final_learning_rate=0.3")
    steps = [*range(2 * LONG)]
    expected = [learning_rate((short if step < 2 * SHORT else config).training, step) for step in steps]
    assert [line["learning_rate"] for line in metrics(config.folder)] == expected
    assert expected[2 * SHORT] > 2 * expected[2 * SHORT - 1]  # it rises: the cosine has further to go


def test_the_weight_decay_of_the_new_stretch_is_that_of_the_optimizer(tmp_path: Path) -> None:
    settings = ["sparsity.method=static", *CONSTANT, "training.optimizer=sgd", "training.learning_rate=1e-9"]
    config = extended(tmp_path, "run", settings)
    decayed = extended(tmp_path, "decayed", settings, "training.weight_decay=1e7")
    assert {group["weight_decay"] for group in state(decayed.folder)["optimizer"]["param_groups"]} == {1e7}
    for kept, smaller in zip(*(restore(run.folder, CPU).model.parameters() for run in (config, decayed)), strict=True):
        # Six steps of 1e-9 x 1e7, with momentum: each draws parameters towards zero.
        assert smaller.abs().sum() < 0.95 * kept.abs().sum() or not kept.any()


def moved_at(folder: Path) -> list[int]:
    """The steps after which some connection was another one."""
    shares = [0.0, *(line["moved"] for line in metrics(folder))]
    return [step for step in range(1, len(shares)) if shares[step] != shares[step - 1]]


def test_updates_that_replace_connections_go_on_to_their_share_of_the_new_total(tmp_path: Path) -> None:
    settings = ["sparsity.stop=0.5", "sparsity.interval=1", "sparsity.schedule=constant", "sparsity.method=set", *EVEN]
    config = extended(tmp_path, "run", settings)
    assert state(config.folder)["sparsifier"]["updates"] == 1  # before step 2, and of steps 5 to 10 none before 5
    fixed = extended(tmp_path, "more", settings, "sparsity.stop=0.8")
    assert state(fixed.folder)["sparsifier"]["updates"] == 1 + 3  # steps 5, 6 and 7


@pytest.mark.parametrize("method", ["prune", "granet"])
@pytest.mark.parametrize("stopped_after", [3, 8])
def test_pruning_keeps_to_the_steps_it_was_planned_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, stopped_after: int
) -> None:
    settings = [f"sparsity.method={method}", "sparsity.interval=1", "sparsity.start=0.25", "sparsity.stop=0.75", *EVEN]
    trained(config_in(tmp_path, "planned", *settings, "training.steps=8"))
    if stopped_after < 8:
        with pytest.raises(Interrupted):
            trained(config_in(tmp_path, "longer", *settings, "training.steps=8"), stream=stop_after(stopped_after))
    else:
        shutil.copytree(tmp_path / "planned", tmp_path / "longer")
    longer = config_in(tmp_path, "longer", *settings, "training.steps=20")
    trained(longer, resume=True)
    densities = [line["density"] for line in metrics(tmp_path / "planned")]
    assert densities[1] > densities[2] > densities[5] == densities[7]
    assert [line["density"] for line in metrics(longer.folder)] == [*densities, *[densities[-1]] * 12]

    # What was planned has cost what it has; each step after it costs what one with the final connections does.
    restored = restore(longer.folder, CPU)
    sparse, dense = summary(longer.folder)["flops_per_character"], forward_flops(restored.model).dense
    per_character = 3 * sparse if method == "prune" else (5 * sparse + dense) / 2  # every step of granet is an update
    more = 12 * 15 * per_character
    expected = summary(tmp_path / "planned")["training_flops"] + more
    assert summary(longer.folder)["training_flops"] == pytest.approx(expected)
    assert main(["inspect", str(longer.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["training_flops"] == pytest.approx(expected)


def test_a_pruning_run_is_not_cut_short_of_its_plan(tmp_path: Path) -> None:
    config = config_in(tmp_path, "run", "sparsity.method=prune")
    with pytest.raises(Interrupted):
        trained(config, stream=stop_after(2))
    before = files(config.folder)
    with pytest.raises(
        UserError, match=r"training\.steps: method prune prunes by the 7 steps that the .* 5 are fewer"
    ) as error:
        prepare(config_in(tmp_path, "run", "sparsity.method=prune", "training.steps=5"), resume=True)
    one_line(error)
    assert files(config.folder) == before


# ---- what is left


def test_the_folder_tells_of_both_stretches(tmp_path: Path) -> None:
    short = config_in(tmp_path, "run", *EVEN, f"training.steps={SHORT}")
    trained(short)
    first = summary(short.folder)
    config = config_in(tmp_path, "run", *EVEN, f"training.steps={LONG}", "training.learning_rate=0.005")
    trained(config, resume=True)
    assert (config.folder / "config.yaml").read_text() == (config.folder / "last" / "config.yaml").read_text()
    assert (config.folder / "config.yaml").read_text() == config.to_yaml()
    record = config.folder / "stretches.jsonl"
    one, two = map(json.loads, record.read_text().splitlines())
    changed = {"training.steps": [SHORT, LONG], "training.learning_rate": [0.01, 0.005]}
    assert (one["first_step"], one["changed"], two["first_step"], two["changed"]) == (1, {}, SHORT + 1, changed)
    assert datetime.fromisoformat(one["began"]) <= datetime.fromisoformat(two["began"]) <= datetime.now(UTC)
    assert json.loads((config.folder / f"summary_{SHORT}.json").read_text()) == first
    second = summary(config.folder)
    assert (second["steps"], second["characters_seen"]) == (LONG, 15 * LONG)
    assert second["seconds"] > first["seconds"]
    assert second["training_flops"] == pytest.approx(first["training_flops"] * LONG / SHORT)
    assert second["stretches"] == f"until {SHORT} steps={SHORT}, learning_rate=0.01"

    trained(config_in(tmp_path, "run", *EVEN, "training.steps=12", "training.learning_rate=0.005"), resume=True)
    assert [json.loads(line)["first_step"] for line in record.read_text().splitlines()] == [1, 5, 11]
    assert summary(config.folder)["stretches"].endswith(f"; until {LONG} steps={LONG}")


def test_the_best_model_stays_where_the_longer_run_is_worse(tmp_path: Path) -> None:
    config = overfitting(tmp_path)
    best = trained(config)["best_bits_per_character"]
    before = files(config.folder / "best")
    longer = replace(config, written_training=replace(config.written_training, steps=12))
    assert trained(longer, resume=True)["best_bits_per_character"] == best
    assert files(config.folder / "best") == before


def test_a_run_that_has_stopped_early_says_how_to_train_it_longer(tmp_path: Path) -> None:
    config = overfitting(tmp_path, "training.steps=50", "training.early_stopping=2")
    reached = trained(config)["steps"]
    longer = replace(config, written_training=replace(config.written_training, steps=60))
    with pytest.raises(
        UserError, match=r"training\.early_stopping: .* after 2 evaluations without .* set it to null"
    ) as error:
        prepare(longer, resume=True)
    one_line(error)
    assert trained(config, resume=True)["steps"] == reached
    patient = replace(longer, written_training=replace(longer.written_training, early_stopping=4))
    assert trained(patient, resume=True)["steps"] == reached + 2
    assert json.loads((config.folder / f"summary_{reached}.json").read_text())["steps"] == reached


def test_the_banner_says_what_goes_on_and_what_changes(tmp_path: Path) -> None:
    settings = ["training.early_stopping=9", *EVEN, "sparsity.method=snfs", "sparsity.stop=0.5"]
    trained(config_in(tmp_path, "run", *settings, f"training.steps={SHORT}"))
    config = config_in(tmp_path, "run", *settings, "training.steps=1000", "training.grad_clip=null")
    lines = banner(prepare(config, resume=True))
    best = summary(config.folder)["best_bits_per_character"]
    old = learning_rate(replace(config.training, steps=SHORT), SHORT)
    # cosines: of the learning rate over 1,000 steps at the step after 4, of the share over 500 at step 6
    share = 0.5 / 2 * (1 + math.cos(math.pi * 6 / 500))
    assert old == pytest.approx(0.001)
    assert lines[1 : lines.index(next(line for line in lines if line.startswith("data ")))] == [
        "stretch     2 of this run: steps 5 to 1,000",
        "goes on     parameters, connections, optimizer state, recurrent states, place in the text, random numbers, "
        "counts of steps and characters",
        "changes     training.steps: 4 -> 1,000",
        "changes     training.grad_clip: 10.0 -> null",
        "changes     learning rate: cosine over all 1,000 steps, 0.01 at step 5, where it was 0.001",
        f"changes     updates of snfs: before step 500, where it was 2; that at step 6 replaces {share:.2%} of the "
        "connections, where it was 0.00%",
        "goes on     averages of gradients: from step 5, as they were at step 2",
        f"goes on     checkpoints: best/ ({best:.4f} bits per character) until validation is better, step_N/; "
        "previous/ is what last/ was, which is saved anew at once",
        "goes on     early stopping: 0 of 9 evaluations without a better one",
        "anew        summary.json, of the whole run; the one there becomes summary_N.json",
    ]
    assert "in 1,000 steps" in "\n".join(lines)
    assert not any("stretch" in line for line in banner(prepare(config_in(tmp_path, "other", *settings))))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["sparsity.method=static", *CONSTANT], ["goes on     learning rate: constant, 0.01 at step 5"]),
        (["sparsity.method=prune"], ["goes on     updates of prune: as planned for 4 steps, the last one at step 4"]),
        (["sparsity.stop=0.1"], ["goes on     updates of rigl: none any more, since sparsity.stop is step 1"]),
    ],
)
def test_the_banner_says_what_stays(tmp_path: Path, settings: list[str], said: list[str]) -> None:
    trained(config_in(tmp_path, "run", *settings, f"training.steps={SHORT}"))
    lines = banner(prepare(config_in(tmp_path, "run", *settings, f"training.steps={LONG}"), resume=True))
    assert [line for line in lines if line in said] == said


# ---- either the old stretch or the new one


def test_before_training_begins_nothing_is_changed(finished: Path) -> None:
    before = files(finished)
    banner(prepare(config_in(finished.parent, "run", "training.steps=9"), resume=True))
    assert files(finished) == before


def test_a_run_that_is_killed_at_its_first_new_step_has_the_new_settings_and_loses_nothing(home: Path) -> None:
    killed = home / "killed"
    assert not (killed / "summary.json").exists()
    assert checkpoint.load(killed).step == SHORT
    assert checkpoint.load(killed).config_yaml == longer_in(home, "killed").to_yaml()
    goes_on = shutil.copytree(killed, home / "goes on")
    trained(longer_in(home, "goes on"), resume=True)
    assert_same(*(without_record(traces(folder)) for folder in (goes_on, home / "undisturbed")))
    assert len((goes_on / "stretches.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("after", ["last", "summary.json", "stretches.jsonl"])
def test_a_run_that_is_killed_between_two_files_goes_on_with_the_new_settings(home: Path, after: str) -> None:
    """The files are written in this order, so a killed process leaves those up to one new and the others old."""
    folder = shutil.copytree(home / "killed", home / f"killed after {after}")
    shutil.copy(home / "short" / "config.yaml", folder)
    if after != "stretches.jsonl":
        (folder / "stretches.jsonl").unlink()
    if after == "last":
        (folder / f"summary_{SHORT}.json").rename(folder / "summary.json")
        (ended,), _ = read_runs([folder])  # until then it is the finished run that it was
        assert (ended.summary.steps, ended.config["training"]["steps"]) == (SHORT, SHORT)
    trained(longer_in(home, folder.name), resume=True)
    assert summary(folder)["steps"] == LONG
    assert (folder / f"summary_{SHORT}.json").exists()
    assert len((folder / "stretches.jsonl").read_text().splitlines()) == 2


def test_if_the_first_checkpoint_of_a_stretch_is_damaged_it_begins_again(home: Path) -> None:
    damaged = shutil.copytree(home / "killed", home / "damaged")
    (damaged / "last" / "model.safetensors").write_bytes(b"")
    trained(longer_in(home, "damaged"), resume=True)
    assert_same(*(without_record(traces(folder)) for folder in (damaged, home / "undisturbed")))


@pytest.mark.parametrize(
    "record",
    [
        5,
        [5],
        [{}],
        [{"after_step": 99, "began": "", "changed": {}}],
        [{"after_step": 4, "began": "", "changed": {}}, {"after_step": 3, "began": "", "changed": {}}],
        [{"after_step": 4, "began": "", "changed": {"training.steps": [4]}}],
        [{"after_step": 4, "began": "", "changed": {"training.steps": ["4", 10]}}],
        [{"after_step": 4, "began": "", "changed": {"training.steps": [0, 10]}}],
        [{"after_step": 4, "began": "", "changed": {"run.seed": [4, 10]}}],
        [{"after_step": 4, "began": "", "changed": {"training.grad_clip": ["=cmd", math.inf]}}],
        [{"after_step": 4, "began": 5, "changed": {}}],
    ],
)
def test_a_record_that_is_none_is_refused_in_one_line(finished: Path, tmp_path: Path, record: Any) -> None:
    config = config_in(tmp_path)
    last = shutil.copytree(finished, config.folder) / "last"
    torch.save(state(last) | {"stretches": record}, last / "training_state.pt")
    (last / "manifest.json").unlink()
    manifest.write(last, 7)
    with pytest.raises(UserError, match=r"training_state\.pt: does not fit this run") as error:
        prepare(config, resume=True)
    one_line(error)


# ---- what is meant


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (["training.steps=2"], "training.steps: the run to resume has made 3 steps, no fewer than 2; raise"),
        (["training.steps=3"], "training.steps: the run to resume has made 3 steps, no fewer than 3; raise"),
        (["training.steps=9", "sparsity.interval=5"], "sparsity.interval: the run to resume has 2, not 5; keep it"),
        (["training.steps=9", "run.seed=5"], "run.seed: the run to resume has 0, not 5; keep it, or start a new run"),
        (["training.multiplier=2"], "training.multiplier: the run to resume has 1.0, not 2.0; keep it, and raise"),
        (["evaluation.symbols=50"], "evaluation.symbols: the run to resume has 60, not 50; keep it"),
    ],
)
def test_other_changes_are_refused_in_one_line_and_change_nothing(
    stopped: Path, settings: list[str], complaint: str
) -> None:
    before = files(stopped)
    with pytest.raises(UserError) as error:
        prepare(config_in(stopped.parent, "run", *settings), resume=True)
    assert one_line(error).startswith(f"{stopped}: {complaint}")
    assert files(stopped) == before


@pytest.mark.parametrize("method", ["prune", "granet"])
def test_the_updates_of_a_pruning_method_are_not_changed(tmp_path: Path, method: str) -> None:
    trained(config_in(tmp_path, "run", f"sparsity.method={method}"))
    with pytest.raises(UserError, match=r"sparsity\.stop: the run to resume has 1\.0, not 0\.5; keep it, or start"):
        prepare(config_in(tmp_path, "run", f"sparsity.method={method}", "sparsity.stop=0.5"), resume=True)


def test_a_finished_run_with_other_settings_has_no_step_to_make_with_them(finished: Path) -> None:
    with pytest.raises(UserError, match=r"learning_rate: .* has made 7 steps, none is left .* raise training\.steps"):
        prepare(config_in(finished.parent, "run", "training.learning_rate=0.5"), resume=True)


def test_what_was_typed_once_and_is_forgotten_changes_no_run(tmp_path: Path) -> None:
    """The file says 7 steps and 0.01; the run was resumed with others that were typed."""
    with pytest.raises(Interrupted):
        trained(config_in(tmp_path), stream=stop_after(3))
    typed = ["training.steps=9", "training.learning_rate=0.005"]
    with pytest.raises(Interrupted):
        trained(config_in(tmp_path, "run", *typed), resume=True, stream=stop_after(4))
    for forgotten, value in (
        (0, "training.steps: the run to resume has 9, not 7; keep it, or type training.steps=7"),
        (1, "training.learning_rate: the run to resume has 0.005, not 0.01; keep it, or type"),
    ):
        with pytest.raises(UserError) as error:
            prepare(config_in(tmp_path, "run", *(word for word in typed if word != typed[forgotten])), resume=True)
        assert value in one_line(error)
    assert trained(config_in(tmp_path, "run", *typed), resume=True)["steps"] == 9
    # More steps are meant wherever they are written.
    longer = parse_config(config_in(tmp_path, "run", *typed, "training.steps=11").to_dict(), "c.yaml")
    assert trained(longer, resume=True)["steps"] == 11


def test_a_recipe_is_not_trained_longer_but_its_end_is(tmp_path: Path) -> None:
    settings = ["sparsity.method=lottery", "sparsity.prune_share=0.5", "training.steps=4", *EVEN]
    config = config_in(tmp_path, "tickets", *settings)
    ticket_rounds.train(config, tell=lambda text: None, stream=io.StringIO())
    before = files(config.folder)
    longer = config_in(tmp_path, "tickets", *settings, "training.steps=9")
    with pytest.raises(UserError, match=r"training\.steps: .* has made its rounds with it, so keep it, or go") as error:
        ticket_rounds.train(longer, resume=True, tell=lambda text: None, stream=io.StringIO())
    assert files(config.folder) == before
    way_out = one_line(error).split(" with ")[-1].split()
    assert way_out == ["sparsity.method=static", f"start.rewind={config.folder}"]
    followed = config_in(tmp_path, "longer", *EVEN, *way_out, "training.steps=9")
    assert trained(followed)["steps"] == 9
    assert [line["step"] for line in metrics(followed.folder)] == [5, 6, 7, 8, 9]


def test_a_sweep_changes_no_run_and_says_who_can(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, config_in(tmp_path).folder)
    found = status(Run("run", (), config_in(tmp_path, "run", "training.steps=9")))
    assert found.state == "refused"
    assert "training.steps: the run to resume has 7, not 9; keep it, " in found.detail
    assert "let `train` change this one by training.steps and --resume" in found.detail
    trained(config_in(tmp_path, "run", "training.steps=9"), resume=True)
    assert status(Run("run", (), config_in(tmp_path, "run", "training.steps=9"))).state == "done"


# ---- compared


def test_a_run_that_was_trained_longer_is_a_setting_of_its_own_where_its_schedule_was_another(tmp_path: Path) -> None:
    for name, settings, seeds in (("static", ["sparsity.method=static", *CONSTANT], [1]), ("rigl", EVEN, [1, 2])):
        trained(config_in(tmp_path, f"{name}-planned", *settings, f"training.steps={LONG}"))
        for seed in seeds:
            extended(tmp_path, f"{name}-{seed}", [*settings, f"run.seed={seed}"])
    settings = group(read_runs([tmp_path])[0])
    assert sorted(tuple(sorted(run.name for run in setting.runs)) for setting in settings) == [
        ("rigl-1", "rigl-2"),
        ("rigl-planned",),
        ("static-1", "static-planned"),
    ]
    longer = next(setting for setting in settings if setting.runs[0].name == "rigl-1")
    assert f"stretches=until {SHORT} steps={SHORT}" in longer.label
    assert len({setting.label for setting in settings}) == 3
    assert f"until {SHORT} steps={SHORT}" in as_csv(settings)


def test_an_end_between_two_evaluations_makes_another_run_of_it(tmp_path: Path) -> None:
    settings = ["sparsity.method=static", "training.lr_schedule=constant", "evaluation.interval=3"]
    config = extended(tmp_path, "run", settings)  # its best may be that of step 4, where no other is evaluated
    assert summary(config.folder)["stretches"] == f"until {SHORT} steps={SHORT}"


def test_a_run_that_has_made_no_step_is_what_it_is_told_to_be(tmp_path: Path) -> None:
    settings = ["sparsity.method=prune", *EVEN]
    trained(config_in(tmp_path, "planned", *settings))
    config = config_in(tmp_path, "run", *settings, "training.steps=3")
    with pytest.raises(Killed):
        trained(config, stream=kill_after(1))
    assert checkpoint.load(config.folder).step == 0
    trained(config_in(tmp_path, "run", *settings, "training.steps=7"), resume=True)
    assert_same(*(without_record(traces(tmp_path / run)) for run in ("run", "planned")))
