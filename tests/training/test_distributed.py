"""Several ranks train the model that one trains, and survive what happens to one of them.

Most runs are made by one program that torchrun starts once (cases_on_ranks.py).
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rnnsparse.errors import UserError
from rnnsparse.storage import checkpoint
from rnnsparse.training.run.record import Record
from rnnsparse.training.step.distributed import Ranks
from tests.training.cases_on_ranks import (
    RESUMED,
    SAME,
    STEPS,
    STOPPED_AFTER,
    config_in,
    resumed_config,
    same_configs,
    spoiled,
    spoiled_config,
    stopped,
    train,
)

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("cases_on_ranks.py")
# All others make 10.
UPDATES = {"dense": 0, "small_dense": 0, "static": 0, "snip": 1, "low_rank": 1, "prune": 8}
TIMES = {"seconds", "timed_seconds", "timed_characters", "characters_per_second", "validation_seconds"}


def torchrun(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        *map(str, arguments),
    ]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What our program said, without torchrun's reports."""
    return [line for line in done.stderr.splitlines() if line.startswith("rnnsparse: ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs, on one rank and on two."""
    folder = tmp_path_factory.mktemp("runs")
    for config in same_configs(folder, ranks=1):
        train(config)
    train(spoiled_config(folder, ranks=1), disturb=spoiled)
    for name in RESUMED:
        train(resumed_config(folder, "undisturbed", name))
        train(resumed_config(folder, "from_one", name), disturb=stopped)
    done = torchrun(PROGRAM, folder)
    assert done.returncode == 0, done.stderr
    for name in RESUMED:
        train(resumed_config(folder, "from_two", name), resume=True)
    return folder


@pytest.fixture(scope="module")
def saw(folder: Path) -> list[dict[str, Any]]:
    """What each rank saw."""
    result: list[dict[str, Any]] = json.loads((folder / "saw.json").read_text())
    return result


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    numbers = [{key: math.nan if value is None else value for key, value in line.items()} for line in lines]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in numbers]


def summary(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return result


def assert_agree(run: Path, other: Path) -> None:
    """The same topology; values, losses and scores in float64 up to the order of sums."""
    ours, theirs = load_file(run / "last" / "model.safetensors"), load_file(other / "last" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if tensor.is_floating_point():
            assert tensor.dtype == torch.float64
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-10, msg=name)
        else:
            assert torch.equal(tensor, theirs[name]), name
    for line, expected in zip(metrics(run), metrics(other), strict=True):
        assert line == pytest.approx(expected, rel=1e-9, abs=1e-10, nan_ok=True)


def states(run: Path) -> tuple[bytes, bytes, Any]:
    state = checkpoint.load(run / "last").training_state()
    tensors = [state["recurrent_state"], *(total for _, total in state["sparsifier"]["probes"].values())]
    files = [(run / name / "model.safetensors").read_bytes() for name in ("last", "best")]
    return (*files, [tensor.tolist() for tensor in tensors])


@pytest.mark.parametrize(("method", "cell", "execution"), SAME)
def test_two_ranks_train_the_model_of_one(folder: Path, method: str, cell: str, execution: str) -> None:
    runs = folder / "same" / f"{method}-{cell}-{execution}"
    assert_agree(runs / "2", runs / "1")
    updates = checkpoint.load(runs / "2").training_state()["sparsifier"]["updates"]
    assert updates == UPDATES.get(method, 10)
    lines = metrics(runs / "2")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[-1]["characters_seen"] == STEPS * 4 * 5
    assert summary(runs / "2")["ranks"] == 2


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("start", ["from_one", "from_two"])
def test_a_run_may_be_resumed_on_another_number_of_ranks(folder: Path, start: str, name: str) -> None:
    assert_agree(folder / start / name, folder / "undisturbed" / name)
    assert summary(folder / start / name)["ranks"] == (2 if start == "from_one" else 1)


@pytest.mark.parametrize("name", RESUMED)
def test_a_signal_to_one_rank_stops_all_after_the_same_step(saw: list[dict[str, Any]], name: str) -> None:
    stopped = {rank[f"stopped {name}"] for rank in saw}
    (line,) = stopped
    assert line.startswith(f"stopped after step {STOPPED_AFTER}, saved in ")


@pytest.mark.parametrize("method", ["rigl", "scout"])
def test_a_run_stopped_and_resumed_on_as_many_ranks_ends_as_an_undisturbed_one(
    folder: Path, saw: list[dict[str, Any]], method: str
) -> None:
    assert all("stopped after step 3" in rank[f"stopped {method} 3"] for rank in saw)
    assert all("stopped after step 8" in rank[f"stopped {method} 8"] for rank in saw)
    stopped, through = folder / "stopped" / method, folder / "through" / method
    assert states(stopped) == states(through)
    assert metrics(stopped) == metrics(through)
    keys = ("communicated_bytes_per_step", "communicated_vs_dense", "bits_per_character")
    assert [summary(stopped)[key] for key in keys] == [summary(through)[key] for key in keys]


def test_a_bad_batch_of_one_rank_is_left_out_by_all(folder: Path, saw: list[dict[str, Any]]) -> None:
    assert_agree(folder / "spoiled" / "2", folder / "spoiled" / "1")
    assert metrics(folder / "spoiled" / "2")[-1]["skipped"] == 2
    line = "step 1, symbols 0 to 4 of each lane: the loss is not finite, because the recurrent state of lane 3 was not"
    assert {rank["lane lost"][: len(line)] for rank in saw} == {line}


def test_dropout_drops_other_units_on_each_rank(saw: list[dict[str, Any]]) -> None:
    assert saw[0]["random"] != saw[1]["random"]


def test_different_topologies_end_the_run_on_every_rank(folder: Path, saw: list[dict[str, Any]]) -> None:
    assert {rank["topologies differ"].partition(",")[0] for rank in saw} == {
        "output: ranks 0 and 1 have different topologies"
    }
    assert not (folder / "differs").exists()


def test_lanes_that_do_not_divide_are_refused(saw: list[dict[str, Any]]) -> None:
    assert {rank["lanes do not divide"] for rank in saw} == {
        "training.batch_size=5: does not divide among 2 ranks; use 4"
    }


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are listed on Linux only")
def test_no_thread_of_the_ranks_outlives_them(folder: Path) -> None:
    for rank in (0, 1):
        threads = json.loads((folder / f"threads_of_{rank}.json").read_text())
        assert threads
        assert not [thread for thread in threads if "gloo" in thread]


def test_what_is_communicated_is_counted(folder: Path) -> None:
    """Of static the values and biases; of rigl also positions at updates; of dense all, once."""
    sparse = [run for run in SAME if run[0] in ("dense", "static", "rigl") and run[2] == "sparse"]
    runs = {run[0]: summary(folder / "same" / "-".join(run) / "2") for run in sparse}
    static, rigl = runs["static"], runs["rigl"]
    moments = checkpoint.load(folder / "same/static-gru-sparse/2").training_state()["optimizer"]["state"]
    numbers = sum(of_parameter["exp_avg"].numel() for of_parameter in moments.values())
    assert static["communicated_bytes_per_step"] == 8 * numbers
    dense = 8 * (numbers - static["connections"] + static["positions"])
    assert static["communicated_vs_dense"] == 8 * numbers / dense
    assert 8 * numbers < rigl["communicated_bytes_per_step"] <= 8 * (numbers + rigl["positions"] * 10 / STEPS)
    assert runs["dense"]["communicated_vs_dense"] == 1


def cli_config(tmp_path: Path) -> list[str | Path]:
    config = config_in(tmp_path, "run", "scout", "training.steps=8", "checkpoint.interval=2")
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    return [path]


def test_after_a_rank_is_killed_torchrun_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    # Seldom looked at, so that the other rank finds out before torchrun ends it.
    done = torchrun("--max-restarts=1", "--monitor-interval=2", PROGRAM, "killed", *cli_config(tmp_path))
    assert done.returncode == 0, done.stderr
    assert len(said(done)) == 1
    assert said(done)[0].startswith("rnnsparse: another rank has ended (")
    assert "--max-restarts" in said(done)[0]
    assert done.stdout.count("(new)") == done.stdout.count("(resumed after step 4)") == 1
    train(config_in(tmp_path, "one", "scout", "training.steps=8"))
    assert_agree(tmp_path / "run", tmp_path / "one")


def test_an_error_is_told_by_one_rank(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "diary.txt").touch()
    done = torchrun("-m", "rnnsparse", "train", *cli_config(tmp_path))
    assert done.returncode == 1
    (line,) = said(done)
    assert "run.dir exists already and nothing is overwritten" in line
    assert "exitcode  : 2" in done.stderr
    assert os.listdir(tmp_path / "run") == ["diary.txt"]


def test_only_a_run_that_the_same_torchrun_began_goes_on_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_in(tmp_path, "run", "static", "training.steps=1")
    refused = pytest.raises(UserError, match="exists already and nothing is overwritten")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "this one")
    train(config)
    with refused:  # nothing was restarted
        Record(config, Ranks()).look(resume=False)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    saved = Record(config, Ranks()).look(resume=False)
    assert saved is not None
    assert saved.step == 1
    assert Record(config_in(tmp_path, "new"), Ranks()).look(resume=False) is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another one")
    with refused:
        Record(config, Ranks()).look(resume=False)
