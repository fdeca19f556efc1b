"""How large a share of the connections an update replaces, as training goes on."""

from __future__ import annotations

import math


def annealed(kind: str, initial: float, step: int, stop_step: float) -> float:
    """Return the share at `step` (0 from `stop_step` on), from `initial` at step 0.

    "cosine" is the one of RigL (Evci et al. 2020, section 3): initial / 2 * (1 + cos(pi * step / stop_step)).
    """
    if step >= stop_step:
        return 0.0
    if kind == "constant":
        return initial
    if kind == "linear":
        return initial * (1 - step / stop_step)
    assert kind == "cosine", kind
    return initial / 2 * (1 + math.cos(math.pi * step / stop_step))
