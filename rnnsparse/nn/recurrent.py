"""Recurrent layers over sparse weights: stacks with the arguments, call and return of PyTorch's.

Masked execution scatters the connections into one contiguous buffer and runs the fused dense kernel of the device
(cuDNN, oneDNN); sparse execution computes from the connections alone (`sparse.py`). Shape suffixes: T time, B batch,
I input, H hidden, L layers, S state tensors (LSTM h and c, else h).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnnsparse.cells.cell import CELLS, Cell
from rnnsparse.nn.execution import Execution, refuse_unsupported, require_execution, require_floating, runs_sparse
from rnnsparse.nn.initial import Scale, draw_uniform, draw_values
from rnnsparse.nn.layer_norm import LayerNorm
from rnnsparse.nn.layers import start
from rnnsparse.nn.materialise import materialise
from rnnsparse.nn.weight import SparseWeight

Fused = Callable[[Tensor, Tensor, list[Tensor], bool], tuple[Tensor, Tensor]]
_UNCOMPILED: dict[Fused, Fused] = {}


def _uncompiled(fused: Fused) -> Fused:
    """Keep torch.compile out: of an LSTM's kernel on a CPU it makes what fails, of others a loop over all moments.

    This is here because the decorator loads the compiler, which takes seconds.
    """
    if fused not in _UNCOMPILED:
        _UNCOMPILED[fused] = torch.compiler.disable(fused)
    return _UNCOMPILED[fused]


class RecurrentLayer(nn.Module):
    """One recurrent layer: weights `input` [R, I] and `recurrent` [R, H], each with all gates; R = gates * H.

    Args:
        name: full name in the model, such as "rnn.0".
        layer_norm: whether what it puts out is normalised; its state is not.
    """

    bias_ih: nn.Parameter | None
    bias_hh: nn.Parameter | None

    def __init__(
        self, cell: type[Cell], name: str, input_size: int, hidden_size: int, bias: bool = True, block_rows: int = 1,
        layer_norm: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.cell, self.input_size, self.hidden_size = cell, input_size, hidden_size
        rows = len(cell.gates) * hidden_size

        def weight(part: str, cols: int) -> SparseWeight:
            whole = f"{name}.{part}"
            gates = [f"{whole}.{gate}" for gate in cell.gates]
            return SparseWeight(whole, rows, cols, gates, fan=hidden_size, block_rows=block_rows)

        self.input, self.recurrent = weight("input", input_size), weight("recurrent", hidden_size)
        for which in ("bias_ih", "bias_hh"):
            self.register_parameter(which, nn.Parameter(torch.zeros(rows)) if bias else None)
        self.norm = LayerNorm(hidden_size) if layer_norm else None

    def biases(self) -> tuple[Tensor, Tensor]:
        """Return both biases [R], of zeros if there are none."""
        if self.bias_ih is None or self.bias_hh is None:
            zeros = self.input.values.new_zeros(self.input.rows)
            return zeros, zeros
        return self.bias_ih, self.bias_hh

    def reset_parameters(self, seed: int, scale: Scale = "neuron") -> None:
        """Draw first values and biases, in +-1/sqrt(H), by generators that depend on the seed and the names alone.

        A gate that starts open has biases of one and zero; a normalisation, gains of one and biases of zero.
        """
        for weight in (self.input, self.recurrent):
            draw_values(weight, seed, scale)
        if self.norm is not None:
            self.norm.reset_parameters()
        if self.bias_ih is None or self.bias_hh is None:
            return
        layer, _, _ = self.input.name.rpartition(".")
        bound = 1 / math.sqrt(self.hidden_size)
        draw_uniform(self.bias_ih, f"{layer}.bias_ih", seed, bound)
        draw_uniform(self.bias_hh, f"{layer}.bias_hh", seed, bound)
        if self.cell.open_gate:
            first = self.cell.gates.index(self.cell.open_gate) * self.hidden_size
            self.bias_ih.data[first : first + self.hidden_size] = 1
            self.bias_hh.data[first : first + self.hidden_size] = 0

    def dense(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Return w_ih, w_hh, b_ih, b_hh adjacent in the order of cuDNN."""
        return materialise([self.input, self.recurrent], self.biases(), dtype)

    def forward(self, x_TBI: Tensor, state_SBH: Tensor) -> tuple[Tensor, Tensor]:
        """Return all outputs [T, B, H] and the state [S, B, H] after the last, in masked execution."""
        is_watched = self.input.marginals is not None or self.recurrent.marginals is not None
        if is_watched and torch.is_grad_enabled():
            y_TBH, state_SBH = self._watched(x_TBI, state_SBH)
        else:
            fused = _uncompiled(self.cell.fused) if torch.compiler.is_compiling() else self.cell.fused
            y_TBH, state_SBH = fused(x_TBI, state_SBH, self.dense(x_TBI.dtype), self.training)
        return y_TBH if self.norm is None else self.norm(y_TBH), state_SBH

    def _watched(self, x_TBI: Tensor, state_SBH: Tensor) -> tuple[Tensor, Tensor]:
        """Do the same step by step, so that the backward pass can report the factors of both weights' gradients."""
        w_ih, w_hh, *biases = self.dense(x_TBI.dtype)
        # The gradient of a bias that every moment has for itself is that of the product there.
        biases_TBR = [bias_R.expand(*x_TBI.shape[:2], -1).contiguous() for bias_R in biases]
        h_TBH = []
        for x_BI, *both_BR in zip(x_TBI, *(bias_TBR.unbind() for bias_TBR in biases_TBR), strict=True):
            h_TBH.append(state_SBH[0])
            state_SBH = self.cell.textbook(x_BI, state_SBH, w_ih, w_hh, *both_BR)
        read = torch.stack(h_TBH)
        for weight, bias_TBR, read_TBC in zip((self.input, self.recurrent), biases_TBR, (x_TBI, read), strict=True):
            if bias_TBR.requires_grad:
                bias_TBR.register_hook(partial(weight.report_factors, x=read_TBC, dim=-1))
        return torch.stack([*h_TBH[1:], state_SBH[0]]), state_SBH


