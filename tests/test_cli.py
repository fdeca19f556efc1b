from __future__ import annotations

import csv
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from rnnsparse.cli import main
from rnnsparse.cli.sample import _prompt
from rnnsparse.sparsity.method import METHODS
from rnnsparse.storage import checkpoint, manifest
from rnnsparse.training.build import restore

ROOT = Path(__file__).parent.parent
TEXT = "pack my box with five dozen liquor jugs. the quick brown fox jumps over the lazy dog, ünd ein ß.\n" * 20
CONFIG = """
data: {source: text, tokenizer: char}
model: {embedding_dim: 4, hidden_size: 6}
sparsity: {method: rigl, sparsity: 0.5, interval: 2}
training: {steps: 4, batch_size: 3, sequence_length: 5}
evaluation: {interval: 2, lanes: 1}
logging: {interval: 1, tensorboard: false, pictures: null}
"""


@dataclass
class Workplace:
    """A folder with a text, a configuration for it, and the command line, in this process."""

    folder: Path
    capsys: pytest.CaptureFixture[str] | None = None

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Return exit code, stdout and stderr of a command."""
        assert self.capsys is not None
        self.capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            code = int(str(exit_.code))
        return code, *self.capsys.readouterr()

    def ok(self, *arguments: object) -> str:
        code, out, err = self(*arguments)
        assert (code, err) == (0, ""), err
        return out

    @property
    def config(self) -> Path:
        return self.folder / "tiny.yaml"

    @property
    def run(self) -> Path:
        return self.folder / "run"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    paths = f"run: {{dir: {folder / 'run'}}}\n"
    config = CONFIG.replace(
        "tokenizer: char", f"tokenizer: char, path: {folder / 'text.txt'}, cache: {folder / 'cache'}"
    )
    (folder / "tiny.yaml").write_text(paths + config)
    assert main(["train", str(folder / "tiny.yaml")]) == 0
    return folder


@pytest.fixture
def cli(prepared: Path, capsys: pytest.CaptureFixture[str]) -> Workplace:
    return Workplace(prepared, capsys)


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- train


def test_train_tells_what_it_trains_and_what_came_out(cli: Workplace, tmp_path: Path) -> None:
    code, out, err = cli("train", cli.config, f"run.dir={tmp_path / 'new'}", "training.steps=12")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"run         {tmp_path / 'new'} (new), seed 0"
    summary = json.loads((tmp_path / "new" / "summary.json").read_text())
    assert f"validation: {summary['bits_per_character']:.4f} bits per character" in out
    assert "training: 180 characters in" in out
    assert lines[-1] == str(tmp_path / "new" / "summary.json")
    progress = err.splitlines()
    assert [line.split(",")[0] for line in progress] == [f"step {step}/12" for step in range(1, 13)]
    assert all("bits/char, density 0.5" in line for line in progress)
    assert "validation" in progress[1]


def test_overrides_may_stand_on_both_sides_of_options(cli: Workplace, tmp_path: Path) -> None:
    where = f"run.dir={tmp_path / 'new'}"
    assert cli("train", cli.config, "training.steps=2", where)[0] == 0
    code, out, _ = cli("train", cli.config, "training.steps=2", "--resume", where)
    assert code == 0
    assert "resumed after step 2" in out


def test_settings_without_effect_are_told_on_stderr(cli: Workplace) -> None:
    _, _, err = cli("inspect", cli.config, "sparsity.method=static")
    assert err == "rnnsparse: warning: sparsity.interval has no effect with method static\n"


# ---- evaluate


def test_evaluate_prints_exactly_the_keys_of_the_contract(cli: Workplace) -> None:
    report = json.loads(cli.ok("evaluate", cli.run, "--json"))
    assert list(report) == ["split", "bits_per_character", "bits_per_byte", "characters", "bytes", "nats", "seconds"]
    assert report["split"] == "test"
    assert report["bits_per_character"] == pytest.approx(report["nats"] / math.log(2) / report["characters"])
    assert report["bits_per_byte"] == pytest.approx(report["nats"] / math.log(2) / report["bytes"])


def test_dynamic_evaluation_says_what_it_used_and_writes_nothing(cli: Workplace) -> None:
    static = json.loads(cli.ok("evaluate", cli.run, "--json"))
    before = {path: path.read_bytes() for path in cli.run.rglob("*") if path.is_file()}
    report = json.loads(cli.ok("evaluate", cli.run, "--dynamic", "--json"))
    assert list(report) == [*static, "dynamic"]
    assert report["dynamic"] == {"rate": 0.0005, "segment": 20, "lanes": 1}
    assert (report["characters"], report["bytes"]) == (static["characters"], static["bytes"])
    assert report["nats"] < static["nats"]
    own = json.loads(cli.ok("evaluate", cli.run, "--dynamic", "--dynamic-rate", 0.02, "--dynamic-lanes", 2, "--json"))
    assert own["dynamic"] == {"rate": 0.02, "segment": 20, "lanes": 2}
    still = json.loads(cli.ok("evaluate", cli.run, "--dynamic", "--dynamic-rate", 0, "--json"))
    assert still["nats"] == pytest.approx(static["nats"], rel=1e-6)
    assert cli.ok("evaluate", cli.run, "--dynamic").startswith(f"test of {cli.folder / 'text.txt'}: dynamic, ")
    assert {path: path.read_bytes() for path in cli.run.rglob("*") if path.is_file()} == before


def test_evaluate_scores_the_split_or_the_text_it_is_told(cli: Workplace, tmp_path: Path) -> None:
    summary = json.loads((cli.run / "summary.json").read_text())
    validation = json.loads(cli.ok("evaluate", cli.run, "--split", "validation", "--json"))
    assert (validation["split"], validation["bits_per_character"]) == ("validation", summary["bits_per_character"])

    (tmp_path / "other.txt").write_text(TEXT[:500], encoding="utf-8")
    other = json.loads(cli.ok("evaluate", cli.run, "--data", tmp_path / "other.txt", "--json"))
    assert other["split"] == str(tmp_path / "other.txt")
    assert other["characters"] == 499
    assert other["bytes"] == len(TEXT[1:500].encode())


def test_a_split_of_a_moved_text_is_found_as_in_training(cli: Workplace, tmp_path: Path) -> None:
    moved = tmp_path / "moved.txt"
    moved.write_text(TEXT, encoding="utf-8")
    own = json.loads(cli.ok("evaluate", cli.run, "--json"))
    there = json.loads(cli.ok("evaluate", cli.run, "--data", moved, "--split", "test", "--json"))
    assert (there.pop("split"), there.pop("text")) == ("test", str(moved))
    assert there.keys() <= own.keys()
    assert {key: own[key] for key in there if key != "seconds"} == {k: v for k, v in there.items() if k != "seconds"}
    assert cli.ok("evaluate", cli.run, "--data", moved, "--split", "validation").startswith(f"validation of {moved}: ")

    folder = tmp_path / "folder"
    folder.mkdir()
    for name, text in (("train", TEXT), ("valid", TEXT[:200]), ("test", TEXT[:100])):
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    assert json.loads(cli.ok("evaluate", cli.run, "--data", folder, "--split", "test", "--json"))["characters"] == 99
    assert json.loads(cli.ok("evaluate", cli.run, "--data", folder, "--json"))["characters"] == len(TEXT) + 299


def changing_run(cli: Workplace, tmp_path: Path, *overrides: str) -> tuple[Path, Path]:
    """A run of its own, and its text, to be changed."""
    text, run = tmp_path / "input.txt", tmp_path / "run"
    text.write_text(TEXT, encoding="utf-8")
    assert cli("train", cli.config, f"run.dir={run}", f"data.path={text}", *overrides)[0] == 0
    return run, text


def test_a_checkpoint_is_not_measured_on_another_text_than_its_own_unless_that_is_named(
    cli: Workplace, tmp_path: Path
) -> None:
    run, text = changing_run(cli, tmp_path, "checkpoint.keep=[2]", "checkpoint.interval=2")
    checkpoints = [run / name for name in ("last", "previous", "best", "step_2")]
    before = [cli.ok("evaluate", folder).split(" in ")[0] for folder in checkpoints]

    text.write_text(TEXT[: len(TEXT) // 2], encoding="utf-8")
    for folder in checkpoints:
        code, out, err = cli("evaluate", folder)
        assert (code, out) == (2, "")
        assert err == (
            f"rnnsparse: {folder}: data.path={text}: is no longer the text that this checkpoint was trained on: then "
            "train 1,782, validation 99, test 99 bytes, now train 891, validation 49, test 50; bring that text back, "
            "or measure one on purpose with `rnnsparse evaluate`, --data PATH and --split test\n"
        )
    cli.ok("evaluate", run, "--data", text, "--split", "test")
    text.write_text(TEXT.replace("fox", "cat"), encoding="utf-8")
    assert ": train 1,782, validation 99, test 99 bytes as then, but other ones; " in cli("evaluate", run)[2]
    cli.ok("sample", run, "--length", 3)
    cli.ok("inspect", run)

    text.write_text(TEXT, encoding="utf-8")
    assert [cli.ok("evaluate", folder).split(" in ")[0] for folder in checkpoints] == before


def without_fingerprint(folder: Path) -> None:
    """Make of a checkpoint what earlier versions wrote."""
    (folder / "manifest.json").unlink()
    manifest.write(folder, 4)


def test_a_checkpoint_of_an_earlier_version_knows_its_text_by_its_training_state(
    cli: Workplace, tmp_path: Path
) -> None:
    run, text = changing_run(cli, tmp_path)
    for name in ("last", "best"):
        without_fingerprint(run / name)
    cli.ok("evaluate", run)
    warning = "an earlier version wrote it, without a fingerprint of its text, so nobody can tell whether data.path="
    code, out, err = cli("evaluate", run / "best")
    assert (code, out.startswith("test of "), err.count("\n")) == (0, True, 1)
    assert err.startswith(f"rnnsparse: warning: {run / 'best'}: {warning}{text} is still the text")
    text.write_text(TEXT[:-9], encoding="utf-8")
    code, _, err = cli("evaluate", run)
    assert code == 2
    assert re.search(r"trained on: fingerprint then \w{8}, now \w{8}; bring that text back", err)
    assert cli("evaluate", run / "best")[0] == 0


def test_evaluate_tells_how_much_of_a_text_is_unknown(cli: Workplace, tmp_path: Path) -> None:
    (tmp_path / "snow.txt").write_text(TEXT[:100] + "☃☃", encoding="utf-8")
    code, out, err = cli("evaluate", cli.run, "--data", tmp_path / "snow.txt")
    assert (code, out.startswith(f"{tmp_path}/snow.txt: ")) == (0, True)
    total = len((TEXT[:100] + "☃☃").encode())
    assert f": 6 of {total} bytes are characters that its training text has not; " in err
    assert len(err.splitlines()) == 1


def test_resuming_a_finished_run_says_so_and_how_to_train_longer(cli: Workplace) -> None:
    told = cli.ok("train", cli.config, f"run.dir={cli.run}", "--resume")
    assert "finished before: all 4 steps are taken; to train longer, raise training.steps with --resume\n" in told


def test_evaluate_keeps_its_tokens_where_the_run_does_unless_told_otherwise(
    cli: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RNNSPARSE_CACHE", raising=False)
    (tmp_path / "other.txt").write_text(TEXT[:300], encoding="utf-8")
    before = len(list((cli.folder / "cache").iterdir()))
    cli.ok("evaluate", cli.run, "--data", tmp_path / "other.txt")
    assert len(list((cli.folder / "cache").iterdir())) == before + 1
    monkeypatch.setenv("RNNSPARSE_CACHE", str(tmp_path / "elsewhere"))
    cli.ok("evaluate", cli.run, "--data", tmp_path / "other.txt")
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1


def test_evaluate_takes_a_run_or_any_checkpoint(cli: Workplace) -> None:
    line = cli.ok("evaluate", cli.run)
    assert line.startswith(f"test of {cli.folder / 'text.txt'}: ")
    assert line.rstrip().endswith("(step 4)")
    assert cli.ok("evaluate", cli.run / "last").split(" in ")[0] == line.split(" in ")[0]
    assert cli.ok("evaluate", cli.run / "best").endswith(f"(step {checkpoint.load(cli.run / 'best').step})\n")


def test_the_bits_of_characters_and_lines_add_up_to_what_evaluate_tells(cli: Workplace, tmp_path: Path) -> None:
    characters, lines = tmp_path / "characters.jsonl", tmp_path / "lines.csv"
    report = json.loads(cli.ok("evaluate", cli.run, "--json", "--per-character", characters, "--per-line", lines))
    rows = [json.loads(line) for line in characters.read_text().splitlines()]
    with lines.open(newline="") as file:
        of_lines = list(csv.DictReader(file))
    # The test part is the last 99 bytes; the text is not that of the training.
    assert "".join(row["text"] for row in rows) == TEXT.encode()[-99:].decode()
    total = report["nats"] / math.log(2)
    assert math.fsum(row["bits"] or 0 for row in rows) == pytest.approx(total, rel=1e-9)
    assert math.fsum(float(row["bits"]) for row in of_lines) == pytest.approx(total, rel=1e-9)
    assert sum(int(row["characters"]) for row in of_lines) == report["characters"] == len(rows) - 1
    out = cli.ok("evaluate", cli.run, "--data", cli.folder / "text.txt", "--per-line", tmp_path / "more.jsonl")
    assert out.splitlines()[1:] == [str(tmp_path / "more.jsonl")]
    assert len((tmp_path / "more.jsonl").read_text().splitlines()) == TEXT.count("\n")
    assert {path.name for path in tmp_path.iterdir()} == {"characters.jsonl", "lines.csv", "more.jsonl"}


# ---- sample


def test_sample_depends_on_the_seed_alone(cli: Workplace) -> None:
    first = cli.ok("sample", cli.run, "--length", 40, "--seed", 1)
    assert len(first) == 41
    assert first.endswith("\n")
    assert cli.ok("sample", cli.run, "--length", 40, "--seed", 1) == first
    assert cli.ok("sample", cli.run, "--length", 40, "--seed", 2) != first


def test_sample_begins_with_the_prompt_from_the_command_line_or_a_file(cli: Workplace, tmp_path: Path) -> None:
    prompted = cli.ok("sample", cli.run, "--prompt", "the fox", "--length", 5)
    assert prompted.startswith("the fox")
    assert len(prompted) == 7 + 5 + 1
    (tmp_path / "prompt.txt").write_bytes("jug\nß ".encode())
    assert cli.ok("sample", cli.run, "--prompt", f"@{tmp_path / 'prompt.txt'}", "--length", 5).startswith("jug\nß ")


def test_a_prompt_that_begins_with_an_at_sign_is_typed_with_two(cli: Workplace, tmp_path: Path) -> None:
    code, _, err = cli("sample", cli.run, "--prompt", "@home is")
    assert code == 2
    assert err.endswith("name a text file, or, for a prompt that begins with an @, type two: @@\n")
    code, _, err = cli("sample", cli.run, "--prompt", "@@home is")
    assert (code, err.count("'@'")) == (2, 1), "the prompt has an @, which the training text has not"
    assert err.startswith("rnnsparse: --prompt: the text holds")
    assert _prompt("@@home is") == "@home is"
    assert _prompt("@@@") == "@@"


def test_sampling_stops_at_a_text_that_is_not_printed(cli: Workplace) -> None:
    whole = cli.ok("sample", cli.run, "--length", 200, "--num-samples", 2)
    first, second = whole.split("\n\n--- sample 2 ---\n")
    found = cli.ok("sample", cli.run, "--length", 200, "--num-samples", 2, "--stop", "e", "--stop", r"\n")
    assert found == "\n\n--- sample 2 ---\n".join(re.split("[e\n]", text)[0] for text in (first, second)) + "\n"


def test_a_stop_string_that_never_comes_is_told(cli: Workplace) -> None:
    code, out, err = cli("sample", cli.run, "--length", 5, "--stop", "XY")
    assert (code, len(out)) == (0, 6)
    assert err.startswith("rnnsparse: warning: --stop 'XY': never comes: the text holds characters that")


def test_samples_are_divided_and_the_first_is_the_same_alone(cli: Workplace) -> None:
    one = cli.ok("sample", cli.run, "--length", 10)
    three = cli.ok("sample", cli.run, "--length", 10, "--num-samples", 3)
    assert three.startswith(one)
    assert three.count("--- sample ") == 2


def test_sampling_options_narrow_the_choice(cli: Workplace) -> None:
    greedy = cli.ok("sample", cli.run, "--temperature", 0, "--length", 20)
    assert cli.ok("sample", cli.run, "--top-k", 1, "--length", 20, "--seed", 9) == greedy
    assert cli.ok("sample", cli.run, "--top-p", 1e-9, "--length", 20, "--seed", 9) == greedy


def test_line_ends_of_a_prompt_file_are_kept(cli: Workplace, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_bytes(b"a\r\nb")
    code, _, err = cli("sample", cli.run, "--prompt", f"@{tmp_path / 'prompt.txt'}")
    assert code == 2  # the training text has no carriage return
    assert r"'\r'" in err


# ---- inspect, validate, methods


RIGL_NET = """
model: {cell: gru, embedding_dim: 128, hidden_size: 512, readout_dims: [256, 128], tie_embeddings: true}
sparsity: {method: rigl, distribution: erk, dense: [embedding]}
"""
# Density of input, recurrent, first and second readout.
PUBLISHED = {
    (0.75, "matrix"): (0.4989, 0.1535, 0.3454, 0.6908),
    (0.75, "gate"): (0.4557, 0.1823, 0.2734, 0.5469),
    (0.9, "matrix"): (0.1996, 0.0614, 0.1382, 0.2763),
    (0.9, "gate"): (0.1823, 0.0729, 0.1094, 0.2188),
}


@pytest.mark.parametrize(("sparsity", "granularity"), PUBLISHED)
def test_inspect_reproduces_the_reference_densities(
    cli: Workplace, tmp_path: Path, sparsity: float, granularity: str
) -> None:
    (tmp_path / "net.yaml").write_text(RIGL_NET)
    settings = [f"sparsity.sparsity={sparsity}", f"sparsity.granularity={granularity}"]
    report = json.loads(cli.ok("inspect", tmp_path / "net.yaml", *settings, "--json"))
    assert set(report) >= {
        *("blocks", "connections", "positions", "sparsity", "parameters", "flops_per_character"),
        *("dense_flops_per_character", "training_flops", "training_flops_vs_dense"),
    }
    found = []
    for matrix in ("rnn.0.input", "rnn.0.recurrent", "readout.0", "readout.1"):
        blocks = [block for block in report["blocks"] if block["name"].startswith(matrix)]
        positions = sum(block["rows"] * block["cols"] for block in blocks)
        found.append(round(sum(block["connections"] for block in blocks) / positions, 4))
    assert tuple(found) == PUBLISHED[sparsity, granularity]
    assert report["sparsity"] == pytest.approx(sparsity, abs=1e-6)
    assert next(block["density"] for block in report["blocks"] if block["name"] == "embedding") == 1


def test_inspect_gives_the_same_report_of_a_configuration_a_run_and_a_checkpoint(cli: Workplace) -> None:
    report = json.loads(cli.ok("inspect", cli.config, "--json"))
    summary = json.loads((cli.run / "summary.json").read_text())
    assert report["connections"] == summary["connections"]
    assert report["training_flops"] == summary["training_flops"]
    assert json.loads(cli.ok("inspect", cli.run, "--json")) == report
    assert json.loads(cli.ok("inspect", cli.run / "best", "--json")) == report
    assert cli.ok("inspect", cli.run).splitlines()[1].startswith("embedding")


def test_inspect_tells_what_an_ended_run_has_cost(cli: Workplace, tmp_path: Path) -> None:
    stops = ["training.early_stopping=1", "training.steps=300", "training.learning_rate=2", "evaluation.interval=1"]
    moves = ["sparsity.method=set", "sparsity.redistribute=weight", "sparsity.distribution=uniform"]
    for name, settings in {"stops": stops, "moves": moves}.items():
        assert cli("train", cli.config, *settings, f"run.dir={tmp_path / name}")[0] == 0
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        report = json.loads(cli.ok("inspect", tmp_path / name, "--json"))
        for key in ("steps", "training_flops", "training_flops_vs_dense"):
            assert report[key] == summary[key]
        assert f"in {summary['steps']:,} steps" in cli.ok("inspect", tmp_path / name)


def test_inspect_counts_for_the_device_that_the_configuration_names(cli: Workplace) -> None:
    settings = ["model.execution=auto", "sparsity.sparsity=0.9", "training.device=cuda", "--json"]
    report = json.loads(cli.ok("inspect", cli.config, *settings))
    assert (report["device"], report["execution"]) == ("cuda", "masked")
    code, out, err = cli("inspect", cli.config, "model.execution=sparse", "training.device=cuda")
    assert (code, out) == (2, "")
    assert err.startswith("rnnsparse: model.execution: sparse is impossible here: sparse execution is for CPUs")


def test_validate_judges_every_file(cli: Workplace, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("training: {steps: 0}")
    (tmp_path / "unmet.yaml").write_text("sparsity: {overrides: {rnn.7: 0.5}}")
    (tmp_path / "half.yaml").write_text("training: {precision: bf16}")  # valid where it is to run
    (tmp_path / "idle.yaml").write_text("model: {dropout: 0.5}")
    bad, unmet, half, idle = (tmp_path / f"{name}.yaml" for name in ("bad", "unmet", "half", "idle"))
    missing, sweep = tmp_path / "missing.yaml", tmp_path / "sweep.yaml"
    sweep.write_text("config: missing.yaml\ngrid: {run.seed: [1]}")
    code, out, err = cli("validate", bad, cli.config, unmet, half, idle, missing, sweep)
    assert code == 2
    assert out.splitlines() == [f"{cli.config}: valid", f"{half}: valid", f"{idle}: valid"]
    for line, start in zip(
        err.splitlines(),
        [
            f"rnnsparse: {bad}: training.steps: 0: ",
            f"rnnsparse: {unmet}: sparsity.overrides.rnn.7: no group is called 'rnn.7'",
            f"rnnsparse: warning: {idle}: model.dropout has no effect",
            f"rnnsparse: {missing}: cannot be read",
            f"rnnsparse: {sweep}: {missing}: cannot be read",
        ],
        strict=True,
    ):
        assert line.startswith(start)
    assert cli.ok("validate", *sorted((ROOT / "configs").rglob("*.yaml"))).count(": valid\n") >= 2


def test_methods_lists_every_method_with_its_settings_and_what_they_mean(cli: Workplace) -> None:
    out = cli.ok("methods")
    starts = [line.split()[0] for line in out.splitlines() if not line.startswith(" ")]
    assert starts == sorted(METHODS)
    assert "Evci et al. 2020, algorithm 1" in out
    assert "interval: 100  # steps between two updates" in out
    assert "momentum: 0.9" in out
    assert "window: null  # " in out, "as in YAML"


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("set", "none"),
        ("scout", "none"),
        ("mest", "none"),
        ("gse", "none"),
        ("cht", "none"),
        ("rigl", "gradients at updates, in sparse execution some rows at a time"),
        ("snfs", "gradients and their averages at every step"),
        ("prune", "up to all connections at first"),
        ("snip", "up to all connections at first"),
        ("small_dense", "all connections throughout"),
        (
            "granet",
            "up to all connections at first; gradients at updates, in sparse execution some rows at a time",
        ),
    ],
)
def test_methods_tells_what_dense_memory_each_needs(cli: Workplace, name: str, needs: str) -> None:
    lines = cli.ok("methods").splitlines()
    assert lines[lines.index(name) + 2] == f"    dense memory: {needs}"


# ---- export


class Plain(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config["vocab_size"], config["embedding_dim"])
        rnn = {"lstm": nn.LSTM, "gru": nn.GRU}[config["cell"]]
        self.rnn = rnn(config["embedding_dim"], config["hidden_size"], config["num_layers"])
        self.output = nn.Linear(config["hidden_size"], config["vocab_size"])


def test_an_exported_model_has_the_same_bits_per_character_in_plain_pytorch(cli: Workplace, tmp_path: Path) -> None:
    out = cli.ok("export", cli.run, tmp_path / "plain.pt", "--format", "torch")
    assert out == f"{tmp_path / 'plain.pt'}: {(tmp_path / 'plain.pt').stat().st_size:,} bytes\n"
    exported = torch.load(tmp_path / "plain.pt", weights_only=True)
    plain = Plain(exported["config"])
    plain.load_state_dict(exported["state_dict"], strict=True)

    (tmp_path / "text.txt").write_text(TEXT[:400], encoding="utf-8")
    report = json.loads(cli.ok("evaluate", cli.run, "--data", tmp_path / "text.txt", "--json"))
    vocabulary = {symbol: number for number, symbol in enumerate(exported["vocabulary"])}
    tokens = torch.tensor([vocabulary[character.encode()] for character in TEXT[:400]])
    with torch.no_grad():
        logits = plain.output(plain.rnn(plain.embedding(tokens[:-1]))[0])
    nats = nn.functional.cross_entropy(logits.double(), tokens[1:], reduction="sum").item()
    assert nats == pytest.approx(report["nats"], rel=1e-5)


def test_an_exported_sparse_model_is_a_safetensors_file(cli: Workplace, tmp_path: Path) -> None:
    cli.ok("export", cli.run / "best", tmp_path / "sparse.safetensors", "--format", "safetensors")
    assert {"embedding.values", "rnn.0.bias_hh"} <= set(load_file(tmp_path / "sparse.safetensors"))


def test_a_page_tells_what_rounding_costs_on_the_runs_own_text(cli: Workplace, tmp_path: Path) -> None:
    for weights in ("fp16", "int8"):
        page = tmp_path / f"{weights}.html"
        size, bits = cli.ok("export", cli.run, page, "--format", "html", "--weights", weights).splitlines()
        assert size == f"{page}: {page.stat().st_size:,} bytes"
        told = re.fullmatch(rf"bits per character: (\S+) on [\d,]+ characters .* \((\S+) before {weights}\)", bits)
        assert told
        assert 0 <= abs(float(told[1]) - float(told[2])) < 0.05
        assert bits.removeprefix("bits per character: ") in page.read_text(encoding="utf-8")
        assert str(cli.folder) not in page.read_text(encoding="utf-8")


def test_a_page_is_made_without_a_text_too(cli: Workplace, tmp_path: Path) -> None:
    text = cli.folder / "text.txt"
    text.rename(tmp_path / "away")
    try:
        code, out, err = cli("export", cli.run, tmp_path / "page.html", "--format", "html")
    finally:
        (tmp_path / "away").rename(text)
    assert (code, len(out.splitlines()), len(err.splitlines())) == (0, 1, 1)
    assert "bits per character are not measured" in err
    assert (tmp_path / "page.html").is_file()


# ---- bad input: exit code 2, one line, nothing damaged


BAD_INPUT: dict[str, tuple[str, str]] = {
    "no command": ("", "the following arguments are required: COMMAND"),
    "unknown command": ("trian C", "invalid choice: 'trian'"),
    "unknown option": ("train C --fast", "'--fast' is not known here"),
    "an override for a command without": ("sample R a=b", "'a=b' is not known here"),
    "an argument too many": ("methods x", "'x' is not known here"),
    "no configuration": ("train", "the following arguments are required: CONFIG; see"),
    "missing configuration": ("train N/none.yaml", "cannot be read: No such file or directory"),
    "a folder as configuration": ("train N", "cannot be read: Is a directory"),
    "a text as configuration": ("train T", "is not a configuration"),
    "unknown section": ("train C trainig.steps=1", "unknown section 'trainig' (did you mean 'training'?)"),
    "unknown key": ("train C training.stepz=1", "training.stepz: unknown key (did you mean 'steps'?)"),
    "wrong type": ("train C training.steps=many", 'training.steps: "many": input should be a valid integer'),
    "out of range": ("train C training.steps=0", "training.steps: 0: input should be greater than or equal to 1"),
    "no override": ("train C fast", "fast: an override looks like training.steps=1000"),
    "broken YAML": ("train C training.steps=[", "the value is not YAML"),
    "unknown method": ("train C sparsity.method=riggl", "no method is called 'riggl' (did you mean 'rigl'?)"),
    "unknown block": ("train C sparsity.overrides.rnn.0.recurent=0.5", "no group is called 'rnn.0.recurent'"),
    "unknown dense block": ("train C sparsity.dense=[embeding]", "(did you mean 'embedding'?)"),
    "dense and overridden": ("train C sparsity.dense=[output] sparsity.overrides.output=0.5", "name it in one of them"),
    "impossible sparsity": ("train C sparsity.sparsity=0.999", "without any connection; lower it"),
    "snfs with sparse execution": ("train C sparsity.method=snfs model.execution=sparse", "model.execution: sparse is"),
    "tied without fitting sizes": ("train C model.tie_embeddings=true", "must equal model.embedding_dim"),
    "existing run": ("train C run.dir=R", "run.dir exists already and nothing is overwritten"),
    "run.dir is a file": ("train C run.dir=T", "run.dir exists already"),
    "run.dir below a file": ("train C run.dir=T/x", "run.dir cannot be a folder for this run: Not a directory"),
    "run.dir too long": (f"train C run.dir={'x' * 300}", "run.dir cannot be a folder for this run: File name too long"),
    "run.dir with NUL": (r'train C run.dir="a\0b"', "NUL and lone surrogates are no text"),
    "nothing to resume": ("train C run.dir=N/none --resume", "run.dir holds no run to resume; train without --resume"),
    "resume with another number": (
        "train C --resume training.learning_rate=1",
        "training.learning_rate: the run to resume",
    ),
    "resume with another method": (
        "train C --resume sparsity.method=set",
        "sparsity.method: the run to resume has 'rigl'",
    ),
    "missing text": ("train C data.path=N/none.txt", "data.path=N/none.txt: no such file or folder"),
    "no text": ("train C data.path=null", "data.path: missing, and data.source=text needs it"),
    "empty text": ("train C data.path=N/empty.txt", "the text is empty"),
    "too short text": ("train C training.sequence_length=5000", "the training text has"),
    "text too short to divide": ("train C data.path=N/five.txt", "the text is too short"),
    "text not in UTF-8": ("train C data.path=N/latin.txt", "not UTF-8 text: unexpected end of data at byte 3"),
    "folder without text": ("train C data.path=N/folder", "the folder holds no files"),
    "damaged gzip": ("train C data.path=N/bad.gz", "damaged or incomplete .gz file"),
    "no data set": ("train C data.source=wikitext2 data.path=N/folder", "data.path=N/folder: cannot be loaded"),
    "a sample prompt that is unknown": (
        "train C logging.tensorboard=true logging.pictures=1 logging.sample_prompt=XY",
        "logging.sample_prompt: ",
    ),
    "no CUDA": ("train C training.device=cuda", "device cuda: PyTorch finds none"),
    "bf16 without CUDA": ("train C training.precision=bf16", "training.precision: bf16 needs a CUDA device"),
    "evaluate without CUDA": ("evaluate R --device cuda", "device cuda: PyTorch finds none"),
    "evaluate nothing": ("evaluate N/none", "there is no such folder"),
    "evaluate a file": ("evaluate T", "is a file; give the folder of a run"),
    "evaluate a folder": ("evaluate N", "neither a run (which holds last/) nor a checkpoint"),
    "evaluate the training text": ("evaluate R --split train", "invalid choice: 'train'"),
    "a rate without dynamic": ("evaluate R --dynamic-rate 0.1", "--dynamic-rate: has an effect only with --dynamic"),
    "a negative rate": ("evaluate R --dynamic --dynamic-rate -1", "'-1' is not a number from 0 on"),
    "evaluate missing text": ("evaluate R --data N/none", "--data=N/none: no such file or folder"),
    "evaluate one character": ("evaluate R --data N/one.txt", "the text has one character"),
    "evaluate latin-1": ("evaluate R --data N/latin.txt", "not UTF-8 text"),
    "per character without a format": ("evaluate R --per-character N/new.txt", "is neither .jsonl nor .csv"),
    "per character over a file": ("evaluate R --per-character N/old.csv", "--per-character: N/old.csv: exists and is"),
    "per line to no folder": ("evaluate R --per-line N/none/a.csv", "--per-line: N/none/a.csv: there is no folder"),
    "per line and character": ("evaluate R --per-line N/a.csv --per-character N/a.csv", "is that of --per-character"),
    "evaluate a split of a folder without": ("evaluate R --data N/folder --split test", "--data=N/folder: the folder"),
    "truncated checkpoint": ("evaluate N/truncated", "bytes instead of"),
    "corrupt checkpoint": ("sample N/corrupt", "its sha256 is not the one in manifest.json"),
    "incomplete checkpoint": ("inspect N/incomplete", "so it is incomplete"),
    "resume a corrupt checkpoint": ("train C run.dir=N/resumed --resume", "its sha256 is not the one in manifest.json"),
    "empty stop string": ("sample R --stop=", "argument --stop: an empty text would end everything"),
    "a backslash alone": (r"sample R --stop a\d", r"argument --stop: 'a\\d': \d stands for nothing; write a backslash"),
    "unknown characters": ("sample R --prompt XY", "'X', 'Y'; leave them out, or train with data.tokenizer=byte"),
    "a prompt that is no text": ("sample R --prompt \udcff", "which is not a Unicode character"),
    "missing prompt file": ("sample R --prompt @N/none", "--prompt: N/none: cannot be read: No such file"),
    "prompt file is a folder": ("sample R --prompt @N", "cannot be read: Is a directory"),
    "prompt file in latin-1": ("sample R --prompt @N/latin.txt", "is not UTF-8 at byte 3"),
    "length": ("sample R --length 0", "'0' is not a whole number above 0"),
    "length is no number": ("sample R --length 1e3", "'1e3' is not a whole number"),
    "temperature": ("sample R --temperature -1", "is not a number from 0 on"),
    "temperature is no number": ("sample R --temperature nan", "is not a number from 0 on"),
    "top-k": ("sample R --top-k 0", "is not a whole number above 0"),
    "top-p": ("sample R --top-p 1.1", "is not a number above 0 and up to 1"),
    "seed": ("sample R --seed -1", "is not a whole number from 0"),
    "num-samples": ("sample R --num-samples 0", "is not a whole number above 0"),
    "overrides for a run": ("inspect R training.steps=1", "overrides apply to a configuration"),
    "inspect a weights file": ("inspect R/last/model.safetensors", "is not UTF-8 text"),
    "validate nothing": ("validate", "the following arguments are required: CONFIG"),
    "validate a missing file": ("validate N/none.yaml", "cannot be read"),
    "export without format": ("export R N/new.pt", "--format"),
    "export to another format": ("export R N/new.pt --format onnx", "invalid choice: 'onnx'"),
    "export over a file": ("export R T --format torch", "exists and is never overwritten"),
    "export with weights as they are": (
        "export R N/new.pt --format torch --weights int8",
        "--weights int8: --format torch rounds no weights; leave it out",
    ),
    "export to no folder": ("export R N/none/new.pt --format torch", "there is no folder N/none; make it first"),
}


@pytest.fixture(scope="module")
def nasty(prepared: Path) -> Path:
    """A folder of things that commands must refuse."""
    folder = prepared / "nasty"
    folder.mkdir()
    (folder / "folder").mkdir()
    (folder / "old.csv").touch()
    contents = {"empty": "", "one": "a", "five": "short", "latin": "caf\xe9"}
    for name, text in contents.items():
        (folder / f"{name}.txt").write_bytes(text.encode("latin-1"))
    (folder / "bad.gz").write_bytes(b"\x1f\x8b not gzip at all")
    for name in ("truncated", "corrupt", "incomplete", "resumed"):
        shutil.copytree(prepared / "run", folder / name)
    weights = folder / "truncated" / "last" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for name in ("corrupt", "resumed"):
        weights = folder / name / "last" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    shutil.rmtree(folder / "resumed" / "previous")
    (folder / "incomplete" / "last" / "manifest.json").unlink()
    return folder


@pytest.mark.parametrize(("command", "reason"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_exits_with_2_and_one_line_and_damages_nothing(
    cli: Workplace, nasty: Path, command: str, reason: str
) -> None:
    if "cuda" in command + reason.lower() and torch.cuda.is_available():
        pytest.skip("here that is good input")
    places = {"C": cli.config, "R": cli.run, "T": cli.folder / "text.txt", "N": nasty}

    def spelled_out(word: str) -> str:
        """Replace the letter that stands for a place, where a path begins."""
        return re.sub(r"(^|[=@])([CRTN])(?=/|$)", lambda match: f"{match[1]}{places[match[2]]}", word)

    before = content_of(cli.folder)
    words = command.split()
    if words[:2] == ["train", "C"] and not any(word.startswith("run.dir=") or word == "--resume" for word in words):
        words.append("run.dir=N/fresh")
    code, out, err = cli(*map(spelled_out, words))
    shutil.rmtree(nasty / "fresh", ignore_errors=True)

    assert code == 2
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1, err
    assert err.startswith("rnnsparse")
    assert reason.replace("N/", f"{nasty}/") in err
    assert out == "" or command.startswith("train ")  # the banner
    ignored = str(cli.folder / "cache")
    after = {path: content for path, content in content_of(cli.folder).items() if not path.startswith(ignored)}
    assert after == {path: content for path, content in before.items() if not path.startswith(ignored)}


def test_evaluation_with_a_cache_that_cannot_be_written_names_the_way_out_and_takes_it(
    cli: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, recorded = tmp_path / "run", tmp_path / "recorded"
    assert cli("train", cli.config, f"run.dir={run}", f"data.cache={recorded}", "training.steps=1")[0] == 0
    shutil.rmtree(recorded)
    recorded.touch()
    monkeypatch.delenv("RNNSPARSE_CACHE", raising=False)
    code, _, err = cli("evaluate", run)
    assert code == 2
    assert err.startswith(f"rnnsparse: {recorded}: cannot be written")
    assert "RNNSPARSE_CACHE" in err
    monkeypatch.setenv("RNNSPARSE_CACHE", str(tmp_path / "cache"))
    assert cli("evaluate", run)[0] == 0


def test_a_model_that_is_lost_is_neither_evaluated_nor_sampled(cli: Workplace, tmp_path: Path) -> None:
    lost = restore(cli.run, torch.device("cpu"))
    for parameter in lost.model.parameters():
        parameter.data.fill_(math.nan)
    checkpoint.save(
        tmp_path / "lost",
        step=1,
        model=lost.model,
        tokenizer_json=lost.tokenizer.to_json(),
        config_yaml=lost.config.to_yaml(),
        training_state=None,
        text=lost.saved.trained_text(),
    )
    for command in ("evaluate", "sample"):
        code, out, err = cli(command, tmp_path / "lost")
        assert (code, out) == (1, "")
        assert "predictions are not numbers" in err
        assert len(err.splitlines()) == 1


def test_a_run_that_diverges_exits_with_1_and_one_line(cli: Workplace, tmp_path: Path) -> None:
    diverging = ["training.optimizer=sgd", "training.grad_clip=null", "sparsity.interval=4", "training.steps=8"]
    where = f"run.dir={tmp_path / 'lost'}"
    code, _, err = cli("train", cli.config, where, *diverging, "training.learning_rate=1e30")
    assert code == 1
    *progress, last = err.splitlines()
    assert all(line.startswith("step ") for line in progress)
    begin = re.escape(f"rnnsparse: {tmp_path / 'lost'}: step ")
    assert re.match(rf"{begin}\d, symbols \d+ to \d+ of each lane: .*; the last checkpoint is intact$", last)


# ---- real processes


def process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rnnsparse", *map(str, arguments)]
    return subprocess.run(command, text=True, env=environment(), check=False, **options)


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **changes}


def test_an_interrupted_run_goes_on_with_exactly_the_command_that_it_prints(cli: Workplace, tmp_path: Path) -> None:
    config = tmp_path / "my config.yaml"
    shutil.copy(cli.config, config)
    settings = [
        "training.steps=150",
        "evaluation.interval=1000",
        f"run.dir={tmp_path / 'my run'}",
        'logging.sample_prompt="it\'s $HOME"',
    ]
    command = [sys.executable, "-m", "rnnsparse", "train", str(config), *settings]
    lines = []
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment()
    ) as run:
        assert run.stderr is not None
        for line in run.stderr:
            lines.append(line)
            if line.startswith("step 3/"):
                run.send_signal(signal.SIGINT)
    assert run.returncode == 130
    told, printed = lines[-2:]
    assert told.startswith("stopped after step ")
    assert told.endswith(f"saved in {tmp_path / 'my run' / 'last'}; continue with\n")
    assert "Traceback" not in "".join(lines)
    assert 3 <= checkpoint.load(tmp_path / "my run").step < 150

    read = subprocess.run(f"printf '%s\\0' {printed}", shell=True, text=True, capture_output=True, check=True)
    words = read.stdout.split("\0")[:-1]  # as a shell reads it
    assert words[:3] == command[:3]
    code, out, err = cli(*words[3:])
    assert code == 0, err
    assert "(resumed after step" in out
    steps = [json.loads(line)["step"] for line in (tmp_path / "my run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 151))
    assert words[-1] == "--resume"


def limit(kind: int, size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (size, size))


def test_a_disk_that_fills_up_while_training_exits_with_1_and_one_line(prepared: Path, tmp_path: Path) -> None:
    # Of all files, TensorBoard's grows beyond the limit first; a thread of its own writes it.
    settings = ["logging.tensorboard=true", "training.steps=5000", "evaluation.interval=5000", "checkpoint.interval=4"]
    result = process(
        "train",
        prepared / "tiny.yaml",
        f"run.dir={tmp_path / 'full'}",
        *settings,
        capture_output=True,
        preexec_fn=limit(resource.RLIMIT_FSIZE, 40_000),
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    *progress, last = result.stderr.splitlines()
    assert all(line.startswith("step ") for line in progress)
    assert last.startswith(f"rnnsparse: {tmp_path / 'full'}: File too large")
    assert last.endswith("the last checkpoint is intact")
    assert checkpoint.load(tmp_path / "full").step >= 1


def test_output_that_cannot_be_written_exits_with_1_and_one_line() -> None:
    with open("/dev/full", "w") as full:
        result = process("methods", stdout=full, stderr=subprocess.PIPE)
    assert (result.returncode, result.stderr) == (1, "rnnsparse: No space left on device\n")


def test_a_reader_that_leaves_ends_the_output_quietly(prepared: Path) -> None:
    command = f"{sys.executable} -m rnnsparse sample {prepared / 'run'} --length 20000 | head -c 3"
    result = subprocess.run(
        command, shell=True, capture_output=True, env=environment(PYTHONIOENCODING="ascii"), check=True
    )
    assert len(result.stdout) == 3
    assert result.stderr == b""


def test_a_model_beyond_memory_exits_with_1_and_one_line(prepared: Path) -> None:
    result = process(
        "inspect",
        prepared / "tiny.yaml",
        "model.hidden_size=1048576",
        capture_output=True,
        preexec_fn=limit(resource.RLIMIT_AS, 8_000_000_000),
    )
    assert result.returncode == 1
    assert result.stderr.startswith("rnnsparse: out of memory; lower training.batch_size")
    assert result.stderr.count("\n") == 1


def test_help_answers_for_every_command_without_loading_torch() -> None:
    code = (
        "import sys; from rnnsparse.cli import main\ntry: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False
    )
    assert result.returncode == 0, result.stderr
    for command in ("train", "evaluate", "sample", "inspect", "validate", "methods", "export"):
        assert command in result.stdout


def test_training_starts_without_what_only_torch_compile_needs(prepared: Path, tmp_path: Path) -> None:
    """Its import takes longer than torch's own."""
    code = "import sys; from rnnsparse.cli import main"
    for optimizer in ("adam", "sgd", "sntasgd", "adamw"):
        command = ["train", str(prepared / "tiny.yaml"), f"run.dir={tmp_path / optimizer}"]
        command += [f"training.optimizer={optimizer}", f"training.connection_steps={optimizer == 'adamw'}".lower()]
        code += f"; assert main({command!r}) == 0"
    code += "; assert 'torch' in sys.modules and 'torch._dynamo' not in sys.modules"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False
    )
    assert result.returncode == 0, result.stderr


def test_windows_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert main(["methods"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"rnnsparse: needs Linux or macOS, .*\n", err)
