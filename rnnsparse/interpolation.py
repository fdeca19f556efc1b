"""Two solutions joined by a straight line: the loss between them, and the connections that they share.

Where the line between two solutions has a barrier, a hill of loss, they lie in different basins of it (Evci et al.
2020, section 4.3; Evci et al. 2022). Networks whose units are in another order compute the same and are far apart, so
that the question makes most sense of runs with the same seed, or of one that goes on from the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rnnsparse.data.split import Split
from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.errors import RunFailed, UserError
from rnnsparse.evaluation import evaluate
from rnnsparse.nn.basis import same_basis
from rnnsparse.nn.language_model import CharLM
from rnnsparse.settings.run import EvaluationConfig
from rnnsparse.training.build import Restored
from rnnsparse.training.measured_text import own_text


@dataclass(frozen=True)
class Shared:
    """How many connections of a group each of two networks has, and how many of them are at the same position."""

    name: str
    first: int
    second: int
    shared: int
    positions: int

    @property
    def by_chance(self) -> float:
        """How many two random choices of so many positions share on average."""
        return self.first * self.second / self.positions


@dataclass(frozen=True)
class Line:
    """Bits per character at even distances along the line from one network (0) to another (1)."""

    bits: tuple[float, ...]
    shared: tuple[Shared, ...]

    @property
    def places(self) -> list[float]:
        return [i / (len(self.bits) - 1) for i in range(len(self.bits))]

    @property
    def barrier(self) -> float:
        """The largest excess, in bits per character, over the straight line between the two ends; 0 if there is none.

        As defined by Frankle et al. 2020 (Linear mode connectivity), but for the line in the place of the ends' mean.
        """
        return max(self._excess())

    @property
    def summit(self) -> float:
        """The place of the largest excess."""
        excess = self._excess()
        return self.places[excess.index(max(excess))]

    def _excess(self) -> list[float]:
        first, last = self.bits[0], self.bits[-1]
        inner = zip(self.places[1:-1], self.bits[1:-1], strict=True)
        return [0.0, *(bits - ((1 - place) * first + place * last) for place, bits in inner), 0.0]


def common_text(runs: Sequence[Restored], symbols: int | None = None) -> tuple[Split, list[str]]:
    """Return the validation text of some runs, or its first `symbols`, and a line for each whose text is uncertain.

    Raises:
        UserError: they have different ones, other symbols, shapes or bases; or as `own_text`.
    """
    first = runs[0]
    for other in runs[1:]:
        _require_alike(first, other)
    texts = [own_text(run, "validation") for run in runs]
    for run, text in zip(runs[1:], texts[1:], strict=True):
        if not np.array_equal(text.text.tokens, texts[0].text.tokens):
            raise UserError(
                f"{run.folder}: data.path: its validation text is not that of {first.folder}; name runs on one text"
            )
    whole = texts[0].text
    head = whole if symbols is None else whole.head(symbols, first.tokenizer)
    return head, [text.warning for text in texts if text.warning]


def _require_alike(first: Restored, other: Restored) -> None:
    if first.saved.tokenizer_json != other.saved.tokenizer_json:
        raise UserError(
            f"{other.folder}: data.tokenizer: its symbols are not those of {first.folder}; name runs with the same"
        )
    shapes = [replace(run.model.config, execution="auto", dropout=0.0, output_dropout=0.0) for run in (first, other)]
    for key in shapes[0].__dataclass_fields__:
        ours, theirs = (getattr(shape, key) for shape in shapes)
        if ours != theirs:
            raise UserError(
                f"{other.folder}: model.{key}: is {theirs}, and {ours} in {first.folder}; name runs of one shape"
            )
    weights = other.model.sparse_weights()
    for name, weight in first.model.sparse_weights().items():
        if not same_basis(weight.basis, weights[name].basis):
            raise UserError(
                f"{other.folder}: sparsity.basis: connections of its {name} are coefficients in another basis than "
                f"those of {first.folder}; name runs in the same"
            )


def interpolate(
    first: CharLM, second: CharLM, text: Split, tokenizer: Tokenizer, config: EvaluationConfig, points: int = 11
) -> Line:
    """Measure networks along the straight line from `first` to `second`, ends included.

    Every parameter is interpolated: matrices with all their positions, absent connections as zeros, and biases. What
    lies between is dense, and executed as dense matrices.

    Raises:
        RunFailed: the loss somewhere is not a number.
    """
    ends = [_dense(model) for model in (first, second)]
    between = CharLM(first.config, first.vocab_size).to(first.embedding.values.device)
    between = between.to(torch.promote_types(first.embedding.values.dtype, second.embedding.values.dtype))
    between.compute_dtype = first.compute_dtype
    for weight in between.sparse_weights().values():
        weight.connect(torch.arange(weight.positions))
    bits = []
    for i in range(points):
        place = i / (points - 1)
        with torch.no_grad():
            for parameter, a, b in zip(between.parameters(), *ends, strict=True):
                parameter.copy_((1 - place) * a.to(parameter) + place * b.to(parameter))
        bits.append(evaluate(between, text, tokenizer, config).bits_per_character)
        if not math.isfinite(bits[-1]):
            raise RunFailed(
                f"the loss at {place:.3g} of the line is not a number: a training diverged; use another run"
            )
    return Line(tuple(bits), tuple(shared_connections(first, second)))


def _dense(model: CharLM) -> list[Tensor]:
    """Return all parameters, values as those of every position of their matrix."""
    matrices = {id(weight.values): weight.to_dense().flatten() for weight in model.sparse_weights().values()}
    return [matrices.get(id(parameter), parameter.detach()) for parameter in model.parameters()]


def shared_connections(first: CharLM, second: CharLM) -> list[Shared]:
    """Return for each gate of two networks of one shape how many connections are at the same positions."""
    others = second.sparse_weights()
    found = []
    for name, weight in first.sparse_weights().items():
        ours, theirs = (w.topology.entries.flatten().cpu() for w in (weight, others[name]))
        both = ours[torch.isin(ours, theirs)]
        for gate in weight.gates:
            start, stop = gate.start_row * weight.cols, gate.stop_row * weight.cols
            a, b, common = (int(((n >= start) & (n < stop)).sum()) for n in (ours, theirs, both))
            found.append(Shared(gate.name, a, b, common, positions=stop - start))
    return found
