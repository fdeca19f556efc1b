"""Sweeps of real processes, with networks that train in an instant: what takes time is starting them."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rnnsparse import files, yaml12
from rnnsparse.cli import main
from rnnsparse.config import RunConfig, load_config
from rnnsparse.data.corpus import Corpus, load_corpus, text_fingerprint
from rnnsparse.errors import UserError
from rnnsparse.recipes import sweep_run
from rnnsparse.recipes.sweep import Run, load_sweep
from rnnsparse.recipes.sweep_status import PROGRAM_BYTES, Estimator, Status, duration, plan, status
from rnnsparse.storage import checkpoint
from rnnsparse.training import build
from rnnsparse.training.run import lock
from rnnsparse.training.speed import Speeds

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
    return prepared(tmp_path, monkeypatch)


def prepared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder with a text and a configuration, and let child processes find the package."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    data = {"source": "text", "path": str(folder / "text.txt"), "cache": str(folder / "cache")}
    (folder / "base.yaml").write_text(yaml12.write({"data": data, **BASE}))
    return folder


def write(base: Path, **keys: Any) -> Path:
    path = base / "s.yaml"
    path.write_text(yaml12.write({"config": "base.yaml", "dir": str(base / "runs"), **keys}))
    return path


def told(*arguments: str) -> tuple[int, str, str]:
    """Return the exit code of a command, and what it wrote to stdout and stderr."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main(list(arguments))
    return code, out.getvalue(), err.getvalue()


def estimator_of(run: Run, program_bytes: int = 0) -> Estimator:
    return Estimator({run.config.data: build.vocabulary_size(run.config.data)}, program_bytes)


def summary(base: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((base / "runs" / name / "summary.json").read_text())
    return found


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- one sweep of single runs, and what lay in their folders


class Mixed(NamedTuple):
    """A sweep of a run that fails, some whose folders are not empty, and one that has nothing against it."""

    base: Path
    failing: Run
    other: Run
    foreign: Run
    busy: Run
    damaged: list[Run]
    free: Run
    code: int
    out: str
    err: str

    def reason(self, run: Run) -> str:
        """Return what stderr says of a run."""
        (line,) = [line for line in self.err.splitlines() if line.startswith(f"rnnsparse: {run.name}: ")]
        return line.removeprefix(f"rnnsparse: {run.name}: ")


SPOIL: list[Callable[[dict[str, Any]], Any]] = [
    lambda s: [],
    lambda s: s | {"bits_per_character": None},
    lambda s: {"steps": 1},
]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixed]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        base = prepared(tmp_path_factory.mktemp("mixed"), monkeypatch)
        path = write(base, grid=[FAILING, {"run.seed": [1, 2, 3, 4, 5, 6, 7]}], processes=1)
        failing, other, foreign, busy, *damaged, free = load_sweep(path).runs
        assert told("train", str(base / "base.yaml"), *other.overrides, "training.steps=1")[0] == 0
        for run, spoil in zip(damaged, SPOIL, strict=True):
            shutil.copytree(other.config.folder, run.config.folder)
            (run.config.folder / "config.yaml").write_text(run.config.to_yaml())
            content = json.dumps(spoil(summary(base, other.name)))
            (run.config.folder / "summary.json").write_text(content)
        foreign.config.folder.mkdir()
        (foreign.config.folder / "thesis.tex").write_text("years of work")
        busy.config.folder.mkdir()
        with lock.held(busy.config.folder):
            found = told("sweep", str(path))
        yield Mixed(base, failing, other, foreign, busy, damaged, free, *found)


def test_one_failing_run_stops_no_other_and_a_second_sweep_repeats_nothing(mixed: Mixed) -> None:
    base, name = mixed.base, mixed.failing.name
    assert name == "method=static,grad_clip=null,learning_rate=1e+38"
    assert mixed.code == 1
    assert mixed.out.splitlines()[0] == "training.threads is not set: each run gets one thread"
    assert mixed.out.splitlines()[-1] == f"1 of 8 runs are done, in {base / 'runs'}; 6 failed; 1 run elsewhere"
    assert mixed.reason(mixed.failing).startswith("step ")
    assert mixed.reason(mixed.failing).endswith(f"({base / 'runs' / name}.log)")
    assert len(mixed.err.splitlines()) == 6
    bits = summary(base, mixed.free.name)["bits_per_character"]
    assert f"finished     {mixed.free.name}: {bits:.4f} bits per character in " in mixed.out

    before = content_of(mixed.free.config.folder)
    code, out, _ = told("sweep", str(write(base, grid={"run.seed": [7]})))
    assert code == 0
    assert f"done before  {mixed.free.name}: {bits:.4f} bits per character" in out
    assert "started" not in out
    assert content_of(mixed.free.config.folder) == before


