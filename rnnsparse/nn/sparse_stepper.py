"""Sparse execution one symbol at a time, for sampling: vectors in the place of batches, at the cost of the connections.

Shape suffixes as in `sparse.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rnnsparse.kernels.sliced import VectorProduct
from rnnsparse.nn.materialise import materialise
from rnnsparse.nn.sparse import Layer, Tiles, input_table
from rnnsparse.nn.weight import SparseWeight

LARGEST_TABLE = 1 << 22  # numbers in a table of the first layer's inputs by symbol


class SparseStepper:
    """A language model at one moment that reads one symbol per call, at the cost of its connections.

    Args:
        linears: the weights and biases after the recurrent layers, in order; `activation` stands between them.
        skips: whether every layer reads the embedding, and the first of `linears` all of them.
    """

    def __init__(
        self,
        embedding: SparseWeight,
        layers: Sequence[Layer],
        linears: Sequence[tuple[SparseWeight, Tensor]],
        activation: Callable[[Tensor], Tensor],
        skips: bool = False,
    ) -> None:
        self._embedding_VE, self._skips = materialise([embedding])[0].detach(), skips
        first, *others = layers
        self._layers = [_LayerStepper(first, self._embedding_VE), *map(_LayerStepper, others)]
        self._linears = [_FrozenLinear(weight, bias_R) for weight, bias_R in linears]
        self._activation = activation

    @torch.no_grad()
    def step(self, tokens_B: Tensor, state_LSBH: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B, V] of the next symbol and the new state."""
        columns = [self._step_one(token, state_LSBH[:, :, b]) for b, token in enumerate(tokens_B.tolist())]
        logits, states = zip(*columns, strict=True)
        return torch.stack(logits), torch.stack(states, dim=2)

    def _step_one(self, token: int, state_LSH: Tensor) -> tuple[Tensor, Tensor]:
        x: Tensor | int = token
        outputs: list[Tensor] = []
        states = []
        for layer, state_SH in zip(self._layers, state_LSH.to(self._embedding_VE.dtype), strict=True):
            if outputs:
                x = torch.cat([outputs[-1], self._embedding_VE[token]]) if self._skips else outputs[-1]
            states.append(layer.step(x, state_SH.contiguous()))
            outputs.append(layer.handed_on(states[-1][0]))
        x = torch.cat(outputs) if self._skips else outputs[-1]
        for linear in self._linears[:-1]:
            x = self._activation(linear(x))
        return self._linears[-1](x), torch.stack(states)


class _FrozenLinear:
    """x [C] -> W x + b [R], with copies of values and bias."""

    def __init__(self, weight: SparseWeight, bias_R: Tensor) -> None:
        self._product = VectorProduct(weight.matrix(), weight.values.detach())
        self._bias_R = bias_R.detach().clone()

    def __call__(self, x_C: Tensor) -> Tensor:
        return self.add(x_C, self._bias_R.clone())

    def add(self, x_C: Tensor, y_R: Tensor) -> Tensor:
        """Return y, to which W x has been added."""
        self._product.add(x_C.contiguous(), y_R)
        return y_R


class _LayerStepper:
    """One recurrent layer, one symbol at a time; the first one, which has the embedding, reads the symbol itself."""

    def __init__(self, layer: Layer, embedding_VE: Tensor | None = None) -> None:
        self._cell = layer.cell
        bias_ih, bias_hh = layer.biases()
        bias_R = layer.cell.step_bias(bias_ih, bias_hh).detach()
        self._recurrent = _FrozenLinear(layer.recurrent, bias_hh)
        self._norm = copy.deepcopy(layer.norm)
        self._embedding_VE = embedding_VE
        self._table_VR: Tensor | None = None
        self._input: _FrozenLinear | None = None
        if embedding_VE is not None and len(embedding_VE) * len(bias_R) <= LARGEST_TABLE:
            x_QEB = Tiles(len(embedding_VE), embedding_VE.dtype).cut(embedding_VE.T)
            self._table_VR = input_table(layer.input, layer.input.values.detach(), bias_R, x_QEB)
        else:
            self._input = _FrozenLinear(layer.input, bias_R)

    def step(self, x: Tensor | int, state_SH: Tensor) -> Tensor:
        """Return the next state [S, H] for an input [I], or a symbol."""
        if self._input is None:
            assert self._table_VR is not None
            from_input_R = self._table_VR[x].clone()
        elif isinstance(x, Tensor):
            from_input_R = self._input(x)
        else:
            assert self._embedding_VE is not None, "only the first layer reads symbols"
            from_input_R = self._input(self._embedding_VE[x])
        return self._cell.step(from_input_R, self._recurrent, state_SH)

    def handed_on(self, y_H: Tensor) -> Tensor:
        """Return what goes up of an output [H]: the same, or normalised."""
        return y_H if self._norm is None else self._norm(y_H)
