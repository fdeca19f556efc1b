"""Layer normalisation over the features of batch-innermost activations, and its gradients.

Shape suffixes: T time, F features, B batch (whole vectors).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from rnnsparse.kernels import memory, threads
from rnnsparse.kernels.compiling import kernel
from rnnsparse.kernels.emit import VECTOR_BYTES
from rnnsparse.kernels.products import flat, row_of
from rnnsparse.kernels.vector import at, fill, load, multiply_add, store, zero

FEATURES = 32  # whose sums over all moments stay in the nearest cache


@kernel
def _forward(thread, threads, row, x, x_step, times, gain, bias, epsilon, means, scales, out):
    width = VECTOR_BYTES // x.itemsize
    batch = len(row) * width
    features = len(gain)
    size = features * batch
    for t in range(times * thread // threads, times * (thread + 1) // threads):
        for b in range(0, batch, width):
            total = zero(x)
            for i in range(t * x_step + b, t * x_step + size, batch):
                total = total + load(x, i)
            store(means, t * batch + b, total)
            for place in range(t * batch + b, t * batch + b + width):
                means[place] /= features
            mean, total = load(means, t * batch + b), zero(x)
            for i in range(t * x_step + b, t * x_step + size, batch):
                off = load(x, i) - mean
                total = multiply_add(off, off, total)
            store(scales, t * batch + b, total)
            for place in range(t * batch + b, t * batch + b + width):
                scales[place] = 1 / math.sqrt(scales[place] / features + epsilon)
            scale = load(scales, t * batch + b)
            for f in range(features):
                place = f * batch + b
                normal = (load(x, t * x_step + place) - mean) * scale
                store(out, t * size + place, multiply_add(normal, fill(at(gain, f)), fill(at(bias, f))))


@kernel
def _backward(thread, threads, row, g, g_step, x, x_step, times, gain, share, means, scales, dx, sums):
    width = VECTOR_BYTES // x.itemsize
    batch = len(row) * width
    features = len(gain)
    size = features * batch
    for t in range(times * thread // threads, times * (thread + 1) // threads):
        for b in range(0, batch, width):
            mean, scale = load(means, t * batch + b), load(scales, t * batch + b)
            total, along = zero(x), zero(x)
            for f in range(features):
                place = f * batch + b
                part = load(g, t * g_step + place) * fill(at(gain, f))
                total = total + part
                along = multiply_add(part, (load(x, t * x_step + place) - mean) * scale, along)
            total, along = total * fill(at(share, 0)), along * fill(at(share, 0))
            for f in range(features):
                place = f * batch + b
                own, normal = load(g, t * g_step + place), (load(x, t * x_step + place) - mean) * scale
                part = own * fill(at(gain, f)) - total - normal * along
                store(dx, t * size + place, part * scale)
    # Features are shared out here, so that the sums do not depend on the number of threads.
    first, last = features * thread // threads, features * (thread + 1) // threads
    for low in range(first, last, FEATURES):
        for t in range(times):
            for b in range(0, batch, width):
                mean, scale = load(means, t * batch + b), load(scales, t * batch + b)
                for place in range(low * batch + b, min(low + FEATURES, last) * batch, batch):
                    own, normal = load(g, t * g_step + place), (load(x, t * x_step + place) - mean) * scale
                    store(sums, place, multiply_add(own, normal, load(sums, place)))
                    store(sums, size + place, load(sums, size + place) + own)


def forward(x_TFB: Tensor, gain_F: Tensor, bias_F: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return normalised activations [T, F, B], and what they were scaled by: means and 1 / deviations [T, B]."""
    times, _, batch = x_TFB.shape
    means_TB, scales_TB = torch.empty((2, times, batch), dtype=x_TFB.dtype)
    out_TFB = memory.empty(x_TFB.shape, x_TFB.dtype)
    threads.run(
        _forward, row_of(x_TFB), flat(x_TFB), x_TFB.stride(0), times, gain_F.detach().numpy(), bias_F.detach().numpy(),
        epsilon, means_TB.view(-1).numpy(), scales_TB.view(-1).numpy(), out_TFB.view(-1).numpy(),
    )  # fmt: skip
    return out_TFB, means_TB, scales_TB


def backward(
    g_TFB: Tensor, x_TFB: Tensor, gain_F: Tensor, means_TB: Tensor, scales_TB: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x [T, F, B], gain [F] and bias [F] from that of what `forward` returned."""
    times, features, batch = x_TFB.shape
    dx_TFB = memory.empty(x_TFB.shape, x_TFB.dtype)
    sums = torch.zeros((2, features, batch), dtype=x_TFB.dtype)
    threads.run(
        _backward, row_of(x_TFB), flat(g_TFB), g_TFB.stride(0), flat(x_TFB), x_TFB.stride(0), times,
        gain_F.detach().numpy(), np.full(1, 1 / features, gain_F.detach().numpy().dtype), means_TB.view(-1).numpy(),
        scales_TB.view(-1).numpy(), dx_TFB.view(-1).numpy(), sums.view(-1).numpy(),
    )  # fmt: skip
    dgain_F, dbias_F = sums.sum(2)
    return dx_TFB, dgain_F, dbias_F
