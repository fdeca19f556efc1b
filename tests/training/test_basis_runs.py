"""Runs whose connections are coefficients in a basis."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rnnsparse.cli import main
from rnnsparse.config import RunConfig
from rnnsparse.errors import UserError
from rnnsparse.nn.basis import same_basis
from rnnsparse.nn.language_model import CharLM
from rnnsparse.recipes import ticket_rounds
from rnnsparse.storage.weights import WeightsFile
from rnnsparse.training.banner import banner
from rnnsparse.training.build import restore
from rnnsparse.training.run.interrupts import Interrupted
from rnnsparse.training.train import prepare
from rnnsparse.training.trainer import Trainer
from tests.storage.test_exports import load_plain
from tests.training.test_trainer import STEPS, assert_same, config_in, one_line, stop_after, traces, trained

CPU = torch.device("cpu")
PRUNE = ["sparsity.method=prune", "sparsity.sparsity=0.8"]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained dense run; and a static one beside it."""
    folder = tmp_path_factory.mktemp("dense")
    trained(config_in(folder, "dense", "sparsity.method=dense", "training.learning_rate=0.05"))
    trained(config_in(folder, "static", "sparsity.method=static"))
    return folder / "dense"


def in_basis(kind: str, dense: Path) -> list[str]:
    return [f"sparsity.basis={kind}", *([f"sparsity.basis_from={dense}"] if kind == "svd" else [])]


def matrices(model: CharLM) -> dict[str, Tensor]:
    return {name: weight.to_dense() for name, weight in model.sparse_weights().items()}


def new(config: RunConfig) -> Trainer:
    return prepare(config, stream=io.StringIO())


both = pytest.mark.parametrize("kind", ["dct", "svd"])


@both
def test_pruning_in_a_basis_keeps_the_budgets_and_resumes_bit_for_bit(tmp_path: Path, dense: Path, kind: str) -> None:
    shutil.copytree(dense, tmp_path / "copy")
    settings = [*PRUNE, *in_basis(kind, tmp_path / "copy"), f"start.weights={tmp_path / 'copy'}"]
    trained(config_in(tmp_path, "undisturbed", *settings))
    config = config_in(tmp_path, "stopped", *settings)
    for step in range(1, STEPS, 2):
        with pytest.raises(Interrupted):
            trained(config, resume=step > 1, stream=stop_after(step))
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)  # what is needed of it is in the checkpoint
    summary = trained(config, resume=True)
    assert_same(traces(tmp_path / "stopped"), traces(tmp_path / "undisturbed"))
    assert summary["sparsity"] == pytest.approx(0.8, abs=0.01)
    after = restore(config.folder, CPU)
    assert [b.group.connections for b in after.budgets] == [b.connections for b in after.budgets]
    assert all(weight.basis for weight in after.model.sparse_weights().values())


