from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch.nn import Parameter

from rnnsparse.settings.run import CheckpointConfig, LoggingConfig
from rnnsparse.settings.training import TrainingConfig
from rnnsparse.training.step.optim import build_optimizer, clip_gradients, learning_rate, set_learning_rate

OPTIMIZERS = ["adam", "adamw", "sgd", "sntasgd"]


def config(**fields: Any) -> TrainingConfig:
    return TrainingConfig(**fields)


def textbook(name: str, start: Tensor, gradients: list[Tensor], c: TrainingConfig) -> Tensor:
    """The update rules as the papers print them."""
    w, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for t, g in enumerate(gradients, start=1):
        if name != "adamw":
            g = g + c.weight_decay * w
        if "sgd" in name:
            m = c.momentum * m * (name == "sgd") + g
            w = w - c.learning_rate * m
            continue
        if name == "adamw":
            w = w - c.learning_rate * c.weight_decay * w
        m = c.betas[0] * m + (1 - c.betas[0]) * g
        v = c.betas[1] * v + (1 - c.betas[1]) * g**2
        w = w - c.learning_rate * (m / (1 - c.betas[0] ** t)) / ((v / (1 - c.betas[1] ** t)).sqrt() + c.epsilon)
    return w


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_follow_the_textbook(name: str) -> None:
    c = config(optimizer=name, learning_rate=0.05, weight_decay=0.1, betas=(0.8, 0.95), momentum=0.7)
    start, gradients = torch.randn(13, dtype=torch.float64), list(torch.randn(6, 13, dtype=torch.float64))
    parameter = Parameter(start.clone())
    optimizer = build_optimizer(c, [parameter])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(parameter.data, textbook(name, start, gradients, c), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kept", [[0, 2, 3], [0, 1, 2, 3, 4, 5, 6], []])
def test_data_and_state_may_change_length_between_steps(name: str, kept: list[int]) -> None:
    """What happens to the surviving elements must not depend on the others having been there."""
    c = config(optimizer=name, weight_decay=0.01, learning_rate=0.1)
    start, gradient = torch.randn(5), torch.randn(2, 7)
    padded = torch.cat([start, torch.zeros(2)])  # positions 5 and 6 are new: weight 0, fresh state

    swapped, other = Parameter(start.clone()), Parameter(torch.randn(3))
    optimizer = build_optimizer(c, [swapped, other])
    swapped.grad, other.grad = gradient[0, :5].clone(), torch.randn(3)
    optimizer.step()
    before = torch.cat([swapped.data, torch.zeros(2)])
    swapped.data, swapped.grad = before[kept], None
    for key, value in optimizer.state[swapped].items():
        if value.shape == (5,):
            optimizer.state[swapped][key] = torch.cat([value, torch.zeros(2)])[kept]
    swapped.grad = gradient[1, kept]
    optimizer.step()

    # The same two steps on seven elements that were there all along (5 and 6 without gradient in the first).
    whole = Parameter(padded.clone())
    optimizer = build_optimizer(c, [whole])
    whole.grad = torch.cat([gradient[0, :5], torch.zeros(2)])
    optimizer.step()
    whole.grad = gradient[1].clone()
    optimizer.step()
    assert swapped.shape == (len(kept),)
    torch.testing.assert_close(swapped.data, whole.data[kept])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_saved_and_loaded_optimizer_continues_bit_exactly(name: str) -> None:
    c = config(optimizer=name, weight_decay=0.01)
    gradients = torch.randn(6, 1003)
    straight = Parameter(torch.randn(1003))
    stopped = Parameter(straight.detach().clone())
    ahead, behind = build_optimizer(c, [straight]), build_optimizer(c, [stopped])
    for i, gradient in enumerate(gradients):
        if i == 3:
            state, behind = behind.state_dict(), build_optimizer(c, [stopped])
            behind.load_state_dict(state)
        for parameter, optimizer in ((straight, ahead), (stopped, behind)):
            parameter.grad = gradient.clone()
            set_learning_rate(optimizer, learning_rate(c, i))
            optimizer.step()
    assert torch.equal(straight, stopped)


def test_an_update_does_not_depend_on_where_the_memory_lies() -> None:
    """A resumed run has other addresses; vector instructions must not make that visible."""
    values, gradient = torch.randn(1003), torch.randn(1003)
    results = []
    for offset in (0, 1, 3):
        buffers = torch.empty(2, 1010)
        parameter = Parameter(torch.empty(0))
        parameter.data, gradient_view = buffers[0, offset : offset + 1003], buffers[1, offset : offset + 1003]
        parameter.data.copy_(values)
        parameter.grad = gradient_view.copy_(gradient)
        norm = clip_gradients([parameter], 0.5)
        build_optimizer(config(weight_decay=0.1), [parameter]).step()
        results.append((norm, parameter.data.clone()))
    for norm, data in results[1:]:
        assert torch.equal(norm, results[0][0])
        assert torch.equal(data, results[0][1])


def test_the_learning_rate_is_set_in_every_group() -> None:
    optimizer = torch.optim.SGD([{"params": [Parameter(torch.ones(1))]}, {"params": [Parameter(torch.ones(1))]}])
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_warmup_rises_linearly_and_ends_at_the_peak() -> None:
    c = config(learning_rate=1.0, warmup=3, lr_schedule="constant", steps=10)
    assert [learning_rate(c, step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_the_cosine_falls_from_the_peak_over_the_middle_to_the_final_fraction_and_stays() -> None:
    c = config(learning_rate=2.0, warmup=10, steps=110, final_learning_rate=0.1)
    assert learning_rate(c, 10) == 2.0
    assert learning_rate(c, 60) == pytest.approx(2.0 * 0.55)
    assert learning_rate(c, 110) == pytest.approx(0.2)
    assert learning_rate(c, 1000) == pytest.approx(0.2)
    rates = [learning_rate(c, step) for step in range(10, 111)]
    assert rates == sorted(rates, reverse=True)


def test_a_run_shorter_than_its_warmup_never_reaches_the_peak() -> None:
    c = config(learning_rate=1.0, warmup=99, steps=20)
    assert [learning_rate(c, step) for step in (0, 19)] == [0.01, 0.2]


def test_without_warmup_and_schedule_the_rate_is_constant() -> None:
    c = config(learning_rate=0.3, lr_schedule="constant", steps=5)
    assert {learning_rate(c, step) for step in range(7)} == {0.3}


def test_clipping_bounds_the_joint_norm_and_returns_the_norm_before() -> None:
    parameters = [Parameter(torch.zeros(2)), Parameter(torch.zeros(1)), Parameter(torch.zeros(4))]
    parameters[0].grad, parameters[1].grad = (
        torch.tensor([3.0, 0.0]),
        torch.tensor([4.0]),
    )  # the third has none
    assert clip_gradients(iter(parameters), 1.0).item() == pytest.approx(5.0)
    torch.testing.assert_close(parameters[0].grad, torch.tensor([0.6, 0.0]))
    torch.testing.assert_close(parameters[1].grad, torch.tensor([0.8]))
    assert parameters[2].grad is None


@pytest.mark.parametrize("max_norm", [None, 5.1])
def test_gradients_within_the_bound_are_untouched(max_norm: float | None) -> None:
    parameter = Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([parameter], max_norm).item() == 5.0
    assert parameter.grad.tolist() == [3.0, 4.0]


def test_a_norm_that_is_not_finite_is_told() -> None:
    parameter = Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([math.nan, 1.0])
    assert clip_gradients([parameter], 1.0).isnan()


@pytest.mark.parametrize("settings", [TrainingConfig, LoggingConfig, CheckpointConfig])
def test_default_settings_are_within_their_own_ranges(settings: type) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(settings)
    assert adapter.validate_python(adapter.dump_python(settings())) == settings()


@pytest.mark.parametrize(
    ("settings", "field", "bad"),
    [
        (TrainingConfig, "steps", 0),
        (TrainingConfig, "batch_size", 0),
        (TrainingConfig, "learning_rate", 0.0),
        (TrainingConfig, "warmup", -1),
        (TrainingConfig, "final_learning_rate", 1.5),
        (TrainingConfig, "optimizer", "adagrad"),
        (TrainingConfig, "betas", (0.9, 1.0)),
        (TrainingConfig, "betas", (0.9,)),
        (TrainingConfig, "momentum", 1.0),
        (TrainingConfig, "connection_warmup", -1),
        (TrainingConfig, "nonmonotone", -1),
        (TrainingConfig, "weight_decay", -0.1),
        (TrainingConfig, "grad_clip", 0.0),
        (TrainingConfig, "early_stopping", 0),
        (TrainingConfig, "threads", 0),
        (LoggingConfig, "interval", 0),
        (LoggingConfig, "pictures", 0),
        (CheckpointConfig, "interval", 0),
    ],
)
def test_settings_out_of_range_are_refused(settings: type, field: str, bad: object) -> None:
    with pytest.raises(ValidationError, match=field):
        TypeAdapter(settings).validate_python({field: bad})


@pytest.mark.parametrize("field", ["grad_clip", "early_stopping", "threads"])
def test_optional_settings_may_be_none(field: str) -> None:
    assert getattr(TypeAdapter(TrainingConfig).validate_python({field: None}), field) is None
