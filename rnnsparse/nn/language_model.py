"""The character language model: embedding, recurrent layers, readout layers, output.

Shape suffixes: T time, B batch, V vocabulary, E embedding, H hidden, L recurrent layers, S state tensors per layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, Protocol

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, Lt, MaxLen
from torch import Tensor, nn
from typing_extensions import Doc

from rnnsparse.errors import UserError
from rnnsparse.nn.activations import ACTIVATIONS
from rnnsparse.nn.layers import Embedding, Linear, TiedOutput
from rnnsparse.nn.recurrent import CELLS, RecurrentLayer
from rnnsparse.nn.weight import SparseWeight, materialise
from rnnsparse.randomness import generator_for

# A limit far beyond any memory, so that a slip of the finger is an error and not an overflow.
Size = Annotated[int, Gt(0), Le(1 << 20)]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a CharLM."""

    cell: Annotated[Literal["lstm", "gru"], Doc("recurrent cell")] = "gru"
    embedding_dim: Annotated[Size, Doc("numbers per symbol")] = 64
    hidden_size: Annotated[Size, Doc("units per recurrent layer")] = 256
    num_layers: Annotated[int, Gt(0), Le(1000), Doc("recurrent layers")] = 1
    readout_dims: Annotated[
        tuple[Size, ...],
        MaxLen(1000),
        Doc("widths of the layers between the last recurrent one and the output"),
    ] = ()
    readout_activation: Annotated[Literal["identity", "relu", "tanh"], Doc("after each readout layer")] = "relu"
    tie_embeddings: Annotated[bool, Doc("use the embedding as output weight too")] = False
    dropout: Annotated[float, Ge(0), Lt(1), Doc("share of units dropped between recurrent layers")] = 0.0
    execution: Annotated[
        Literal["auto", "masked", "sparse"],
        Doc("masked: fused dense kernels; sparse: only the connections, on CPU; auto: what is likely faster"),
    ] = "auto"

    def __post_init__(self) -> None:
        if self.tie_embeddings and self.output_features != self.embedding_dim:
            last = "readout_dims[-1]" if self.readout_dims else "hidden_size"
            raise UserError(
                f"model.tie_embeddings: the output reuses the embedding, so model.{last} ({self.output_features}) must "
                f"equal model.embedding_dim ({self.embedding_dim}); change one, or set model.tie_embeddings=false"
            )

    @property
    def output_features(self) -> int:
        """Width of what the output layer reads."""
        return self.readout_dims[-1] if self.readout_dims else self.hidden_size


