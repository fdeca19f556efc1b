"""Several language models of one shape computed together: every product is one batched product over all of them.

A recurrence is a chain of small products that leave a GPU almost idle; those of many models, one batch, do not. Each
model has connections, biases and text of its own, and its gradients are those that it gets when computed alone in
masked execution. Each cell has its packed recurrence, with gradients written by hand: whatever does not depend on the
gradient of a later step is computed for all steps at once, so that little is left to do step by step.

Shape suffixes: M models, T time, B batch, V vocabulary, E embedding, I input, H hidden, G gates * H, R outputs,
C inputs, L recurrent layers, S state tensors per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor

from rnnsparse.cells.cell import CELLS
from rnnsparse.nn.activations import ACTIVATIONS
from rnnsparse.nn.language_model import CharLM
from rnnsparse.nn.layers import Linear, TiedOutput
from rnnsparse.nn.materialise import materialise
from rnnsparse.nn.weight import SparseWeight


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
    recurrence = CELLS[first.config.cell].packed
    if recurrence is None:
        raise ValueError(f"models of cell {first.config.cell} cannot be packed")
    embedding_MVE = _stacked([model.embedding for model in models])
    offsets_M = torch.arange(len(models), device=tokens_MTB.device) * first.vocab_size
    x_MTBI = F.embedding(tokens_MTB + offsets_M[:, None, None], embedding_MVE.flatten(0, 1))
    after = []
    for i, state_MSBH in enumerate(torch.stack(list(states), dim=1)):
        if i > 0 and first.config.dropout and training:
            x_MTBI = _dropout(x_MTBI, first.config.dropout, random_numbers)
        dense = [model.recurrent_layers[i].dense() for model in models]
        w_ih, w_hh, b_ih, b_hh = (torch.stack(same) for same in zip(*dense, strict=True))
        x_MTBI, state_MSBH = recurrence.apply(_linear(x_MTBI, w_ih, b_ih), w_hh, b_hh, state_MSBH)
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
    return torch.stack([layer.bias_or_zeros() if isinstance(layer, Linear) else layer.bias for layer in layers])


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
