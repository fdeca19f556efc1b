"""Embedding and linear maps over sparse weights. Shape suffixes: V vocabulary, E embedding, R outputs, C inputs."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnnsparse.nn.execution import Execution, refuse_unsupported, require_execution, require_floating, runs_sparse
from rnnsparse.nn.initial import Scale, draw_connections, draw_uniform, draw_values
from rnnsparse.nn.materialise import materialise
from rnnsparse.nn.weight import SparseWeight


class Embedding(SparseWeight):
    """One vector of E numbers for each of V tokens, as `torch.nn.Embedding`, over connections.

    First values are uniform in +-1/sqrt(E). The look-up makes the table [V, E] dense, which is small beside what
    follows it.

    Args:
        sparsity: the share of positions without a connection, drawn at random; 0 for a full table. None leaves it
            without connections, for whoever connects it.

    Raises:
        ValueError: padding_idx, max_norm, scale_grad_by_freq or sparse is asked for; or the sparsity is not in [0, 1).
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        sparsity: float | None = 0.0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **unsupported: Any,
    ) -> None:
        defaults = {"padding_idx": None, "max_norm": None, "norm_type": 2.0, "scale_grad_by_freq": False}
        refuse_unsupported("Embedding", unsupported, defaults | {"sparse": False})
        super().__init__("embedding", num_embeddings, embedding_dim)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        start(self, sparsity, device, dtype)

    def reset_parameters(self, seed: int, scale: Scale = "neuron") -> None:
        """Draw first values, by a generator that depends on the seed and the layer's name alone."""
        draw_values(self, seed, scale)

    def forward(self, input: Tensor) -> Tensor:
        """Return vectors [..., E] for tokens [...]."""
        return F.embedding(input, materialise([self])[0])


class Linear(SparseWeight):
    """x [..., C] -> x W^T + b [..., R], as `torch.nn.Linear`, over connections; the bias [R] is dense.

    First values and biases are uniform in +-1/sqrt(C), the values by the connections that a row has (`draw_values`).

    Args:
        sparsity: the share of positions without a connection, drawn at random; 0 for a full matrix. None leaves it
            without connections, for whoever connects it.
        block_rows: how many consecutive rows share the column of a connection: 1, 2, 4, 8 or 16.
        execution: "masked" by dense kernels, "sparse" from the connections alone (CPU, float32 and float64), or
            "auto", which is sparse from a sparsity of `sparse_wins_from` on.

    Raises:
        ValueError: the sparsity is not in [0, 1), blocks do not fit, or there is no such execution.
    """

    # Forward and backward on one core, 512 and 1,024 units: 1.5 to 2.1 times as fast at 0.9, 0.9 to 1.7 at 0.8.
    sparse_wins_from = 0.9

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        sparsity: float | None = 0.0,
        block_rows: int = 1,
        execution: Execution = "auto",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__("linear", out_features, in_features, block_rows=block_rows)
        self.in_features, self.out_features = in_features, out_features
        self.execution = require_execution(execution)
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        start(self, sparsity, device, dtype)

    def reset_parameters(self, seed: int, scale: Scale = "neuron") -> None:
        """Draw first values, by generators that depend on the seed and the layer's name alone."""
        draw_values(self, seed, scale)
        if self.bias is not None:
            draw_uniform(self.bias, f"{self.name}.bias", seed, 1 / math.sqrt(self.fan))

    def bias_or_zeros(self) -> Tensor:
        """Return the bias [R], of zeros if there is none."""
        return self.values.new_zeros(self.rows) if self.bias is None else self.bias

    def forward(self, input: Tensor) -> Tensor:
        x = input
        require_floating("Linear", x)
        if runs_sparse(self.execution, [self], x, self.sparse_wins_from):
            # Imported late: its kernels take a second to load.
            from rnnsparse.nn import sparse

            return sparse.linear(self, self.bias_or_zeros(), x)
        weight_RC, *bias = materialise([self], [] if self.bias is None else [self.bias], x.dtype)
        y = F.linear(x, weight_RC, *bias)
        if self.marginals is not None and y.requires_grad:
            y.register_hook(lambda g: self.report_factors(g, x, dim=-1))
        return y


class TiedOutput(nn.Module):
    """Logits through the embedding's own weight; only the bias [V] is its own (Press & Wolf 2017)."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def reset_parameters(self, seed: int, scale: Scale = "neuron") -> None:
        """Set the bias to zero; nothing is drawn."""
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, embedding_VE: Tensor) -> Tensor:
        return F.linear(x, embedding_VE, self.bias.to(x.dtype))


def start(
    layer: Any, sparsity: float | None, device: torch.device | str | int | None, dtype: torch.dtype | None
) -> None:
    """Move a new layer to where it shall be, and give it connections and first values by PyTorch's random numbers.

    Without a sparsity it is left as it is, and no random number is drawn.
    """
    layer.to(
        device=torch.get_default_device() if device is None else device,
        dtype=torch.get_default_dtype() if dtype is None else dtype,
    )
    if sparsity is None:
        return
    seed = int(torch.randint(1 << 62, (), device="cpu"))
    for weight in layer.modules():
        if isinstance(weight, SparseWeight):
            draw_connections(weight, sparsity, seed)
    layer.reset_parameters(seed)
