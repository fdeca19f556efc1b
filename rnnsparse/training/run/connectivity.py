"""How many connections each part of a network has: what RUN/connectivity.jsonl records while they move."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rnnsparse.nn.language_model import CharLM
from rnnsparse.nn.weight import SparseWeight


def connection_counts(model: CharLM) -> dict[str, Any]:
    """Return counts as plain data, in all as many numbers as the network has symbols and units.

    `blocks`: connections of each block, by name. `embedding`: of each symbol's row. `units`: for each recurrent layer,
    of each unit, `in` (through all gates, from below and from the layer itself) and `out` (to the gates of the layer
    itself, and to what reads it).
    """
    weights = model.sparse_weights()
    blocks = {b.name: w.connections_in(b) for w in weights.values() for b in w.gates}
    embedding = row_counts(model.embedding)
    # A tied embedding is what reads the last layer.
    reader, _ = model.linears()[0]
    read_by_it = column_counts(reader).split(model.config.hidden_size)
    last = len(model.recurrent_layers) - 1
    units = {}
    for i in range(last + 1):
        below, own = weights[f"rnn.{i}.input"], weights[f"rnn.{i}.recurrent"]
        gates_and_units = (len(own.gates), own.cols)
        entering = (row_counts(below) + row_counts(own)).view(gates_and_units).sum(0)
        leaving = column_counts(own)
        if i < last:
            leaving += column_counts(weights[f"rnn.{i + 1}.input"])[: own.cols]
        if i == last or model.rnn.skips:
            leaving += read_by_it[i - last - 1]
        units[f"rnn.{i}"] = {"in": entering.tolist(), "out": leaving.tolist()}
    return {"blocks": blocks, "embedding": embedding.tolist(), "units": units}


def row_counts(weight: SparseWeight) -> Tensor:
    """Return the connections of each row [R]: how many inputs it has."""
    return weight.topology.row_pointers.diff().repeat_interleave(weight.block_rows)


def column_counts(weight: SparseWeight) -> Tensor:
    """Return the connections of each column [C]: how many rows read it."""
    return (weight.indices % weight.cols).bincount(minlength=weight.cols) * weight.block_rows
