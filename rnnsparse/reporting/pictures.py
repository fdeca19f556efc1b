"""What a network learned to look at, as small plain data: from its last checkpoint and its connectivity.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Len, Lt
from numpy.typing import NDArray
from pydantic import FiniteFloat, StringConstraints

from rnnsparse.training.build import restore
from rnnsparse.training.device import CPU
from rnnsparse.training.run.connectivity import connection_counts, row_counts

MOMENTS = 12  # records over time that are kept, besides the last
RANKS = 48  # units of a layer are put together into at most this many groups of neighbouring rank
BINS = 24  # of a histogram
MOST_BLOCKS = 12_000  # a thousand layers of the largest cell
SYMBOLS = 256  # embedding rows that are kept: those with the most connections

# Pictures also come from files of others; what cannot be drawn is refused when it is read.
Count = Annotated[int, Ge(0), Lt(1 << 53)]
Moments = Annotated[list[Count], Len(1, MOMENTS + 1)]
Ranked = Annotated[list[Annotated[list[Annotated[FiniteFloat, Ge(0), Le(1e15)]], Len(1, MOMENTS + 1)]], Len(1, RANKS)]
Name = Annotated[str, Len(1, 100)]


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """`counts[i]` rows (or columns) have from `start + i * width` connections to one below the start of the next."""

    start: Count
    width: Annotated[int, Gt(0), Lt(1 << 40)]
    counts: Annotated[list[Count], Len(1, BINS)]


@dataclass(frozen=True, kw_only=True)
class BlockPicture:
    """One gate, or one matrix that has none. `over_time` has its connections at each moment, the last the end."""

    name: Name
    rows: Annotated[int, Gt(0), Lt(1 << 40)]
    cols: Annotated[int, Gt(0), Lt(1 << 40)]
    inputs: Histogram
    outputs: Histogram
    over_time: Moments


@dataclass(frozen=True, kw_only=True)
class UnitsPicture:
    """Mean connections of a layer's units, in groups of neighbouring rank at the end, most first: [groups][moments]."""

    name: Name
    inputs: Ranked
    outputs: Ranked


@dataclass(frozen=True, kw_only=True)
class SymbolPicture:
    """One symbol's row of the embedding: `symbol` holds its bytes in hexadecimal."""

    symbol: Annotated[str, StringConstraints(pattern=r"^([0-9a-f][0-9a-f]){1,8}$")]
    over_time: Moments


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """`steps` are the moments: those recorded, thinned, and the end; only the end if nothing was recorded."""

    steps: Moments
    embedding_dim: Count
    blocks: Annotated[list[BlockPicture], Len(1, MOST_BLOCKS)]
    units: Annotated[list[UnitsPicture], Len(1, MOST_BLOCKS)]
    symbols: Annotated[list[SymbolPicture], Len(1, SYMBOLS)]

    def __post_init__(self) -> None:
        lengths = {len(b.over_time) for b in self.blocks} | {len(s.over_time) for s in self.symbols}
        lengths |= {len(group) for u in self.units for groups in (u.inputs, u.outputs) for group in groups}
        if lengths != {len(self.steps)}:
            raise ValueError("pictures need a number for each of their steps")


def read_pictures(folder: Path, records: Sequence[dict[str, Any]], moments: int = MOMENTS) -> Pictures:
    """Return the pictures of a run; `records` are the lines of its connectivity.jsonl, if it has any.

    Of these it has at most so many `moments`, besides the end; a results.json holds no more than `MOMENTS`.

    Raises:
        UserError: its last checkpoint is damaged, or the records are not of it.
    """
    restored = restore(folder, CPU)
    model = restored.model
    last = {"step": restored.step} | connection_counts(model)
    earlier = [r for r in records if r["step"] < restored.step and _shape(r) == _shape(last)]
    shown = [*_thinned(earlier, moments), last]
    weights = model.sparse_weights().values()
    blocks = []
    for weight in weights:
        rows = row_counts(weight).numpy()
        for block in weight.gates:
            start, stop = weight.bounds(block.start_row, block.stop_row)
            columns = (weight.indices[start:stop] % weight.cols).bincount(minlength=weight.cols) * weight.block_rows
            blocks.append(
                BlockPicture(
                    name=block.name,
                    rows=block.stop_row - block.start_row,
                    cols=weight.cols,
                    inputs=histogram(rows[block.start_row : block.stop_row]),
                    outputs=histogram(columns.numpy()),
                    over_time=[moment["blocks"][block.name] for moment in shown],
                )
            )
    units = [
        UnitsPicture(
            name=name,
            inputs=by_rank(np.array([moment["units"][name]["in"] for moment in shown])),
            outputs=by_rank(np.array([moment["units"][name]["out"] for moment in shown])),
        )
        for name in last["units"]
    ]
    kept = torch.tensor(last["embedding"]).argsort(descending=True, stable=True)[:SYMBOLS].sort().values.tolist()
    return Pictures(
        steps=[moment["step"] for moment in shown],
        embedding_dim=model.embedding.cols,
        blocks=blocks,
        units=units,
        symbols=[
            SymbolPicture(
                symbol=restored.tokenizer.symbols[i].hex(), over_time=[moment["embedding"][i] for moment in shown]
            )
            for i in kept
        ],
    )


def histogram(counts: NDArray[np.int64]) -> Histogram:
    """Return how many of `counts` lie in each of at most 24 bins of equal width."""
    low, high = int(counts.min()), int(counts.max())
    width = -(-(high - low + 1) // BINS)
    return Histogram(start=low, width=width, counts=np.bincount((counts - low) // width).tolist())


def by_rank(counts_MU: NDArray[np.int64]) -> list[list[float]]:
    """Return counts [moments, units] as means [groups][moments] of units with neighbouring counts at the end."""
    order = np.argsort(-counts_MU[-1], kind="stable")
    groups = np.array_split(counts_MU[:, order], min(RANKS, len(order)), axis=1)
    return [[round(float(mean), 2) for mean in group.mean(axis=1)] for group in groups]


def are_counts(record: dict[str, Any]) -> bool:
    """Return whether a record, which may be of anybody, has a count wherever a network has one, and nothing else."""
    try:
        units = [counts for unit in record["units"].values() for counts in (unit["in"], unit["out"])]
        series = [list(record["blocks"].values()), record["embedding"], *units]
    except (LookupError, TypeError, AttributeError):
        return False
    return all(
        isinstance(counts, list) and all(type(count) is int and 0 <= count < 1 << 53 for count in counts)
        for counts in series
    )


def _thinned(records: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return the first record and others at about even distances."""
    if len(records) <= count:
        return list(records)
    return [records[round(i * len(records) / count)] for i in range(count)]


def _shape(record: dict[str, Any]) -> Any:
    """Return what two records of one network have in common; None if this is no record."""
    try:
        units = {name: (len(unit["in"]), len(unit["out"])) for name, unit in record["units"].items()}
        return sorted(record["blocks"]), len(record["embedding"]), units
    except (LookupError, TypeError, AttributeError):
        return None
