"""A run that goes on with other settings than it had, such as more steps: which, what that means, and the record of it.

A run is one stretch, until it is resumed with a `Changeable` setting changed. What happens at a step depends on the
settings and on that step, not on when it is made; so a stretch begins when the last checkpoint is saved once more with
the new settings, at once and as a whole, and from then on the run is resumed by these.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, get_args

from rnnsparse.config import RunConfig, keys
from rnnsparse.errors import UserError
from rnnsparse.settings.marks import Changeable
from rnnsparse.settings.setting import extended
from rnnsparse.settings.training import TrainingConfig
from rnnsparse.sparsity.drop_grow import DropGrow
from rnnsparse.sparsity.method import Method
from rnnsparse.sparsity.schedule import Schedule, annealed, share_of
from rnnsparse.storage.checkpoint import Checkpoint
from rnnsparse.training.step.optim import learning_rate

NAME = "stretches.jsonl"
STEPS, MULTIPLIER = "training.steps", "training.multiplier"

Changes = Mapping[str, tuple[Any, Any]]  # by section.key, what a setting was and what it is now


@dataclass(frozen=True)
class Stretch:
    """All steps of a run from the one behind `after_step` on, until the next stretch; `began` is a time in UTC.

    `changed` has, by section.key, what each setting was before, and what it is in this stretch.
    """

    after_step: int
    began: str
    changed: dict[str, list[Any]]


def begun(after_step: int, changes: Changes) -> Stretch:
    """Return a stretch that begins now."""
    return Stretch(after_step, now(), {key: list(values) for key, values in changes.items()})


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# ---- which settings


def require_changeable(changes: Changes, config: RunConfig, step: int) -> None:
    """Make sure that a run which has made `step` steps can go on with the settings that are changed in `config`.

    What is meant is typed, or a larger number of steps: a setting that was typed once and forgotten now must not change
    a run.

    Raises:
        UserError: another setting differs, nobody has typed it, or no step is left to make with it.
    """
    for key, (before, value) in changes.items():
        if not _is_changeable(key, config):
            raise refusal(config, key, before, value)
        if key not in config.typed and not (key == STEPS and value > before):
            raise UserError(
                f"{config.folder}: {key}: the run to resume has {before!r}, not {value!r}; keep it, or type "
                f"{key}={json.dumps(value)} to go on with that"
            )
    if changes and config.training.steps <= step:
        key = STEPS if STEPS in changes else next(iter(changes))
        value = changes[key][1]
        what = f"no fewer than {value!r}" if key == STEPS else f"none is left to make with {value!r}"
        raise UserError(
            f"{config.folder}: {key}: the run to resume has made {step:,} steps, {what}; raise {STEPS}, or start a new "
            "run with another run.dir"
        )


def refusal(config: RunConfig, key: str, before: Any, value: Any) -> UserError:
    """Return the error for a setting with which a run cannot go on."""
    way_out = "keep it, or start a new run with another run.dir"
    if key == MULTIPLIER:
        way_out = f"keep it, and raise {STEPS}, which it multiplies, to train longer"
    elif key in keys(Changeable) and config.method.recipe:
        way_out = (
            f"method {config.method.name} has made its rounds with it, so keep it, or go on from its end in a new run "
            f"with sparsity.method=static start.rewind={config.folder}"
        )
    elif _is_changeable(key, config):
        way_out = f"keep it, start a new run with another run.dir, or let `train` change this one by {key} and --resume"
    return UserError(f"{config.folder}: {key}: the run to resume has {before!r}, not {value!r}; {way_out}")


def _is_changeable(key: str, config: RunConfig) -> bool:
    method = config.method
    of_updates = key.startswith("sparsity.")
    return key in keys(Changeable) and not method.recipe and not (of_updates and _keeps_its_plan(method))


def _keeps_its_plan(method: Method) -> bool:
    """Whether a method has come to its numbers of connections by a plan, and would go back on it with another one."""
    return method.depends_on_length and method.makes_up_updates


def planned_steps(config: RunConfig, stretches: Sequence[Stretch]) -> int:
    """Return the steps of the run that the topology's updates go by.

    Raises:
        UserError: the run is to end before the steps it was planned with, and its method prunes as they go.
    """
    totals = [s.changed[STEPS][0] for s in stretches if s.after_step and STEPS in s.changed]
    if not totals or not _keeps_its_plan(config.method):
        return config.training.steps
    planned = _made(config, totals[0])
    if config.training.steps < planned:
        raise UserError(
            f"{config.folder}: {STEPS}: method {config.method.name} prunes by the {planned:,} steps that the run was "
            f"begun with, and {config.training.steps:,} are fewer; give at least those"
        )
    return planned


def planned_in(saved: Checkpoint, config: RunConfig) -> int:
    """Return `planned_steps` of the run that a checkpoint is of, which one without a training state cannot tell.

    Raises:
        UserError: it cannot be read.
    """
    if not (_keeps_its_plan(config.method) and saved.has_training_state):
        return config.training.steps
    return saved.told_by_state(lambda state: planned_steps(config, from_state(state.get("stretches", []), saved.step)))


def _made(config: RunConfig, steps: int) -> int:
    """Return how many steps are made where so many are written."""
    written = config.written_training
    return extended(replace(written, steps=steps), written.multiplier).steps


# ---- what it means


def explained(was: RunConfig, config: RunConfig, stretches: Sequence[Stretch]) -> list[str]:
    """Return lines for the banner that tell what the last of `stretches` goes on with and what it changes."""
    stretch = stretches[-1]
    step, total = stretch.after_step, config.training.steps
    lines = [
        f"stretch     {len(stretches) + 1} of this run: steps {step + 1:,} to {total:,}",
        "goes on     parameters, connections, optimizer state, recurrent states, place in the text, random numbers, "
        "counts of steps and characters",
    ]
    lines += [
        f"changes     {key}: {_shown(before)} -> {_shown(value)}" for key, (before, value) in stretch.changed.items()
    ]
    return [*lines, _rate_line(was, config, step), *_update_lines(was, config, stretches)]


def _shown(value: Any) -> str:
    return f"{value:,}" if type(value) is int else json.dumps(value)


def _rate_line(was: RunConfig, config: RunConfig, step: int) -> str:
    old, new = was.training, config.training
    over = f" over all {new.steps:,} steps" if new.lr_schedule == "cosine" else ""
    said = f"learning rate: {new.lr_schedule}{over}, {learning_rate(new, step):.4g} at step {step + 1:,}"
    if _course(old, step) == _course(new, step):
        return f"goes on     {said}"
    return f"changes     {said}, where it was {learning_rate(old, step):.4g}"


def _course(training: TrainingConfig, step: int) -> tuple[Any, ...]:
    """Return all that the learning rate depends on from a step on."""
    constant = training.lr_schedule == "constant"
    warmup = None if constant and step >= training.warmup else training.warmup
    return training.learning_rate, warmup, *(() if constant else (training.final_learning_rate, training.steps))


def _update_lines(was: RunConfig, config: RunConfig, stretches: Sequence[Stretch]) -> list[str]:
    old, new = was.method, config.method
    step = stretches[-1].after_step
    if not new.depends_on_length:
        return []
    if _keeps_its_plan(new):
        planned = planned_steps(config, stretches)
        last = max(1, math.floor(_stop_step(new, planned)))
        return [f"goes on     updates of {new.name}: as planned for {planned:,} steps, the last one at step {last:,}"]
    assert isinstance(old, DropGrow), old
    assert isinstance(new, DropGrow), new
    stopped, stop = float(_stop_step(old, was.training.steps)), float(_stop_step(new, config.training.steps))
    following = (step // new.interval + 1) * new.interval
    if following >= stop:
        return [f"goes on     updates of {new.name}: none any more, since sparsity.stop is step {stop:,g}"]
    before = annealed(old.schedule, old.drop_fraction, following, stopped)
    share = annealed(new.schedule, new.drop_fraction, following, stop)
    lines = [
        f"changes     updates of {new.name}: before step {stop:,g}, where it was {stopped:,g}; that at step "
        f"{following:,} replaces {share:.2%} of the connections, where it was {before:.2%}"
    ]
    if new.dense_gradient == "always" and step >= stopped:
        lines.append(f"goes on     averages of gradients: from step {step + 1:,}, as they were at step {stopped:,g}")
    return lines


def _stop_step(method: Method, total_steps: int) -> Fraction:
    """Return where the updates end of a method that depends on the length of a run."""
    stop: float = vars(method)["stop"]
    return share_of(total_steps, stop)


# ---- the record


def from_state(state: Any, step: int) -> list[Stretch]:
    """Return the stretches in the training state of a run that has made `step` steps.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: they are none.
    """
    stretches = [Stretch(**entry) for entry in state]
    ends = [stretch.after_step for stretch in stretches]
    fits = all(type(end) is int and 0 <= end <= step for end in ends) and ends == sorted(ends)
    if not fits or not all(map(_is_well_formed, stretches)):
        raise ValueError("stretches does not fit")
    return stretches


def _is_well_formed(stretch: Stretch) -> bool:
    def is_plain(value: Any) -> bool:
        is_number = type(value) in (int, float) and abs(value) < 1 << 53
        return value is None or value in get_args(Schedule) or is_number

    pairs = stretch.changed.values()
    return (
        type(stretch.began) is str
        and stretch.changed.keys() <= keys(Changeable)
        and all(type(pair) is list and len(pair) == 2 and all(map(is_plain, pair)) for pair in pairs)
        and all(type(steps) is int and steps > 0 for steps in stretch.changed.get(STEPS, []))
    )


def record(began: str | None, stretches: Sequence[Stretch]) -> str:
    """Return what a run's folder tells about its stretches, one line of JSON for each.

    Args:
        began: when the first one did, if that is known; `stretches` are the others.
    """
    first: dict[str, Any] = {"first_step": 1, "began": began, "changed": {}}
    others = [{"first_step": s.after_step + 1, "began": s.began, "changed": s.changed} for s in stretches]
    return "".join(json.dumps(line) + "\n" for line in (first, *others))


def told(config: RunConfig, stretches: Sequence[Stretch]) -> str:
    """Return in a few words what makes a run another one than one that had its settings from the start, or "".

    Nothing does if only `training.steps` has changed, and neither learning rate nor topology know where the end is.
    """
    stretches = [stretch for stretch in stretches if stretch.after_step]
    depends = config.training.lr_schedule != "constant" or config.method.depends_on_length
    if not depends and all(stretch.changed.keys() == {STEPS} for stretch in stretches):
        # A last step is evaluated even between two intervals, and may be the best.
        ended = [s.after_step for s in stretches if s.after_step == _made(config, s.changed[STEPS][0])]
        if all(step % config.evaluation.interval == 0 for step in ended):
            return ""
    return "; ".join(f"until {s.after_step} {_before(s.changed)}" for s in stretches)


def _before(changed: Mapping[str, Sequence[Any]]) -> str:
    return ", ".join(f"{key.partition('.')[2]}={before}" for key, (before, _) in changed.items())
