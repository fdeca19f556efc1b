"""How large a share of the connections an update replaces, and how many there are, as training goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from rnnsparse.errors import UserError

Schedule = Literal["cosine", "linear", "constant", "stages"]


def annealed(kind: Schedule, initial: float, step: int, stop_step: float) -> float:
    """Return the share at `step` (0 from `stop_step` on), from `initial` at step 0.

    "cosine" is the one of RigL (Evci et al. 2020, section 3): initial / 2 * (1 + cos(pi * step / stop_step)).
    "stages" are those of MEST (Yuan et al. 2021): `initial` for three quarters of the time, then half of it.
    """
    if step >= stop_step:
        return 0.0
    if kind == "constant":
        return initial
    if kind == "linear":
        return initial * (1 - step / stop_step)
    if kind == "stages":
        return initial if step < 0.75 * stop_step else initial / 2
    if kind != "cosine":
        raise ValueError(f"schedule: {kind!r} is none of cosine, linear, constant, stages")
    return initial / 2 * (1 + math.cos(math.pi * step / stop_step))


def share_of(steps: int, share: float) -> Fraction:
    """Return a share of a number of steps, exact for the decimal that the user wrote.

    0.28 * 25 in floating point lies above 7, and step 7 would count as before it.
    """
    return Fraction(str(share)) * steps


@dataclass(frozen=True)
class GradualPruning:
    """Connections that become fewer with the cube of the time left (Zhu & Gupta 2017, equation 1).

    Args:
        interval: steps between two updates.
        start, stop: shares of `total_steps` between which connections go. The last update is at `stop`, whether or
            not `interval` meets it, so that the final count is exact.
    """

    interval: int
    start: float
    stop: float
    total_steps: int

    def __post_init__(self) -> None:
        if self.start > self.stop:
            raise UserError(
                f"sparsity.start: {self.start} comes after sparsity.stop, {self.stop}; lower it, or raise sparsity.stop"
            )

    @property
    def first_step(self) -> int:
        return math.floor(share_of(self.total_steps, self.start))

    @property
    def last_step(self) -> int:
        return max(1, math.floor(share_of(self.total_steps, self.stop)))

    def updates_at(self, step: int) -> bool:
        return step == self.last_step or (step % self.interval == 0 and self.first_step <= step < self.last_step)

    def share_to_go(self, step: int) -> float:
        """Return what is still there of the connections that are to go, right after an update at `step`."""
        if step >= self.last_step:
            return 0.0
        if step < self.first_step:
            return 1.0
        return (1 - (step - self.first_step) / (self.last_step - self.first_step)) ** 3

    def mean_share_to_go(self, taken: int) -> float:
        """Return the average of what is still there over the first `taken` steps; updates follow the optimizer's."""
        total, share, since = 0.0, 1.0, 0
        steps = range(self.interval, self.last_step, self.interval)
        for step in [*(step for step in steps if step >= self.first_step), self.last_step]:
            if step >= taken:
                break
            total += share * (step - since)
            share, since = self.share_to_go(step), step
        return (total + share * (taken - since)) / taken
