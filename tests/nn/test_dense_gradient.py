"""A dense gradient made strip by strip from its factors grows the same connections as one that is a matrix.

Shape suffixes: M moments, R rows, C columns, B batch.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rnnsparse.nn.gradients import STRIP_ROWS, DenseGradient, MatrixGradient
from rnnsparse.nn.sparse import ProductGradient
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.sparsity.allocation import Budget
from rnnsparse.sparsity.group import make_groups
from rnnsparse.sparsity.method import StepContext
from rnnsparse.sparsity.methods.rigl import RigL
from rnnsparse.sparsity.selection import best_absent

F64 = torch.float64


def factors(rows: int, cols: int, times: int = 3, batch: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(times, rows, batch, dtype=F64, generator=generator)
    return g, torch.randn(times, cols, batch, dtype=F64, generator=generator)


def product(g_MRB: Tensor, x_MCB: Tensor) -> Tensor:
    return torch.einsum("mrb,mcb->rc", g_MRB, x_MCB)


@given(
    rows=st.integers(1, 9),
    cols=st.integers(1, 9),
    times=st.integers(1, 4),
    batch=st.integers(1, 9),
    data=st.data(),
)
def test_rows_are_those_of_the_product_over_all_moments(
    rows: int, cols: int, times: int, batch: int, data: st.DataObject
) -> None:
    g, x = factors(rows, cols, times, batch)
    source = ProductGradient(g, x)
    for _ in range(2):
        start = data.draw(st.integers(0, rows - 1))
        stop = data.draw(st.integers(start + 1, rows))
        torch.testing.assert_close(source.rows(start, stop), product(g, x)[start:stop], rtol=1e-12, atol=1e-12)


def test_moments_may_be_a_part_of_a_larger_tensor() -> None:
    g, x = factors(8, 5, times=4)
    source = ProductGradient(g[1:, 2:7], x[:-1])
    torch.testing.assert_close(source.rows(0, 5), product(g[1:, 2:7], x[:-1]), rtol=1e-12, atol=1e-12)


def test_sources_of_both_kinds_add_up_and_are_scaled() -> None:
    pairs = [factors(7, 5, seed=seed) for seed in range(3)]
    matrix = torch.randn(7, 5, dtype=F64, generator=torch.Generator().manual_seed(9))
    first, *rest = (ProductGradient(*pair) for pair in pairs)
    gradient = DenseGradient(first, MatrixGradient(matrix), *rest)
    gradient.scale = 0.25
    expected = (sum(product(*pair) for pair in pairs) + matrix) / 4
    torch.testing.assert_close(gradient.rows(2, 6), expected[2:6], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [40, STRIP_ROWS, 3 * STRIP_ROWS + 12])
@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize("granularity", ["gate", "matrix"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_growth_picks_the_set_that_a_materialised_gradient_picks(
    rows: int, blocks: int, granularity: str, share: float
) -> None:
    cols = 30
    (g, x), generator = factors(rows, cols, seed=rows), torch.Generator().manual_seed(1)
    chosen: dict[str, list[Tensor]] = {}
    for kind in ("product", "matrix"):
        weight = SparseWeight("w", rows, cols, [f"w.{i}" for i in range(blocks)] if blocks > 1 else ()).double()
        indices = torch.randperm(rows * cols, generator=generator.manual_seed(1))[: rows * cols // 10].sort().values
        weight.connect(indices, torch.randn(indices.shape, dtype=F64, generator=generator))
        weight.dense_gradient = DenseGradient()
        weight.report(ProductGradient(g, x) if kind == "product" else MatrixGradient(product(g, x)))
        budgets = [Budget(group, group.connections) for group in make_groups([weight], granularity)]
        method = RigL(interval=1, drop_fraction=share, schedule="constant", stop=1.0)
        chosen[kind] = method.update(budgets, StepContext(1, 10, 0))
        assert all(found.numel() for found in chosen[kind])
    assert all(torch.equal(a, b) for a, b in zip(chosen["product"], chosen["matrix"], strict=True))


@given(data=st.data(), count=st.integers(0, 40))
def test_growth_picks_the_largest_of_the_absent_positions(data: st.DataObject, count: int) -> None:
    rows, cols = data.draw(st.integers(1, 2 * STRIP_ROWS + 3)), data.draw(st.integers(1, 4))
    g, x = factors(rows, cols, seed=rows + cols)
    present = torch.randperm(rows * cols, generator=torch.Generator().manual_seed(count))
    present = present[: data.draw(st.integers(0, rows * cols))].sort().values
    strips = DenseGradient(ProductGradient(g, x)).strips(0, rows, cols)
    found = best_absent(strips, torch.abs, present, count)
    scores = product(g, x).abs().flatten().index_fill(0, present, -1)
    expected = scores.topk(min(count, rows * cols - present.numel())).indices.sort().values
    assert torch.equal(found, expected)
