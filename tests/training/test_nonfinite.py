"""Steps whose loss or gradients are not finite: told, and left out as if they had never been."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rnnsparse.config import RunConfig
from rnnsparse.errors import RunFailed
from rnnsparse.training.run.interrupts import Interrupted
from rnnsparse.training.step.learner import Learner
from rnnsparse.training.step.nonfinite import Diverged, without_lost_lanes
from rnnsparse.training.step.optim import after_evaluation
from rnnsparse.training.train import prepare
from rnnsparse.training.trainer import Trainer
from tests.training.test_trainer import STEPS, assert_same, bits, config_in, metrics, stop_after, traces, trained

# Updates at steps 2, 4 and 6, of two batches of 5 symbols each; what is drawn is the topologies only.
METHODS = {
    "rigl": ["sparsity.method=rigl"],
    "snfs": ["sparsity.method=snfs", "sparsity.skip_optimizer_step=true", "model.execution=masked"],
    "scout": ["sparsity.method=scout", "model.execution=sparse", "training.connection_steps=true"],
    "averages": ["sparsity.method=set", "training.optimizer=sntasgd", "training.nonmonotone=0"],
}
FAULTS = ["loss", "gradient"]
every_method = pytest.mark.parametrize("method", METHODS)
every_fault = pytest.mark.parametrize("fault", FAULTS)


def spoil(learner: Learner, fault: str, *steps: int, by: float = torch.inf) -> None:
    """Let the predictions, or one gradient, of these steps be multiplied `by` so much."""

    def times() -> float:
        return by if learner.model.training and learner.step + 1 in steps else 1.0

    if fault == "loss":
        learner.model.register_forward_hook(
            lambda _, __, output: tuple(tensor * times() for tensor in output) if times() != 1 else output
        )
    else:
        learner.model.sparse_weights()["rnn.1.recurrent"].values.register_hook(lambda gradient: gradient * times())


def spoiled(config: RunConfig, **arguments: Any) -> Trainer:
    """A run of which the losses of some steps are not finite."""
    trainer = prepare(config, **arguments)
    spoil(trainer.learner, "loss", 2, 3, 6)
    return trainer


def learner_in(tmp_path: Path, run: str, *overrides: str) -> Learner:
    return prepare(config_in(tmp_path, run, "model.dropout=0", *overrides), stream=io.StringIO()).learner


def learned(learner: Learner) -> dict[str, Any]:
    """All that a step may change, but for the learning rate, the place in the text and counts of steps."""
    state = learner.state_dict()
    kept = {key: state[key] for key in ("sparsifier", "recurrent_state")} | {"optimizer": state["optimizer"]["state"]}
    kept["sparsifier"].pop("due")
    result: dict[str, Any] = bits(kept | {"model": dict(learner.model.state_dict())})
    return result


def start_averaging(learner: Learner) -> None:
    """As if validation had become worse; of no effect on an optimizer that does not average."""
    for loss in (1.0, 2.0):
        after_evaluation(learner.optimizer, loss)


# ---- left out


@every_method
@every_fault
@pytest.mark.parametrize("bad", [3, 4])
def test_a_batch_left_out_is_as_if_its_text_had_been_passed_over(
    tmp_path: Path, method: str, fault: str, bad: int
) -> None:
    ours, clean = (
        learner_in(tmp_path, run, *METHODS[method], "training.skip_bad_batches=1") for run in ("ours", "clean")
    )
    spoil(ours, fault, bad)
    for step in range(1, STEPS + 1):
        ours.take_step()
        if step == bad:
            clean.begin_step()
            for _ in range(2):
                clean.next_batch()
            clean.step += 1
        else:
            clean.take_step()
        if step == 1:
            start_averaging(ours)
            start_averaging(clean)
        assert learned(ours) == learned(clean), step
        assert (ours.step, ours.lanes.position) == (clean.step, clean.lanes.position) == (step, 10 * step)
        assert bool(ours.left_out) == (step == bad)
    assert (ours.skipped, ours.bad_in_a_row) == (1, 0)
    assert ours.sparsifier.updates == (3 if bad == 3 else 2)


def test_an_update_on_which_counts_depend_is_made_up_for(tmp_path: Path) -> None:
    pruning = ["sparsity.method=granet", "sparsity.stop=0.6", "training.steps=10"]
    learner = learner_in(tmp_path, "run", *pruning, "training.skip_bad_batches=1")
    spoil(learner, "gradient", 6)  # the last update
    density = [learner.take_step()["density"] for _ in range(7)]
    assert density[5] == density[4] > 0.5
    assert density[6] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("method", ["granet", "prune"])
def test_an_update_at_the_very_end_is_made_up_for_at_once(tmp_path: Path, method: str) -> None:
    pruning = [f"sparsity.method={method}", "sparsity.stop=1.0", "training.steps=7"]
    learner = learner_in(tmp_path, "run", *pruning, "training.skip_bad_batches=4")
    spoil(learner, "gradient", 4, 5, 6, 7)
    density = [learner.take_step()["density"] for _ in range(7)]
    assert learner.left_out
    assert density[5] > 0.55
    assert density[6] == pytest.approx(0.5, abs=0.01)


def test_so_many_bad_batches_in_a_row_are_left_out_and_no_more(tmp_path: Path) -> None:
    learner = learner_in(tmp_path, "run", "training.skip_bad_batches=2")
    spoil(learner, "loss", 1, 2, 4, 5, 6)
    assert [learner.take_step()["skipped"] for _ in range(5)] == [1, 2, 2, 3, 4]
    before = learned(learner)
    with pytest.raises(Diverged, match=r"^step 6, symbols 50 to 59 .*skip_bad_batches=3 or more .* after 2 in a row$"):
        learner.take_step()
    assert learned(learner)["model"] == before["model"]


def test_a_run_with_bad_batches_stopped_and_resumed_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    settings = ["sparsity.method=scout", "training.skip_bad_batches=2", "logging.interval=1"]
    said = io.StringIO()
    spoiled(config_in(tmp_path, "undisturbed", *settings), stream=said).train()
    lines = [line for line in said.getvalue().splitlines() if line.startswith("left out: ")]
    assert [re.findall(r"step \d, symbols \d+ to \d+ of each lane", line)[0] for line in lines] == [
        "step 2, symbols 10 to 19 of each lane",
        "step 3, symbols 20 to 29 of each lane",
        "step 6, symbols 50 to 59 of each lane",
    ]
    for after in (2, 3, 5):
        with pytest.raises(Interrupted, match=f"stopped after step {after}"):
            spoiled(config_in(tmp_path, "stopped", *settings), resume=after > 2, stream=stop_after(after)).train()
    spoiled(config_in(tmp_path, "stopped", *settings), resume=True, stream=io.StringIO()).train()
    assert_same(traces(tmp_path / "stopped"), traces(tmp_path / "undisturbed"))
    told = {line["step"]: (line["skipped"], line["loss"]) for line in metrics(tmp_path / "stopped") if "loss" in line}
    assert [skipped for skipped, _ in told.values()] == [0, 1, 2, 2, 2, 3, 3]
    assert [step for step, (_, loss) in told.items() if loss is None] == [2, 3, 6]


def test_a_run_that_met_a_bad_batch_is_resumed_without_it(tmp_path: Path) -> None:
    settings = ["checkpoint.interval=1"]
    with pytest.raises(RunFailed, match=r"step 2, symbols .* resume with training.skip_bad_batches=1 or more"):
        spoiled(config_in(tmp_path, "run", *settings), stream=io.StringIO()).train()
    again = config_in(tmp_path, "run", *settings, "training.skip_bad_batches=2")
    assert spoiled(again, resume=True, stream=io.StringIO()).train()["steps"] == STEPS


def test_only_lost_lanes_begin_anew() -> None:
    state = torch.arange(1.0, 13).view(1, 2, 3, 2)
    state[0, 1, 2, 0] = torch.nan
    expected = state.clone()
    expected[:, :, 2] = 0
    assert torch.equal(without_lost_lanes(state), expected)
    assert torch.equal(without_lost_lanes(expected), expected)


# ---- told


def lose_values(learner: Learner) -> None:
    with torch.no_grad():
        learner.model.sparse_weights()["rnn.0.recurrent"].values[3] = torch.nan


def lose_a_lane(learner: Learner) -> None:
    learner.state[0, 0, 1] = torch.inf


CAUSES: dict[str, tuple[Callable[[Learner], Any], str]] = {
    "values": (
        lose_values,
        r"the loss is not finite, because rnn\.0\.recurrent\.values is not, since an update before; lower training",
    ),
    "state": (lose_a_lane, r"the loss is not finite, because the recurrent state of lane 1 was not when it began"),
    "loss": (lambda learner: spoil(learner, "loss", 3), r"the loss is not finite: training diverges.*learning_rate"),
    "gradient": (
        lambda learner: spoil(learner, "gradient", 3),
        r"the gradients are not finite, though the loss is, first that of rnn\.1\.recurrent\.values: the backward pass",
    ),
    "norm": (
        lambda learner: spoil(learner, "gradient", 3, by=1e30),
        r"the gradients are too large for their norm, up to \S+ in rnn\.1\.recurrent\.values: .*grad_clip comes",
    ),
}


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("clip", ["1.0", "null"])
def test_a_bad_step_is_told_with_place_and_cause_and_changes_nothing(tmp_path: Path, cause: str, clip: str) -> None:
    learner = learner_in(tmp_path, "run", f"training.grad_clip={clip}")
    for _ in range(2):
        learner.take_step()
    act, expected = CAUSES[cause]
    act(learner)
    before = learned(learner)
    with pytest.raises(Diverged, match=f"^step 3, symbols 20 to 29 of each lane: {expected}") as error:
        learner.take_step()
    assert "\n" not in str(error.value)
    after = learned(learner)
    assert all(after[key] == before[key] for key in ("model", "optimizer", "sparsifier"))


def test_lost_values_are_not_waited_for_to_get_better(tmp_path: Path) -> None:
    learner = learner_in(tmp_path, "run", "training.skip_bad_batches=9")
    lose_values(learner)
    with pytest.raises(Diverged, match=r"learning_rate or training\.grad_clip in a new run$"):
        learner.take_step()


def test_a_lane_that_was_lost_is_found_again(tmp_path: Path) -> None:
    learner = learner_in(tmp_path, "run", "training.skip_bad_batches=1")
    learner.take_step()
    kept = learner.state[:, :, [0, 2]].clone()
    lose_a_lane(learner)
    learner.take_step()
    assert torch.equal(learner.state[:, :, [0, 2]], kept)
    assert not learner.state[:, :, 1].any()
    assert learner.take_step()["loss"] < 10


def test_a_teacher_that_is_lost_is_named(tmp_path: Path) -> None:
    trained(config_in(tmp_path, "teacher"))
    learner = learner_in(tmp_path, "run", f"training.teacher={tmp_path / 'teacher'}", "training.skip_bad_batches=1")
    assert learner.teacher
    learner.take_step()
    before = learner.teacher.state_LSBH.clone()
    learner.teacher.model.register_forward_hook(lambda _, __, output: (output[0] * torch.nan, output[1]))
    learner.take_step()
    assert "because the teacher's predictions are not" in learner.left_out
    assert torch.equal(learner.teacher.state_LSBH, before)


# ---- half precision


def scaled(learner: Learner, scale: float) -> Learner:
    """As on CUDA in fp16, but that numbers are fp32."""
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return learner


@every_method
@pytest.mark.parametrize("bad", [3, 4])
def test_a_step_that_overflows_in_half_precision_changes_nothing_but_its_scale(
    tmp_path: Path, method: str, bad: int
) -> None:
    learner = scaled(learner_in(tmp_path, "run", *METHODS[method]), 1024.0)
    spoil(learner, "gradient", bad)
    kept: dict[str, Any] = {}
    state = Tensor()
    for step in range(1, STEPS + 1):
        kept, state = learned(learner), learner.state
        metric = learner.take_step()
        now = learned(learner)
        if step == 1:
            start_averaging(learner)
        assert (now["model"] == kept["model"]) == (step == bad)
        assert not torch.equal(learner.state, state), "the forward pass is without fault"
        assert (metric["skipped"], learner.scaler.get_scale()) == ((1, 512.0) if step >= bad else (0, 1024.0))
        if step == bad:
            probes = [kept["sparsifier"].pop("probes"), now["sparsifier"].pop("probes")]
            assert now["sparsifier"] == kept["sparsifier"]
            assert now["optimizer"] == kept["optimizer"] != {}
            # At step 3 new positions are drawn, which have seen nothing yet.
            assert probes[0] == probes[1] or not any(any(total[2]) for _, total in probes[1].values())
    assert learner.sparsifier.updates == (3 if bad == 3 else 2)


def test_an_overflow_that_no_scale_helps_is_a_bad_batch(tmp_path: Path) -> None:
    learner = scaled(learner_in(tmp_path, "run"), 4.0)
    spoil(learner, "gradient", 1, 2, 3)
    assert [learner.take_step()["skipped"] for _ in range(2)] == [1, 2]
    with pytest.raises(Diverged, match="the gradients are not finite, though the loss is"):
        learner.take_step()
