"""Products over connections are those of the dense matrix with zeros elsewhere.

Shape suffixes: T time, R rows, C columns, B batch (whole vectors), N connections, V symbols, Q tiles of S
symbols.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

F64, F32 = torch.float64, torch.float32
TOLERANCE = {F64: 1e-12, F32: 1e-6}

SHAPES: dict[str, Any] = {
    "rows": st.integers(1, 9),
    "cols": st.integers(1, 40),
    "density": st.sampled_from([0, 0.05, 0.3, 0.8, 1]),
    "times": st.integers(1, 3),
    "vectors": st.integers(1, 2),
    "dtype": st.sampled_from([F64, F32]),
    "seed": st.integers(0, 999),
}


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Compare relative to the norm: single sums may cancel."""
    error = (found.double() - expected.double()).norm()
    assert error <= TOLERANCE[found.dtype] * max(1.0, float(expected.double().norm())), (found, expected)


def guarded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return a copy of x [T, F, B] whose moments lie apart in a larger tensor, and that tensor."""
    times, features, batch = x.shape
    around = torch.full((times, features + 2, batch), torch.nan, dtype=x.dtype)
    view = around[:, 1:-1]
    view.copy_(x)
    return view, around


def assert_untouched(around: Tensor) -> None:
    """Nothing was written outside the view, nor anything read from there."""
    assert around[:, [0, -1]].isnan().all()
    assert not around[:, 1:-1].isnan().any()


@given(**SHAPES)
def test_the_product_adds_that_of_the_dense_matrix(
    kernels: Any, make_weight: Any, rows: int, cols: int, density: float, times: int, vectors: int,
    dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    weight = make_weight(kernels, rows, cols, round(density * rows * cols), dtype, seed)
    batch = vectors * kernels.vector_width(dtype)
    x, x_around = guarded(weight.normal(times, cols, batch))
    y, y_around = guarded(weight.normal(times, rows, batch))
    expected = y + weight.dense() @ x
    kernels.add_product(weight.matrix, weight.values, x, y)
    assert_close(y, expected)
    assert_untouched(x_around)
    assert_untouched(y_around)


@given(**SHAPES)
def test_the_transposed_product_adds_that_of_the_dense_matrix(
    kernels: Any, make_weight: Any, rows: int, cols: int, density: float, times: int, vectors: int,
    dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    weight = make_weight(kernels, rows, cols, round(density * rows * cols), dtype, seed)
    batch = vectors * kernels.vector_width(dtype)
    g, g_around = guarded(weight.normal(times, rows, batch))
    x, x_around = guarded(weight.normal(times, cols, batch))
    expected = x + weight.dense().T @ g
    kernels.add_transposed_product(weight.matrix, weight.values, g, x)
    assert_close(x, expected)
    assert_close(kernels.transposed_product(weight.matrix, weight.values, g), weight.dense().T @ g)
    assert_untouched(x_around)
    assert_untouched(g_around)


@given(**SHAPES)
def test_the_sampled_product_adds_the_gradient_of_the_connections(
    kernels: Any, make_weight: Any, rows: int, cols: int, density: float, times: int, vectors: int,
    dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    weight = make_weight(kernels, rows, cols, round(density * rows * cols), dtype, seed)
    batch = vectors * kernels.vector_width(dtype)
    x, x_around = guarded(weight.normal(times, cols, batch))
    g, g_around = guarded(weight.normal(times, rows, batch))
    out = weight.normal(weight.indices.numel())
    dense = torch.einsum("trb,tcb->rc", g, x)
    expected = out + dense.flatten()[weight.indices]
    kernels.add_sampled_product(weight.matrix, g, x, out)
    assert_close(out, expected)
    assert_untouched(x_around)
    assert_untouched(g_around)


@given(**SHAPES)
def test_the_product_with_a_vector_adds_that_of_the_dense_matrix(
    kernels: Any, make_weight: Any, rows: int, cols: int, density: float, times: int, vectors: int,
    dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    weight = make_weight(kernels, rows, cols, round(density * rows * cols), dtype, seed)
    x_C, y_R = weight.normal(cols), weight.normal(rows)
    expected = y_R + weight.dense() @ x_C
    kernels.VectorProduct(weight.matrix, weight.values).add(x_C, y_R)
    assert_close(y_R, expected)


@pytest.mark.parametrize(("dtype", "vectors"), [(F32, 2), (F64, 1)])
@pytest.mark.parametrize("block_rows", [2, 4, 8, 16])
@given(
    rows=SHAPES["rows"], cols=SHAPES["cols"], density=SHAPES["density"], times=st.integers(1, 9), seed=SHAPES["seed"]
)
def test_blocks_of_rows_are_those_of_the_dense_matrix(
    kernels: Any, make_weight: Any, block_rows: int, dtype: torch.dtype, vectors: int, rows: int, cols: int,
    density: float, times: int, seed: int,
) -> None:  # fmt: skip
    weight = make_weight(kernels, rows, cols, round(density * rows * cols), dtype, seed, block_rows)
    batch, dense = vectors * kernels.vector_width(dtype), weight.dense()
    x, x_around = guarded(weight.normal(times, cols, batch))
    g, g_around = guarded(weight.normal(times, rows * block_rows, batch))
    y, dx, out, y_R = g.clone(), x.clone(), torch.zeros_like(weight.values), g[0, :, 0].contiguous()
    kernels.add_product(weight.matrix, weight.values, x, y)
    assert_close(y, g + dense @ x)
    kernels.add_transposed_product(weight.matrix, weight.values, g, dx)
    assert_close(dx, x + dense.T @ g)
    kernels.add_sampled_product(weight.matrix, g, x, out)
    assert_close(out, weight.at_connections(torch.einsum("trb,tcb->rc", g, x)))
    kernels.VectorProduct(weight.matrix, weight.values).add(x[0, :, 0].contiguous(), y_R)
    assert_close(y_R, g[0, :, 0] + dense @ x[0, :, 0])
    assert_untouched(x_around)
    assert_untouched(g_around)


@pytest.mark.parametrize("vectors", [3, 5, 7])
@pytest.mark.parametrize("block_rows", [4, 8, 16])
def test_blocks_go_with_rows_of_any_number_of_vectors(
    kernels: Any, make_weight: Any, block_rows: int, vectors: int
) -> None:
    """Wider ones than those of a tile."""
    weight = make_weight(kernels, 3, 7, 15, F32, 1, block_rows)
    batch, dense = vectors * kernels.vector_width(F32), weight.dense()
    x, x_around = guarded(weight.normal(1, 7, batch))
    y, y_around = guarded(weight.normal(1, 3 * block_rows, batch))
    out, expected = torch.zeros_like(weight.values), weight.at_connections(torch.einsum("trb,tcb->rc", y, x))
    kernels.add_sampled_product(weight.matrix, y, x, out)
    assert_close(out, expected)
    expected = y + dense @ x
    kernels.add_product(weight.matrix, weight.values, x, y)
    assert_close(y, expected)
    expected = x + dense.T @ y
    kernels.add_transposed_product(weight.matrix, weight.values, y, x)
    assert_close(x, expected)
    assert_untouched(x_around)
    assert_untouched(y_around)


@given(tiles=st.integers(1, 3), **SHAPES)
def test_gradients_are_summed_by_symbol(
    kernels: Any, tiles: int, rows: int, cols: int, density: float, times: int, vectors: int, dtype: torch.dtype,
    seed: int,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    shape = times, vectors * kernels.vector_width(dtype)
    tokens_TB = torch.randint(tiles * cols, shape, generator=generator, dtype=torch.int32)
    g, g_around = guarded(torch.randn(times, rows, shape[1], dtype=dtype, generator=generator))
    one_hot = torch.nn.functional.one_hot(tokens_TB.long(), tiles * cols).to(dtype)
    sums_RV = torch.einsum("trb,tbv->rv", g, one_hot)
    table_QRS = torch.full((tiles, rows + 3, cols), torch.nan, dtype=dtype)
    kernels.sum_by_symbol(g, tokens_TB, table_QRS, 2)
    assert_close(table_QRS[:, 2:-1], sums_RV.unflatten(1, (tiles, cols)).transpose(0, 1).contiguous())
    assert table_QRS[:, [0, 1, -1]].isnan().all()
    assert_untouched(g_around)


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("rows", [1, 8, 16, 45, 64])
def test_features_and_batch_change_places(kernels: Any, rows: int, dtype: torch.dtype) -> None:
    x_TRB = torch.randn(3, rows, 2 * kernels.vector_width(dtype), dtype=dtype)
    assert torch.equal(kernels.transposed(x_TRB), x_TRB.transpose(1, 2))


@pytest.mark.parametrize(
    ("rows", "cols", "count"),
    [
        # Several ranges of rows, or of columns, and a last one that is not full; a full row among empty ones.
        (8269, 3, 20_000),
        (3, 8269, 20_000),
        (600, 600, 300_000),
        (257, 256, 60_000),
        (4096, 2, 100),
        # Column numbers of 16 bits, just so, and of 32; rows of either, too.
        (3, 1 << 16, 400),
        (3, (1 << 16) + 1, 400),
        (3, 200_000, 400),
        (70_000, 3, 400),
        # So many positions that flat ones need 64 bits.
        (70_000, 70_000, 300),
    ],
)
def test_products_are_right_for_long_sides(kernels: Any, make_weight: Any, rows: int, cols: int, count: int) -> None:
    weight = make_weight(kernels, rows, cols, count, F64, seed=rows + cols)
    # The corners are where an index type would overflow.
    corners = torch.tensor([0, cols - 1, (rows - 1) * cols, rows * cols - 1])
    weight.indices = torch.cat([weight.indices, corners]).unique()
    weight.values = weight.normal(weight.indices.numel())
    weight.matrix = kernels.build_matrix(weight.indices, rows, cols)
    row, col = weight.indices // cols, weight.indices % cols
    batch = kernels.vector_width(F64)
    x, g = weight.normal(2, cols, batch), weight.normal(2, rows, batch)

    y = torch.zeros_like(g)
    kernels.add_product(weight.matrix, weight.values, x, y)
    assert_close(y, torch.zeros_like(g).index_add_(1, row, weight.values[:, None] * x[:, col]))
    dx = torch.zeros_like(x)
    kernels.add_transposed_product(weight.matrix, weight.values, g, dx)
    assert_close(dx, torch.zeros_like(x).index_add_(1, col, weight.values[:, None] * g[:, row]))
    out = torch.zeros_like(weight.values)
    kernels.add_sampled_product(weight.matrix, g, x, out)
    assert_close(out, (g[:, row] * x[:, col]).sum((0, 2)))
    y_R = torch.zeros(rows, dtype=F64)
    kernels.VectorProduct(weight.matrix, weight.values).add(x[0, :, 0].contiguous(), y_R)
    assert_close(y_R, torch.zeros(rows, dtype=F64).index_add_(0, row, weight.values * x[0, col, 0]))


@pytest.mark.parametrize("dtype", [F32, F64])
def test_the_sampled_product_is_right_over_many_tiles(kernels: Any, make_weight: Any, dtype: torch.dtype) -> None:
    # Wide and long enough for several ranges of columns and several of time steps.
    times, rows, cols, batch = 5, 6, 5000, 16
    weight = make_weight(kernels, rows, cols, 900, dtype, seed=1)
    x, g = weight.normal(times, cols, batch), weight.normal(times, rows, batch)
    out = torch.zeros_like(weight.values)
    kernels.add_sampled_product(weight.matrix, g, x, out)
    expected = torch.einsum("trb,tcb->rc", g.double(), x.double()).flatten()[weight.indices]
    assert_close(out, expected)


def test_moments_may_lie_anywhere_in_memory(kernels: Any, make_weight: Any) -> None:
    weight = make_weight(kernels, 4, 5, 9, F64, seed=2)
    batch = kernels.vector_width(F64)
    x, g = weight.normal(6, 5, batch), weight.normal(3, 4, batch)
    every_other, same = x[::2], x[:1].expand(3, -1, -1)
    for view in (every_other, same, x[3:]):
        y, out = torch.zeros_like(g), torch.zeros_like(weight.values)
        kernels.add_product(weight.matrix, weight.values, view, y)
        kernels.add_sampled_product(weight.matrix, g, view, out)
        assert_close(y, weight.dense() @ view)
        assert_close(out, torch.einsum("trb,tcb->rc", g, view).flatten()[weight.indices])


def test_values_may_be_a_parameter(kernels: Any, make_weight: Any) -> None:
    weight = make_weight(kernels, 4, 5, 9, F64, seed=3)
    parameter = torch.nn.Parameter(weight.values)
    x = weight.normal(2, 5, kernels.vector_width(F64))
    y = torch.zeros(2, 4, kernels.vector_width(F64), dtype=F64)
    kernels.add_product(weight.matrix, parameter, x, y)
    kernels.add_transposed_product(weight.matrix, parameter, y, x)
    assert not y.requires_grad
    assert not x.requires_grad