def test_what_lies_in_the_folder_of_a_run_decides_what_becomes_of_it(mixed: Mixed) -> None:
    assert status(mixed.free).state == "done"
    assert f"elsewhere    seed=3: process {os.getpid()} on " in mixed.out
    assert mixed.reason(mixed.other).startswith("training.steps: the run to resume has 1, not 12;")
    assert mixed.reason(mixed.foreign).startswith("run.dir exists already and nothing is overwritten;")
    assert (mixed.foreign.config.folder / "thesis.tex").read_text() == "years of work"
    assert summary(mixed.base, mixed.other.name)["steps"] == 1
    shutil.rmtree(mixed.foreign.config.folder)
    assert status(mixed.foreign).state == "new"


@pytest.mark.parametrize("number", range(len(SPOIL)))
def test_a_damaged_summary_fails_its_run_alone(mixed: Mixed, number: int) -> None:
    assert f"finished     {mixed.free.name}" in mixed.out
    assert "summary.json: not the summary of a run" in mixed.reason(mixed.damaged[number])


def test_a_run_that_ended_on_another_text_is_not_done(base: Path) -> None:
    path = write(base, grid={"run.seed": [1]}, search={"trials": 1})
    (run,) = load_sweep(path).runs
    assert told("train", str(base / "base.yaml"), *run.overrides)[0] == 0
    bits = f"{summary(base, run.name)['bits_per_character']:.4f}"
    (base / "other.txt").write_text(TEXT.upper(), encoding="utf-8")
    shutil.copy(base / "text.txt", base / "same.txt")
    other, same = (f"data.path={base / name}" for name in ("other.txt", "same.txt"))
    code, _, err = told("sweep", str(path), other)
    assert code == 1
    then, now = summary(base, run.name)["text"][:8], text_fingerprint(load_sweep(path, [other]).runs[0].config.data)[:8]
    assert err == (
        f"rnnsparse: {run.name}: {other}: is not the text that this run was trained on: fingerprint then {then}, now "
        f"{now}; bring that text back, or choose another dir\n"
    )
    plans = [told("sweep", str(path), "--dry-run", *of)[1].splitlines()[-1].split()[2] for of in ([], [same], [other])]
    assert plans == [bits, bits, "refused"]

    of_old = summary(base, run.name) | {"text": None}
    (run.config.folder / "summary.json").write_text(json.dumps(of_old))
    assert status(load_sweep(path, [other]).runs[0]).state == "done", "earlier versions did not tell their text"


def test_a_run_that_started_from_other_weights_is_not_done(base: Path) -> None:
    first, moved, second = (base / name for name in ("first", "moved", "second"))
    for seed, folder in enumerate((first, second)):
        assert told("train", str(base / "base.yaml"), f"run.dir={folder}", f"run.seed={seed}")[0] == 0
    shutil.copytree(first, moved)
    path = write(base, grid={"run.seed": [1]})
    assert told("sweep", str(path), f"start.weights={first}")[0] == 0

    def states(*overrides: str) -> list[Status]:
        return [status(run) for run in load_sweep(path, overrides).runs]

    assert [states(f"start.weights={folder}")[0].state for folder in (first, moved)] == ["done", "done"]
    (refused,) = states(f"start.weights={second}")
    then, now = (checkpoint.load(folder / "last").weights_sha256[:8] for folder in (first, second))
    assert refused.state == "refused"
    assert f"start.weights: {second}: is not what this run was given: SHA-256 then {then}, now {now}; " in (
        refused.detail
    )
    environment = load_sweep(path).runs[0].config.folder / "environment.json"
    for foreign in ('{"others": {"start.weights": 3}}', '{"others": 3}', "{}"):
        environment.write_text(foreign)
        assert states(f"start.weights={second}")[0].state == ("refused" if "start" in foreign else "done")
    assert states(f"start.weights={second}")[0].state == "done", "earlier versions did not tell"


