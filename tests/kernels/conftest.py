"""The kernels, and weights to try them on."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rnnsparse.kernels import gru, lstm, matrix, products, recurrence, rnn, sliced


@pytest.fixture(scope="session")
def kernels() -> Any:
    others = {"gru": gru, "lstm": lstm, "rnn": rnn, "LayerInput": recurrence.LayerInput}
    return SimpleNamespace(**vars(matrix) | vars(products) | others, VectorProduct=sliced.VectorProduct)


class Weight:
    """Random connections, as kernels want them and as a dense matrix; `rows` are those of blocks."""

    def __init__(
        self, kernels: Any, rows: int, cols: int, count: int, dtype: torch.dtype, seed: int, block_rows: int = 1
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(rows * cols, (count,), generator=self.generator).unique()
        if 4 * count > rows * cols:
            drawn = torch.randperm(rows * cols, generator=self.generator)[:count].sort().values
        self.rows, self.cols, self.indices, self.dtype, self.block_rows = rows, cols, drawn, dtype, block_rows
        self.values = self.normal(drawn.numel(), *[block_rows] * (block_rows > 1))
        self.matrix = kernels.build_matrix(drawn, rows, cols, block_rows)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=self.dtype, generator=self.generator)

    def dense(self) -> Tensor:
        dense = torch.zeros(self.rows * self.cols, self.block_rows, dtype=self.dtype)
        dense[self.indices] = self.values.view(-1, self.block_rows)
        return dense.view(self.rows, self.cols, -1).transpose(1, 2).reshape(-1, self.cols)

    def at_connections(self, dense_RC: Tensor) -> Tensor:
        """Return what a dense matrix has where this one has values."""
        blocks = dense_RC.view(self.rows, self.block_rows, self.cols).transpose(1, 2).reshape(-1, self.block_rows)
        return blocks[self.indices].view(self.values.shape)


@pytest.fixture(scope="session")
def make_weight() -> Callable[..., Weight]:
    return Weight


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Return the environment of a Python process that finds this package and computes with one thread."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
