"""How many rows of a matrix the connections of each weight have: blocks of them share a column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rnnsparse.errors import UserError, suggest
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.sparsity.allocation import matches


def chosen_block_rows(weights: Sequence[SparseWeight], setting: int | Mapping[str, int]) -> dict[SparseWeight, int]:
    """Return the height of blocks that `sparsity.block_rows` gives each weight: its own if it says nothing of it.

    Args:
        setting: a number for the matrices of recurrent layers, or numbers by name, prefix or glob of weights and gates,
            of which the last that fits counts.

    Raises:
        UserError: a name selects nothing, or not all gates of a weight.
    """
    if not isinstance(setting, Mapping):
        # Only recurrent layers have gates of other names than the weight's.
        return {w: setting if w.gates[0].name != w.name else w.block_rows for w in weights}
    chosen = {weight: weight.block_rows for weight in weights}
    known = [gate.name for weight in weights for gate in weight.gates]
    for pattern, height in setting.items():
        hits = {name for name in known if matches(name, pattern)}
        key = f"sparsity.block_rows.{pattern}"
        if not hits:
            raise UserError(
                f"{key}: no group is called {pattern!r}{suggest(pattern, known)}; there are {', '.join(known)}"
            )
        for weight in weights:
            own = {gate.name for gate in weight.gates}
            if own & hits and own - hits:
                raise UserError(
                    f"{key}: selects {', '.join(sorted(own & hits))} but not all gates of {weight.name}, whose blocks "
                    f"have one height; name {weight.name}"
                )
            if own & hits:
                chosen[weight] = height
    return chosen


def set_block_rows(weights: Sequence[SparseWeight], setting: int | Mapping[str, int]) -> None:
    """Give weights without connections, or with all, blocks as `sparsity.block_rows` says.

    Raises:
        UserError: a name is wrong, or blocks do not divide the rows of a gate.
    """
    for weight, height in chosen_block_rows(weights, setting).items():
        try:
            weight.set_block_rows(height)
        except ValueError as error:
            raise UserError(f"sparsity.block_rows: {error}") from None
