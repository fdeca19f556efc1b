"""Sparse execution of layers on a CPU: time and memory grow with the connections.

Activations are batch-innermost, and stay so from layer to layer. The batch is cut into tiles of a few vectors; those
do not depend on each other, and products treat every moment of every tile alike. A layer that reads symbols never
multiplies by its input weights at each moment: with V symbols, embedding and input weights together are a table
[V, R], computed once per batch, and the gradient of that table is a sum of gate gradients by symbol.

Shape suffixes: K tiles, T time, M = K * T moments, B batch of a tile (innermost), V vocabulary, Q tiles of it, E
embedding, I input, H hidden, G rows that the kernels keep per moment, R rows and C columns of a weight, L layers, S
state tensors of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rnnsparse.cells.cell import Cell
from rnnsparse.kernels import memory
from rnnsparse.kernels.matrix import Matrix
from rnnsparse.kernels.products import (
    add_product,
    add_sampled_product,
    add_transposed_product,
    sum_by_symbol,
    tile_width,
    transposed,
    transposed_product,
)
from rnnsparse.kernels.recurrence import LayerInput, OutputGradient
from rnnsparse.nn.layer_norm import LayerNorm
from rnnsparse.nn.topology import Topology
from rnnsparse.nn.weight import SparseWeight


class Layer(Protocol):
    """A recurrent layer: its cell, its weights [R, I] and [R, H], both biases [R], and what normalises its outputs."""

    cell: type[Cell]
    input: SparseWeight
    recurrent: SparseWeight
    norm: LayerNorm | None

    def biases(self) -> tuple[Tensor, Tensor]: ...


class ProductGradient:
    """The dense gradient, the sum over moments of g x^T, of a weight, made row by row from what multiplies to it.

    From the first strip on, x is held in the layout of matrix products and no longer as it was.

    Args:
        g_is_overwritten: whether g changes after the backward pass has reported it.
    """

    def __init__(self, g_MRB: Tensor, x_MCB: Tensor, g_is_overwritten: bool = False) -> None:
        self._g_MRB = g_MRB.detach()
        self._x_MCB: Tensor | None = x_MCB.detach()
        self._x_NC = torch.empty(0)
        self._g_is_overwritten = g_is_overwritten

    def rows(self, start: int, stop: int) -> Tensor:
        if self._x_MCB is not None:
            memory.trim()  # what the passes needed is free, and this is another kind of work
            self._x_NC = self._x_MCB.transpose(1, 2).reshape(-1, self._x_MCB.shape[1])
            self._x_MCB = None
            memory.trim()
        return self._g_MRB[:, start:stop].transpose(0, 1).reshape(stop - start, -1) @ self._x_NC

    def add_at(self, places: Topology, out_P: Tensor) -> None:
        assert self._x_MCB is not None, "the backward pass comes before growth"
        add_sampled_product(places.matrix, self._g_MRB, self._x_MCB, out_P)

    def kept(self) -> ProductGradient:
        if self._g_is_overwritten and self._x_MCB is not None:
            return ProductGradient(self._g_MRB.clone(), self._x_MCB)
        return self


class LaterGradient:
    """The gradient of a layer's outputs, of which a part is made only as the pass back through time comes to it.

    That part is what a linear layer after it multiplies out; it has one number per unit and moment.
    """

    def __init__(self) -> None:
        self._product: tuple[Matrix, Tensor, Tensor] | None = None

    def postpone(self, matrix: Matrix, values: Tensor, g_MRB: Tensor, x_MCB: Tensor) -> Tensor:
        """Take note of x += W^T g; return a gradient of x that has no memory, and no effect."""
        self._product = matrix, values, g_MRB
        return g_MRB.new_zeros(()).expand_as(x_MCB)

    def taken(self, dy_KTHB: Tensor) -> OutputGradient:
        """Return the whole gradient, part by part, where autograd has found `dy`."""
        (product, self._product), tiles = (self._product, None), len(dy_KTHB)

        def moments(first: int, last: int) -> Tensor:
            if product is None:
                return dy_KTHB[:, first:last].contiguous()
            matrix, values, g_MRB = product
            dy_KtHB = memory.empty((tiles, last - first, *dy_KTHB.shape[2:]), dy_KTHB.dtype)
            dy_KtHB.copy_(dy_KTHB[:, first:last])
            for g_TRB, dy_tHB in zip(g_MRB.unflatten(0, (tiles, -1)), dy_KtHB, strict=True):
                add_transposed_product(matrix, values, g_TRB[first:last], dy_tHB)
            return dy_KtHB

        return moments


class _Recurrence(torch.autograd.Function):
    """One recurrent layer; what is kept becomes its gradients, so it can be differentiated once."""

    @staticmethod
    def forward(
        ctx: Any, layer: Layer, later: LaterGradient, tokens_MB: Tensor | None, x: Tensor,
        values_ih: Tensor, values_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor, state_SKHB: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        _, tiles, hidden, batch = state_SKHB.shape
        times = len(x if tokens_MB is None else tokens_MB) // tiles
        bias_R = layer.cell.input_bias(bias_ih, bias_hh)
        if tokens_MB is None:
            source = LayerInput(bias_R, layer.input.matrix(), values_ih, x_MIB=x)
        else:
            table_VR = input_table(layer.input, values_ih, bias_R, x)
            source = LayerInput(bias_R, table_VR=table_VR, tokens_MB=tokens_MB)
        kept_KTGB = memory.empty((tiles, times, layer.cell.kept_rows * hidden, batch), x.dtype)
        h_KTHB = memory.empty((tiles, times + 1, hidden, batch), x.dtype)
        h_KTHB[:, 0] = state_SKHB[0]
        matrix = layer.recurrent.matrix()
        last_SKHB, more = layer.cell.forward(matrix, values_hh, source, bias_hh, kept_KTGB, h_KTHB, state_SKHB)
        if any(ctx.needs_input_grad):
            # Of the values as they are now: should the topology change, these are no longer there, and PyTorch notices.
            ctx.layer, ctx.matrices, ctx.later = layer, (layer.input.matrix(), matrix), later
            ctx.tokens, ctx.kept = tokens_MB, (kept_KTGB, h_KTHB, more)
            ctx.save_for_backward(x, values_ih, values_hh)
        return h_KTHB[:, 1:], last_SKHB

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.kept is None:
            raise RuntimeError("sparse execution can differentiate a forward pass only once")
        dy, dstate_SKHB = ctx.later.taken(gradients[0]), gradients[1].clone(memory_format=torch.contiguous_format)
        layer, tokens_MB, (matrix_ih, matrix) = ctx.layer, ctx.tokens, ctx.matrices
        (kept_KTGB, h_KTHB, more), ctx.kept = ctx.kept, None
        x, values_ih, values_hh = ctx.saved_tensors
        dbias_ih, dbias_hh = layer.cell.backward(matrix, values_hh, kept_KTGB, h_KTHB, more, dy, dstate_SKHB)
        dvalues_hh = torch.zeros_like(values_hh)
        for g_TRB, h_THB in zip(layer.cell.recurrent_gradient(kept_KTGB), h_KTHB[:, :-1], strict=True):
            add_sampled_product(matrix, g_TRB, h_THB, dvalues_hh)
            layer.recurrent.report(ProductGradient(g_TRB, h_THB, layer.cell.input_gradient_overwrites))
            layer.recurrent.report_factors(g_TRB, h_THB, dim=1)
        del more, h_KTHB, h_THB, g_TRB  # where nobody else needs their memory, the next takes it
        if tokens_MB is None:
            g_MRB = layer.cell.input_gradient(kept_KTGB).flatten(0, 1)
            layer.input.report_factors(g_MRB, x, dim=1)
        else:
            g_MRB = memory.empty((len(x), layer.input.rows, x.shape[2]), x.dtype)
            for first, g_KTrB in layer.cell.input_gradient_parts(kept_KTGB):
                sum_by_symbol(g_KTrB.flatten(0, 1), tokens_MB, g_MRB, first)
            if layer.input.marginals is not None:
                g_of_all_MRB, x_EV = layer.cell.input_gradient(kept_KTGB).flatten(0, 1), x.movedim(0, 1).flatten(1)
                layer.input.report_factors(g_of_all_MRB, x_EV[:, tokens_MB].movedim(0, 1), dim=1)
        dvalues_ih = torch.zeros_like(values_ih)
        add_sampled_product(matrix_ih, g_MRB, x, dvalues_ih)
        dx = transposed_product(matrix_ih, values_ih, g_MRB)
        layer.input.report(ProductGradient(g_MRB, x))
        return None, None, None, dx, dvalues_ih, dvalues_hh, dbias_ih, dbias_hh, dstate_SKHB


def input_table(weight: SparseWeight, values: Tensor, bias_R: Tensor, x_QEB: Tensor) -> Tensor:
    """Return what each symbol adds to the gates [V, R], its embedding [Q, E, B] being in Q tiles of B symbols."""
    tiles, _, batch = x_QEB.shape
    table_QRB = memory.empty((tiles, len(bias_R), batch), values.dtype).copy_(bias_R[:, None])
    add_product(weight.matrix(), values, x_QEB, table_QRB)
    return transposed(table_QRB).flatten(0, 1)


def run_layers(
    layers: Sequence[Layer],
    symbols_MB: Tensor | None,
    x: Tensor,
    state_LSBH: Tensor,
    dropout: float,
    tiles: Tiles,
    skipped_MIB: Tensor | None = None,
) -> tuple[Tensor, Tensor, LaterGradient | None]:
    """Run recurrent layers one after the other.

    Args:
        x: the input sequence [M, I, B] or, with `symbols` [M, B], the transposed embedding in tiles of symbols
            [Q, E, B].
        dropout: share of units dropped between layers, 0 for none.
        skipped_MIB: with skip connections, what each layer above the first also reads: the input sequence.

    Returns:
        the outputs of the last layer [M, H, B], or with skip connections of all, [M, L * H, B]; the last states
        [L, S, B, H]; and where a linear layer after them may leave the gradient of those outputs, if anywhere.
    """
    times = len(x if symbols_MB is None else symbols_MB) // tiles.count
    states: list[Tensor] = []
    outputs: list[Tensor] = []
    for layer, state_SBH in zip(layers, state_LSBH, strict=True):
        if states:
            symbols_MB, x = None, _dropout(x, dropout, tiles, times)
            if skipped_MIB is not None:
                x = torch.cat([x, skipped_MIB], 1)
        state_SKHB = tiles.cut(state_SBH.transpose(1, 2)).movedim(0, 1).contiguous()
        later = LaterGradient()
        x_KTHB, state_SKHB = _Recurrence.apply(
            layer, later, symbols_MB, x, layer.input.values, layer.recurrent.values,
            *(bias.to(x.dtype) for bias in layer.biases()), state_SKHB,
        )  # fmt: skip
        x = x_KTHB.flatten(0, 1)  # one tile needs no copy; each of several starts with its initial state, no output
        states.append(tiles.join(state_SKHB.movedim(1, 0)).transpose(1, 2))
        if layer.norm is not None:
            x = layer.norm.batch_innermost(x)
        if skipped_MIB is not None:
            outputs.append(x)
    if outputs:
        return torch.cat(outputs, 1), torch.stack(states), None
    return x, torch.stack(states), later if layer.norm is None else None


def recurrent(
    layers: Sequence[Layer], x_TBI: Tensor, state_LSBH: Tensor, dropout: float, skip_connections: bool = False
) -> tuple[Tensor, Tensor]:
    """Return all outputs [T, B, H] and the last states [L, S, B, H] of layers in PyTorch's layout."""
    tiles = Tiles(x_TBI.shape[1], x_TBI.dtype)
    x_MIB = tiles.cut(x_TBI.transpose(1, 2)).flatten(0, 1)
    skipped_MIB = x_MIB if skip_connections else None
    x_MHB, last_LSBH, _ = run_layers(layers, None, x_MIB, state_LSBH, dropout, tiles, skipped_MIB)
    return _as_pytorch(tiles.join(x_MHB.unflatten(0, (tiles.count, -1))).transpose(1, 2)), last_LSBH


