"""Sparse execution of a language model on a CPU: time and memory grow with the connections.

Activations are batch-innermost from the first layer to the logits. The first layer never multiplies by its input
weights at each moment: with V symbols, embedding and input weights together are a table [V, G*H], computed once per
batch, and the gradient of that table is a sum of gate gradients by symbol.

Shape suffixes: T time, B batch padded to whole vectors, V vocabulary (padded where it is innermost), E embedding,
I input, H hidden, G rows of `gates`, R rows and C columns of a weight, L layers, S state tensors per layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnnsparse.kernels import cpu
from rnnsparse.nn.activations import ACTIVATIONS
from rnnsparse.nn.layers import Linear, TiedOutput
from rnnsparse.nn.recurrent import LSTM, RecurrentLayer
from rnnsparse.nn.weight import SparseWeight, materialise

if TYPE_CHECKING:
    from rnnsparse.nn.language_model import CharLM


class ProductGradient:
    """The dense gradient sum_t g_t x_t^T of a weight, made row by row from what multiplies to it.

    Keeps one copy of x, laid out for matrix products, from the first tile on.
    """

    def __init__(self, g_TRB: Tensor, x_TCB: Tensor) -> None:
        self._g_TRB, self._x_TCB = g_TRB, x_TCB
        self._x_NC: Tensor | None = None

    def rows(self, start: int, stop: int) -> Tensor:
        if self._x_NC is None:
            self._x_NC = self._x_TCB.transpose(1, 2).reshape(-1, self._x_TCB.shape[1])
        return self._g_TRB[:, start:stop].transpose(0, 1).reshape(stop - start, -1) @ self._x_NC


def _padded(x: Tensor, multiple: int) -> Tensor:
    """Return x with zeros behind its last dimension, up to whole vectors."""
    return F.pad(x, (0, -x.shape[-1] % multiple)).contiguous()


class _Recurrence(torch.autograd.Function):
    """One recurrent layer over all moments.

    `x` is the input sequence [T, I, B], or, with `tokens` [T, B], the transposed embedding [1, E, V]. Its buffer of
    gates becomes that of their gradients, so it can be differentiated once.
    """

    @staticmethod
    def forward(
        ctx: Any, layer: RecurrentLayer, tokens_TB: Tensor | None, x: Tensor,
        values_ih: Tensor, values_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor, state_SHB: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        times, hidden, batch = len(x) if tokens_TB is None else len(tokens_TB), layer.hidden_size, state_SHB.shape[2]
        gates_TGB = x.new_empty(times, 4 * hidden, batch)
        if isinstance(layer, LSTM):
            places, bias_R = [(0, 4 * hidden, 0)], bias_ih + bias_hh
        else:
            # The order of gates is n r z q (kernels/gru.py), that of the weight's rows r z n.
            places = [(0, 2 * hidden, hidden), (2 * hidden, 3 * hidden, 0)]
            bias_R = torch.cat([bias_ih[: 2 * hidden] + bias_hh[: 2 * hidden], bias_ih[2 * hidden :]])
            gates_TGB[:, 3 * hidden :] = bias_hh[2 * hidden :, None]
        matrix_ih = layer.input.matrix()
        if tokens_TB is not None:
            table_RV = bias_R[:, None].expand(-1, x.shape[2]).contiguous()
            cpu.add_product(matrix_ih, values_ih, x, table_RV[None])
        for first, last, place in places:
            part_TRB = gates_TGB[:, place : place + last - first]
            if tokens_TB is not None:
                cpu.look_up(table_RV, tokens_TB, part_TRB, first, last)
            else:
                part_TRB.copy_(bias_R[first:last, None])
                cpu.add_product(matrix_ih, values_ih, x, part_TRB, first, last)
        states = [x.new_empty(times + 1, hidden, batch) for _ in state_SHB]
        for all_THB, initial_HB in zip(states, state_SHB, strict=True):
            all_THB[0] = initial_HB
        kernel = cpu.lstm if isinstance(layer, LSTM) else cpu.gru
        kernel.forward(layer.recurrent.matrix(), values_hh, gates_TGB, *states)
        ctx.layer, ctx.tokens, ctx.states, ctx.gates = layer, tokens_TB, states, gates_TGB
        ctx.save_for_backward(x, values_ih, values_hh)
        return states[0][1:], torch.stack([state[-1] for state in states])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dy_THB, dstate_SHB = gradients[0].contiguous(), gradients[1].clone(memory_format=torch.contiguous_format)
        layer, tokens_TB, (h_THB, *c_THB), gates_TGB = ctx.layer, ctx.tokens, ctx.states, ctx.gates
        assert gates_TGB is not None, "sparse execution differentiates a forward pass once"
        ctx.gates = ctx.states = None
        x, values_ih, values_hh = ctx.saved_tensors
        hidden, is_lstm = layer.hidden_size, isinstance(layer, LSTM)
        if is_lstm:
            dh_HB, dc_HB = dstate_SHB
            cpu.lstm.backward(layer.recurrent.matrix(), values_hh, gates_TGB, c_THB[0], dy_THB, dh_HB, dc_HB)
            recurrent_TRB = gates_TGB
        else:
            cpu.gru.backward(layer.recurrent.matrix(), values_hh, gates_TGB, h_THB, dy_THB, dstate_SHB[0])
            recurrent_TRB = gates_TGB[:, hidden:]
        dvalues_hh = torch.zeros_like(values_hh)
        cpu.add_sampled_product(layer.recurrent.matrix(), recurrent_TRB, h_THB[:-1], dvalues_hh)
        dbias_hh = recurrent_TRB.sum((0, 2))
        if layer.recurrent.collects_dense_gradient:
            kept_TRB = recurrent_TRB if is_lstm else recurrent_TRB.clone()
            layer.recurrent.add_gradient_source(ProductGradient(kept_TRB, h_THB[:-1]))
        if not is_lstm:
            # From here on the last quarter holds n's own gradient, so that rows are in the weight's order.
            gates_TGB[:, 3 * hidden :] = gates_TGB[:, :hidden]
        input_TRB = recurrent_TRB
        if tokens_TB is not None:
            table_RV = x.new_zeros(layer.input.rows, x.shape[2])
            cpu.sum_by_symbol(input_TRB, tokens_TB, table_RV)
            input_TRB = table_RV[None]
        matrix_ih = layer.input.matrix()
        dvalues_ih, dx = torch.zeros_like(values_ih), torch.zeros_like(x)
        cpu.add_sampled_product(matrix_ih, input_TRB, x, dvalues_ih)
        if layer.input.collects_dense_gradient:
            layer.input.add_gradient_source(ProductGradient(input_TRB, x))
        cpu.add_transposed_product(matrix_ih, values_ih, input_TRB, dx)
        return None, None, dx, dvalues_ih, dvalues_hh, input_TRB.sum((0, 2)), dbias_hh, dstate_SHB


class _Linear(torch.autograd.Function):
    """y = W x + b at every moment."""

    @staticmethod
    def forward(ctx: Any, weight: SparseWeight, values: Tensor, bias_R: Tensor, x_TCB: Tensor) -> Tensor:
        y_TRB = bias_R[:, None].expand(len(x_TCB), -1, x_TCB.shape[2]).contiguous()
        cpu.add_product(weight.matrix(), values, x_TCB, y_TRB)
        ctx.weight = weight
        ctx.save_for_backward(values, x_TCB)
        return y_TRB

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        g_TRB = gradients[0].contiguous()
        values, x_TCB = ctx.saved_tensors
        dvalues, dx_TCB = torch.zeros_like(values), torch.zeros_like(x_TCB)
        cpu.add_sampled_product(ctx.weight.matrix(), g_TRB, x_TCB, dvalues)
        cpu.add_transposed_product(ctx.weight.matrix(), values, g_TRB, dx_TCB)
        if ctx.weight.collects_dense_gradient:
            ctx.weight.add_gradient_source(ProductGradient(g_TRB, x_TCB))
        return None, dvalues, g_TRB.sum((0, 2)), dx_TCB


def forward(model: CharLM, tokens_TB: Tensor, state_LSBH: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [T, B, V] and the last state, as `CharLM.forward` does."""
    batch = tokens_TB.shape[1]
    width = cpu.lanes(model.embedding.values.dtype)
    tokens = _padded(tokens_TB, width).int()
    state_LSHB = _padded(state_LSBH.transpose(2, 3), width)
    (embedding_VE,) = materialise([model.embedding])
    symbols: Tensor | None = tokens
    if model.vocab_size <= tokens.numel():
        x = _padded(embedding_VE.T, width)[None]
    else:
        # More symbols than moments: a table would cost more than it saves.
        symbols, x = None, F.embedding(tokens, embedding_VE).transpose(1, 2).contiguous()
    states = []
    for i, layer in enumerate(model.recurrent_layers):
        if i > 0:
            symbols, x = None, _dropout(x, model.config.dropout if model.training else 0.0, batch)
        x, state_SHB = _Recurrence.apply(
            layer, symbols, x, layer.input.values, layer.recurrent.values, layer.bias_ih, layer.bias_hh, state_LSHB[i]
        )
        states.append(state_SHB)
    activation = ACTIVATIONS[model.config.readout_activation]
    for readout in model.readout:
        x = activation(_apply_linear(readout, x))
    output = model.output
    if isinstance(output, TiedOutput):
        logits_TVB = _Linear.apply(model.embedding, model.embedding.values, output.bias, x)
    else:
        logits_TVB = _apply_linear(output, x)
    last_LSBH = torch.stack(states)[..., :batch].transpose(2, 3)
    return logits_TVB[..., :batch].transpose(1, 2), last_LSBH.contiguous()


