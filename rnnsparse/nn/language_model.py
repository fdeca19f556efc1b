"""The character language model: embedding, recurrent layers, readout layers, output.

Shape suffixes: T time, B batch, V vocabulary, E embedding, H hidden, L recurrent layers, S state tensors per layer.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnnsparse.nn.activations import ACTIVATIONS
from rnnsparse.nn.initial import Scale
from rnnsparse.nn.layers import Embedding, Linear, TiedOutput
from rnnsparse.nn.materialise import materialise
from rnnsparse.nn.recurrent import STACKS, RecurrentLayer
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.settings.model import ModelConfig


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
        self.embedding = Embedding(vocab_size, config.embedding_dim, sparsity=None)
        self.rnn = STACKS[config.cell](
            config.embedding_dim, config.hidden_size, config.num_layers, dropout=config.dropout, sparsity=None,
            execution="masked", layer_norm=config.layer_norm, skip_connections=config.skip_connections,
        )  # fmt: skip
        widths = [config.recurrent_features, *config.readout_dims]

        def linear(inputs: int, outputs: int) -> Linear:
            return Linear(inputs, outputs, sparsity=None, execution="masked")

        self.readout = nn.ModuleList(linear(a, b) for a, b in pairwise(widths))
        self.output = TiedOutput(vocab_size) if config.tie_embeddings else linear(widths[-1], vocab_size)
        name_weights(self)

    def sparse_weights(self) -> dict[str, SparseWeight]:
        """Return every weight matrix by name, in order from input to output."""
        return {m.name: m for m in self.modules() if isinstance(m, SparseWeight)}

    @property
    def recurrent_layers(self) -> list[RecurrentLayer]:
        return self.rnn.layers

    def linears(self) -> list[tuple[SparseWeight, Tensor]]:
        """Return the weight and the bias of each product after the recurrent layers, in order."""
        found: list[tuple[SparseWeight, Tensor]] = [
            (m, m.bias_or_zeros()) for m in (*self.readout, self.output) if isinstance(m, Linear)
        ]
        return [*found, (self.embedding, self.output.bias)] if isinstance(self.output, TiedOutput) else found

    def reset_parameters(self, seed: int, scale: Scale = "neuron") -> None:
        """Draw first values for the connections that exist, and biases, by generators that depend on the seed alone.

        Each layer says how, in a method of the same name.
        """
        for part in (self.embedding, self.rnn, *self.readout, self.output):
            part.reset_parameters(seed, scale)

    def initial_state(self, batch_size: int) -> Tensor:
        """Return the state before the first symbol: zeros [L, S, B, H]."""
        shape = (self.config.num_layers, self.rnn.cell.states, batch_size, self.config.hidden_size)
        return self.embedding.values.new_zeros(shape, dtype=self.compute_dtype, requires_grad=False)

    def forward(self, tokens_TB: Tensor, state_LSBH: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return logits [T, B, V] of each next symbol, and the state after the last one."""
        if state_LSBH is None:
            state_LSBH = self.initial_state(tokens_TB.shape[1])
        if self.execution == "sparse":
            return self._forward_sparse(tokens_TB, state_LSBH)
        (embedding_VE,) = materialise([self.embedding], dtype=self.compute_dtype)
        x, state_LSBH = self.rnn.run(F.embedding(tokens_TB, embedding_VE), state_LSBH)
        if (kept_1BH := self._kept(x, tokens_TB.shape[1])) is not None:
            x = x * kept_1BH
        activation = ACTIVATIONS[self.config.readout_activation]
        for readout in self.readout:
            x = activation(readout(x))
        if isinstance(self.output, TiedOutput):
            return self.output(x, embedding_VE), state_LSBH
        return self.output(x), state_LSBH

    def _forward_sparse(self, tokens_TB: Tensor, state_LSBH: Tensor) -> tuple[Tensor, Tensor]:
        """Do what `forward` does, batch-innermost from the first layer to the logits."""
        # Imported late: its kernels take a second to load.
        from rnnsparse.nn import sparse

        times, batch = tokens_TB.shape
        if state_LSBH.shape[2] != batch:
            raise ValueError(f"a state for {state_LSBH.shape[2]} lanes does not fit {batch} lanes of symbols")
        # Compiled look-ups do not check, and would read and write elsewhere.
        if tokens_TB.numel() and not 0 <= int(tokens_TB.min()) <= int(tokens_TB.max()) < self.vocab_size:
            raise IndexError(f"symbols must lie in 0 to {self.vocab_size - 1}")
        tiles = sparse.Tiles(batch, self.embedding.values.dtype)
        tokens_MB = tiles.cut(tokens_TB).flatten(0, 1).int()
        (embedding_VE,) = materialise([self.embedding])

        def embedded() -> Tensor:
            return F.embedding(tokens_MB, embedding_VE).transpose(1, 2).contiguous()

        symbols: Tensor | None = tokens_MB
        skipped_MEB = embedded() if self.rnn.skips else None
        if self.vocab_size <= tokens_MB.numel():
            x = sparse.Tiles(self.vocab_size, embedding_VE.dtype).cut(embedding_VE.T)
        else:
            # More symbols than moments: a table would cost more than it saves.
            symbols, x = None, embedded() if skipped_MEB is None else skipped_MEB
        dropout = self.config.dropout if self.training else 0.0
        x, state_LSBH, later = sparse.run_layers(
            self.recurrent_layers, symbols, x, state_LSBH, dropout, tiles, skipped_MEB
        )
        if (kept_1BH := self._kept(x, tokens_TB.shape[1])) is not None:
            x_KTHB = x.unflatten(0, (-1, times)) * tiles.cut(kept_1BH.transpose(1, 2))
            x, later = x_KTHB.flatten(0, 1), None
        (weight, bias_R), *others = self.linears()
        logits_MVB = sparse.product(weight, bias_R, x, later)
        activation = ACTIVATIONS[self.config.readout_activation]
        for weight, bias_R in others:
            logits_MVB = sparse.product(weight, bias_R, activation(logits_MVB))
        logits_TVB = tiles.join(logits_MVB.unflatten(0, (-1, times)))
        return logits_TVB.transpose(1, 2), state_LSBH

    def _kept(self, x: Tensor, batch: int) -> Tensor | None:
        """Return what drops units from what the recurrent layers hand on [1, B, H]; None where it is all kept.

        The same units at all moments: "variational" dropout (Gal and Ghahramani 2016, section 4).
        """
        share = self.config.output_dropout if self.training else 0.0
        if share == 0:
            return None
        return F.dropout(x.new_ones(1, batch, self.config.recurrent_features), share)

    def stepper(self) -> Steps:
        """Return a frozen copy that takes one symbol at a time, for sampling."""
        if self.execution == "sparse":
            from rnnsparse.nn import sparse_stepper

            activation = ACTIVATIONS[self.config.readout_activation]
            return sparse_stepper.SparseStepper(
                self.embedding, self.recurrent_layers, self.linears(), activation, self.rnn.skips
            )
        return Stepper(self)