class Recurrent(nn.ModuleList):
    """A stack of recurrent layers of one cell, with the arguments, call and return of PyTorch's module of that cell.

    First values are uniform in +-1/sqrt(H), by the connections that a row has; forget gates of an LSTM start open.

    Args:
        dropout: the share of outputs dropped between layers while training.
        sparsity: the share of positions without a connection in every gate, drawn at random; 0 for full matrices. None
            leaves the layers without connections, for whoever connects them.
        block_rows: how many consecutive rows of a gate share the column of a connection: 1, 2, 4, 8 or 16.
        execution: "masked" by the fused dense kernels, "sparse" from the connections alone (CPU, float32 and
            float64), or "auto", which is sparse from a sparsity of the cell's `sparse_wins_from` on.
        layer_norm: whether the outputs of each layer are normalised over its units, with a learned gain and bias
            (Ba et al. 2016); states are not.
        skip_connections: whether each layer above the first also reads the input, behind the outputs of the layer
            below, and the outputs are those of all layers in a row, [T, B, num_layers * H] (Graves 2013).

    Raises:
        ValueError: bidirectional, proj_size or another nonlinearity is asked for; the sparsity is not in [0, 1); or
            blocks do not divide the rows of a gate.
    """

    cell: ClassVar[type[Cell]]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        *,
        sparsity: float | None = 0.0,
        block_rows: int = 1,
        execution: Execution = "auto",
        layer_norm: bool = False,
        skip_connections: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **unsupported: Any,
    ) -> None:
        called = type(self).__name__
        refuse_unsupported(called, unsupported, {"bidirectional": False, "proj_size": 0, "nonlinearity": "tanh"})
        if min(input_size, hidden_size, num_layers) < 1 or not 0 <= dropout <= 1:
            raise ValueError(
                f"{called}: input_size={input_size}, hidden_size={hidden_size}, num_layers={num_layers}, "
                f"dropout={dropout}: sizes must be at least 1, and dropout from 0 to 1"
            )
        above = hidden_size + (input_size if skip_connections else 0)
        widths = [input_size] + [above] * (num_layers - 1)
        super().__init__(
            RecurrentLayer(self.cell, f"rnn.{i}", n, hidden_size, bias, block_rows, layer_norm)
            for i, n in enumerate(widths)
        )
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, dropout
        self.execution, self.skip_connections = require_execution(execution), skip_connections
        start(self, sparsity, device, dtype)

    @property
    def skips(self) -> bool:
        """Whether there are layers that skip connections reach."""
        return self.skip_connections and len(self) > 1

    @property
    def layers(self) -> list[RecurrentLayer]:
        """The layers from the first to the last."""
        return [layer for layer in self if isinstance(layer, RecurrentLayer)]

    def weights(self) -> Iterator[SparseWeight]:
        """Yield the weights of all layers."""
        for layer in self.layers:
            yield from (layer.input, layer.recurrent)

    def reset_parameters(self, seed: int, scale: Scale = "neuron") -> None:
        """Draw first values and biases, by generators that depend on the seed and the names alone."""
        for layer in self.layers:
            layer.reset_parameters(seed, scale)

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """Return all outputs of the last layer (with skip connections, of all) and the last states of all.

        Args:
            input: [T, B, I], with batch_first [B, T, I], or [T, I] for one sequence.
            hx: h, and for an LSTM (h, c), each [L, B, H], or [L, H] for one sequence; zeros by default.

        Raises:
            ValueError: shapes that do not fit, or a PackedSequence.
        """
        x, state = input, hx
        if not isinstance(x, Tensor):
            raise ValueError(f"{type(self).__name__}: takes a tensor, not a {type(x).__name__}; pad sequences instead")
        if x.dim() not in (2, 3) or x.shape[-1] != self.input_size:
            raise ValueError(
                f"{type(self).__name__}: input of shape {list(x.shape)}: must be [T, B, {self.input_size}], with "
                f"batch_first [B, T, {self.input_size}], or [T, {self.input_size}]"
            )
        require_floating(type(self).__name__, x)
        alone = x.dim() == 2
        x_TBI = x.unsqueeze(1) if alone else x.transpose(0, 1) if self.batch_first else x
        y_TBH, state_LSBH = self.run(x_TBI, self._joined(state, x_TBI, alone))
        states = [each.squeeze(1) if alone else each for each in state_LSBH.unbind(1)]
        y = y_TBH.squeeze(1) if alone else y_TBH.transpose(0, 1) if self.batch_first else y_TBH
        return y, tuple(states) if len(states) > 1 else states[0]

    def _joined(self, state: Any, x_TBI: Tensor, alone: bool) -> Tensor:
        """Return a state as one tensor [L, S, B, H]."""
        shape = (self.num_layers, x_TBI.shape[1], self.hidden_size)
        if state is None:
            return x_TBI.new_zeros(shape[0], self.cell.states, *shape[1:])
        states = list(state) if self.cell.states > 1 and isinstance(state, tuple | list) else [state]
        if len(states) != self.cell.states or not all(isinstance(each, Tensor) for each in states):
            raise ValueError(f"{type(self).__name__}: the state must be {self.cell.states} tensor(s)")
        if alone:
            states = [each.unsqueeze(1) for each in states]
        if any(tuple(each.shape) != shape for each in states):
            raise ValueError(
                f"{type(self).__name__}: a state of shape {list(states[0].shape)} does not fit {list(shape)}"
            )
        return torch.stack(states, dim=1)

    def run(self, x_TBI: Tensor, state_LSBH: Tensor) -> tuple[Tensor, Tensor]:
        """Return all outputs [T, B, H] of the last layer, or [T, B, L * H] of all, and the last states [L, S, B, H]."""
        if runs_sparse(self.execution, list(self.weights()), x_TBI, self.cell.sparse_wins_from):
            # Imported late: its kernels take a second to load.
            from rnnsparse.nn import sparse

            dropout = self.dropout if self.training else 0.0
            return sparse.recurrent(self.layers, x_TBI, state_LSBH.to(x_TBI.dtype), dropout, self.skips)
        y, outputs, states = x_TBI, [], []
        for i, layer in enumerate(self.layers):
            if i > 0:
                y = F.dropout(y, self.dropout, self.training)
                if self.skips:
                    y = torch.cat([y, x_TBI], -1)
            y, state_SBH = layer(y, state_LSBH[i].to(y.dtype))
            outputs.append(y)
            states.append(state_SBH)
        return torch.cat(outputs, -1) if self.skips else y, torch.stack(states)

    def flatten_parameters(self) -> None:
        """Do nothing: weights are put where cuDNN wants them at every call. Models call it on PyTorch's modules."""

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"


class LSTM(Recurrent):
    """Sparse `torch.nn.LSTM`."""

    cell = CELLS["lstm"]


class GRU(Recurrent):
    """Sparse `torch.nn.GRU`."""

    cell = CELLS["gru"]


STACKS: dict[str, type[Recurrent]] = {"lstm": LSTM, "gru": GRU}
for _name, _cell in CELLS.items():
    if _name not in STACKS:
        _about = f"Sparse `torch.nn.{_cell.module.__name__}`."
        STACKS[_name] = type(
            _cell.module.__name__, (Recurrent,), {"cell": _cell, "__doc__": _about, "__module__": __name__}
        )
        globals()[_cell.module.__name__] = STACKS[_name]  # where pickle looks for it
