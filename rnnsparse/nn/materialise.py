"""Masked execution: the connections scattered into dense matrices that the fused kernels read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rnnsparse.nn.gradients import MatrixGradient
from rnnsparse.nn.weight import SparseWeight


class _Materialise(torch.autograd.Function):
    """Values and biases -> dense matrices and biases, all views of one contiguous buffer, in the order given."""

    @staticmethod
    def forward(
        ctx: Any, weights: Sequence[SparseWeight], dtype: torch.dtype, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        sizes = [w.positions for w in weights] + [b.numel() for b in parameters[len(weights) :]]
        buffer = torch.zeros(sum(sizes), dtype=dtype, device=parameters[0].device)
        pieces = list(buffer.split(sizes))
        ctx.weights = weights
        ctx.topologies = [w.topology for w in weights]
        ctx.dtypes = [p.dtype for p in parameters]
        for i, parameter in enumerate(parameters):
            if i < len(weights) and weights[i].basis:
                pieces[i].copy_(weights[i].to_dense().view(-1))
            elif i < len(weights):
                weights[i].topology.scatter(parameter, pieces[i])
            else:
                pieces[i].copy_(parameter)
            if i < len(weights):
                pieces[i] = pieces[i].view(weights[i].rows, weights[i].cols)
        return tuple(pieces)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        result: list[Tensor | None] = []
        for i, gradient in enumerate(gradients):
            if i < len(ctx.weights):
                weight, topology = ctx.weights[i], ctx.topologies[i]
                if topology.indices is not weight.indices:
                    raise RuntimeError(f"{weight.name}: its connections have changed since this forward pass")
                gradient = gradient.contiguous()  # a batched product leaves it transposed
                if weight.basis:
                    gradient = weight.basis.to_coefficients(gradient.to(ctx.dtypes[i]))
                weight.report(MatrixGradient(gradient, ctx.dtypes[i]))
                gradient = topology.gather(gradient.reshape(-1))
            result.append(gradient.to(ctx.dtypes[i]))
        return (None, None, *result)


def materialise(
    weights: Sequence[SparseWeight], biases: Sequence[Tensor] = (), dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Return `weights` as dense matrices [R, C] and `biases`, adjacent in one buffer of `dtype`, with autograd.

    cuDNN reads recurrent weights in place only if they are adjacent (otherwise it copies them at every call). The
    gradient of `values` is a gather of the dense one, which each weight also gets reported.
    """
    dtype = dtype or weights[0].values.dtype
    return list(_Materialise.apply(weights, dtype, *(w.values for w in weights), *biases))
