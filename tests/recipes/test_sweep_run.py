"""Sweeps of real processes, with networks that train in an instant: what takes time is starting them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rnnsparse import yaml12
from rnnsparse.cli import main
from rnnsparse.config import load_config
from rnnsparse.data.corpus import Corpus, load_corpus
from rnnsparse.recipes.sweep import Run, load_sweep
from rnnsparse.recipes.sweep_status import PROGRAM_BYTES, Estimator, duration, plan, status
from rnnsparse.storage import checkpoint
from rnnsparse.training import build
from rnnsparse.training.run import lock

ROOT = Path(__file__).parent.parent.parent
TEXT = "pack my box with five dozen liquor jugs. the quick brown fox jumps over the lazy dog, ünd ein ß.\n" * 20
# Masked, because compiling kernels would take longer than everything else.
BASE: dict[str, dict[str, Any]] = {
    "model": {"embedding_dim": 4, "hidden_size": 6, "execution": "masked"},
    "sparsity": {"method": "rigl", "sparsity": 0.5, "interval": 2},
    "training": {"steps": 12, "batch_size": 3, "sequence_length": 5},
    "evaluation": {"interval": 12, "lanes": 1, "symbols": 60},
    "logging": {"interval": 1, "tensorboard": False, "pictures": None},
}
FAILING = {"sparsity.method": "static", "training.grad_clip": None, "training.learning_rate": 1e38}


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    data = {"source": "text", "path": str(tmp_path / "text.txt"), "cache": str(tmp_path / "cache")}
    (tmp_path / "base.yaml").write_text(yaml12.write({"data": data, **BASE}))
    return tmp_path


def write(base: Path, **keys: Any) -> Path:
    path = base / "s.yaml"
    path.write_text(yaml12.write({"config": "base.yaml", "dir": str(base / "runs"), **keys}))
    return path


def estimator_of(run: Run, program_bytes: int = 0) -> Estimator:
    return Estimator({run.config.data: build.vocabulary_size(run.config.data)}, program_bytes)


def summary(base: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((base / "runs" / name / "summary.json").read_text())
    return found


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_failing_run_stops_no_other_and_a_second_sweep_repeats_nothing(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(base, grid=[FAILING, {"run.seed": [1, 2]}], processes=2)
    failing = "method=static,grad_clip=null,learning_rate=1e+38"
    assert main(["sweep", str(path)]) == 1
    out, err = capsys.readouterr()
    bits = [summary(base, f"seed={seed}")["bits_per_character"] for seed in (1, 2)]
    for seed, value in enumerate(bits, start=1):
        assert f"finished     seed={seed}: {value:.4f} bits per character in " in out
    assert out.splitlines()[0] == "training.threads is not set: each run gets one thread"
    assert out.splitlines()[-1] == f"2 of 3 runs are done, in {base / 'runs'}; 1 failed"
    assert err.startswith(f"rnnsparse: {failing}: step ")
    assert err.endswith(f"({base / 'runs' / failing}.log)\n")
    assert len(err.splitlines()) == 1

    before = content_of(base / "runs" / "seed=1")
    assert main(["sweep", str(write(base, grid={"run.seed": [1, 2]}))]) == 0
    out, err = capsys.readouterr()
    assert f"done before  seed=1: {bits[0]:.4f} bits per character" in out
    assert "started" not in out
    assert content_of(base / "runs" / "seed=1") == before


def interrupted(command: list[str], metrics: Path) -> tuple[str, str]:
    """Stop a sweep when a run with these metrics has made some steps; return what it said."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as sweeping:
        while not (metrics.exists() and metrics.read_text().count("\n") > 3):
            assert sweeping.poll() is None
            time.sleep(0.02)
        sweeping.send_signal(signal.SIGTERM)
        out, err = sweeping.communicate()
    assert sweeping.returncode == 130, err
    return out, err