def test_a_run_that_stopped_early_goes_on_where_the_sweep_lets_it(base: Path) -> None:
    standing = {"sparsity.method": "static", "training.learning_rate": 1e-30, "evaluation.interval": 1}
    path = write(base, overrides=standing, grid={"run.seed": [1]})
    (run,) = load_sweep(path).runs
    assert told("train", str(base / "base.yaml"), *run.overrides, "training.early_stopping=2")[0] == 0
    assert summary(base, run.name)["steps"] == 3

    def state(patience: int) -> str:
        return status(load_sweep(path, [f"training.early_stopping={patience}"]).runs[0]).state

    assert [state(1), state(2), state(3)] == ["done", "done", "interrupted"]
    code, out, _ = told("sweep", str(path))
    assert code == 0
    assert f"resumed      {run.name}" in out
    assert summary(base, run.name)["steps"] == 12


# ---- one sweep within a memory limit


class Swept(NamedTuple):
    base: Path
    runs: Mapping[str, Run]
    planned: str
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swept]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        base = prepared(tmp_path_factory.mktemp("swept"), monkeypatch)
        (base / "other.txt").write_text(TEXT.upper(), encoding="utf-8")
        first = str(base / "runs" / "seed=1")
        grid = {
            "failing": FAILING,
            "one": {"run.seed": 1},
            "nowhere": {"start.weights": "nowhere"},
            "two": {"run.seed": 2},
            "three": {"run.seed": 3},
            "before": {"run.seed": 4},
            "from one": {"start.weights": first, "data.vocabulary": first, "data.path": str(base / "other.txt")},
            "taught by one": {"run.seed": 1, "training.teacher": first},
        }
        settings = {"data.tokenizer": "char", "training.device": "cpu"}
        path = write(base, overrides=settings, grid=list(grid.values()), memory="8GB", processes=3)
        runs = dict(zip(grid, load_sweep(path).runs, strict=True))
        _, planned, _ = told("sweep", str(path), "--dry-run")
        assert told("train", str(base / "base.yaml"), *runs["before"].overrides)[0] == 0
        yield Swept(base, runs, planned, *told("sweep", str(path)))


def test_a_run_that_fails_stops_no_other_and_each_is_told_of(swept: Swept) -> None:
    failing, *others = (swept.runs[name] for name in ("failing", "one", "two", "three"))
    assert swept.code == 1
    lines = swept.out.splitlines()
    assert swept.err.splitlines()[1].startswith(f"rnnsparse: {failing.name}: step ")
    for run in others:
        bits = summary(swept.base, run.name)["bits_per_character"]
        assert f"started      {run.name}\n" in swept.out
        assert f"finished     {run.name}: {bits:.4f} bits per character in " in swept.out
        assert f"validation: {bits:.4f} bits per character" in log_of(swept, run).read_text()
    assert lines[-2].endswith("; 8 of 8")
    assert lines[-1] == f"6 of 8 runs are done, in {swept.base / 'runs'}; 2 failed"


def log_of(swept: Swept, run: Run) -> Path:
    return swept.base / "runs" / f"{run.name}.log"


def test_a_run_that_cannot_be_costed_fails_alone_within_a_memory_limit(swept: Swept) -> None:
    name = swept.runs["nowhere"].name
    planned = swept.planned.splitlines()
    assert planned[3].split() == [name, "new", *"????"]
    assert any(line.startswith(f"{name}: start.weights: nowhere: ") for line in planned)
    assert planned[-1].endswith(" FLOPs to train besides the 3 unknown")
    assert swept.err.startswith(f"rnnsparse: {name}: start.weights: nowhere: ")
    assert len(swept.err.splitlines()) == 2
    assert not log_of(swept, swept.runs["nowhere"]).exists()