class CharLM(nn.Module):
    """Next-symbol logits for streams of symbols.

    A new model has no connections: choose a topology (`connect` each of `sparse_weights()`), then `reset_parameters`.
    Computes in `compute_dtype`, by default the parameters' own.
    """

    output: Linear | TiedOutput

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.compute_dtype: torch.dtype | None = None
        self.execution: Literal["masked", "sparse"] = "masked"
        cell = CELLS[config.cell]
        self.embedding = Embedding("embedding", vocab_size, config.embedding_dim)
        inputs = [config.embedding_dim] + [config.hidden_size] * (config.num_layers - 1)
        self.rnn = nn.ModuleList(cell(f"rnn.{i}", n, config.hidden_size) for i, n in enumerate(inputs))
        widths = [config.hidden_size, *config.readout_dims]
        self.readout = nn.ModuleList(Linear(f"readout.{i}", a, b) for i, (a, b) in enumerate(pairwise(widths)))
        self.output = TiedOutput(vocab_size) if config.tie_embeddings else Linear("output", widths[-1], vocab_size)

    def sparse_weights(self) -> dict[str, SparseWeight]:
        """Return every weight matrix by name, in order from input to output."""
        return {m.name: m for m in self.modules() if isinstance(m, SparseWeight)}

    @property
    def recurrent_layers(self) -> list[RecurrentLayer]:
        return [layer for layer in self.rnn if isinstance(layer, RecurrentLayer)]

    def reset_parameters(self, seed: int, scale: Literal["neuron", "layer", "dense"] = "neuron") -> None:
        """Draw values for the connections that exist, and biases, by generators that depend on the seed alone.

        Weights are uniform in +-1/sqrt(fan), as in PyTorch's LSTM, GRU and Linear, where fan is hidden_size for
        recurrent layers and the number of inputs for linear ones (for the embedding: embedding_dim). By `scale` it
        counts for as much of it as exists, so that sparse neurons start with the signal of dense ones: "neuron", of
        each row (Evci et al. 2022, section 4); "layer", of the row's block on average. With "dense" all of it counts.
        The numbers drawn are the same for each, up to these factors. Forget gates of an LSTM start open, with a bias
        of one (Jozefowicz et al. 2015).
        """
        for weight in self.sparse_weights().values():
            fan = weight.cols
            if isinstance(weight, Embedding):
                fan = self.config.embedding_dim
            elif weight.name.startswith("rnn."):
                fan = self.config.hidden_size
            # On the CPU: a GPU rounds quotients and roots in another way, and the first values would depend on it.
            row_N = (weight.indices // weight.cols).cpu()
            bound_N = (fan * _density(weight, row_N, scale)[row_N]).rsqrt()
            self._draw(weight.values, weight.name, seed, bound_N)
            if isinstance(weight, Linear):
                self._draw(weight.bias, f"{weight.name}.bias", seed, 1 / math.sqrt(fan))
        if isinstance(self.output, TiedOutput):
            nn.init.zeros_(self.output.bias)
        for i, layer in enumerate(self.recurrent_layers):
            bound = 1 / math.sqrt(layer.hidden_size)
            self._draw(layer.bias_ih, f"rnn.{i}.bias_ih", seed, bound)
            self._draw(layer.bias_hh, f"rnn.{i}.bias_hh", seed, bound)
            if "f" in layer.gates:
                start = layer.gates.index("f") * layer.hidden_size
                layer.bias_ih.data[start : start + layer.hidden_size] = 1
                layer.bias_hh.data[start : start + layer.hidden_size] = 0

    @staticmethod
    def _draw(parameter: nn.Parameter, name: str, seed: int, bound: Tensor | float) -> None:
        """Fill a parameter with uniform numbers in +-bound (one for all, or one each)."""
        unit = torch.rand(parameter.shape, generator=generator_for(seed, "initial", name), dtype=parameter.dtype)
        parameter.data.copy_((2 * unit - 1) * bound)

    def initial_state(self, batch_size: int) -> Tensor:
        """Return the state before the first symbol: zeros [L, S, B, H]."""
        layers = self.recurrent_layers
        shape = (len(layers), layers[0].states, batch_size, self.config.hidden_size)
        return self.embedding.values.new_zeros(shape, dtype=self.compute_dtype, requires_grad=False)

    def forward(self, tokens_TB: Tensor, state_LSBH: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return logits [T, B, V] of each next symbol, and the state after the last one."""
        if state_LSBH is None:
            state_LSBH = self.initial_state(tokens_TB.shape[1])
        if self.execution == "sparse":
            # Imported late: its kernels take a second to load, and not every machine has what they need.
            from rnnsparse.nn import sparse

            return sparse.forward(self, tokens_TB, state_LSBH)
        (embedding_VE,) = materialise([self.embedding], dtype=self.compute_dtype)
        x = F.embedding(tokens_TB, embedding_VE)
        states = []
        for i, layer in enumerate(self.recurrent_layers):
            if i > 0:
                x = F.dropout(x, self.config.dropout, self.training)
            x, state = layer(x, state_LSBH[i].to(x.dtype))
            states.append(state)
        activation = ACTIVATIONS[self.config.readout_activation]
        for readout in self.readout:
            x = activation(readout(x))
        if isinstance(self.output, TiedOutput):
            return self.output(x, embedding_VE), torch.stack(states)
        return self.output(x), torch.stack(states)

    def stepper(self) -> Steps:
        """Return a frozen copy that takes one symbol at a time, for sampling."""
        if self.execution == "sparse":
            from rnnsparse.nn import sparse_stepper

            return sparse_stepper.Stepper(self)
        return Stepper(self)


def _density(weight: SparseWeight, row_N: Tensor, scale: str) -> Tensor:
    """Return for each row [R] what share of its positions counts as existing: its own, its block's, or all."""
    if scale == "dense":
        return torch.ones(weight.rows)
    count_R = row_N.bincount(minlength=weight.rows)
    if scale == "neuron":
        return count_R / weight.cols
    height = weight.rows // len(weight.blocks)
    return (count_R.view(-1, height).sum(1) / (height * weight.cols)).repeat_interleave(height)


class Steps(Protocol):
    """Something that reads one symbol per call."""

    def step(self, tokens_B: Tensor, state_LSBH: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B, V] of the next symbol and the new state."""
        ...


class Stepper:
    """A CharLM at one moment, its weights made dense once in the parameters' precision; reads one symbol per call."""

    def __init__(self, model: CharLM) -> None:
        self._embedding_VE = model.embedding.to_dense()
        with torch.no_grad():
            self._layers = [(layer.step, layer.dense()) for layer in model.recurrent_layers]
        linears = [module for module in (*model.readout, model.output) if isinstance(module, Linear)]
        self._linears = [(linear.to_dense(), linear.bias.detach().clone()) for linear in linears]
        if isinstance(model.output, TiedOutput):
            self._linears.append((self._embedding_VE, model.output.bias.detach().clone()))
        self._activation = ACTIVATIONS[model.config.readout_activation]

    @torch.no_grad()
    def step(self, tokens_B: Tensor, state_LSBH: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B, V] of the next symbol and the new state."""
        x = self._embedding_VE[tokens_B]
        states = []
        for (step, dense), state_SBH in zip(self._layers, state_LSBH.to(x.dtype), strict=True):
            states.append(step(x, state_SBH, dense))
            x = states[-1][0]
        for weight, bias in self._linears[:-1]:
            x = self._activation(F.linear(x, weight, bias))
        return F.linear(x, *self._linears[-1]), torch.stack(states)
