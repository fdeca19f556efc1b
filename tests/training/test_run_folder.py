from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rnnsparse.config import RunConfig, parse_config
from rnnsparse.errors import UserError
from rnnsparse.storage import checkpoint
from rnnsparse.training.build import new_model
from rnnsparse.training.run import run_folder
from rnnsparse.training.run.record import Record
from rnnsparse.training.step.distributed import Ranks


def config_in(folder: Path, *overrides: str) -> RunConfig:
    data: dict[str, Any] = {
        "run": {"dir": str(folder)},
        "model": {"embedding_dim": 4, "hidden_size": 4},
        "sparsity": {"method": "rigl", "sparsity": 0.5, "overrides": {"output": 0.25}},
        "training": {"steps": 8},
    }
    return parse_config(data, "c.yaml", overrides)


def saved_run(folder: Path, *overrides: str) -> RunConfig:
    config = config_in(folder, *overrides)
    model, _ = new_model(config, 5, torch.device("cpu"))
    checkpoint.save(
        folder / "last",
        step=3,
        model=model,
        tokenizer_json="{}",
        config_yaml=config.to_yaml(),
        training_state={"step": 3},
    )
    return config


# ---- claiming


@pytest.mark.parametrize("exists", [True, False])
def test_a_missing_or_empty_folder_may_be_claimed_and_stays_as_it_is(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "run"
    if exists:
        folder.mkdir()
    run_folder.claim(folder)
    assert folder.exists() is exists


def test_a_folder_with_nothing_but_the_lock_of_a_dead_process_may_be_claimed(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 1 on moon since 1970-01-01")
    run_folder.claim(tmp_path)
    assert os.listdir(tmp_path) == [".lock"]


def test_what_a_run_leaves_that_is_killed_before_its_first_save_may_be_claimed(tmp_path: Path) -> None:
    (tmp_path / ".last.new-0123abcd").mkdir()
    run_folder.claim(tmp_path)
    (tmp_path / ".last.new-thesis").mkdir()
    with pytest.raises(UserError, match="exists already"):
        run_folder.claim(tmp_path)


def test_a_run_stopped_between_two_renames_is_not_called_empty(tmp_path: Path) -> None:
    saved_run(tmp_path)
    (tmp_path / "last").rename(tmp_path / ".last.previous")
    with pytest.raises(UserError, match="continue it with --resume"):
        run_folder.claim(tmp_path)


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    saved_run(tmp_path / "run")
    with pytest.raises(
        UserError, match=r"run\.dir exists already and nothing is overwritten; continue it with --resume"
    ):
        run_folder.claim(tmp_path / "run")


def test_what_holds_no_checkpoint_is_refused_without_promising_a_resume(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="no checkpoint to continue from, so remove it, or choose another") as error:
        run_folder.claim(tmp_path / "run")
    assert "--resume" not in str(error.value)
    with pytest.raises(UserError, match="exists already"):
        run_folder.claim(tmp_path / "run" / "thesis.tex")


@pytest.mark.parametrize("place", ["x" * 300, "file/run"])
def test_a_place_that_cannot_be_a_folder_is_refused_in_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("a file")
    folder = tmp_path / place
    for use in (run_folder.claim, run_folder.make):
        if use is run_folder.claim and place == "file/run":
            continue  # a file in the place of a parent shows itself when the folder is made
        with pytest.raises(UserError, match=r"run\.dir cannot be a folder for this run: .*; choose another") as error:
            use(folder)
        assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    run_folder.make(tmp_path / "a" / "b")
    run_folder.make(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


# ---- going on


def test_the_last_checkpoint_is_opened_for_the_same_settings(tmp_path: Path) -> None:
    config = saved_run(tmp_path / "run")
    saved = run_folder.last_checkpoint(config)
    assert saved.step == 3
    assert saved.training_state() == {"step": 3}


@pytest.mark.parametrize(
    "override",
    [
        "logging.interval=7",
        "logging.tensorboard=false",
        "checkpoint.interval=7",
        "training.device=cpu",
        "training.threads=3",
        "training.early_stopping=3",
        "training.skip_bad_batches=3",
        "data.cache=elsewhere",
        "run.name=other",
    ],
)
def test_where_and_how_fast_may_change(tmp_path: Path, override: str) -> None:
    saved_run(tmp_path / "run")
    assert run_folder.last_checkpoint(config_in(tmp_path / "run", override)).step == 3


def saved_twice(folder: Path) -> RunConfig:
    """A run whose checkpoints are last (step 3), previous (2), step_1 (1, slim) and step_0 (0)."""
    config = saved_run(folder)
    for name, step in (("previous", 2), ("step_1", 1), ("step_0", 0)):
        model, _ = new_model(config, 5, torch.device("cpu"))
        state = None if step == 1 else {"step": step}
        checkpoint.save(
            folder / name,
            step=step,
            model=model,
            tokenizer_json="{}",
            config_yaml=config.to_yaml(),
            training_state=state,
        )
    return config


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("name", ["model.safetensors", "training_state.pt", "manifest.json", "config.yaml"])
def test_a_damaged_last_checkpoint_is_replaced_by_the_newest_whole_one_with_a_warning(
    tmp_path: Path, name: str
) -> None:
    config = saved_twice(tmp_path / "run")
    assert run_folder.last_checkpoint(config).warning == ""
    for folder, other, step in (("last", "previous", 2), ("previous", "step_0", 0)):
        (tmp_path / "run" / folder / name).write_bytes(b"")
        saved = run_folder.last_checkpoint(config)
        assert (saved.step, saved.training_state()) == (step, {"step": step})
        assert saved.warning.startswith(f"{tmp_path / 'run' / 'last' / name}: ")
        assert f"damaged; the run goes on from {tmp_path / 'run' / other}" in saved.warning


@pytest.mark.parametrize("how", ["removed", "emptied"])
def test_a_last_checkpoint_that_is_gone_is_replaced_too(tmp_path: Path, how: str) -> None:
    config = saved_twice(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "last")
    if how == "emptied":
        (tmp_path / "run" / "last").mkdir()
    saved = run_folder.last_checkpoint(config)
    assert saved.step == 2
    assert saved.warning.startswith(f"{tmp_path / 'run' / 'last'}: is missing; the run goes on from")


def test_what_is_not_damage_is_never_passed_over(tmp_path: Path) -> None:
    config = saved_twice(tmp_path / "run")
    (tmp_path / "run" / "last" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt: does not belong to the checkpoint"):
        run_folder.last_checkpoint(config)


def test_when_all_checkpoints_are_damaged_the_last_one_is_named(tmp_path: Path) -> None:
    config = saved_twice(tmp_path / "run")
    for name in ("last", "previous", "step_0"):
        flip(tmp_path / "run" / name / "model.safetensors")
    with pytest.raises(UserError, match=r"run/last/model\.safetensors: its sha256 is not"):
        run_folder.last_checkpoint(config)


def test_the_previous_checkpoint_becomes_the_last_and_what_killed_writers_left_goes(tmp_path: Path) -> None:
    config = saved_twice(tmp_path / "run")
    flip(tmp_path / "run" / "last" / "model.safetensors")
    (tmp_path / "run" / ".best.new-0123abcd").mkdir()
    (tmp_path / "run" / ".summary.json.new-0123abcd").write_text("{")
    run_folder.make_ready(config.folder, run_folder.last_checkpoint(config))
    assert sorted(os.listdir(tmp_path / "run")) == ["last", "previous", "step_0", "step_1"]
    saved = run_folder.last_checkpoint(config)
    assert (saved.step, saved.warning) == (2, "")


def saved_best(folder: Path, **steps: int) -> None:
    config = config_in(folder)
    model, _ = new_model(config, 5, torch.device("cpu"))
    for name, step in steps.items():
        checkpoint.save(
            folder / name,
            step=step,
            model=model,
            tokenizer_json="{}",
            config_yaml=config.to_yaml(),
            training_state=None,
        )


def test_the_spare_takes_the_place_of_a_damaged_best_model_with_a_warning(tmp_path: Path) -> None:
    saved_best(tmp_path, best=9, previous_best=4)
    assert run_folder.mend_best(tmp_path) == ""
    flip(tmp_path / "best" / "model.safetensors")
    warning = run_folder.mend_best(tmp_path)
    assert warning.startswith(f"{tmp_path / 'best' / 'model.safetensors'}: its sha256 is not")
    assert warning.endswith("damaged; the best model before it, of step 4, takes its place")
    assert checkpoint.load(tmp_path / "best").step == 4
    assert run_folder.mend_best(tmp_path) == ""

    shutil.rmtree(tmp_path / "best")
    saved_best(tmp_path, previous_best=3)
    assert run_folder.mend_best(tmp_path).startswith(f"{tmp_path / 'best'}: is missing; the best model before it")
    assert sorted(os.listdir(tmp_path)) == ["best"]


def test_a_damaged_best_model_without_a_spare_is_told_and_kept(tmp_path: Path) -> None:
    assert run_folder.mend_best(tmp_path) == "", "no evaluation yet"
    saved_best(tmp_path, best=9)
    flip(tmp_path / "best" / "model.safetensors")
    assert run_folder.mend_best(tmp_path).endswith(f"damaged, and there is no whole {tmp_path / 'previous_best'}")
    assert (tmp_path / "best" / "model.safetensors").is_file()


def test_files_of_somebody_else_in_best_are_left_alone(tmp_path: Path) -> None:
    saved_best(tmp_path, best=9, previous_best=4)
    (tmp_path / "best" / "notes.txt").write_text("mine")
    assert run_folder.mend_best(tmp_path) == ""
    assert (tmp_path / "best" / "notes.txt").read_text() == "mine"


def test_extended_training_is_resumed_by_the_settings_that_started_it(tmp_path: Path) -> None:
    extended = saved_run(tmp_path / "run", "training.multiplier=1.5")
    assert run_folder.last_checkpoint(extended).step == 3
    # The steps it makes are not those that were written: as settings they would be extended once more.
    for settings in ([], ["training.steps=12"], ["training.steps=12", "training.multiplier=1.5"]):
        with pytest.raises(UserError, match=r"training\.(steps|multiplier): the run to resume has"):
            run_folder.last_checkpoint(config_in(tmp_path / "run", *settings))


def test_a_run_may_be_moved(tmp_path: Path) -> None:
    saved_run(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert run_folder.last_checkpoint(config_in(tmp_path / "moved")).step == 3


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("run.seed=5", "run.seed: the run to resume has 0, not 5"),
        ("data.source=wikitext2", "data.source: the run to resume has 'python_docs', not 'wikitext2'"),
        ("data.tokenizer=char", "data.tokenizer: the run to resume has 'byte', not 'char'"),
        ("model.cell=lstm", "model.cell: the run to resume has 'gru', not 'lstm'"),
        ("model.hidden_size=5", "model.hidden_size: the run to resume has 4, not 5"),
        ("model.readout_dims=[3]", "model.readout_dims: the run to resume has [], not [3]"),
        ("sparsity.method=set", "sparsity.method: the run to resume has 'rigl', not 'set'"),
        ("sparsity.method=dense", "sparsity.method: the run to resume has 'rigl', not 'dense'"),
        ("sparsity.sparsity=0.6", "sparsity.sparsity: the run to resume has 0.5, not 0.6"),
        ("sparsity.overrides.output=0.5", "sparsity.overrides: the run to resume has {'output': 0.25}, not"),
        ("sparsity.interval=5", "sparsity.interval: the run to resume has 100, not 5"),
        ("training.steps=9", "training.steps: the run to resume has 8, not 9"),
        ("training.multiplier=2", "training.multiplier: the run to resume has 1.0, not 2.0"),
        ("training.learning_rate=1", "training.learning_rate: the run to resume has 0.002, not 1.0"),
        ("training.accumulate=2", "training.accumulate: the run to resume has 1, not 2"),
        ("evaluation.interval=5", "evaluation.interval: the run to resume has 500, not 5"),
    ],
)
def test_another_number_would_be_another_run(tmp_path: Path, override: str, complaint: str) -> None:
    saved_run(tmp_path / "run")
    with pytest.raises(UserError) as error:
        run_folder.last_checkpoint(config_in(tmp_path / "run", override))
    assert str(error.value).startswith(f"{tmp_path / 'run'}: {complaint}")
    assert "\n" not in str(error.value)


def test_no_run_and_a_run_without_checkpoint_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.dir holds no run to resume; train without --resume to start it"):
        run_folder.last_checkpoint(config_in(tmp_path / "run"))
    config = config_in(tmp_path / "run")
    run_folder.make(config.folder)
    Record(config, Ranks()).begin(torch.device("cpu"))
    with pytest.raises(UserError, match="there is no such folder"):
        run_folder.last_checkpoint(config)


@pytest.mark.parametrize("content", ["run: {seed: 0, wings: 2}", "5", "training: {steps: many}"])
def test_a_checkpoint_with_another_programs_settings_is_refused(tmp_path: Path, content: str) -> None:
    config = config_in(tmp_path / "run")
    model, _ = new_model(config, 5, torch.device("cpu"))
    state: dict[str, Any] = {"step": 3}
    checkpoint.save(
        tmp_path / "run" / "last", step=3, model=model, tokenizer_json="{}", config_yaml=content, training_state=state
    )
    with pytest.raises(UserError, match=r"config\.yaml: ") as error:
        run_folder.last_checkpoint(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "override",
    [
        "training.steps=9",
        "training.learning_rate=1",
        "training.lr_schedule=constant",
        "training.warmup=5",
        "training.final_learning_rate=0.5",
        "training.weight_decay=1",
        "training.grad_clip=null",
        "evaluation.interval=5",
        "sparsity.stop=0.5",
        "sparsity.drop_fraction=0.5",
        "sparsity.schedule=constant",
    ],
)
def test_a_run_may_go_on_with_other_numbers_where_it_is_told_to(tmp_path: Path, override: str) -> None:
    saved_run(tmp_path / "run")
    config = config_in(tmp_path / "run", override)
    assert run_folder.last_checkpoint(config, changing=True).step == 3
    key = override.partition("=")[0]
    with pytest.raises(
        UserError, match=rf"{key}: the run to resume has .* let `train` change this one by {key} and --r"
    ):
        run_folder.last_checkpoint(config)
