"""The cross-entropy of symbols, in the layout that their logits have. Shape suffixes: T time, B batch, V vocabulary."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class _BatchInnermost(torch.autograd.Function):
    """(logits [T, V, B], targets [T, B]) -> nats [T, B], by kernels."""

    @staticmethod
    def forward(ctx: Any, logits_TVB: Tensor, targets_TB: Tensor) -> Tensor:
        from rnnsparse.kernels import cross_entropy

        nats_TB, log_sums_TB = cross_entropy.nats(logits_TVB, targets_TB)
        ctx.save_for_backward(logits_TVB, targets_TB, log_sums_TB)
        return nats_TB

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        from rnnsparse.kernels import cross_entropy

        logits_TVB, targets_TB, log_sums_TB = ctx.saved_tensors
        return cross_entropy.gradient(logits_TVB, targets_TB, log_sums_TB, gradients[0]), None


def cross_entropy(logits_TBV: Tensor, targets_TB: Tensor, reduction: Literal["mean", "none"] = "mean") -> Tensor:
    """Return -ln p of each target [T, B], or their mean, in the precision of the logits, single at least.

    Raises:
        IndexError: a target is no symbol.
    """
    logits_TBV = at_least_fp32(logits_TBV)
    if _is_for_kernels(logits_TBV):
        # Compiled look-ups do not check, and would read and write elsewhere.
        if not 0 <= int(targets_TB.min()) <= int(targets_TB.max()) < logits_TBV.shape[2]:
            raise IndexError(f"targets must lie in 0 to {logits_TBV.shape[2] - 1}")
        nats_TB: Tensor = _BatchInnermost.apply(logits_TBV.transpose(1, 2), targets_TB.contiguous())
        return nats_TB.mean() if reduction == "mean" else nats_TB
    nats = F.cross_entropy(logits_TBV.flatten(0, 1), targets_TB.flatten(), reduction=reduction)
    return nats if reduction == "mean" else nats.view(targets_TB.shape)


def at_least_fp32(logits: Tensor) -> Tensor:
    """Return logits in single precision at least: in half precision sums of exponentials lose too much."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _is_for_kernels(logits_TBV: Tensor) -> bool:
    """Return whether logits are what sparse execution makes of a batch of whole vectors; then kernels are loaded."""
    if logits_TBV.device.type != "cpu" or logits_TBV.numel() == 0 or logits_TBV.is_contiguous():
        return False
    if not logits_TBV.transpose(1, 2).is_contiguous():
        return False
    from rnnsparse.kernels.products import vector_width

    return logits_TBV.shape[1] % vector_width(logits_TBV.dtype) == 0