class _Linear(torch.autograd.Function):
    """y = W x + b at every moment; `later`, where there is one, makes the gradient of x."""

    @staticmethod
    def forward(
        ctx: Any, weight: SparseWeight, later: LaterGradient | None, values: Tensor, bias_R: Tensor, x_MCB: Tensor
    ) -> Tensor:
        y_MRB = memory.empty((len(x_MCB), len(bias_R), x_MCB.shape[2]), x_MCB.dtype).copy_(bias_R[:, None])
        add_product(weight.matrix(), values, x_MCB, y_MRB)
        ctx.weight, ctx.matrix, ctx.later = weight, weight.matrix(), later
        ctx.save_for_backward(values, x_MCB)
        return y_MRB

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        g_MRB = gradients[0].contiguous()
        values, x_MCB = ctx.saved_tensors
        dvalues = torch.zeros_like(values)
        add_sampled_product(ctx.matrix, g_MRB, x_MCB, dvalues)
        ctx.weight.report(ProductGradient(g_MRB, x_MCB))
        ctx.weight.report_factors(g_MRB, x_MCB, dim=1)
        if ctx.later is None:
            dx_MCB = transposed_product(ctx.matrix, values, g_MRB)
        else:
            dx_MCB = ctx.later.postpone(ctx.matrix, values, g_MRB, x_MCB)
        return None, None, dvalues, g_MRB.sum((0, 2)), dx_MCB