def test_a_run_that_starts_from_an_earlier_one_waits_for_its_end(swept: Swept) -> None:
    first, waiting, taught = (swept.runs[name] for name in ("one", "from one", "taught by one"))
    assert f"data.vocabulary: {first.config.folder}: there is no such file or folder" in swept.planned
    for run in (waiting, taught):
        assert swept.out.index(f"finished     {first.name}: ") < swept.out.index(f"started      {run.name}\n")
        assert f"finished     {run.name}: " in swept.out
    assert "warning: data.vocabulary: lacks " in log_of(swept, waiting).read_text()


# ---- interruptions


def interrupted(
    path: Path, metrics: Path, *arguments: str, before: Callable[[], None] = lambda: None
) -> tuple[str, str, int]:
    """Stop a sweep when a run with these metrics has made some steps, and something was done `before`.

    Returns what it said, and how often it had looked at its runs by then.
    """
    sleep, looks = time.sleep, 0

    def interrupting(seconds: float) -> None:
        nonlocal looks
        sleep(seconds)
        if metrics.exists() and metrics.read_text().count("\n") > 3:
            before()
            signal.raise_signal(signal.SIGTERM)
        else:
            looks += 1

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(time, "sleep", interrupting)
        monkeypatch.setattr(sweep_run, "POLL_SECONDS", 0.02)
        code, out, err = told("sweep", str(path), *arguments)
    assert code == 130, err
    return out, err, looks


LONG = {"training.steps": 400, "evaluation.interval": 400}


def test_an_interrupted_sweep_lets_its_runs_save_themselves_and_goes_on(base: Path) -> None:
    path = write(base, overrides=LONG, grid={"run.seed": [1, 2]})
    metrics = base / "runs" / "seed=1" / "metrics.jsonl"
    out, err, _ = interrupted(path, metrics, "--shard", "1/2")
    assert err == "rnnsparse: interrupted; the same command goes on\n"
    assert "stopped      seed=1" in out
    assert "seed=2" not in out
    stopped = checkpoint.load(base / "runs" / "seed=1").step
    assert 3 <= stopped < 400
    assert [line.split()[:2] for line in told("sweep", str(path), "--dry-run")[1].splitlines()[1:3]] == [
        ["seed=1", "interrupted"],
        ["seed=2", "new"],
    ]

    code, out, _ = told("sweep", str(path), "--shard", "1/2")
    assert code == 0
    assert "resumed      seed=1\n" in out
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, 401))
    assert summary(base, "seed=1")["steps"] == 400


def test_of_a_run_that_could_not_save_itself_nobody_says_that_it_was_stopped(base: Path) -> None:
    path = write(base, overrides=LONG, grid={"run.seed": [1]})
    folder = base / "runs" / "seed=1"

    def in_the_way() -> None:
        folder.rename(base / "moved")
        folder.write_text("")

    out, err, _ = interrupted(path, folder / "metrics.jsonl", before=in_the_way)
    assert "stopping: 1 runs save themselves\n" in out
    assert "stopped " not in out
    assert "failed       seed=1: " in out
    assert err.splitlines()[0].startswith("rnnsparse: seed=1: ")


def test_a_run_that_waits_is_verified_when_there_may_be_room_and_not_all_the_time(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(base, overrides=LONG, grid={"run.seed": [1, 2]}, processes=1)
    first, waiting = load_sweep(path).runs
    assert told("train", str(base / "base.yaml"), *waiting.overrides)[0] == 0
    (waiting.config.folder / "summary.json").unlink()
    verified = []

    def load(place: Path) -> checkpoint.Checkpoint:
        verified.append(place)
        return open_checkpoint(place)

    open_checkpoint = checkpoint.load
    monkeypatch.setattr(checkpoint, "load", load)
    *_, looks = interrupted(path, first.config.folder / "metrics.jsonl")
    assert looks > 12, "too fast to tell"
    assert 1 <= len([place for place in verified if place.is_relative_to(waiting.config.folder)]) <= 6


def test_runs_of_a_killed_sweep_save_themselves_and_the_next_sweep_waits_for_them(base: Path) -> None:
    path = write(base, overrides=LONG, grid={"run.seed": [1]})
    folder = base / "runs" / "seed=1"
    with subprocess.Popen([sys.executable, "-m", "rnnsparse", "sweep", str(path)], stdout=subprocess.PIPE) as sweeping:
        while not (folder / "metrics.jsonl").exists():
            assert sweeping.poll() is None
            time.sleep(0.02)
        sweeping.kill()
    assert f" (started by process {sweeping.pid}) since " in (lock.holder(folder) or "already gone")
    code, out, _ = told("sweep", str(path))
    assert code == 0
    assert "resumed      seed=1\n" in out
    assert "1 of 1 runs are done" in out
    assert "stopped after step " in (base / "runs" / "seed=1.log").read_text()
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 401))


