from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from rnnsparse.data.batches import Lanes
from rnnsparse.data.corpus import load_corpus
from rnnsparse.errors import UserError
from rnnsparse.storage import checkpoint
from rnnsparse.training.build import restore
from rnnsparse.training.run.interrupts import Interrupted
from rnnsparse.training.step.loss import Teacher, exact_divergence, read_later, training_loss
from rnnsparse.training.train import prepare
from tests.training.test_trainer import STEPS, assert_same, config_in, metrics, one_line, stop_after, traces, trained

CPU = torch.device("cpu")
T, B, V = 3, 2, 7


def logits(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return 3 * torch.randn(T, B, V, generator=torch.Generator().manual_seed(seed), dtype=dtype)


TARGETS_TB = torch.randint(V, (T, B), generator=torch.Generator().manual_seed(0))


def formula(student_TBV: Tensor, teacher_TBV: Tensor, weight: float, temperature: float) -> Tensor:
    """a T^2 KL + (1 - a) CE, written out with exponentials, position by position."""
    total = torch.zeros((), dtype=torch.float64)
    for t in range(T):
        for b in range(B):
            p_V = (teacher_TBV[t, b] / temperature).exp()
            p_V = p_V / p_V.sum()
            q_V = (student_TBV[t, b] / temperature).exp()
            q_V = q_V / q_V.sum()
            divergence = (p_V * (p_V / q_V).log()).sum()
            sharp_V = student_TBV[t, b].exp()
            nats = -(sharp_V[TARGETS_TB[t, b]] / sharp_V.sum()).log()
            total = total + weight * temperature**2 * divergence + (1 - weight) * nats
    return total / (T * B)


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0])
def test_distillation_is_the_formula_and_so_is_its_gradient(weight: float, temperature: float) -> None:
    student, teacher = logits(1).requires_grad_(), logits(2)
    loss, nats = training_loss(student, TARGETS_TB, teacher, weight=weight, temperature=temperature)
    expected = formula(student, teacher, weight, temperature)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(nats, cross_entropy(student.flatten(0, 1), TARGETS_TB.flatten()))
    (found,) = torch.autograd.grad(loss, student)
    (wanted,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_at_temperature_one_the_teacher_alone_gives_the_difference_of_the_predictions_as_gradient() -> None:
    student, teacher = logits(1).requires_grad_(), logits(2)
    loss, _ = training_loss(student, TARGETS_TB, teacher, weight=1.0, temperature=1.0)
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(gradient, (student.softmax(-1) - teacher.softmax(-1)) / (T * B))


def test_who_predicts_as_its_teacher_has_nothing_to_learn_from_it() -> None:
    student = logits(1).requires_grad_()
    loss, _ = training_loss(student, TARGETS_TB, student.detach(), weight=1.0, temperature=5.0)
    (gradient,) = torch.autograd.grad(loss, student)
    assert abs(loss.item()) < 1e-12
    assert gradient.abs().max() < 1e-12


def test_a_confident_teacher_at_temperature_one_is_cross_entropy_with_its_choice() -> None:
    student = logits(1)
    certain = torch.full((T, B, V), -1e4, dtype=torch.float64).scatter_(2, TARGETS_TB.unsqueeze(2), 0)
    loss, nats = training_loss(student, TARGETS_TB, certain, weight=1.0, temperature=1.0)
    torch.testing.assert_close(loss, nats)


def test_without_a_teacher_the_loss_is_cross_entropy_to_the_bit() -> None:
    student = logits(1, torch.float32)
    loss, nats = training_loss(student, TARGETS_TB, weight=0.9, temperature=5.0)
    assert torch.equal(loss, cross_entropy(student.flatten(0, 1), TARGETS_TB.flatten()))
    assert torch.equal(loss, nats)


@pytest.mark.parametrize("temperature", [5.0, 50.0, 1000.0])
def test_the_loss_keeps_its_digits_in_single_precision_at_any_temperature(temperature: float) -> None:
    teacher = logits(2, torch.float32)
    student = teacher + 0.01 * logits(1, torch.float32)
    expected = formula(student.double(), teacher.double(), 1.0, temperature)
    found, _ = training_loss(student, TARGETS_TB, teacher, weight=1.0, temperature=temperature)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


def test_the_gradient_is_that_of_the_sum_in_single_precision_to_the_bit() -> None:
    student, teacher, temperature = logits(1, torch.float32).requires_grad_(), logits(2, torch.float32), 5.0
    loss, nats = training_loss(student, TARGETS_TB, teacher, weight=0.9, temperature=temperature)
    (found,) = torch.autograd.grad(2**7 * loss, student, retain_graph=True)  # scaled, as in half precision
    log_p_NV, log_q_NV = (x.flatten(0, 1).div(temperature).log_softmax(-1) for x in (teacher, student))
    divergence = kl_div(log_q_NV, log_p_NV, reduction="batchmean", log_target=True)
    summed = 0.9 * temperature**2 * divergence + (1 - 0.9) * nats
    (expected,) = torch.autograd.grad(2**7 * summed, student)
    assert torch.equal(found, expected)


def test_the_divergence_of_many_positions_is_that_of_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = (logits(seed).flatten(0, 1) for seed in (1, 2))
    whole = exact_divergence(teacher, student, 2.0)
    for numbers in (1, 2 * V, T * B * V - 1):
        monkeypatch.setattr("rnnsparse.training.step.loss.EXACT_NUMBERS", numbers)
        torch.testing.assert_close(exact_divergence(teacher, student, 2.0), whole, rtol=1e-14, atol=0)


def test_half_precision_logits_are_compared_in_single_precision() -> None:
    student, teacher = logits(1, torch.bfloat16), logits(2, torch.bfloat16)
    found = training_loss(student, TARGETS_TB, teacher, weight=0.9, temperature=5.0)
    expected = training_loss(student.float(), TARGETS_TB, teacher.float(), weight=0.9, temperature=5.0)
    assert found[0].dtype == torch.float32
    assert torch.equal(torch.stack(found), torch.stack(expected))


def test_numbers_read_later_are_those_of_the_moment() -> None:
    one, two = torch.tensor(1.5, requires_grad=True), torch.tensor(-2.0)
    read = read_later(one, two)
    two += 1
    assert read() == [1.5, -2.0]


# ---- in a run


def taught(tmp_path: Path, run: str, *overrides: str) -> Any:
    """A run with a teacher, which is trained first."""
    if not (tmp_path / "teacher").exists():
        trained(config_in(tmp_path, "teacher", "sparsity.method=dense", "model.hidden_size=8", "run.seed=5"))
    return config_in(tmp_path, run, f"training.teacher={tmp_path / 'teacher'}", *overrides)


def test_a_teacher_reads_the_text_with_a_state_that_it_keeps(tmp_path: Path) -> None:
    config = taught(tmp_path, "run")
    corpus = load_corpus(config.data)
    teacher = Teacher(restore(tmp_path / "teacher", CPU).model, sha256="", lanes=3)
    lanes = Lanes(corpus.train.tokens, batch_size=3, sequence_length=5)
    pieces = [next(lanes)[0] for _ in range(3)]
    found = torch.cat([teacher(inputs_TB) for inputs_TB in pieces])
    model = restore(tmp_path / "teacher", CPU).model.eval()  # no dropout
    with torch.no_grad():
        expected, _ = model(torch.cat(pieces))
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


def test_the_loss_of_a_run_is_the_whole_one_and_its_bits_are_those_of_the_text(tmp_path: Path) -> None:
    settings = ["training.learning_rate=1e-30", "model.dropout=0", "training.precision=fp64", "sparsity.method=static"]
    config = taught(tmp_path, "run", *settings, "training.teacher_weight=0.7", "training.teacher_temperature=2")
    trained(config)
    corpus = load_corpus(config.data)
    student, teacher = restore(config.folder, CPU).model, restore(tmp_path / "teacher", CPU).model.eval()
    lanes, states = Lanes(corpus.train.tokens, batch_size=3, sequence_length=5), [None, None]
    for line in metrics(config.folder):
        losses = []
        for _ in range(2):
            inputs_TB, targets_TB = next(lanes)
            with torch.no_grad():
                logits_TBV, states[0] = student(inputs_TB, states[0])
                teacher_TBV, states[1] = teacher(inputs_TB, states[1])
            losses.append(training_loss(logits_TBV, targets_TB, teacher_TBV, weight=0.7, temperature=2.0))
        loss, nats = (float(sum(parts) / 2) for parts in zip(*losses, strict=True))
        assert line["loss"] == pytest.approx(loss, rel=1e-6)
        assert line["bits_per_character"] == pytest.approx(nats / math.log(2), rel=1e-6)


@pytest.mark.parametrize("method", ["static", "rigl"])
def test_a_taught_run_stopped_after_every_step_ends_as_an_undisturbed_one(tmp_path: Path, method: str) -> None:
    trained(taught(tmp_path, "undisturbed", f"sparsity.method={method}"))
    config = taught(tmp_path, "stopped", f"sparsity.method={method}")
    for step in range(1, STEPS):
        with pytest.raises(Interrupted):
            trained(config, resume=step > 1, stream=stop_after(step))
    trained(config, resume=True)
    assert_same(traces(tmp_path / "stopped"), traces(tmp_path / "undisturbed"))
    state = checkpoint.load(config.folder).training_state()["teacher"]["recurrent_state"]
    assert state.shape == (2, 1, 3, 8)
    assert state.abs().min() > 0


def test_a_teacher_may_move_but_not_change(tmp_path: Path) -> None:
    config = taught(tmp_path, "run")
    trained(config)
    (tmp_path / "teacher").rename(tmp_path / "moved")
    prepare(config_in(tmp_path, "run", f"training.teacher={tmp_path / 'moved'}"), resume=True)
    with pytest.raises(UserError, match=r"training\.teacher: .*: there is no such folder") as error:
        prepare(config, resume=True)
    one_line(error)
    with pytest.raises(UserError, match=r"training\.teacher: this is not the model that taught the run") as error:
        prepare(config_in(tmp_path, "run", f"training.teacher={tmp_path / 'run'}"), resume=True)
    one_line(error)
    with pytest.raises(UserError, match=r"training\.teacher: the run to resume has .*, not None"):
        prepare(config_in(tmp_path, "run"), resume=True)


def test_a_teacher_with_another_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training\.teacher: .*predicts other symbols") as error:
        prepare(taught(tmp_path, "run", "data.tokenizer=byte"))
    one_line(error)
    assert not (tmp_path / "run").exists()


def test_training_flops_count_the_forward_passes_of_the_teacher(tmp_path: Path) -> None:
    trained(taught(tmp_path, "taught"))
    trained(config_in(tmp_path, "alone"))
    flops = {run: json.loads((tmp_path / run / "summary.json").read_text()) for run in ("taught", "alone")}
    teacher = restore(tmp_path / "teacher", CPU).model
    forward = sum(2 * w.connections for name, w in teacher.sparse_weights().items() if name != "embedding")
    extra = flops["taught"]["training_flops"] - flops["alone"]["training_flops"]
    assert extra == pytest.approx(forward * STEPS * 2 * 3 * 5)
