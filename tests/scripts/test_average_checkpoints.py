from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rnnsparse.storage import checkpoint
from rnnsparse.training.build import restore
from scripts import average_checkpoints
from tests.training.test_trainer import config_in, trained

ROOT = Path(__file__).resolve().parent.parent.parent
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, one that went on from it with its connections, and one with others."""
    folder = tmp_path_factory.mktemp("runs")
    static = "sparsity.method=static"
    trained(config_in(folder, "first", static))
    trained(config_in(folder, "second", static, f"start.weights={folder / 'first'}", "model.execution=masked"))
    trained(config_in(folder, "other", static, "run.seed=9"))
    for basis in ("canonical", "dct"):
        trained(config_in(folder, basis, "sparsity.method=dense", f"sparsity.basis={basis}"))
    trained(config_in(folder, "wider", static, "model.hidden_size=7"))
    return folder


def test_the_mean_of_checkpoints_is_a_checkpoint(runs: Path) -> None:
    command = [sys.executable, ROOT / "scripts/average_checkpoints.py", runs / "first", runs / "second"]
    done = subprocess.run(
        [*command, "--out", runs / "mean"], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    mean, *both = [restore(runs / name, CPU).model for name in ("mean", "first", "second")]
    for found, a, b in zip(mean.parameters(), *(model.parameters() for model in both), strict=True):
        torch.testing.assert_close(found, (a + b) / 2)
    known = [restore(runs / name, CPU).saved.trained_text() for name in ("mean", "second")]
    assert known[0] == known[1] is not None
    for name, weight in mean.sparse_weights().items():
        assert torch.equal(weight.indices, both[0].sparse_weights()[name].indices)


def test_one_checkpoint_in_16_bits_is_smaller_and_rounded(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["average_checkpoints.py", str(runs / "first"), "--out", str(runs / "halved"), "--fp16"]
    monkeypatch.setattr(sys, "argv", words)
    assert average_checkpoints.main() == 0
    halved, whole = (restore(runs / name, CPU).model for name in ("halved", "first"))
    for found, expected in zip(halved.parameters(), whole.parameters(), strict=True):
        assert torch.equal(found, expected.half().float())
    sizes = [(runs / folder / "model.safetensors").stat().st_size for folder in ("halved", "first/last")]
    assert sizes[0] < sizes[1]


def test_a_value_too_large_for_16_bits_is_refused(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = restore(runs / "first", CPU)
    with torch.no_grad():
        found.model.embedding.values[0] = 1e5
    texts = {"tokenizer_json": found.saved.tokenizer_json, "config_yaml": found.saved.config_yaml}
    checkpoint.save(runs / "large", step=1, model=found.model, training_state=None, **texts)
    words = ["average_checkpoints.py", str(runs / "large"), "--out", str(runs / "new"), "--fp16"]
    monkeypatch.setattr(sys, "argv", words)
    assert average_checkpoints.main() == 2
    assert "has values beyond 65,504; leave it out" in capsys.readouterr().err
    assert not (runs / "new").exists()


@pytest.mark.parametrize(
    ("names", "out", "message"),
    [
        (["first", "other"], "new", "has other connections in "),
        (["first", "wider"], "new", "has another model or symbols"),
        (["canonical", "dct"], "new", "its embedding is in another basis"),
        (["first", "second"], "other", "exists; choose another folder"),
        (["nowhere"], "new", "there is no such folder"),
    ],
)
def test_what_cannot_be_averaged_is_refused_in_one_line(
    runs: Path,
    names: list[str],
    out: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["average_checkpoints.py", *(str(runs / name) for name in names), "--out", str(runs / out)]
    monkeypatch.setattr(sys, "argv", words)
    assert average_checkpoints.main() == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1
    assert not (runs / "new").exists()
