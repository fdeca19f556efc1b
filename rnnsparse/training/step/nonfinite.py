"""Steps whose loss or gradients are not finite numbers: the likely cause, and what can be done.

Everything here happens after the fact, so it may take its time; a step that is well only pays for one look at its loss
and one at the norm of its gradients. Recurrent states are [L, S, B, H] as in the language model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

LOWER = "lower training.learning_rate or training.grad_clip in a new run"
SHOWN = 3


class Diverged(Exception):
    """A step from which nothing can be learned: one line with what is wrong, the likely cause and the way out."""


class BadBatch(Diverged):
    """One that may lie in its batch alone: with the next one training might go on."""


def diagnosis(
    parameters: Sequence[tuple[str, Parameter]], *, finite_loss: bool, lost_lanes: Sequence[int], lost_teacher: bool
) -> Diverged:
    """Return what is wrong with a step, with the first cause that explains it.

    Args:
        parameters: all, by name, with their gradients if the loss is finite: averaged over ranks, not clipped.
        finite_loss: whether the loss is finite.
        lost_lanes: those whose recurrent state was not finite before the step, on all ranks.
        lost_teacher: whether it is the teacher's predictions that make the loss what it is.
    """
    what = "the gradients are not finite" if finite_loss else "the loss is not finite"
    if lost := [name for name, parameter in parameters if not parameter.isfinite().all()]:
        return Diverged(f"{what}, because {_some(lost)} is not, since an update before; {LOWER}")
    if lost_lanes:
        return BadBatch(
            f"{what}, because the recurrent state of lane {_some(lost_lanes)} was not when it began, too large for "
            "training.precision or damaged; use more precise numbers in a new run"
        )
    if lost_teacher:
        return BadBatch(
            f"{what}, because the teacher's predictions are not; name another training.teacher in a new run"
        )
    if not finite_loss:
        return BadBatch(f"{what}: training diverges, or predictions overflow on this batch; {LOWER}")
    overflowed = (
        "the backward pass overflowed, and training.grad_clip comes too late for that; lower training.learning_rate "
        "or training.sequence_length in a new run"
    )
    # In the order of the backward pass: the first is where it began.
    gradients = [(name, parameter.grad) for name, parameter in reversed(parameters) if parameter.grad is not None]
    if lost := [name for name, gradient in gradients if not gradient.isfinite().all()]:
        return BadBatch(f"{what}, though the loss is, first that of {_some(lost)}: {overflowed}")
    largest, name = max((float(gradient.abs().max()), name) for name, gradient in gradients if gradient.numel())
    return BadBatch(f"the gradients are too large for their norm, up to {largest:.1e} in {name}: {overflowed}")


def lost_lanes(state: Tensor) -> list[int]:
    """Return the lanes of a recurrent state that are not finite throughout."""
    lost: list[int] = (~state.isfinite()).any(dim=3).any(dim=1).any(dim=0).nonzero().flatten().tolist()
    return lost


def without_lost_lanes(state: Tensor) -> Tensor:
    """Return a recurrent state in which each lost lane begins anew, with zeros."""
    return state.index_fill(2, torch.tensor(lost_lanes(state), dtype=torch.int64, device=state.device), 0)


def _some(names: Iterable[object]) -> str:
    shown = [str(name) for name in names]
    more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    return ", ".join(shown[:SHOWN]) + more
