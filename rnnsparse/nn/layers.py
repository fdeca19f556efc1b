"""Embedding and linear maps over sparse weights. Shape suffixes: V vocabulary, E embedding, R outputs, C inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnnsparse.nn.weight import SparseWeight, materialise


class Embedding(SparseWeight):
    """One vector of E numbers for each of V symbols."""

    def __init__(self, name: str, vocab_size: int, dim: int) -> None:
        super().__init__(name, vocab_size, dim)


class Linear(SparseWeight):
    """x [..., C] -> x W^T + b [..., R]; the bias [R] is dense."""

    def __init__(self, name: str, in_features: int, out_features: int) -> None:
        super().__init__(name, out_features, in_features)
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        weight_RC, bias_R = materialise([self], [self.bias], x.dtype)
        return F.linear(x, weight_RC, bias_R)


class TiedOutput(nn.Module):
    """Logits through the embedding's own weight; only the bias [V] is its own (Press & Wolf 2017)."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, x: Tensor, embedding_VE: Tensor) -> Tensor:
        return F.linear(x, embedding_VE, self.bias.to(x.dtype))
