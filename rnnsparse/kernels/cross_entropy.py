"""The cross-entropy of logits that are batch-innermost, and its gradient, without a copy of them.

Shape suffixes: T time, V vocabulary, B batch (whole vectors).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from rnnsparse.kernels import memory, threads
from rnnsparse.kernels.compiling import kernel
from rnnsparse.kernels.emit import VECTOR_BYTES
from rnnsparse.kernels.functions import exp, maximum
from rnnsparse.kernels.products import row_of
from rnnsparse.kernels.vector import load, store, zero

PARTIAL = 64  # terms of a sum, so that the error does not grow with the vocabulary


@kernel
def _nats(thread, threads, row, logits, times, vocabulary, targets, log_sums, nats):
    width = VECTOR_BYTES // logits.itemsize
    batch = len(row) * width
    size = vocabulary * batch
    for t in range(times * thread // threads, times * (thread + 1) // threads):
        for b in range(t * size, t * size + batch, width):
            top = load(logits, b)
            for v in range(b + batch, b + size, batch):
                top = maximum(top, load(logits, v))
            total = zero(logits)
            for first in range(b, b + size, PARTIAL * batch):
                part = zero(logits)
                for v in range(first, min(first + PARTIAL * batch, b + size), batch):
                    part = part + exp(load(logits, v) - top)
                total = total + part
            place = t * batch + b - t * size
            store(nats, place, top)
            store(log_sums, place, total)
        for place in range(t * batch, (t + 1) * batch):
            log_sums[place] = nats[place] + math.log(log_sums[place])
            nats[place] = log_sums[place] - logits[t * size + targets[place] * batch + place - t * batch]


@kernel
def _gradient(thread, threads, row, logits, times, vocabulary, targets, log_sums, factors, out):
    width = VECTOR_BYTES // logits.itemsize
    batch = len(row) * width
    size = vocabulary * batch
    for t in range(times * thread // threads, times * (thread + 1) // threads):
        for b in range(0, batch, width):
            log_sum, factor = load(log_sums, t * batch + b), load(factors, t * batch + b)
            for v in range(t * size + b, (t + 1) * size, batch):
                store(out, v, exp(load(logits, v) - log_sum) * factor)
        for place in range(t * batch, (t + 1) * batch):
            out[t * size + targets[place] * batch + place - t * batch] -= factors[place]


def nats(logits_TVB: Tensor, targets_TB: Tensor) -> tuple[Tensor, Tensor]:
    """Return -ln p of each target [T, B], and the logarithm of the sum of exponentials there [T, B].

    Args:
        logits_TVB: contiguous.
        targets_TB: int64, contiguous, each from 0 to V - 1.
    """
    times, vocabulary, batch = logits_TVB.shape
    log_sums, out = torch.empty((2, times, batch), dtype=logits_TVB.dtype)
    threads.run(
        _nats, row_of(logits_TVB), logits_TVB.detach().view(-1).numpy(), times, vocabulary,
        targets_TB.view(-1).numpy(), log_sums.view(-1).numpy(), out.view(-1).numpy(),
    )  # fmt: skip
    return out, log_sums


def gradient(logits_TVB: Tensor, targets_TB: Tensor, log_sums_TB: Tensor, factors_TB: Tensor) -> Tensor:
    """Return the gradient [T, V, B] of the sum of factors * nats."""
    times, vocabulary, _ = logits_TVB.shape
    out_TVB = memory.empty(logits_TVB.shape, logits_TVB.dtype)
    threads.run(
        _gradient, row_of(logits_TVB), logits_TVB.detach().view(-1).numpy(), times, vocabulary,
        targets_TB.view(-1).numpy(), log_sums_TB.view(-1).numpy(), np.ascontiguousarray(factors_TB.numpy()).reshape(-1),
        out_TVB.view(-1).numpy(),
    )  # fmt: skip
    return out_TVB