def test_an_interrupted_sweep_lets_its_runs_save_themselves_and_goes_on(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(base, overrides={"training.steps": 400, "evaluation.interval": 400}, grid={"run.seed": [1, 2]})
    command = [sys.executable, "-m", "rnnsparse", "sweep", str(path), "--shard", "1/2"]
    metrics = base / "runs" / "seed=1" / "metrics.jsonl"
    out, err = interrupted(command, metrics)
    assert err == "rnnsparse: interrupted; the same command goes on\n"
    assert "stopped      seed=1" in out
    assert "seed=2" not in out
    stopped = checkpoint.load(base / "runs" / "seed=1").step
    assert 3 <= stopped < 400
    assert main(["sweep", str(path), "--dry-run"]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:3]] == [
        ["seed=1", "interrupted"],
        ["seed=2", "new"],
    ]

    assert main(["sweep", str(path)]) == 0
    assert "resumed      seed=1\n" in capsys.readouterr().out
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, 401))
    assert [summary(base, f"seed={seed}")["steps"] for seed in (1, 2)] == [400] * 2


def test_runs_of_a_killed_sweep_save_themselves_and_the_next_sweep_waits_for_them(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(base, overrides={"training.steps": 400, "evaluation.interval": 400}, grid={"run.seed": [1]})
    folder = base / "runs" / "seed=1"
    with subprocess.Popen([sys.executable, "-m", "rnnsparse", "sweep", str(path)], stdout=subprocess.PIPE) as sweeping:
        while not (folder / "metrics.jsonl").exists():
            assert sweeping.poll() is None
            time.sleep(0.02)
        sweeping.kill()
    assert f" (started by process {sweeping.pid}) since " in (lock.holder(folder) or "already gone")
    assert main(["sweep", str(path)]) == 0
    out = capsys.readouterr().out
    assert "resumed      seed=1\n" in out
    assert "1 of 1 runs are done" in out
    told = (base / "runs" / "seed=1.log").read_text()
    assert "stopped after step " in told
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 401))


