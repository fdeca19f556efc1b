from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from rnnsparse.cli import main
from rnnsparse.cli.interpolate import told_apart
from rnnsparse.errors import RunFailed
from rnnsparse.evaluation import evaluate
from rnnsparse.interpolation import Line, interpolate, shared_connections
from rnnsparse.nn.language_model import CharLM
from rnnsparse.settings.model import ModelConfig
from tests.test_evaluation import BYTE, ONE_LANE, TEXT, model_of, split_of
from tests.training.test_trainer import config_in, trained


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_the_ends_of_a_line_are_the_networks_and_its_middle_is_their_mean(cell: str) -> None:
    first, second = (model_of(BYTE, seed, cell=cell, readout_dims=(5,)) for seed in (1, 2))
    for weight in second.sparse_weights().values():  # in blocks, and all of them
        weight.connect(weight.indices[:0])
        weight.set_block_rows(4 if weight.name.startswith("rnn") else 1)
        weight.connect(torch.arange(weight.positions // weight.block_rows))
    second.reset_parameters(2)
    mean = CharLM(first.config, 256).double()
    for (_, weight), (_, a), (_, b) in zip(*(m.sparse_weights().items() for m in (mean, first, second)), strict=True):
        weight.connect(torch.arange(weight.positions), ((a.to_dense() + b.to_dense()) / 2).flatten())
    with torch.no_grad():
        for name, parameter in mean.named_parameters():
            if "bias" in name:
                parameter.copy_((first.get_parameter(name) + second.get_parameter(name)) / 2)
    text = split_of(TEXT, BYTE)
    line = interpolate(first, second, text, BYTE, ONE_LANE, points=3)
    wanted = [evaluate(model, text, BYTE, ONE_LANE).bits_per_character for model in (first, mean, second)]
    assert line.bits == pytest.approx(wanted, rel=1e-12)
    assert len({round(bits, 6) for bits in wanted}) == 3


def test_a_barrier_is_the_largest_excess_over_the_straight_line_between_the_ends() -> None:
    line = Line((2.0, 2.5, 3.5, 3.0, 4.0), ())
    assert line.places == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert (line.barrier, line.summit) == (0.5, 0.5)
    valley = Line((2.0, 1.0, 4.0), ())
    assert (valley.barrier, valley.summit) == (0.0, 0.0)


def test_shared_connections_are_counted_by_gate_and_entry() -> None:
    first, second = (CharLM(ModelConfig(cell="gru", embedding_dim=2, hidden_size=2), 3) for _ in range(2))
    ours, theirs = (model.recurrent_layers[0].recurrent for model in (first, second))
    # Rows of gate r, then z, then n; blocks of two rows are whole gates.
    #   first: x x   . x   . .      second: x .   x .   . x
    #          . x   . .   . .              x .   x .   . x
    ours.connect(torch.tensor([0, 1, 3, 5]))
    theirs.set_block_rows(2)
    theirs.connect(torch.tensor([0, 2, 5]))
    found = {s.name: s for s in shared_connections(first, second)}
    counts = [(found[f"rnn.0.recurrent.{g}"].first, found[f"rnn.0.recurrent.{g}"].second) for g in "rzn"]
    assert counts == [(3, 2), (1, 2), (0, 2)]
    assert [found[f"rnn.0.recurrent.{g}"].shared for g in "rzn"] == [1, 0, 0]
    assert found["rnn.0.recurrent.r"].by_chance == 3 * 2 / 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joined")
    for name, *overrides in [("static",), ("rigl", "sparsity.method=rigl"), ("prune", "sparsity.method=prune")]:
        trained(config_in(folder, name, "model.execution=masked", *overrides))
    trained(config_in(folder, "wider", "model.hidden_size=7"))
    trained(config_in(folder, "cosines", "sparsity.basis=dct"))
    trained(config_in(folder, "bytes", "data.tokenizer=byte"))
    (folder / "other.txt").write_text((folder / "text.txt").read_text(encoding="utf-8")[::-1], encoding="utf-8")
    trained(config_in(folder, "reversed", f"data.path={folder / 'other.txt'}"))
    return folder


def test_every_two_of_the_named_runs_are_joined(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = [str(runs / name) for name in ("static", "rigl", "prune")]
    out = tmp_path / "lines.png"
    assert main(["interpolate", *named, "--points", "3", "--symbols", "50", "--json", "--out", str(out)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["split"], report["symbols"]) == ("validation", 50)
    assert [(p["first"], p["second"]) for p in report["pairs"]] == [
        ("static", "rigl"),
        ("static", "prune"),
        ("rigl", "prune"),
    ]
    for pair in report["pairs"]:
        assert pair["places"] == [0, 0.5, 1]
        assert len(pair["bits_per_character"]) == 3
        assert sum(group["first"] for group in pair["groups"]) == sum(group["second"] for group in pair["groups"])
    with Image.open(out) as picture:
        assert (picture.format, picture.width) == ("PNG", 780)
    assert main(["interpolate", *named[:2], "--points", "3"]) == 0
    assert "barrier" in capsys.readouterr().out


def test_runs_of_a_sweep_are_called_by_what_tells_them_apart() -> None:
    assert told_apart(["method=set,seed=1", "method=rigl,seed=1", "ticket,seed=1"]) == [
        "method=set",
        "method=rigl",
        "ticket",
    ]
    assert told_apart(["seed=1", "seed=1,method=set"]) == ["seed=1", "method=set"]


@pytest.mark.parametrize(
    ("names", "options", "reason"),
    [
        (["static"], [], "a line has two ends; name two runs or more"),
        (["static", "static"], [], "a line has two ends; name two runs or more"),
        (["static", "static/last"], [], "a line has two ends; name two runs or more"),
        (["static", "wider"], [], "wider: model.hidden_size: is 7, and "),
        (["static", "cosines"], [], "cosines: sparsity.basis: connections of its embedding are coefficients"),
        (["static", "bytes"], [], "bytes: data.tokenizer: its symbols are not those of "),
        (["static", "reversed"], [], "reversed: data.path: its validation text is not that of "),
        (["static", "rigl"], ["--out", "lines.gif"], "--out: lines.gif: is a picture; let the name end in .png"),
        (["static", "rigl"], ["--points", "2"], "'2' is not a whole number above 2"),
    ],
)
def test_what_cannot_be_joined_is_refused_in_one_line(
    runs: Path, names: list[str], options: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["interpolate", *(str(runs / name) for name in names), *options])
    except SystemExit as exit_:
        code = int(str(exit_.code))
    told = capsys.readouterr().err
    assert code == 2
    assert reason in told
    assert len(told.splitlines()) == 1


def test_a_loss_that_is_no_number_is_told() -> None:
    first = model_of(BYTE, 1)
    with torch.no_grad():
        first.embedding.values.fill_(torch.inf)
    with pytest.raises(RunFailed, match="at 0 of the line is not a number"):
        interpolate(first, model_of(BYTE, 2), split_of(TEXT, BYTE), BYTE, ONE_LANE, points=3)
