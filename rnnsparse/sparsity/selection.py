"""Choosing sets of positions, at random or by score, and giving a weight the one that was chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from rnnsparse.nn.gradients import Strip
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.randomness import draw_positions

PIECE = 1 << 20  # positions that growth looks at together


def draw_absent(count: int, present: Tensor, positions: int, generator: torch.Generator) -> Tensor:
    """Return `count` sorted positions drawn uniformly among those not in the sorted `present`."""
    ranks = draw_positions(count, positions - present.numel(), generator).to(present.device)
    # The absent position of rank r has as many present ones before it as have at most r absent ones before them.
    absent_before = present - torch.arange(present.numel(), device=present.device)
    return ranks + torch.searchsorted(absent_before, ranks, right=True)


def contains(sorted_positions: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each wanted position whether it is in the sorted ones, and where (or any place if it is not)."""
    if sorted_positions.numel() == 0:
        return torch.zeros_like(wanted, dtype=torch.bool), torch.zeros_like(wanted)
    place = torch.searchsorted(sorted_positions, wanted).clamp_(max=sorted_positions.numel() - 1)
    return sorted_positions[place] == wanted, place


def _largest(scores: Tensor, positions: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest scores and their positions, both in order of position; of equals, the first."""
    if count == 0:
        return scores[:0], positions[:0]
    if scores.numel() > count:
        threshold = scores.topk(count, sorted=False).values.min()
        chosen = scores > threshold
        equals = (scores == threshold).nonzero().squeeze(1)
        chosen[equals[: count - int(chosen.sum())]] = True
        scores, positions = scores[chosen], positions[chosen]
    return scores, positions


def best_absent(strips: Iterable[Strip], score: Callable[[Tensor], Tensor], present: Tensor, count: int) -> Tensor:
    """Return the sorted positions of the `count` largest scores among those not in the sorted `present`.

    Scores must be non-negative; a score of zero says nothing about its position and is never chosen, so there may be
    fewer. Ties go to the first position. Reads a piece at a time and keeps about `count` candidates: the set is the
    same as that of the whole matrix at once.
    """
    none = torch.empty(0, dtype=torch.int64, device=present.device)
    if count == 0:
        return none
    scores, positions, floor, waiting = none, none, 0.0, 0
    found: list[tuple[Tensor, Tensor]] = []
    for strip in strips:
        strip_scores = score(strip.gradient_RC).reshape(-1)
        for start, piece in zip(range(strip.start, 1 << 62, PIECE), strip_scores.split(PIECE), strict=False):
            # Only what beats the worst of `count` others can enter; an equal one comes later in position and loses.
            enters = piece > floor
            edges = torch.tensor([start, start + piece.numel()], device=present.device)
            first, last = torch.searchsorted(present, edges).tolist()
            enters[present[first:last] - start] = False
            places = enters.nonzero().squeeze(1)
            found.append((piece[places], places + start))
            waiting += places.numel()
            # Choosing costs as much as reading a few pieces, so candidates come together first.
            if waiting > max(PIECE // 4, count // 2):
                scores, positions = _largest(*_joined(scores, positions, found), count)
                found, waiting = [], 0
                floor = float(scores.min()) if scores.numel() == count else 0.0
    return _largest(*_joined(scores, positions, found), count)[1]


def _joined(scores: Tensor, positions: Tensor, found: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the candidates so far, in order of position; none yet have no precision."""
    parts = [(scores, positions), *found] if scores.numel() else found
    if not parts:
        return scores, positions
    return torch.cat([s for s, _ in parts]), torch.cat([p for _, p in parts])


def keep_largest(positions: Tensor, scores: Tensor, count: int) -> Tensor:
    """Return those of the sorted positions that have the `count` largest scores; of equal ones, the last positions.

    Dropping the smallest thus breaks ties by position: the first go first.
    """
    if not 0 <= count <= positions.numel():
        raise ValueError(f"{count} of {positions.numel()} connections cannot be kept")
    order = scores.argsort(stable=True)
    return positions[order[positions.numel() - count :].sort().values]


def best_among(positions: Tensor, scores: Tensor, present: Tensor, count: int) -> Tensor:
    """Return the sorted positions of the `count` largest scores; positions in the sorted `present` do not take part.

    As in `best_absent`, a score of zero is never chosen, and ties go to the first of the sorted `positions`.
    """
    takes_part = ~contains(present, positions)[0] & (scores > 0)
    return _largest(scores[takes_part], positions[takes_part], count)[1]


def rewire(weight: SparseWeight, indices: Tensor, optimizer: torch.optim.Optimizer | None) -> int:
    """Give `weight` a new sorted topology; return how many connections are new.

    Survivors keep value and optimizer state; new ones start at zero with fresh (zero) state, whatever the optimizer:
    every state tensor with a number, or a row of them, for each connection moves with it.
    """
    survives, place = contains(weight.indices, indices)

    def moved(per_connection: Tensor) -> Tensor:
        fresh = per_connection.new_zeros(indices.shape + per_connection.shape[1:])
        return fresh.index_copy_(0, survives.nonzero().squeeze(1), per_connection[place[survives]])

    old_shape = weight.values.shape
    state = optimizer.state.get(weight.values, {}) if optimizer else {}
    for key, value in state.items():
        # A step count per connection would move too; torch's own is a single number, which has no shape to match.
        if isinstance(value, Tensor) and value.shape[:1] == old_shape[:1] and value.dim() == len(old_shape):
            state[key] = moved(value)
    weight.connect(indices, moved(weight.values.detach()))
    return int((~survives).sum())