def _apply_linear(linear: nn.Module, x_TCB: Tensor) -> Tensor:
    assert isinstance(linear, Linear)
    y_TRB: Tensor = _Linear.apply(linear, linear.values, linear.bias, x_TCB)
    return y_TRB


def _dropout(x_THB: Tensor, share: float, batch: int) -> Tensor:
    """Drop the same units as masked execution does, whose activations are [T, B, H]."""
    if share == 0:
        return x_THB
    times, hidden, padded = x_THB.shape
    kept_TBH = F.dropout(x_THB.new_ones(times, batch, hidden), share)
    return x_THB * F.pad(kept_TBH.transpose(1, 2), (0, padded - batch))


class Stepper:
    """A CharLM at one moment that reads one symbol per call, at the cost of its connections."""

    def __init__(self, model: CharLM) -> None:
        self._layers = [_LayerStepper(layer) for layer in model.recurrent_layers]
        (self._embedding_VE,) = materialise([model.embedding])
        self._embedding_VE = self._embedding_VE.detach()
        self._linears = [_FrozenLinear(m, m.bias) for m in (*model.readout, model.output) if isinstance(m, Linear)]
        if isinstance(model.output, TiedOutput):
            self._linears.append(_FrozenLinear(model.embedding, model.output.bias))
        self._activation = ACTIVATIONS[model.config.readout_activation]

    @torch.no_grad()
    def step(self, tokens_B: Tensor, state_LSBH: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B, V] of the next symbol and the new state."""
        columns = [self._step_one(int(token), state_LSBH[:, :, b]) for b, token in enumerate(tokens_B)]
        logits, states = zip(*columns, strict=True)
        return torch.stack(logits), torch.stack(states, dim=2)

    def _step_one(self, token: int, state_LSH: Tensor) -> tuple[Tensor, Tensor]:
        x, states = self._embedding_VE[token], []
        for layer, state_SH in zip(self._layers, state_LSH.to(x.dtype), strict=True):
            states.append(layer.step(x, state_SH))
            x = states[-1][0]
        for linear in self._linears[:-1]:
            x = self._activation(linear(x))
        return self._linears[-1](x), torch.stack(states)


class _FrozenLinear:
    """x [C] -> W x + b [R], with copies of values and bias."""

    def __init__(self, weight: SparseWeight, bias_R: Tensor) -> None:
        self._matrix, self._values = weight.matrix(), weight.values.detach().clone()
        self._bias_R = bias_R.detach().clone()

    def __call__(self, x_C: Tensor) -> Tensor:
        y_R = self._bias_R.clone()
        cpu.add_vector_product(self._matrix, self._values, x_C.contiguous(), y_R)
        return y_R


class _LayerStepper:
    """One recurrent layer, one symbol at a time."""

    def __init__(self, layer: RecurrentLayer) -> None:
        self._input = _FrozenLinear(layer.input, layer.bias_ih)
        self._recurrent = _FrozenLinear(layer.recurrent, layer.bias_hh)
        self._is_lstm = isinstance(layer, LSTM)

    def step(self, x_I: Tensor, state_SH: Tensor) -> Tensor:
        """Return the next state [S, H]."""
        from_input, from_state = self._input(x_I), self._recurrent(state_SH[0])
        if self._is_lstm:
            i, f, g, o = (from_input + from_state).chunk(4)
            c_H = f.sigmoid() * state_SH[1] + i.sigmoid() * g.tanh()
            return torch.stack([o.sigmoid() * c_H.tanh(), c_H])
        hidden = state_SH.shape[1]
        r, z = (from_input + from_state)[: 2 * hidden].sigmoid().chunk(2)
        n = (from_input[2 * hidden :] + r * from_state[2 * hidden :]).tanh()
        return (n + z * (state_SH[0] - n))[None]