def name_weights(model: nn.Module, prefix: str = "") -> dict[str, SparseWeight]:
    """Name every sparse weight of a model by where it is in it; return them by name, in order."""
    named = {prefix + path: m for path, m in model.named_modules() if isinstance(m, SparseWeight)}
    for name, weight in named.items():
        weight.rename(name)
    return named


class Steps(Protocol):
    """Something that reads one symbol per call."""

    def step(self, tokens_B: Tensor, state_LSBH: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B, V] of the next symbol and the new state."""
        ...


class Stepper:
    """A CharLM at one moment, its weights made dense once in the parameters' precision; reads one symbol per call."""

    def __init__(self, model: CharLM) -> None:
        self._embedding_VE, self._skips = model.embedding.to_dense(), model.rnn.skips
        with torch.no_grad():
            self._layers = [
                (layer.cell.fused_step, layer.dense(), copy.deepcopy(layer.norm)) for layer in model.recurrent_layers
            ]
        self._linears = [(weight.to_dense(), bias_R.detach().clone()) for weight, bias_R in model.linears()]
        self._activation = ACTIVATIONS[model.config.readout_activation]

    @torch.no_grad()
    def step(self, tokens_B: Tensor, state_LSBH: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B, V] of the next symbol and the new state."""
        x = embedded_BE = self._embedding_VE[tokens_B]
        outputs: list[Tensor] = []
        states = []
        for (step, dense, norm), state_SBH in zip(self._layers, state_LSBH.to(x.dtype), strict=True):
            if outputs and self._skips:
                x = torch.cat([x, embedded_BE], -1)
            states.append(step(x, state_SBH, dense))
            x = states[-1][0] if norm is None else norm(states[-1][0])
            outputs.append(x)
        if self._skips:
            x = torch.cat(outputs, -1)
        for weight, bias in self._linears[:-1]:
            x = self._activation(F.linear(x, weight, bias))
        return F.linear(x, *self._linears[-1]), torch.stack(states)
