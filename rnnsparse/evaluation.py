"""How well a model predicts a text: bits per character and per byte, each a ratio of two sums.

Shape suffixes: T time, B lanes, V vocabulary.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from rnnsparse.data.batches import to_device
from rnnsparse.data.split import Split, count_symbols
from rnnsparse.data.tokenizer import CODE_POINTS, Tokenizer
from rnnsparse.dynamic import Adapting, Dynamic
from rnnsparse.errors import UserError
from rnnsparse.nn.cross_entropy import cross_entropy
from rnnsparse.nn.language_model import CharLM
from rnnsparse.settings.run import EvaluationConfig


@dataclass(frozen=True)
class Evaluation:
    """Sums over the scored symbols of a text: code length in nats, and how much text they are."""

    nats: float
    symbols: int
    characters: int
    bytes: int
    seconds: float

    @property
    def bits_per_character(self) -> float:
        """Bits per Unicode code point; not a number if no character was scored."""
        return self.nats / math.log(2) / self.characters if self.characters else math.nan

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of UTF-8; not a number if no byte was scored."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan


class Sharing(Protocol):
    """This process among several that evaluate the same model together."""

    rank: int
    world_size: int

    def total(self, *numbers: float) -> list[float]:
        """Return the sum over all processes of each number."""
        ...


def evaluate(
    model: CharLM,
    split: Split,
    tokenizer: Tokenizer,
    config: EvaluationConfig,
    *,
    max_batches: int | None = None,
    sharing: Sharing | None = None,
    record: Record | None = None,
    dynamic: Dynamic | None = None,
) -> Evaluation:
    """Score every symbol of `split` but the first exactly once, state carried through the whole stream.

    `config.interval` and `config.symbols` mean nothing here: to score a part, pass `split.head(...)`. Lanes
    beyond the first start inside the text with a zero state, so they first read the `priming` symbols before
    their stretch unscored. One lane is the textbook: one stream.

    <unk> does not say which character it stands for, so each costs log2(0x110000 - vocab_size) bits more: a
    uniform choice, enough for every character outside the vocabulary. The total is then the length of a
    lossless code of the text, comparable with that of other tokenizers and of compressors.

    Memory does not grow with the text. The result is the same to the bit when run again on the same machine.

    Args:
        max_batches: stop after so many forward calls, with the sums until then.
        sharing: reads only a part of the lanes here and the rest in other processes, with the same result in all.
        record: is given the code length of each symbol that is scored here; their sum is the result's `nats`.
        dynamic: lets a copy of the model learn from what it has been scored on, in this process alone. Its lanes and
            segments take the place of `config`'s. Lanes are not primed, as one would learn from what another has yet
            to be scored on; but for the up to `lanes` symbols that a lane begins with, nothing is known beforehand.

    Raises:
        UserError: fewer than two characters.
        ValueError: the tokenizer is of another model.
    """
    if tokenizer.vocab_size != model.vocab_size:
        raise ValueError(f"a tokenizer of {tokenizer.vocab_size} symbols is not that of a model of {model.vocab_size}")
    if split.characters < 2:
        raise UserError(
            f"the text to evaluate has {split.characters} characters, but needs at least 2, as each is "
            "predicted from those before it; choose a longer text"
        )
    started = time.perf_counter()
    if dynamic:
        config = replace(config, lanes=dynamic.lanes, priming=0, sequence_length=dynamic.segment)
    plan = plan_lanes(len(split.tokens) - 1, config.lanes, config.priming)
    if sharing:
        if dynamic:
            raise ValueError("dynamic: processes that each read a part would learn different things; use one")
        plan = plan.part(slice(sharing.rank, None, sharing.world_size))
    unknown_id, naming = tokenizer.unknown_id, math.log(CODE_POINTS - tokenizer.vocab_size)
    record_symbols = record
    if record and unknown_id is not None:

        def record_symbols(position: int, nats: NDArray[np.float64]) -> None:
            unknown = split.tokens[position : position + len(nats)] == unknown_id
            record(position, nats + naming * unknown)

    was_training = model.training
    model.eval()
    try:
        # Without a rate no gradient is needed, for which kernels may round in another way.
        adapting = Adapting(model, dynamic.rate) if dynamic and dynamic.rate else None
        nats, counts_V = _score(model, split, plan, config.sequence_length, max_batches, record_symbols, adapting)
    finally:
        model.train(was_training)
    if sharing:
        nats, *counts = sharing.total(nats, *counts_V.tolist())
        counts_V = np.array(counts, dtype=np.int64)
    unknown = 0 if unknown_id is None else int(counts_V[unknown_id])
    return Evaluation(
        nats=nats + unknown * naming,
        symbols=int(counts_V.sum()),
        characters=int(counts_V @ tokenizer.starts_character),
        bytes=int(counts_V @ tokenizer.byte_lengths) + _unknown_bytes(unknown, split, tokenizer),
        seconds=time.perf_counter() - started,
    )


class Record(Protocol):
    """Takes the code lengths of symbols, as lanes that are read side by side come to them."""

    def __call__(self, position: int, nats: NDArray[np.float64], /) -> None:
        """Take those of consecutive symbols, of which the first is number `position` of the text."""
        ...


class LanePlan(NamedTuple):
    """Which inputs each lane reads, and from which on their targets are scored.

    Lane b reads the `length` inputs from starts[b] on, and scores what follows each but the first skips[b].
    """

    starts: list[int]
    skips: list[int]
    length: int

    def part(self, lanes: slice) -> LanePlan:
        """Return some of the lanes; they may be none."""
        starts = self.starts[lanes]
        return LanePlan(starts, self.skips[lanes], self.length if starts else 0)


def plan_lanes(targets: int, lanes: int, priming: int) -> LanePlan:
    """Share out `targets` consecutive predictions; input i predicts target i, whatever the lane.

    All lanes read equally many inputs, so none is padded: the first scores while the others are primed, and
    the last one, moved back to end with the text, is primed with more. A text too short for every lane to
    score at least `priming` targets is read in fewer lanes.
    """
    lanes = min(lanes, targets, targets // priming - 1 if priming else targets)
    lanes = max(lanes, 1)
    length = -(-(targets + (lanes - 1) * priming) // lanes)
    starts = [min(lane * (length - priming), targets - length) for lane in range(lanes)]
    ends_before = [0] + [start + length for start in starts[:-1]]
    return LanePlan(starts, [end - start for end, start in zip(ends_before, starts, strict=True)], length)


def _score(
    model: CharLM,
    split: Split,
    plan: LanePlan,
    sequence_length: int,
    max_batches: int | None,
    record: Record | None,
    adapting: Adapting | None,
) -> tuple[float, NDArray[np.int64]]:
    """Return the nats of the scored symbols, and how often each symbol was scored [V]."""
    reader = adapting.model if adapting else model
    device = model.embedding.values.device
    state = model.initial_state(len(plan.starts))
    nats = torch.zeros((), dtype=torch.float64, device=device)
    counts_V = np.zeros(model.vocab_size, dtype=np.int64)
    skips_B = np.array(plan.skips)
    for batch, start in enumerate(range(0, plan.length, sequence_length)):
        if batch == max_batches:
            break
        stop = min(start + sequence_length, plan.length)
        lanes = [split.tokens[first + start : first + stop + 1] for first in plan.starts]
        tokens_TB = np.stack(lanes, axis=1).astype(np.int64)
        unscored_TB = np.arange(start, stop)[:, None] < skips_B
        counts_V += np.bincount(tokens_TB[1:][~unscored_TB], minlength=model.vocab_size)
        tokens = to_device(torch.from_numpy(tokens_TB), device)
        with torch.set_grad_enabled(adapting is not None):
            logits_TBV, state = reader(tokens[:-1], state.detach())
            nats_TB = cross_entropy(logits_TBV, tokens[1:], "none").double()
        if record:
            for lane_T, first, skip in zip(nats_TB.detach().cpu().numpy().T, plan.starts, plan.skips, strict=True):
                scored_T = lane_T[max(skip - start, 0) :]
                if len(scored_T):
                    record(first + stop + 1 - len(scored_T), scored_T)
        # Not a product with the mask: infinity times zero would not be zero.
        batch_nats = nats_TB.masked_fill(to_device(torch.from_numpy(unscored_TB), device), 0).sum()
        nats += batch_nats.detach()
        if adapting and not unscored_TB.all():
            adapting.learn(batch_nats / (~unscored_TB).sum().item())
    return nats.item(), counts_V


def _unknown_bytes(scored: int, split: Split, tokenizer: Tokenizer) -> int:
    """Return the bytes of text behind `scored` <unk>: exact for all of a split's, else its mean for each."""
    if scored == 0:
        return 0
    all_unknown = int(count_symbols(split.tokens, tokenizer.vocab_size)[tokenizer.unknown_id])
    return round(split.unknown_bytes * scored / all_unknown)