def test_a_run_that_waits_is_verified_when_there_may_be_room_and_not_all_the_time(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(base, grid={"run.seed": [1, 2]}, processes=1)
    _, waiting = load_sweep(path).runs
    assert main(["train", str(base / "base.yaml"), *waiting.overrides]) == 0
    (waiting.config.folder / "summary.json").unlink()
    verified, slept = [], []

    def load(place: Path) -> checkpoint.Checkpoint:
        verified.append(place)
        return open_checkpoint(place)

    open_checkpoint, sleep = checkpoint.load, time.sleep
    monkeypatch.setattr(checkpoint, "load", load)
    monkeypatch.setattr(time, "sleep", lambda seconds: (slept.append(seconds), sleep(seconds)))
    assert main(["sweep", str(path)]) == 0
    assert len(slept) > 12, "too fast to tell"
    assert len([place for place in verified if place.is_relative_to(waiting.config.folder)]) <= 6


def test_a_dry_run_lists_the_cost_of_every_run_and_writes_nothing(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(base, grid={"sparsity.method": ["dense", "rigl"], "run.seed": [1]})
    assert main(["sweep", str(path), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert not (base / "runs").exists()
    header, dense, rigl, total = out.splitlines()
    assert header.split("  ")[0] == "run"
    assert dense.split()[:2] == ["method=dense,seed=1", "new"]
    assert dense.split()[-2:] == ["1.0000", "?"]
    assert main(["inspect", str(base / "base.yaml"), "run.seed=1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert rigl.split()[2:] == [
        f"{report['connections']:,}",
        f"{report['training_flops']:.3g}",
        f"{report['training_flops_vs_dense']:.4f}",
        "?",
    ]
    assert total.startswith("2 runs: 2 new; ")


def test_a_plan_reads_each_text_once(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def counted(*arguments: Any) -> Corpus:
        loaded.append(arguments)
        return load_corpus(*arguments)

    monkeypatch.setattr(build, "load_corpus", counted)
    grid = {"model.hidden_size": [6, 7, 8], "run.seed": [1, 2]}
    plan(load_sweep(write(base, overrides={"data.tokenizer": "char"}, grid=grid)).runs, pack=2)
    assert len(loaded) == 1


def test_what_lies_in_the_folder_of_a_run_decides_what_becomes_of_it(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(base, grid={"run.seed": [1, 2, 3, 4]})
    free, other, foreign, busy = load_sweep(path).runs
    assert main(["train", str(base / "base.yaml"), *other.overrides, "training.steps=1"]) == 0
    foreign.config.folder.mkdir()
    (foreign.config.folder / "thesis.tex").write_text("years of work")
    busy.config.folder.mkdir()
    with lock.held(busy.config.folder):
        capsys.readouterr()
        assert main(["sweep", str(path)]) == 1
    out, err = capsys.readouterr()
    assert status(free).state == "done"
    assert f"elsewhere    seed=4: process {os.getpid()} on " in out
    assert "1 of 4 runs are done" in out
    assert "; 2 failed; 1 run elsewhere" in out
    assert [line.split(";")[0] for line in err.splitlines()] == [
        "rnnsparse: seed=2: training.steps: the run to resume has 1, not 12",
        "rnnsparse: seed=3: run.dir exists already and nothing is overwritten",
    ]
    assert (foreign.config.folder / "thesis.tex").read_text() == "years of work"
    assert summary(base, "seed=2")["steps"] == 1
    shutil.rmtree(foreign.config.folder)
    assert status(foreign).state == "new"


def test_a_run_beyond_the_memory_limit_is_not_started(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(base, grid={"run.seed": 1}, memory="1MB")
    (run,) = load_sweep(path).runs
    size = PROGRAM_BYTES + estimator_of(run).cost(run.config).memory_bytes  # whatever this process has held before
    assert main(["sweep", str(path)]) == 1
    out, err = capsys.readouterr()
    assert "started" not in out
    assert f"rnnsparse: seed=1: needs about {size / 1e6:,.0f} MB, " in err
    assert f"more than memory: 1 MB in {base / 's.yaml'}; raise it" in err
    assert not (base / "runs").exists()


def test_a_run_that_cannot_be_costed_fails_alone_within_a_memory_limit(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(base, grid=[{"run.seed": 1}, {"start.weights": "nowhere"}, {"run.seed": 2}], memory="8GB", pack=2)
    assert main(["sweep", str(path), "--dry-run"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[2].split() == ["weights=nowhere", "new", *"????"]
    assert out[-2].startswith("weights=nowhere: start.weights: nowhere: ")
    assert out[-1].endswith(" FLOPs to train besides the 1 unknown")
    assert main(["sweep", str(path)]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("rnnsparse: weights=nowhere: start.weights: nowhere: ")
    assert len(err.splitlines()) == 1
    assert f"2 of 3 runs are done, in {base / 'runs'}; 1 failed" in out
    assert not (base / "runs" / "weights=nowhere.log").exists()


def test_a_run_that_starts_from_an_earlier_one_waits_for_its_end(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = str(base / "runs" / "seed=1")
    (base / "other.txt").write_text(TEXT.upper(), encoding="utf-8")
    other_text = {"start.weights": first, "data.vocabulary": first, "data.path": str(base / "other.txt")}
    grid = [{"run.seed": 1}, other_text, {"run.seed": 1, "training.teacher": first}]
    path = write(base, overrides={"data.tokenizer": "char"}, grid=grid, memory="8GB", processes=3, pack=3)
    assert main(["sweep", str(path), "--dry-run"]) == 0
    assert f"data.vocabulary: {first}: there is no such file or folder" in capsys.readouterr().out
    assert main(["sweep", str(path)]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert out.index("finished     seed=1: ") < out.index("started      weights=")
    assert "3 of 3 runs are done" in out
    assert "warning: data.vocabulary: lacks " in next((base / "runs").glob("weights=*.log")).read_text()


def test_a_text_that_is_not_there_is_told_before_anything_starts(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(base, grid={"run.seed": [1, 2]}, overrides={"data.path": "nowhere.txt"})
    assert main(["sweep", str(path)]) == 2
    assert "nowhere.txt" in capsys.readouterr().err
    assert not (base / "runs").exists()


def test_times_go_by_the_finished_runs_that_are_most_alike(base: Path) -> None:
    path = write(base, grid={"model.hidden_size": [6, 12], "run.seed": [1, 2]})
    small, small_2, large, _ = load_sweep(path).runs
    estimator = estimator_of(small)
    assert estimator.seconds(small.config) is None
    estimator.learn(small, {"characters_per_second": 90.0, "steps": 12, "characters_seen": 180})
    assert estimator.seconds(small_2.config) == estimator.seconds(large.config) == 12 * 3 * 5 / 90
    estimator.learn(large, {"characters_per_second": 18.0, "steps": 12, "characters_seen": 180})
    assert estimator.seconds(small_2.config) == 2
    assert estimator.seconds(large.config) == 10


def test_times_of_a_text_with_several_bytes_per_character_go_by_bytes(base: Path) -> None:
    run = load_sweep(write(base, grid={"run.seed": 1})).runs[0]
    estimator = estimator_of(run)
    estimator.learn(run, {"characters_per_second": 45.0, "steps": 12, "characters_seen": 90})
    assert estimator.seconds(run.config) == 90 / 45


def test_a_recipe_takes_the_time_of_all_its_runs(base: Path) -> None:
    # One round after the dense run, from step 3 on.
    recipe = {"sparsity.method": "lottery", "sparsity.prune_share": 1.0, "sparsity.rewind": 0.25}
    plain, lottery = load_sweep(write(base, grid=[{"run.seed": 1}, recipe])).runs
    estimator = estimator_of(plain)
    estimator.learn(plain, {"characters_per_second": 90.0, "steps": 12, "characters_seen": 180})
    assert estimator.seconds(lottery.config) == (12 + 12 - 3) * 15 / 90


def test_a_plan_counts_the_work_of_a_teacher(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = base / "teacher"
    assert main(["train", str(base / "base.yaml"), f"run.dir={teacher}"]) == 0
    (run,) = load_sweep(write(base, grid={"training.teacher": str(teacher)})).runs
    capsys.readouterr()
    assert main(["inspect", str(base / "base.yaml"), *run.overrides, "--json"]) == 0
    taught = json.loads(capsys.readouterr().out)["training_flops"]
    alone, with_teacher = (
        estimator_of(run).cost(config).training_flops for config in (load_config(base / "base.yaml"), run.config)
    )
    assert alone < with_teacher == taught


def test_memory_is_what_inspect_counts_and_what_finished_runs_had_beyond_it(base: Path) -> None:
    run = load_sweep(write(base, grid={"run.seed": 1})).runs[0]
    estimator = estimator_of(run, program_bytes=1000)
    counted = estimator.cost(run.config).memory_bytes
    assert estimator.memory(run.config) == counted + 1000
    for peak, beyond in ((500, 500), (700, 700), (600, 700)):
        estimator.learn(run, {"peak_memory_bytes": counted + peak}, with_memory=True)
        assert estimator.memory(run.config) == counted + beyond


@pytest.mark.parametrize(
    ("seconds", "shown"), [(None, "?"), (0.4, "0 s"), (99, "99 s"), (100, "2 min"), (5999, "100 min"), (9000, "2.5 h")]
)
def test_durations_are_rounded_to_what_one_can_plan_with(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "¹/2"])
def test_a_part_that_is_none_is_refused(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", "s.yaml", f"--shard={part}"])
    assert "is not a part such as 1/4" in capsys.readouterr().err


def test_a_pack_is_one_process_and_each_of_its_runs_is_told_of(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(base, grid=[FAILING, {"run.seed": [1, 2, 3]}, {"model.hidden_size": 7}], pack=3, processes=1)
    failing, one, two, three, alone = load_sweep(path).runs
    assert main(["sweep", str(path), "--dry-run"]) == 0
    assert f"pack of 3: {failing.name} {one.name} {two.name}\n5 runs" in capsys.readouterr().out
    assert main(["sweep", str(path)]) == 1
    out, err = capsys.readouterr()
    assert [line.split()[0:2] for line in out.splitlines() if " in a pack of 3" in line] == [
        ["started", run.name] for run in (failing, one, two)
    ]
    assert f"started      {three.name}\n" in out
    assert err.startswith(f"rnnsparse: {failing.name}: step ")
    assert len(err.splitlines()) == 1
    for run in (one, two, three, alone):
        bits = summary(base, run.name)["bits_per_character"]
        assert f"finished     {run.name}: {bits:.4f} bits per character in " in out
        assert f"validation: {bits:.4f} bits per character" in (base / "runs" / f"{run.name}.log").read_text()
    assert "; 3 of 5" in out
    assert out.splitlines()[-1] == f"4 of 5 runs are done, in {base / 'runs'}; 1 failed"


def test_an_interrupted_pack_saves_all_its_runs_and_goes_on(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"training.steps": 400, "evaluation.interval": 400}
    path = write(base, overrides=settings, grid={"run.seed": [1, 2]}, pack=2)
    command = [sys.executable, "-m", "rnnsparse", "sweep", str(path)]
    metrics = base / "runs" / "seed=2" / "metrics.jsonl"
    out, _ = interrupted(command, metrics)
    assert "stopped      seed=1\nstopped      seed=2" in out
    assert all(3 <= checkpoint.load(base / "runs" / f"seed={seed}").step < 400 for seed in (1, 2))
    assert main(["sweep", str(path)]) == 0
    assert "resumed      seed=1 in a pack of 2\n" in capsys.readouterr().out
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(1, 401))


def test_a_pack_that_breaks_down_tells_so_in_the_log_of_each_run(base: Path) -> None:
    # A sweep packs no runs of two shapes; whoever does finds out.
    given = [
        {
            "config": str(base / "base.yaml"),
            "overrides": [f"model.hidden_size={size}", f"run.dir={base / str(size)}"],
            "resume": False,
            "log": str(base / f"{size}.log"),
        }
        for size in (6, 7)
    ]
    with pytest.raises(RuntimeError, match="stack expects each tensor to be equal size"):
        main(["train-pack", *map(json.dumps, given)])
    for size in (6, 7):
        last = (base / f"{size}.log").read_text().splitlines()[-1]
        assert last.startswith("rnnsparse: RuntimeError in the pack of this run: stack expects")
        assert lock.holder(base / str(size)) is None


def test_the_memory_of_a_pack_is_not_taken_for_that_of_its_runs(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys: dict[str, Any] = {"pack": 2, "memory": "4GB", "overrides": {"training.device": "cpu"}}
    assert main(["sweep", str(write(base, grid={"run.seed": [1, 2]}, **keys))]) == 0
    for seed in (1, 2):
        path = base / "runs" / f"seed={seed}" / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"peak_memory_bytes": 10**10}))
    assert main(["sweep", str(write(base, grid={"run.seed": [1, 2, 3]}, **keys))]) == 0
    assert "finished     seed=3" in capsys.readouterr().out


@pytest.mark.parametrize("spoil", [lambda s: [], lambda s: s | {"bits_per_character": None}, lambda s: {"steps": 1}])
def test_a_damaged_summary_fails_its_run_alone(base: Path, spoil: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(write(base, grid={"run.seed": [1]}))]) == 0
    path = base / "runs" / "seed=1" / "summary.json"
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    assert main(["sweep", str(write(base, grid={"run.seed": [1, 2]}))]) == 1
    out, err = capsys.readouterr()
    assert "finished     seed=2" in out
    assert "summary.json: not the summary of a run" in err
    assert len(err.splitlines()) == 1


def test_runs_in_one_process_share_the_memory_of_the_program(base: Path) -> None:
    runs = load_sweep(write(base, grid={"run.seed": [1, 2, 3]})).runs
    each = estimator_of(runs[0]).cost(runs[0].config).memory_bytes
    assert estimator_of(runs[0], program_bytes=1000).memory(*(run.config for run in runs)) == 1000 + 3 * each
