"""How many connections each group gets, exactly, and which ones it starts with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from math import floor

import torch
from torch import Tensor

from rnnsparse.errors import UserError, suggest
from rnnsparse.nn.initial import connections_at
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.randomness import draw_positions, generator_for
from rnnsparse.settings.sparsity import BudgetConfig
from rnnsparse.sparsity.group import Group, make_groups, weight_topologies

# A number of steps, and for each budget the sum of the connections that its group had in them.
Counted = tuple[int, list[int]]


@dataclass(frozen=True)
class Budget:
    """The connections a group ends up with, each of which may be a block of rows.

    One that is `dense` by name keeps all and counts in no total; one that is `overridden` keeps its own number and
    neither gives to others nor takes from them.
    """

    group: Group
    connections: int
    dense: bool = False
    overridden: bool = False

    @property
    def entries(self) -> int:
        """How many numbers these connections have."""
        return self.connections * self.group.block_rows


def allocate(weights: Sequence[SparseWeight], config: BudgetConfig) -> list[Budget]:
    """Return a budget for every group, in order of the weights.

    The groups that are neither `dense` nor overridden share exactly N - floor(sparsity * N) connections, N being their
    positions, both counted in the smallest blocks that one of them has; `er` and `erk` (which agree for matrices)
    follow Mocanu et al. 2018 and Evci et al. 2020, section 3.

    Raises:
        UserError: a name selects nothing or part of a group, or a group would get no connection at all.
    """
    groups = make_groups(weights, config.granularity)
    dense = select(groups, config.dense, "sparsity.dense", config.granularity)
    overrides = {}
    for pattern, sparsity in config.overrides.items():
        for name in select(groups, [pattern], f"sparsity.overrides.{pattern}", config.granularity):
            overrides[name] = sparsity
    both = sorted(dense & overrides.keys())
    if both:
        raise UserError(f"sparsity.overrides: {both[0]} is also under sparsity.dense; name it in one of them")
    free = [g for g in groups if g.name not in dense and g.name not in overrides]
    counts = {g.name: g.positions for g in groups if g.name in dense}
    counts |= {g.name: connections_at(overrides[g.name], g.positions) for g in groups if g.name in overrides}
    counts |= share_out(free, config.sparsity, config.distribution)
    for group in groups:
        if counts[group.name] == 0 and overrides.get(group.name) != 1:
            raise UserError(
                f"sparsity.sparsity: {config.sparsity} leaves {group.name} ({group.positions} positions) without any "
                f"connection; lower it, enlarge the model, or give this group a sparsity.overrides entry"
            )
    return [Budget(g, counts[g.name], g.name in dense, g.name in overrides) for g in groups]


def share_out(groups: Sequence[Group], sparsity: float, distribution: str) -> dict[str, int]:
    """Return exact numbers of connections by group name; no group gets more than its positions."""
    if not groups:
        return {}
    limits = [g.matrix_entries for g in groups]
    smallest = min(g.block_rows for g in groups)
    total = connections_at(sparsity, sum(limits) // smallest) * smallest
    # The Erdos-Renyi rule gives a matrix a share proportional to rows + cols; uniform, proportional to rows * cols.
    sizes = [sum(p.rows + p.weight.cols for p in g.parts) for g in groups] if distribution != "uniform" else limits
    shares = proportional(total, sizes, limits)
    counts = in_blocks(shares, [g.positions for g in groups], [g.block_rows for g in groups])
    return {g.name: count for g, count in zip(groups, counts, strict=True)}


def in_blocks(shares: Sequence[Fraction], limits: Sequence[int], block_rows: Sequence[int]) -> list[int]:
    """Return the whole blocks that are nearest to shares of entries, and add up to the same number of entries.

    That is as near below as blocks allow. The largest blocks are rounded first, so that smaller ones, and at last
    single entries, take up what these leave. Among blocks of one height the largest remainders are rounded up, the
    first of equal ones.

    Args:
        limits: how many blocks there may be of each.
    """
    counts = [0] * len(shares)
    left = round(sum(shares))
    for height in sorted(set(block_rows), reverse=True):
        own = [i for i, rows in enumerate(block_rows) if rows == height]
        room_below = sum(n * rows for n, rows in zip(limits, block_rows, strict=True) if rows < height)
        nearest = floor(sum(shares[i] for i in own) / height + Fraction(1, 2))
        fewest, most = -((room_below - left) // height), min(left // height, sum(limits[i] for i in own))
        total = min(max(nearest, fewest), most)
        ideal = proportional(total, [shares[i] for i in own], [limits[i] for i in own])
        whole = [floor(share) for share in ideal]
        for k in sorted(range(len(own)), key=lambda k: whole[k] - ideal[k])[: total - sum(whole)]:
            whole[k] += 1
        for i, count in zip(own, whole, strict=True):
            counts[i] = count
        left -= total * height
    return counts


def proportional(total: int, activity: Sequence[float | Fraction], limits: Sequence[int]) -> list[Fraction]:
    """Divide a total in proportion to `activity`, none taking more than its limit.

    Those that would take too much take their limit, and the rest shares what is left; if none of the rest matters,
    limits decide.
    """
    result = [Fraction(0)] * len(limits)
    still_open = list(range(len(limits)))
    left = Fraction(total)
    while left and still_open:
        shares = {i: Fraction(activity[i]) for i in still_open}
        if not any(shares.values()):
            shares = {i: Fraction(limits[i]) for i in still_open}
        scale = left / sum(shares.values())
        full = [i for i in still_open if shares[i] * scale > limits[i]]
        for i in full or shares:
            result[i] = Fraction(limits[i]) if full else shares[i] * scale
        still_open = [i for i in still_open if full and i not in full]
        left = total - sum(result, Fraction(0))
    return result


def select(groups: Sequence[Group], patterns: Sequence[str], key: str, granularity: str) -> set[str]:
    """Return the names of the groups whose gates match any of the patterns: names, prefixes or globs of either.

    Raises:
        UserError: a pattern matches nothing, or a part of a group; `key` is what that calls the patterns.
    """
    gates = {group.name: _gate_names(group) for group in groups}
    known = [name for names in gates.values() for name in names]
    matched: set[str] = set()
    for pattern in patterns:
        hits = {n for n in known if matches(n, pattern)}
        if not hits:
            raise UserError(
                f"{key}: no group is called {pattern!r}{suggest(pattern, known)}; there are {', '.join(known)}"
            )
        matched |= hits
    selected = set()
    for group, names in gates.items():
        hits = matched.intersection(names)
        if hits and hits != set(names):
            raise UserError(
                f"{key}: selects {', '.join(sorted(hits))} but not all of {group}, whose gates share one budget under "
                f"sparsity.granularity={granularity}; use a finer granularity, or select all of {', '.join(names)}"
            )
        if hits:
            selected.add(group)
    return selected


def is_named(group: Group, patterns: Sequence[str]) -> bool:
    """Return whether `select` would select a group."""
    return all(any(matches(name, pattern) for pattern in patterns) for name in _gate_names(group))


def matches(name: str, pattern: str) -> bool:
    """Return whether a pattern, which is a name, a prefix of names or a glob of either, means a name."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _gate_names(group: Group) -> list[str]:
    return [gate.name for p in group.parts for gate in p.weight.gates if p.start_row <= gate.start_row < p.stop_row]


def draw_uniformly(group: Group, count: int, generator: torch.Generator) -> Tensor:
    """Return an exactly uniform random subset of `count` sorted positions of a group."""
    return draw_positions(count, group.positions, generator)


def connect_randomly(
    budgets: Sequence[Budget],
    seed: int,
    initial: Callable[[Budget], int] = lambda budget: budget.connections,
    draw: Callable[[Group, int, torch.Generator], Tensor] = draw_uniformly,
) -> None:
    """Give every weight its first topology: a random subset per group, of as many as `initial` says.

    Args:
        draw: returns so many sorted positions of a group; by default an exactly uniform subset.
    """

    def first(budget: Budget) -> Tensor:
        count = budget.connections if budget.dense else initial(budget)
        if count == budget.group.positions:
            return torch.arange(count)
        return draw(budget.group, count, generator_for(seed, "topology", budget.group.name))

    for weight, indices in weight_topologies([(budget.group, first(budget)) for budget in budgets]):
        weight.connect(indices)
