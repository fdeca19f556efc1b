"""Several language models of one shape computed together: every product is one batched product over all of them.

A recurrence is a chain of small products that leave a GPU almost idle; those of many models, one batch, do not. Each
model has connections, biases and text of its own, and its gradients are those that it gets when computed alone in
masked execution. Gradients of the recurrence are written by hand: whatever does not depend on the gradient of a later
step is computed for all steps at once, so that little is left to do step by step.

Shape suffixes: M models, T time, B batch, V vocabulary, E embedding, I input, H hidden, G gates * H, R outputs,
C inputs, L recurrent layers, S state tensors per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rnnsparse.nn.activations import ACTIVATIONS
from rnnsparse.nn.language_model import CharLM
from rnnsparse.nn.layers import Linear, TiedOutput
from rnnsparse.nn.weight import SparseWeight, materialise


def forward(
    models: Sequence[CharLM],
    tokens_MTB: Tensor,
    states: Sequence[Tensor],
    random_numbers: Sequence[AbstractContextManager[object]],
) -> tuple[Tensor, Tensor]:
    """Return logits [M, T, B, V] of each model's next symbols, and the states [M, L, S, B, H] after the last ones.

    Args:
        models: of one shape, in masked execution, computing in the type of their parameters.
        states: of each model, its state [L, S, B, H]. No gradient passes through states.
        random_numbers: of each model, a context in which it draws what its dropout needs.
    """
    first, training = models[0], models[0].training
    if not all(model.execution == "masked" and model.compute_dtype is None for model in models):
        raise ValueError("models in sparse execution or half precision cannot be packed")
    embedding_MVE = _stacked([model.embedding for model in models])
    offsets_M = torch.arange(len(models), device=tokens_MTB.device) * first.vocab_size
    x_MTBI = F.embedding(tokens_MTB + offsets_M[:, None, None], embedding_MVE.flatten(0, 1))
    after = []
    for i, state_MSBH in enumerate(torch.stack(list(states), dim=1)):
        if i > 0 and first.config.dropout and training:
            x_MTBI = _dropout(x_MTBI, first.config.dropout, random_numbers)
        dense = [model.recurrent_layers[i].dense() for model in models]
        w_ih, w_hh, b_ih, b_hh = (torch.stack(same) for same in zip(*dense, strict=True))
        x_MTBI, state_MSBH = CELLS[first.config.cell].apply(_linear(x_MTBI, w_ih, b_ih), w_hh, b_hh, state_MSBH)
        after.append(state_MSBH)
    activation = ACTIVATIONS[first.config.readout_activation]
    for linears in zip(*(model.readout for model in models), strict=True):
        x_MTBI = activation(_linear(x_MTBI, _stacked(linears), _biases(linears)))
    outputs = [model.output for model in models]
    untied = [output for output in outputs if isinstance(output, Linear)]
    weight_MVC = _stacked(untied) if untied else embedding_MVE
    return _linear(x_MTBI, weight_MVC, _biases(outputs)), torch.stack(after, dim=1)


def _stacked(weights: Sequence[SparseWeight]) -> Tensor:
    """Return weights of one shape as dense matrices [M, R, C], with autograd."""
    return torch.stack(materialise(weights))


def _biases(layers: Sequence[Linear | TiedOutput]) -> Tensor:
    return torch.stack([layer.bias for layer in layers])


def _linear(x_MTBC: Tensor, weight_MRC: Tensor, bias_MR: Tensor) -> Tensor:
    """Return x W^T + b [M, T, B, R] of each model."""
    models, times, batch, _ = x_MTBC.shape
    return torch.baddbmm(bias_MR[:, None], x_MTBC.flatten(1, 2), weight_MRC.mT).view(models, times, batch, -1)


def _dropout(x_MTBI: Tensor, share: float, random_numbers: Sequence[AbstractContextManager[object]]) -> Tensor:
    dropped = []
    for x_TBI, own in zip(x_MTBI, random_numbers, strict=True):
        with own:
            dropped.append(F.dropout(x_TBI, share))
    return torch.stack(dropped)


class _LSTM(torch.autograd.Function):
    """(products with the input [M, T, B, G], w_hh, b_hh, state) -> (outputs [M, T, B, H], state); gates i f g o."""

    @staticmethod
    def forward(ctx: Any, x_MTBG: Tensor, w_MGH: Tensor, b_MG: Tensor, state_MSBH: Tensor) -> tuple[Tensor, Tensor]:
        gates = x_MTBG + b_MG[:, None, None]
        h, c = _room_for_states(gates, state_MSBH)
        tanh_c = torch.empty_like(h[:, 1:])
        w_MHG = w_MGH.mT
        for t in range(gates.shape[1]):
            i, f, g, o = gates[:, t].baddbmm_(h[:, t], w_MHG).chunk(4, dim=-1)
            for sigmoidal in (i, f, o):
                sigmoidal.sigmoid_()
            g.tanh_()
            torch.mul(f, c[:, t], out=c[:, t + 1]).addcmul_(i, g)
            torch.tanh(c[:, t + 1], out=tanh_c[:, t])
            torch.mul(o, tanh_c[:, t], out=h[:, t + 1])
        ctx.save_for_backward(w_MGH, gates, h, c, tanh_c)
        return _result(ctx, h, c)

    @staticmethod
    def backward(ctx: Any, dy_MTBH: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        w_MGH, gates, h, c, tanh_c = ctx.saved_tensors
        i, f, g, o = gates.chunk(4, dim=-1)
        # What one unit of gradient of c, or of h for the output gate, is to each gate; then times that gradient.
        d_MTBGH = torch.stack([g * i * (1 - i), c[:, :-1] * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o)], dim=-2)
        h_to_c = o * (1 - tanh_c * tanh_c)
        dh = dy_MTBH.clone()
        dc = torch.zeros_like(h[:, 0])
        for t in reversed(range(gates.shape[1])):
            d_MBGH = d_MTBGH[:, t]
            dc.addcmul_(dh[:, t], h_to_c[:, t])
            d_MBGH[..., :3, :].mul_(dc.unsqueeze(-2))
            d_MBGH[..., 3, :].mul_(dh[:, t])
            dc.mul_(f[:, t])
            if t > 0:
                dh[:, t - 1].baddbmm_(d_MBGH.flatten(-2), w_MGH)
        d_MTBG = d_MTBGH.flatten(-2)
        return d_MTBG, *_parameter_gradients(d_MTBG, h), None


class _GRU(torch.autograd.Function):
    """(products with the input [M, T, B, G], w_hh, b_hh, state) -> (outputs [M, T, B, H], state); gates r z n.

    n = tanh(x_n + r * m), where m is the product with the state, its bias included, as in cuDNN and PyTorch.
    """

    @staticmethod
    def forward(ctx: Any, x_MTBG: Tensor, w_MGH: Tensor, b_MG: Tensor, state_MSBH: Tensor) -> tuple[Tensor, Tensor]:
        hidden = w_MGH.shape[2]
        gates = b_MG[:, None, None].expand_as(x_MTBG).clone()  # r z m
        gates[..., : 2 * hidden] += x_MTBG[..., : 2 * hidden]
        n = x_MTBG[..., 2 * hidden :].clone()
        (h,) = _room_for_states(gates, state_MSBH)
        w_MHG = w_MGH.mT
        for t in range(gates.shape[1]):
            gates_MBG = gates[:, t].baddbmm_(h[:, t], w_MHG)
            gates_MBG[..., : 2 * hidden].sigmoid_()
            r, z, m = gates_MBG.chunk(3, dim=-1)
            n[:, t].addcmul_(r, m).tanh_()
            torch.lerp(n[:, t], h[:, t], z, out=h[:, t + 1])
        ctx.save_for_backward(w_MGH, gates, n, h)
        return _result(ctx, h)

    @staticmethod
    def backward(ctx: Any, dy_MTBH: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        w_MGH, gates, n, h = ctx.saved_tensors
        r, z, m = gates.chunk(3, dim=-1)
        # What one unit of gradient of h is to each of r z m (and to n's argument); then times that gradient.
        h_to_n = (1 - z) * (1 - n * n)
        d_MTBGH = torch.stack([h_to_n * m * r * (1 - r), (h[:, :-1] - n) * z * (1 - z), h_to_n * r], dim=-2)
        dh = dy_MTBH.clone()
        for t in reversed(range(gates.shape[1])):
            d_MBGH = d_MTBGH[:, t].mul_(dh[:, t].unsqueeze(-2))
            if t > 0:
                dh[:, t - 1].addcmul_(dh[:, t], z[:, t]).baddbmm_(d_MBGH.flatten(-2), w_MGH)
        d_MTBG = d_MTBGH.flatten(-2)
        dx_MTBG = torch.cat([d_MTBG[..., : -h.shape[-1]], h_to_n.mul_(dh)], dim=-1)
        return dx_MTBG, *_parameter_gradients(d_MTBG, h), None


CELLS: dict[str, type[_LSTM] | type[_GRU]] = {"lstm": _LSTM, "gru": _GRU}


def _room_for_states(gates_MTBG: Tensor, state_MSBH: Tensor) -> list[Tensor]:
    """Return for each state tensor room for its value at all times [M, T + 1, B, H], the first of which is there."""
    models, times, batch, _ = gates_MTBG.shape
    states = [gates_MTBG.new_empty(models, times + 1, batch, state_MSBH.shape[-1]) for _ in range(state_MSBH.shape[1])]
    for state, first_MBH in zip(states, state_MSBH.unbind(1), strict=True):
        state[:, 0] = first_MBH
    return states


def _result(ctx: Any, *states: Tensor) -> tuple[Tensor, Tensor]:
    """Return all outputs, and the last state, which is a number to autograd."""
    last_MSBH = torch.stack([state[:, -1] for state in states], dim=1)
    ctx.mark_non_differentiable(last_MSBH)
    return states[0][:, 1:], last_MSBH


def _parameter_gradients(d_MTBG: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of w_hh and b_hh: one product over the whole sequence."""
    return torch.bmm(d_MTBG.flatten(1, 2).mT, h[:, :-1].flatten(1, 2)), d_MTBG.sum(dim=(1, 2))