def product(weight: SparseWeight, bias_R: Tensor, x_MCB: Tensor, later: LaterGradient | None = None) -> Tensor:
    """Return W x + b at every moment [M, R, B]; with `later`, the gradient of x is made where that is needed."""
    y_MRB: Tensor = _Linear.apply(weight, later, weight.values, bias_R, x_MCB)
    return y_MRB


def linear(weight: SparseWeight, bias_R: Tensor, x: Tensor) -> Tensor:
    """Return x W^T + b [..., R] for x [..., C] in PyTorch's layout."""
    x_NC = x.reshape(-1, x.shape[-1])
    tiles = Tiles(len(x_NC), x.dtype)
    y_MRB = product(weight, bias_R, tiles.cut(x_NC.T))
    return _as_pytorch(tiles.join(y_MRB).T).view(*x.shape[:-1], len(bias_R))


def _as_pytorch(y: Tensor) -> Tensor:
    """Return outputs as PyTorch's layers do: one block of memory, nobody else's, which may be changed in place."""
    return y.clone(memory_format=torch.contiguous_format)


class Tiles:
    """How a batch is cut into tiles: from [..., batch] to [K, ..., B], zeros behind the last, and back."""

    def __init__(self, batch: int, dtype: torch.dtype) -> None:
        self.batch, self.width = batch, tile_width(dtype, batch)
        self.count = -(-batch // max(1, self.width))

    def cut(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (0, -self.batch % self.width))
        tiles: Tensor = padded.unflatten(-1, (-1, self.width))
        return tiles.movedim(-2, 0).contiguous()

    def join(self, x: Tensor) -> Tensor:
        joined: Tensor = x.movedim(0, -2).flatten(-2)
        return joined if joined.shape[-1] == self.batch else joined[..., : self.batch]


def _dropout(x_MHB: Tensor, share: float, tiles: Tiles, times: int) -> Tensor:
    """Drop the same units as masked execution does, whose activations are [T, batch, H]."""
    if share == 0:
        return x_MHB
    kept = F.dropout(x_MHB.new_ones(times, tiles.batch, x_MHB.shape[1]), share)
    return x_MHB * tiles.cut(kept.transpose(1, 2)).flatten(0, 1)
