"""Layer normalisation of what recurrent layers put out (Ba et al. 2016), in the layouts of both executions.

Shape suffixes: M moments, H hidden, B batch of a tile.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _BatchInnermost(torch.autograd.Function):
    """(x [M, H, B], gain [H], bias [H]) -> normalised over H, by kernels."""

    @staticmethod
    def forward(ctx: Any, x_MHB: Tensor, gain_H: Tensor, bias_H: Tensor, epsilon: float) -> Tensor:
        from rnnsparse.kernels import layer_norm

        y_MHB, means_MB, scales_MB = layer_norm.forward(x_MHB, gain_H, bias_H, epsilon)
        ctx.save_for_backward(x_MHB, gain_H, means_MB, scales_MB)
        return y_MHB

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from rnnsparse.kernels import layer_norm

        (g_MHB,) = gradients
        if not g_MHB[:1].is_contiguous():
            g_MHB = g_MHB.contiguous()
        return *layer_norm.backward(g_MHB, *ctx.saved_tensors), None


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm`, gain and bias taken in the type of what they act on."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)

    def batch_innermost(self, x_MHB: Tensor) -> Tensor:
        """Return the same of activations in the layout of sparse execution."""
        y_MHB: Tensor = _BatchInnermost.apply(x_MHB, self.weight.to(x_MHB.dtype), self.bias.to(x_MHB.dtype), self.eps)
        return y_MHB
