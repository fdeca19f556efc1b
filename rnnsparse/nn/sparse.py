"""Sparse execution of a language model on a CPU: time and memory grow with the connections.

Activations are batch-innermost from the first layer to the logits. The first layer never multiplies by its input
weights at each moment: with V symbols, embedding and input weights together are a table [V, G*H], computed once per
batch, and the gradient of that table is a sum of gate gradients by symbol.

The batch is cut into tiles of a few vectors; those do not depend on each other, and products treat every moment of
every tile alike.

Shape suffixes: K tiles, T time, M = K * T moments, B batch of a tile (innermost), V vocabulary, E embedding, I input,
H hidden, G rows of `gates`, R rows and C columns of a weight, L layers, S state tensors per layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rnnsparse.kernels import cpu, memory
from rnnsparse.nn.activations import ACTIVATIONS
from rnnsparse.nn.layers import Linear, TiedOutput
from rnnsparse.nn.recurrent import LSTM, RecurrentLayer
from rnnsparse.nn.weight import SparseWeight, materialise

if TYPE_CHECKING:
    from rnnsparse.kernels.cpu import OutputGradient
    from rnnsparse.nn.language_model import CharLM


class ProductGradient:
    """The dense gradient, the sum over moments of g x^T, of a weight, made row by row from what multiplies to it.

    From the first tile on, x is held in the layout of matrix products and no longer as it was.
    """

    def __init__(self, g_MRB: Tensor, x_MCB: Tensor) -> None:
        self._g_MRB = g_MRB.detach()
        self._x_MCB: Tensor | None = x_MCB.detach()
        self._x_NC = torch.empty(0)

    def rows(self, start: int, stop: int) -> Tensor:
        if self._x_MCB is not None:
            memory.trim()  # what the passes needed is free, and this is another kind of work
            self._x_NC = self._x_MCB.transpose(1, 2).reshape(-1, self._x_MCB.shape[1])
            self._x_MCB = None
            memory.trim()
        return self._g_MRB[:, start:stop].transpose(0, 1).reshape(stop - start, -1) @ self._x_NC


def _add_gradient(weight: SparseWeight, matrix: cpu.Matrix, g_MRB: Tensor, x_MCB: Tensor, dvalues_N: Tensor) -> None:
    """Add g x^T to the gradient of a weight's connections, and of the positions it probes."""
    cpu.add_sampled_product(matrix, g_MRB, x_MCB, dvalues_N)
    if weight.probe:
        cpu.add_sampled_product(weight.probe.matrix(), g_MRB, x_MCB, weight.probe.gradient)


class _LaterGradient:
    """The gradient of a layer's outputs, of which a part is made only as the pass back through time comes to it.

    That part is what a linear layer after it multiplies out; it has one number per unit and moment.
    """

    def __init__(self) -> None:
        self._product: tuple[cpu.Matrix, Tensor, Tensor] | None = None

    def postpone(self, matrix: cpu.Matrix, values: Tensor, g_MRB: Tensor, x_MCB: Tensor) -> Tensor:
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
                cpu.add_transposed_product(matrix, values, g_TRB[first:last], dy_tHB)
            return dy_KtHB

        return moments