# ---- a search


class Searched(NamedTuple):
    """A search of three trials, of which the first fails, for some milliseconds each; in two commands."""

    base: Path
    path: Path
    names: list[str]
    planned: str
    part: str
    code: int
    out: str
    err: str

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.base / "runs" / "search.json").read_text())
        return found


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searched]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        base = prepared(tmp_path_factory.mktemp("searched"), monkeypatch)
        drawn = {"training.learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}}
        path = write(
            base,
            overrides={"training.device": "cpu", "training.warmup": 4},
            grid=[FAILING, drawn],
            search={"trials": 3, "halving": 2, "rungs": 2, "minutes": 0.0005},
        )
        names = [run.name for run in load_sweep(path).runs]
        assert [name.startswith("method=static") for name in names] == [True, False, False]
        _, planned, _ = told("sweep", str(path), "--dry-run")
        assert not (base / "runs").exists()
        _, part, _ = told("sweep", str(path), "--shard", "1/2")
        yield Searched(base, path, names, planned, part, *told("sweep", str(path)))


def test_a_plan_of_a_search_has_its_rungs_and_where_each_trial_stands(searched: Searched) -> None:
    rungs = [
        "rung 1: 3 trials, 0.00025 core minutes each, 0.00075 in all",
        "rung 2: 1 trials, 0.0005 core minutes each, 0.0005 in all",
    ]
    assert searched.planned.splitlines()[:2] == rungs
    assert [line.split()[0::2] for line in searched.planned.splitlines()[3:]] == [
        [name, "new"] for name in searched.names
    ]
    now = [line.split() for line in told("sweep", str(searched.path), "--dry-run")[1].splitlines()[3:]]
    first, last = searched.result()["rungs"]
    bits = {
        rung["rung"]: {run["run"]: f"{run['bits_per_character']:.4f}" for run in rung["runs"]} for rung in (first, last)
    }
    assert now[0][2:] == ["failed"]
    for name, *states in [(row[0], *row[2:]) for row in now[1:]]:
        assert states == [bits[1][name], *([bits[2][name]] if name in bits[2] else [])]


def test_a_rung_is_decided_when_the_trials_of_all_parts_are_done(searched: Searched) -> None:
    assert "rung 1 is not decided: 1 of its 3 trials are trained by others, or still to be" in searched.part
    assert "rung 2 of 2" not in searched.part
    assert (searched.code, searched.err) == (0, "")
    assert f"out before   {searched.names[0]}: step " in searched.out
    assert f"done before  {searched.names[2]}: " in searched.out


def test_the_best_of_a_rung_is_trained_anew_for_a_whole_schedule_of_its_own_minutes(searched: Searched) -> None:
    first, last = searched.result()["rungs"]
    assert [run["run"] for run in first["runs"]] == sorted(
        searched.names[1:], key=lambda name: summary(searched.base, f"rung_1/{name}")["bits_per_character"]
    )
    assert list(first["failed"]) == searched.names[:1]
    assert [run["run"] for run in last["runs"]] == [first["runs"][0]["run"]]
    assert (first["minutes"], last["minutes"]) == (0.00025, 0.0005)
    for rung in (first, last):
        for run in rung["runs"]:
            config = load_config(searched.base / "base.yaml", run["overrides"])
            assert config.training.steps == run["steps"] == max(1, int(60 * rung["minutes"] / run["seconds_per_step"]))
            assert config.training.warmup == 4 * rung["minutes"] / 0.0005
            assert config.folder == Path(run["folder"])
            assert config.training.threads == load_config(config.folder / "config.yaml").training.threads == 1
    table = searched.out.splitlines()[-4:-2]
    assert table[1].split()[0] == f"{last['runs'][0]['bits_per_character']:.4f}"
    assert table[1].endswith(last["runs"][0]["run"])
    assert yaml12.read(yaml12.write(searched.result()["base"])) == load_config(searched.base / "base.yaml").to_dict()


def test_a_finished_search_trains_and_measures_nothing_again_and_compares_as_any_runs(searched: Searched) -> None:
    runs = searched.base / "runs"
    before = content_of(runs)
    code, out, err = told("sweep", str(searched.path))
    assert (code, err) == (0, "")
    assert not any(line.startswith(("started", "measured", "resumed")) for line in out.splitlines())
    assert content_of(runs) == before
    assert len((runs / "speeds.jsonl").read_text().splitlines()) == 2, "the learning rate changes no speed"
    code, out, _ = told("compare", str(runs / "rung_2"))
    assert code == 0
    assert f"{searched.result()['rungs'][1]['runs'][0]['bits_per_character']:.4f}"[:5] in out


def test_an_interrupted_search_goes_on_and_its_rungs_have_shares_of_the_steps(base: Path) -> None:
    overrides = LONG | {"training.warmup": 100}
    path = write(base, overrides=overrides, grid={"run.seed": [1, 2]}, search={"trials": 2, "halving": 2, "rungs": 2})
    first = base / "runs" / "rung_1" / load_sweep(path).runs[0].name
    interrupted(path, first / "metrics.jsonl", "--shard", "1/2")
    assert not (base / "runs" / "failures.jsonl").exists()
    assert 3 <= checkpoint.load(first).step < 200
    code, out, _ = told("sweep", str(path))
    assert code == 0
    assert f"resumed      {first.name}\n" in out
    (best,) = (base / "runs" / "rung_2").glob("*/summary.json")
    assert json.loads(best.read_text())["steps"] == 400
    assert {json.loads(path.read_text())["steps"] for path in base.glob("runs/rung_1/*/summary.json")} == {200}
    assert load_config(first / "config.yaml").training.warmup == 50


def test_a_speed_is_measured_once_and_who_writes_it_first_decides(base: Path) -> None:
    def config(*overrides: str) -> RunConfig:
        return load_config(base / "base.yaml", [f"run.dir={base / 'run'}", *overrides])

    path = base / "new" / "speeds.jsonl"
    speeds = Speeds(path)
    assert speeds.known(config()) is None
    first = speeds.of(config("training.learning_rate=1e38", "training.grad_clip=null"))
    assert 0 < first < 1
    assert speeds.of(config("run.seed=3", "training.learning_rate=1e-3", "training.steps=3")) == first
    files.append_record(path, json.loads(path.read_text()) | {"seconds_per_step": 9.0})
    path.write_bytes(path.read_bytes() + b'{"settings": "torn by a k')
    assert speeds.known(config("model.hidden_size=7")) is None
    assert speeds.of(config("model.hidden_size=7")) == speeds.known(config("model.hidden_size=7")) != first
    assert speeds.known(config()) == first
    assert not (base / "run").exists()


def test_a_speed_on_a_text_of_few_characters_is_none_on_one_of_many(base: Path) -> None:
    (base / "many.txt").write_text(TEXT + "".join(map(chr, range(200, 400))), encoding="utf-8")
    (base / "few.txt").write_text(TEXT[::-1], encoding="utf-8")

    def config(name: str, *overrides: str) -> RunConfig:
        return load_config(base / "base.yaml", [f"run.dir={base / 'run'}", f"data.path={base / name}", *overrides])

    speeds, in_characters = Speeds(base / "speeds.jsonl"), "data.tokenizer=char"
    of_bytes, of_characters = speeds.of(config("text.txt")), speeds.of(config("text.txt", in_characters))
    assert speeds.known(config("few.txt", in_characters)) == of_characters
    assert speeds.known(config("many.txt", in_characters)) is None
    assert speeds.known(config("many.txt")) == of_bytes


def test_minutes_decide_nothing_where_steps_are_multiplied(base: Path) -> None:
    path = write(base, grid={"run.seed": [1]}, search={"trials": 1, "minutes": 1})
    (base / "base.yaml").write_text((base / "base.yaml").read_text().replace("training:", "training:\n  multiplier: 2"))
    with pytest.raises(UserError, match=r"search: minutes: run seed=1: training\.multiplier: 2: minutes decide"):
        load_sweep(path)


def test_a_trial_whose_speed_cannot_be_measured_is_one_line_before_anything_starts(base: Path) -> None:
    grid = {"training.sequence_length": [100_000]}
    path = write(base, overrides={"training.device": "cpu"}, grid=grid, search={"trials": 1, "minutes": 1})
    code, _, err = told("sweep", str(path))
    assert code == 2
    assert err.startswith(f"rnnsparse: {path}: run sequence_length=100000: the training text has ")
    assert err.count("\n") == 1
    assert not (base / "runs").exists()


def test_a_trial_that_cannot_be_trained_at_all_keeps_the_search_from_going_on(base: Path) -> None:
    search = {"trials": 2, "halving": 2, "rungs": 2}
    path = write(base, grid={"run.seed": [1, 2]}, search=search, processes=1)
    run = load_sweep(path).runs[0]
    foreign = base / "runs" / "rung_1" / run.name
    foreign.mkdir(parents=True)
    (foreign / "thesis.tex").write_text("years of work")
    code, out, err = told("sweep", str(path))
    assert code == 1
    assert err.startswith(f"rnnsparse: {run.name}: run.dir exists already and nothing is overwritten")
    assert "rung 2 of 2" not in out
    assert not (base / "runs" / "failures.jsonl").exists()


def test_a_trial_that_could_not_say_why_it_failed_is_not_out(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speechless = base / "speechless"  # as on a full disk: progress is the last that it could write
    speechless.write_text("#!/bin/sh\necho 'step 100/300, 2.5 bits'\nexit 1\n")
    speechless.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(speechless))
    path = write(base, grid={"run.seed": [1]}, search={"trials": 1})
    code, _, err = told("sweep", str(path))
    assert (code, err) == (1, f"rnnsparse: seed=1: step 100/300, 2.5 bits ({base / 'runs' / 'seed=1.log'})\n")
    assert not (base / "runs" / "failures.jsonl").exists()


def test_a_trial_that_was_killed_is_not_out_but_goes_on(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = {"trials": 2, "halving": 2, "rungs": 2}
    path = write(base, overrides=LONG, grid={"run.seed": [1, 2]}, search=search, processes=1)
    first = base / "runs" / "rung_1" / load_sweep(path).runs[0].name
    sleep = time.sleep

    def killing(seconds: float) -> None:
        sleep(seconds)
        if (first / "metrics.jsonl").exists() and (found := re.match(r"process (\d+) ", lock.holder(first) or "")):
            os.kill(int(found[1]), signal.SIGKILL)

    monkeypatch.setattr(time, "sleep", killing)
    code, out, err = told("sweep", str(path), "--shard", "1/2")
    assert (code, out.count("killed by SIGKILL"), err.count("killed by SIGKILL")) == (1, 1, 1)
    assert not (base / "runs" / "failures.jsonl").exists()
    monkeypatch.setattr(time, "sleep", sleep)
    _, out, _ = told("sweep", str(path), "--shard", "1/2")
    assert f"resumed      {first.name}\n" in out


# ---- plans, costs and times


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
    plan(load_sweep(write(base, overrides={"data.tokenizer": "char"}, grid=grid)).runs)
    assert len(loaded) == 1


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
    estimator.learn(small_2, {"characters_per_second": 30.0, "steps": 12, "characters_seen": 180})
    assert estimator.seconds(small.config) == 3, "the mean of the rates of 90 and 30"


def test_a_thousand_finished_runs_tell_the_times_of_another_thousand_in_seconds(base: Path) -> None:
    path = write(base, grid={"model.hidden_size": [6, 12], "run.seed": [1, 2]})
    small, _, large, _ = load_sweep(path).runs
    estimator = estimator_of(small)
    began = time.process_time()
    for number in range(1000):
        run = replace(small, config=replace(small.config, model=replace(small.config.model, hidden_size=6 + number)))
        estimator.learn(run, {"characters_per_second": 90.0, "steps": 12, "characters_seen": 180})
    times = [estimator.seconds(config) for config in (small.config, large.config) * 500]
    assert times == [2] * 1000
    assert time.process_time() - began < 5, "it was half a minute"


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
