"""Moving connections between groups: each regrows in proportion to how much its connections matter.

The rule is that of Dettmers & Zettlemoyer 2019, section 3 and appendix; what matters may be any mean size: of
momenta (theirs), gradients or weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import floor
from typing import Literal

from rnnsparse.sparsity.allocation import Budget
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
    present = [budgets[i].group.connections for i in free]
    room = [max(0, count - (planned[i] > 0)) for i, count in zip(free, present, strict=True)]
    lost = shared_out(sum(present) - sum(planned[i] for i in free), present, room)
    for i, count, loss in zip(free, present, lost, strict=True):
        counts[i] = count - loss
    return counts


def shared_out(total: int, activity: Sequence[float], limits: Sequence[int]) -> list[int]:
    """Divide `total` connections among groups in proportion to `activity`, none taking more than its limit.

    The result adds up to `total` exactly (largest remainder, equal ones favour the first). Groups that would take too
    many take their limit, and the rest shares what is left; if none of the rest matters, limits decide.
    """
    if total > sum(limits):
        raise ValueError(f"{total} connections are more than there is room for, {sum(limits)}")
    counts = [0] * len(limits)
    open_groups = list(range(len(limits)))
    left = total
    while left:
        shares = {i: Fraction(activity[i]) for i in open_groups}
        if not any(shares.values()):
            shares = {i: Fraction(limits[i]) for i in open_groups}
        scale = Fraction(left) / sum(shares.values())
        full = [i for i in open_groups if shares[i] * scale > limits[i]]
        if not full:
            ideal = {i: shares[i] * scale for i in open_groups}
            for i in open_groups:
                counts[i] = floor(ideal[i])
            missing = total - sum(counts)
            for i in sorted(open_groups, key=lambda i: counts[i] - ideal[i])[:missing]:
                counts[i] += 1
            break
        for i in full:
            counts[i] = limits[i]
            open_groups.remove(i)
        left = total - sum(counts[i] for i in range(len(limits)) if i not in open_groups)
    return counts