class _Recurrence(torch.autograd.Function):
    """One recurrent layer; the buffer of gates becomes that of their gradients, so it can be differentiated once."""

    @staticmethod
    def forward(
        ctx: Any, layer: RecurrentLayer, later: _LaterGradient, tokens_MB: Tensor | None, x: Tensor,
        values_ih: Tensor, values_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor, state_SKHB: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        _, tiles, hidden, batch = state_SKHB.shape
        times = len(x if tokens_MB is None else tokens_MB) // tiles
        if isinstance(layer, LSTM):
            bias_R = bias_ih + bias_hh
        else:
            bias_R = torch.cat([bias_ih[: 2 * hidden] + bias_hh[: 2 * hidden], bias_ih[2 * hidden :]])
        if tokens_MB is None:
            source = cpu.Input(bias_R, layer.input.matrix(), values_ih, x_MIB=x)
        else:
            table_RV = bias_R[:, None].repeat(1, x.shape[2])
            cpu.add_product(layer.input.matrix(), values_ih, x, table_RV[None])
            source = cpu.Input(bias_R, table_RV=table_RV, tokens_MB=tokens_MB)
        gates_KTGB = memory.empty((tiles, times, 4 * hidden, batch), x.dtype)
        h_KTHB = memory.empty((tiles, times + 1, hidden, batch), x.dtype)
        h_KTHB[:, 0] = state_SKHB[0]
        matrix = layer.recurrent.matrix()
        if isinstance(layer, LSTM):
            c_KHB = state_SKHB[1].clone()
            kept = cpu.lstm.forward(matrix, values_hh, source, gates_KTGB, h_KTHB, c_KHB)
            last_SKHB = torch.stack([h_KTHB[:, -1], c_KHB])
        else:
            kept = None
            cpu.gru.forward(matrix, values_hh, source, bias_hh[2 * hidden :], gates_KTGB, h_KTHB)
            last_SKHB = h_KTHB[None, :, -1].clone()
        if any(ctx.needs_input_grad):
            # The structures as they are now: a topology may change before the backward pass.
            ctx.layer, ctx.matrices, ctx.later = layer, (layer.input.matrix(), matrix), later
            ctx.tokens, ctx.kept = tokens_MB, (gates_KTGB, h_KTHB, kept)
            ctx.save_for_backward(x, values_ih, values_hh)
        return h_KTHB[:, 1:], last_SKHB

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.kept is None:
            raise RuntimeError("sparse execution can differentiate a forward pass only once")
        dy, dstate_SKHB = ctx.later.taken(gradients[0]), gradients[1].clone(memory_format=torch.contiguous_format)
        layer, tokens_MB, (matrix_ih, matrix) = ctx.layer, ctx.tokens, ctx.matrices
        (gates_KTGB, h_KTHB, kept), ctx.kept = ctx.kept, None
        x, values_ih, values_hh = ctx.saved_tensors
        hidden = layer.hidden_size
        if isinstance(layer, LSTM):
            sums_G = cpu.lstm.backward(matrix, values_hh, gates_KTGB, kept, dy, *dstate_SKHB)
            dbias_ih, dbias_hh = sums_G, sums_G.clone()
            weight_rows = slice(None)
        else:
            sums_G = cpu.gru.backward(matrix, values_hh, gates_KTGB, h_KTHB, dy, *dstate_SKHB)
            dbias_ih, dbias_hh = torch.cat([sums_G[hidden : 3 * hidden], sums_G[:hidden]]), sums_G[hidden:]
            weight_rows = slice(hidden, None)
        dvalues_hh = torch.zeros_like(values_hh)
        for gates_TGB, h_THB in zip(gates_KTGB, h_KTHB, strict=True):
            g_TRB, h_THB = gates_TGB[:, weight_rows], h_THB[:-1]
            _add_gradient(layer.recurrent, matrix, g_TRB, h_THB, dvalues_hh)
            if layer.recurrent.collects_dense_gradient:
                kept_TRB = g_TRB if isinstance(layer, LSTM) else g_TRB.clone()  # the GRU's change below
                layer.recurrent.add_gradient_source(ProductGradient(kept_TRB, h_THB))
        if not isinstance(layer, LSTM):
            # From here on the last quarter holds n's own gradient, so that rows are in the weight's order.
            gates_KTGB[:, :, 3 * hidden :] = gates_KTGB[:, :, :hidden]
        g_MRB = gates_KTGB.flatten(0, 1)[:, weight_rows]
        del kept, h_KTHB, h_THB  # where nobody else needs their memory, the next takes it
        if tokens_MB is not None:
            table_RV = memory.zeros((layer.input.rows, x.shape[2]), x.dtype)
            cpu.sum_by_symbol(g_MRB, tokens_MB, table_RV)
            g_MRB = table_RV[None]
        dvalues_ih, dx = torch.zeros_like(values_ih), memory.zeros(x.shape, x.dtype)
        _add_gradient(layer.input, matrix_ih, g_MRB, x, dvalues_ih)
        cpu.add_transposed_product(matrix_ih, values_ih, g_MRB, dx)
        if layer.input.collects_dense_gradient:
            layer.input.add_gradient_source(ProductGradient(g_MRB, x))
        return None, None, None, dx, dvalues_ih, dvalues_hh, dbias_ih, dbias_hh, dstate_SKHB


def run_layer(
    layer: RecurrentLayer, tokens_MB: Tensor | None, x: Tensor, state_SKHB: Tensor, later: _LaterGradient | None = None
) -> tuple[Tensor, Tensor]:
    """Return all outputs [K, T, H, B] and the last state [S, K, H, B].

    `x` is the input sequence [M, I, B], or, with `tokens` [M, B], the transposed embedding [1, E, V].
    """
    parameters = (layer.input.values, layer.recurrent.values, layer.bias_ih, layer.bias_hh)
    outputs: tuple[Tensor, Tensor] = _Recurrence.apply(
        layer, later or _LaterGradient(), tokens_MB, x, *parameters, state_SKHB
    )
    return outputs


class _Linear(torch.autograd.Function):
    """y = W x + b at every moment; `later`, where there is one, makes the gradient of x."""

    @staticmethod
    def forward(
        ctx: Any, weight: SparseWeight, later: _LaterGradient | None, values: Tensor, bias_R: Tensor, x_MCB: Tensor
    ) -> Tensor:
        y_MRB = memory.empty((len(x_MCB), len(bias_R), x_MCB.shape[2]), x_MCB.dtype).copy_(bias_R[:, None])
        cpu.add_product(weight.matrix(), values, x_MCB, y_MRB)
        ctx.weight, ctx.matrix, ctx.later = weight, weight.matrix(), later
        ctx.save_for_backward(values, x_MCB)
        return y_MRB

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        g_MRB = gradients[0].contiguous()
        values, x_MCB = ctx.saved_tensors
        dvalues = torch.zeros_like(values)
        _add_gradient(ctx.weight, ctx.matrix, g_MRB, x_MCB, dvalues)
        if ctx.later is None:
            dx_MCB = memory.zeros(x_MCB.shape, x_MCB.dtype)
            cpu.add_transposed_product(ctx.matrix, values, g_MRB, dx_MCB)
        else:
            dx_MCB = ctx.later.postpone(ctx.matrix, values, g_MRB, x_MCB)
        if ctx.weight.collects_dense_gradient:
            ctx.weight.add_gradient_source(ProductGradient(g_MRB, x_MCB))
        return None, None, dvalues, g_MRB.sum((0, 2)), dx_MCB


class Tiles:
    """How a batch is cut into tiles: from [..., batch] to [K, ..., B], zeros behind the last lane, and back."""

    def __init__(self, batch: int, dtype: torch.dtype) -> None:
        self.batch, self.width = batch, cpu.tile_width(dtype, batch)

    def cut(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (0, -self.batch % self.width))
        lanes: Tensor = padded.unflatten(-1, (-1, self.width))
        return lanes.movedim(-2, 0).contiguous()

    def join(self, x: Tensor) -> Tensor:
        joined: Tensor = x.movedim(0, -2).flatten(-2)[..., : self.batch]
        return joined


def forward(model: CharLM, tokens_TB: Tensor, state_LSBH: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [T, B, V] and the last state, as `CharLM.forward` does."""
    times, batch = tokens_TB.shape
    if state_LSBH.shape[2] != batch:
        raise ValueError(f"a state for {state_LSBH.shape[2]} lanes does not fit {batch} lanes of symbols")
    # Compiled look-ups do not check, and would read and write elsewhere.
    if tokens_TB.numel() and not 0 <= int(tokens_TB.min()) <= int(tokens_TB.max()) < model.vocab_size:
        raise IndexError(f"symbols must lie in 0 to {model.vocab_size - 1}")
    tiles = Tiles(batch, model.embedding.values.dtype)
    tokens_MB = tiles.cut(tokens_TB).flatten(0, 1).int()
    (embedding_VE,) = materialise([model.embedding])
    symbols: Tensor | None = tokens_MB
    if model.vocab_size <= tokens_MB.numel():
        x = F.pad(embedding_VE.T, (0, -model.vocab_size % tiles.width)).contiguous()[None]
    else:
        # More symbols than moments: a table would cost more than it saves.
        symbols, x = None, F.embedding(tokens_MB, embedding_VE).transpose(1, 2).contiguous()
    states: list[Tensor] = []
    for layer, state_SBH in zip(model.recurrent_layers, state_LSBH, strict=True):
        if states:
            symbols, x = None, _dropout(x, model.config.dropout if model.training else 0.0, tiles, times)
        state_SKHB = tiles.cut(state_SBH.transpose(1, 2)).movedim(0, 1).contiguous()
        later = _LaterGradient()
        x_KTHB, state_SKHB = run_layer(layer, symbols, x, state_SKHB, later)
        x = x_KTHB.flatten(0, 1)  # one tile needs no copy; each of several starts with its initial state, no output
        states.append(tiles.join(state_SKHB.movedim(1, 0)).transpose(1, 2))
    activation = ACTIVATIONS[model.config.readout_activation]
    linears: list[tuple[SparseWeight, Tensor]] = [
        (m, m.bias) for m in (*model.readout, model.output) if isinstance(m, Linear)
    ]
    if isinstance(model.output, TiedOutput):
        linears.append((model.embedding, model.output.bias))
    logits_MVB = x
    for i, (weight, bias_R) in enumerate(linears):
        x = activation(logits_MVB) if i > 0 else x
        logits_MVB = _Linear.apply(weight, None if i > 0 else later, weight.values, bias_R, x)
    logits_TVB = tiles.join(logits_MVB.unflatten(0, (-1, times)))
    return logits_TVB.transpose(1, 2), torch.stack(states)


def _dropout(x_MHB: Tensor, share: float, tiles: Tiles, times: int) -> Tensor:
    """Drop the same units as masked execution does, whose activations are [T, batch, H]."""
    if share == 0:
        return x_MHB
    kept = F.dropout(x_MHB.new_ones(times, tiles.batch, x_MHB.shape[1]), share)
    return x_MHB * tiles.cut(kept.transpose(1, 2)).flatten(0, 1)