@both
def test_evaluate_sample_and_export_have_the_same_numbers(
    tmp_path: Path, dense: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_in(tmp_path, "run", *PRUNE, *in_basis(kind, dense), "logging.pictures=4")
    summary = trained(config)
    assert main(["evaluate", str(config.folder), "--split", "validation", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bits_per_character"] == summary["bits_per_character"]
    assert main(["sample", str(config.folder), "--length", "5"]) == 0

    model = restore(config.folder, CPU).model.eval()
    tokens_TB = torch.randint(model.vocab_size, (6, 2), generator=torch.Generator().manual_seed(0))
    logits_TBV, state = model(tokens_TB)[0], model.initial_state(2)
    steps, stepper = [], model.stepper()
    for tokens_B in tokens_TB:
        logits_BV, state = stepper.step(tokens_B, state)
        steps.append(logits_BV)
    torch.testing.assert_close(torch.stack(steps), logits_TBV, rtol=0, atol=1e-5)
    assert main(["export", str(config.folder), str(tmp_path / "m.pt"), "--format", "torch"]) == 0
    torch.testing.assert_close(load_plain(tmp_path / "m.pt")(tokens_TB), logits_TBV, rtol=0, atol=1e-5)
    assert main(["export", str(config.folder), str(tmp_path / "m"), "--format", "safetensors"]) == 0
    with safe_open(tmp_path / "m", "pt") as file:
        assert file.metadata()["basis"] == kind
        assert ("rnn.0.recurrent.z.left_basis" in file.keys()) == (kind == "svd")  # noqa: SIM118


@both
def test_without_pruning_gradient_descent_trains_the_same_network_and_adam_another(
    tmp_path: Path, dense: Path, kind: str
) -> None:
    def distance(*overrides: str) -> float:
        settings = ["sparsity.method=dense", "training.precision=fp64", *overrides]
        found = []
        for basis in ([], in_basis(kind, dense)):
            trainer = new(config_in(tmp_path, f"run{len(basis)}{len(overrides)}", *settings, *basis))
            trainer.train()
            found.append(matrices(trainer.model))
        return max(float((found[0][name] - found[1][name]).abs().max()) for name in found[0])

    # With momentum, L2 and clipping: none of them knows a basis.
    assert distance("training.optimizer=sgd", "training.weight_decay=0.01", "training.grad_clip=0.1") < 1e-10
    assert distance("training.optimizer=adam") > 1e-3


@both
def test_a_network_with_all_connections_starts_as_the_same_one_in_every_basis(
    tmp_path: Path, dense: Path, kind: str
) -> None:
    for start in ([], [f"start.weights={dense}"]):
        expected = matrices(new(config_in(tmp_path, "run", *PRUNE, *start)).model)
        found = matrices(new(config_in(tmp_path, "run", *PRUNE, *start, *in_basis(kind, dense))).model)
        for name, matrix in expected.items():
            torch.testing.assert_close(found[name], matrix, rtol=0, atol=1e-6)


def test_a_trained_run_is_diagonal_in_its_own_singular_vectors(tmp_path: Path, dense: Path) -> None:
    settings = [*PRUNE, *in_basis("svd", dense), f"start.weights={dense}"]
    trainer = new(config_in(tmp_path, "run", *settings))
    for name, matrix in matrices(restore(dense, CPU).model).items():
        weight = trainer.model.sparse_weights()[name]
        for x_RC, w_RC in zip(
            weight.values.detach().view(matrix.shape).chunk(len(weight.gates)),
            matrix.chunk(len(weight.gates)),
            strict=True,
        ):
            diagonal = torch.zeros_like(w_RC)
            diagonal.diagonal().copy_(torch.linalg.svdvals(w_RC))
            torch.testing.assert_close(x_RC, diagonal, rtol=0, atol=1e-5)


def test_a_ticket_of_low_rank_is_cut_from_the_trained_matrices_and_keeps_its_rank(tmp_path: Path, dense: Path) -> None:
    settings = ["sparsity.method=low_rank", "sparsity.distribution=uniform", "sparsity.sparsity=0.75"]
    config = config_in(tmp_path, "run", *settings, *in_basis("svd", dense), f"start.weights={dense}")
    with pytest.raises(Interrupted):
        trained(config, stream=stop_after(1))  # which draws the ticket, and learns nothing
    cut = matrices(restore(config.folder, CPU).model)["rnn.1.recurrent"].double()
    matrix = matrices(restore(dense, CPU).model)["rnn.1.recurrent"].double()
    for found, whole in zip(cut.chunk(3), matrix.chunk(3), strict=True):
        left, values, right = torch.linalg.svd(whole)
        values[3:] = 0  # 9 of 6 x 6 positions
        torch.testing.assert_close(found, left @ values.diag() @ right, rtol=0, atol=1e-5)
    trained(config, resume=True)
    after = matrices(restore(config.folder, CPU).model)["rnn.1.recurrent"].double()
    assert (after - cut).abs().max() > 1e-3
    for found in after.chunk(3):
        assert torch.linalg.svdvals(found)[3:].max() < 1e-5


def test_a_sparse_run_written_in_another_basis_has_every_coefficient(tmp_path: Path, dense: Path) -> None:
    static = dense.parent / "static"
    trainer = new(config_in(tmp_path, "run", *PRUNE, "sparsity.basis=dct", f"start.weights={static}"))
    assert all(weight.is_full for weight in trainer.model.sparse_weights().values())
    for name, matrix in matrices(restore(static, CPU).model).items():
        torch.testing.assert_close(matrices(trainer.model)[name], matrix, rtol=0, atol=1e-6)


def test_a_run_in_singular_vectors_hands_them_on_with_its_connections(tmp_path: Path, dense: Path) -> None:
    trained(config_in(tmp_path, "one", *PRUNE, *in_basis("svd", dense)))
    one = tmp_path / "one"
    settings = ["sparsity.method=static", *in_basis("svd", one), f"start.weights={one}"]
    two = new(config_in(tmp_path, "two", *settings)).model
    for name, weight in restore(one, CPU).model.sparse_weights().items():
        assert torch.equal(two.sparse_weights()[name].indices, weight.indices)
        assert torch.equal(two.sparse_weights()[name].to_dense(), weight.to_dense())


@both
def test_lottery_tickets_are_drawn_among_the_coefficients(tmp_path: Path, dense: Path, kind: str) -> None:
    settings = ["sparsity.method=lottery", "sparsity.sparsity=0.6", "sparsity.prune_share=0.4", "sparsity.rewind=0.3"]
    config = config_in(tmp_path, "run", *settings, *in_basis(kind, dense))
    ticket_rounds.train(config, tell=lambda text: None, stream=io.StringIO())
    first, last = restore(config.folder / "rounds" / "0", CPU), restore(config.folder, CPU)
    assert [b.group.connections for b in last.budgets] == [b.connections for b in last.budgets]
    for name, weight in last.model.sparse_weights().items():
        assert weight.basis
        assert same_basis(weight.basis, first.model.sparse_weights()[name].basis)


# ---- the weights file


def test_singular_vectors_come_back_bit_for_bit_and_must_be_there(tmp_path: Path, dense: Path) -> None:
    config = config_in(tmp_path, "run", *PRUNE, *in_basis("svd", dense))
    trainer = new(config)
    trainer.train()
    path = config.folder / "last" / "model.safetensors"
    for name, weight in restore(config.folder, CPU).model.sparse_weights().items():
        assert same_basis(weight.basis, trainer.model.sparse_weights()[name].basis)
        assert torch.equal(weight.to_dense(), trainer.model.sparse_weights()[name].to_dense())
    tensors: dict[str, Any] = load_file(path)
    del tensors["rnn.1.input.n.right_basis"]
    save_file(tensors, tmp_path / "m")
    with pytest.raises(UserError, match=r"'rnn\.1\.input\.n\.right_basis' is missing"):
        WeightsFile(tmp_path / "m").apply(trainer.model)
    canonical = new(config_in(tmp_path, "canonical", *PRUNE)).model
    with pytest.raises(UserError, match=r"the model has no 'embedding\.left_basis'"):
        WeightsFile(path).apply(canonical)


# ---- what makes no sense


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sparsity.basis=svd"], r"sparsity\.basis: svd: .*sparsity\.basis_from, or use dct"),
        (["sparsity.basis=svd", "sparsity.basis_from=nowhere"], r"sparsity\.basis_from: nowhere: there is no such"),
        (
            ["sparsity.basis=svd", "sparsity.basis_from=DENSE", "model.hidden_size=7"],
            r"sparsity\.basis_from: .*its rnn\.0\.input is 18 x 4, this run's is 21 x 4",
        ),
        (
            ["sparsity.basis=dct", "model.execution=sparse"],
            r"model\.execution: sparse is impossible here: in basis dct .*; use model\.execution=masked",
        ),
        (["sparsity.basis=dct", "start.topology=DENSE"], r"start\.topology: .*: canonical\) than this run's \(dct\)"),
        (["sparsity.basis=dct", "start.rewind=DENSE"], r"start\.rewind: .*: canonical\) than this run's \(dct\)"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, dense: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        new(config_in(tmp_path, "run", *PRUNE, *[text.replace("DENSE", str(dense)) for text in overrides]))
    one_line(error)


def test_a_run_to_take_a_basis_from_has_no_effect_on_others(tmp_path: Path) -> None:
    (warning,) = config_in(tmp_path, "run", "sparsity.basis=dct", "sparsity.basis_from=x").warnings
    assert warning == "sparsity.basis_from has no effect with sparsity.basis=dct"


def test_the_banner_says_what_and_why(tmp_path: Path) -> None:
    lines = banner(new(config_in(tmp_path, "run", *PRUNE, "sparsity.basis=dct")))
    assert any(line.startswith("method      prune in basis dct; ") for line in lines)
    assert "execution   masked: in basis dct a matrix is dense, however few coefficients it has" in lines
