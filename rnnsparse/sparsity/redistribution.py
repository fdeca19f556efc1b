"""Moving connections between groups: each regrows in proportion to how much its connections matter.

The rule is that of Dettmers & Zettlemoyer 2019, section 3 and appendix; what matters may be any mean size: of
momenta (theirs), gradients or weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from rnnsparse.sparsity.allocation import Budget, in_blocks, proportional
from rnnsparse.sparsity.group import Group

Redistribute = Literal["none", "gradient", "momentum", "weight"]
NEARLY_FULL = Fraction(1, 5)


def fewer_drops(groups: Sequence[Group], drops: Sequence[int], activity: Sequence[float]) -> list[int]:
    """Return how many connections each group drops.

    A group that is nearly full (sparsity below 20 %) and matters more than the average drops at most its sparsity.
    """
    average = sum(activity) / max(1, len(activity))
    result = []
    for group, drop, own in zip(groups, drops, activity, strict=True):
        absent = group.positions - group.connections
        if own > average and absent < NEARLY_FULL * group.positions:
            drop = min(drop, group.connections * absent // group.positions)
        result.append(drop)
    return result


def with_fewer_in_all(budgets: Sequence[Budget], planned: Sequence[int]) -> list[int]:
    """Return counts that add up to those `planned`, each having lost the same share of what its group has.

    Earlier updates have moved connections between groups, so that a group's own plan says little. One that is to have
    connections keeps at least one: an empty group matters to nobody, and would stay empty. Those that are overridden
    follow their plans.
    """
    counts = list(planned)
    free = [i for i, budget in enumerate(budgets) if not budget.overridden]
    present, rows = [budgets[i].group.connections for i in free], [budgets[i].group.block_rows for i in free]
    room = [max(0, count - (planned[i] > 0)) for i, count in zip(free, present, strict=True)]
    entries = [count * height for count, height in zip(present, rows, strict=True)]
    total = sum(entries) - sum(planned[i] * height for i, height in zip(free, rows, strict=True))
    lost = shared_out(total, entries, room, rows)
    for i, count, loss in zip(free, present, lost, strict=True):
        counts[i] = count - loss
    return counts


def shared_out(total: int, activity: Sequence[float], limits: Sequence[int], block_rows: Sequence[int]) -> list[int]:
    """Divide `total` entries among groups in proportion to `activity`, and return the connections that each takes.

    None takes more than its limit of connections; groups that would take too many take their limit, and the rest shares
    what is left; if none of the rest matters, limits decide. The result has exactly the total, as far as blocks allow
    (`in_blocks`).
    """
    room = [limit * rows for limit, rows in zip(limits, block_rows, strict=True)]
    if total > sum(room):
        raise ValueError(f"{total} connections are more than there is room for, {sum(room)}")
    return in_blocks(proportional(total, activity, room), limits, block_rows)
