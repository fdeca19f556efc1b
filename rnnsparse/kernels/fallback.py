"""The kernels of sparse execution in plain PyTorch, for machines without numba: right everywhere, several times slower.

The same names and arguments as the compiled kernels, whose files say what each one does; `cpu.py` chooses. Shape
suffixes: K batch tiles, T time, M moments (all those of all tiles), R rows of a weight, C its columns, N connections,
I inputs, V symbols, H hidden, G rows of `gates`, B batch within a tile.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

# How many numbers the sampled product gathers at a time.
GATHERED = 1 << 22

# From two moments to the gradient [K, t, H, B] of the outputs from the first to before the second.
OutputGradient = Callable[[int, int], Tensor]


@functools.cache
def _warn() -> None:
    warnings.warn(
        "numba is not installed, or cannot be imported: sparse execution computes with PyTorch's sparse products, "
        "several times slower; install numba, or use model.execution=masked",
        RuntimeWarning,
        stacklevel=3,
    )


def tile_width(dtype: torch.dtype, batch: int) -> int:
    """Return the width of batch tiles: the whole batch is one."""
    return max(1, batch)


@dataclass(frozen=True, eq=False)
class Matrix:
    """Where the connections of one weight are: compressed rows, and those of the transpose.

    `row_pointers` [R + 1] and `columns` [N]; `column_pointers` [C + 1], `rows` [N], and `order` [N]: the numbers of the
    connections in the order of `rows`.
    """

    row_count: int
    column_count: int
    row_pointers: Tensor
    columns: Tensor
    column_pointers: Tensor
    rows: Tensor
    order: Tensor


def build_matrix(indices: Tensor, row_count: int, column_count: int) -> Matrix:
    """Return the structure of a weight [R, C] with connections at sorted flat positions [N]; O(N log N) time."""
    _warn()
    rows, columns = indices // column_count, indices % column_count
    order = columns.argsort(stable=True)
    return Matrix(
        row_count, column_count, _pointers(rows, row_count), columns.int(),
        _pointers(columns[order], column_count), rows[order].int(), order,
    )  # fmt: skip


def _pointers(sorted_numbers: Tensor, count: int) -> Tensor:
    """Return where each number from 0 to `count` starts in a sorted list."""
    return torch.searchsorted(sorted_numbers, torch.arange(count + 1)).int()


def _compressed(pointers: Tensor, others: Tensor, values: Tensor, column_count: int) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            pointers, others, values, (len(pointers) - 1, column_count), check_invariants=False
        )


def _sparse(matrix: Matrix, values: Tensor) -> Tensor:
    return _compressed(matrix.row_pointers, matrix.columns, values.detach(), matrix.column_count)


def _transposed(matrix: Matrix, values: Tensor) -> Tensor:
    return _compressed(matrix.column_pointers, matrix.rows, values.detach()[matrix.order], matrix.row_count)


def add_product(matrix: Matrix, values: Tensor, x_MCB: Tensor, y_MRB: Tensor) -> None:
    """y += W x at every moment."""
    w_RC = _sparse(matrix, values)
    for x_CB, y_RB in zip(x_MCB, y_MRB, strict=True):
        y_RB += w_RC @ x_CB


def add_transposed_product(matrix: Matrix, values: Tensor, g_MRB: Tensor, x_MCB: Tensor) -> None:
    """x += W^T g at every moment."""
    w_CR = _transposed(matrix, values)
    for g_RB, x_CB in zip(g_MRB, x_MCB, strict=True):
        x_CB += w_CR @ g_RB


class VectorProduct:
    """y += W x for one x at a time, with a copy of the values."""

    def __init__(self, matrix: Matrix, values_N: Tensor) -> None:
        self._w_RC = _sparse(matrix, values_N.detach().clone())

    def add(self, x_C: Tensor, y_R: Tensor) -> None:
        """y += W x; both contiguous."""
        y_R += self._w_RC @ x_C


def add_sampled_product(matrix: Matrix, g_MRB: Tensor, x_MCB: Tensor, out_N: Tensor) -> None:
    """out[k] += sum over moments and batch of g[row of k] * x[column of k]: the gradient of the connections alone."""
    rows = torch.arange(matrix.row_count).repeat_interleave(matrix.row_pointers.diff())
    chunk = max(1, GATHERED // max(1, x_MCB[:, 0].numel()))
    pieces = (rows.split(chunk), matrix.columns.split(chunk), out_N.split(chunk))
    for row, column, out in zip(*pieces, strict=True):
        out += (g_MRB[:, row] * x_MCB[:, column]).sum((0, 2))


def sum_by_symbol(g_MRB: Tensor, tokens_MB: Tensor, table_RV: Tensor) -> None:
    """table[r, v] += sum of g[m, r, b] over all moments whose symbol tokens[m, b] is v."""
    for g_RB, tokens_B in zip(g_MRB, tokens_MB, strict=True):
        table_RV.index_add_(1, tokens_B, g_RB)


@dataclass(frozen=True)
class Input:
    """What a layer adds to its gates at each moment: either W x + b, or the column of a table for a symbol."""

    bias_R: Tensor
    matrix: Matrix | None = None
    values: Tensor | None = None
    x_MIB: Tensor | None = None
    table_RV: Tensor | None = None
    tokens_MB: Tensor | None = None

    def moments(self) -> Iterator[Tensor]:
        """Yield it for one moment [R, B] after the other."""
        if self.table_RV is not None:
            assert self.tokens_MB is not None
            for tokens_B in self.tokens_MB:
                yield self.table_RV.index_select(1, tokens_B)
        else:
            assert self.matrix is not None
            assert self.values is not None
            assert self.x_MIB is not None
            w_RI = _sparse(self.matrix, self.values)
            for x_IB in self.x_MIB:
                yield self.bias_R.detach()[:, None] + w_RI @ x_IB


def _lstm_forward(
    matrix: Matrix, values: Tensor, source: Input, gates_KTGB: Tensor, h_KTHB: Tensor, c_KHB: Tensor
) -> Tensor:
    w_GH, moments, c_KTHB = _sparse(matrix, values), source.moments(), torch.empty_like(h_KTHB)
    c_KTHB[:, 0] = c_KHB
    for gates_TGB, h, c in zip(gates_KTGB, h_KTHB, c_KTHB, strict=True):
        for t, gates_GB in enumerate(gates_TGB):
            i, f, g, o = (next(moments) + w_GH @ h[t]).chunk(4)
            i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
            c[t + 1] = f * c[t] + i * g
            h[t + 1] = o * c[t + 1].tanh()
            torch.cat([i, f, g, o], out=gates_GB)
    c_KHB.copy_(c_KTHB[:, -1])
    return c_KTHB


def _lstm_backward(
    matrix: Matrix, values: Tensor, gates_KTGB: Tensor, c_KTHB: Tensor, dy: OutputGradient, dh_KHB: Tensor,
    dc_KHB: Tensor,
) -> Tensor:  # fmt: skip
    w_HG, dy_KTHB = _transposed(matrix, values), dy(0, gates_KTGB.shape[1])
    for gates_TGB, c, dy_THB, dh, dc in zip(gates_KTGB, c_KTHB, dy_KTHB, dh_KHB, dc_KHB, strict=True):
        for t in reversed(range(len(dy_THB))):
            i, f, g, o = gates_TGB[t].chunk(4)
            d_h, c_tanh = dh + dy_THB[t], c[t + 1].tanh()
            d_c = dc + d_h * o * (1 - c_tanh**2)
            d_i, d_f = d_c * g * i * (1 - i), d_c * c[t] * f * (1 - f)
            d_g, d_o = d_c * i * (1 - g**2), d_h * c_tanh * o * (1 - o)
            dc.copy_(d_c * f)
            torch.cat([d_i, d_f, d_g, d_o], out=gates_TGB[t])
            dh.copy_(w_HG @ gates_TGB[t])
    return gates_KTGB.sum((0, 1, 3))


def _gru_forward(
    matrix: Matrix, values: Tensor, source: Input, q_bias_H: Tensor, gates_KTGB: Tensor, h_KTHB: Tensor
) -> None:
    w_GH, moments = _sparse(matrix, values), source.moments()
    for gates_TGB, h in zip(gates_KTGB, h_KTHB, strict=True):
        for t, gates_GB in enumerate(gates_TGB):
            input_r, input_z, input_n = next(moments).chunk(3)
            state_r, state_z, state_n = (w_GH @ h[t]).chunk(3)
            r, z = (input_r + state_r).sigmoid(), (input_z + state_z).sigmoid()
            q = state_n + q_bias_H.detach()[:, None]
            n = (input_n + r * q).tanh()
            h[t + 1] = n + z * (h[t] - n)
            torch.cat([n, r, z, q], out=gates_GB)


def _gru_backward(
    matrix: Matrix, values: Tensor, gates_KTGB: Tensor, h_KTHB: Tensor, dy: OutputGradient, dh_KHB: Tensor
) -> Tensor:
    w_HG, hidden, dy_KTHB = _transposed(matrix, values), h_KTHB.shape[2], dy(0, gates_KTGB.shape[1])
    for gates_TGB, h, dy_THB, dh in zip(gates_KTGB, h_KTHB, dy_KTHB, dh_KHB, strict=True):
        for t in reversed(range(len(dy_THB))):
            n, r, z, q = gates_TGB[t].chunk(4)
            d_h = dh + dy_THB[t]
            d_n = d_h * (1 - z) * (1 - n**2)
            d_r, d_z = d_n * q * r * (1 - r), d_h * (h[t] - n) * z * (1 - z)
            dh.copy_(d_h * z)
            torch.cat([d_n, d_r, d_z, d_n * r], out=gates_TGB[t])
            dh += w_HG @ gates_TGB[t, hidden:]
    return gates_KTGB.sum((0, 1, 3))


def _lstm_step(gates_G: Tensor, state_SH: Tensor) -> Tensor:
    i, f, g, o = gates_G.chunk(4)
    c_H = f.sigmoid() * state_SH[1] + i.sigmoid() * g.tanh()
    return torch.stack([o.sigmoid() * c_H.tanh(), c_H])


def _gru_step(input_R: Tensor, recurrent_R: Tensor, state_SH: Tensor) -> Tensor:
    (input_r, input_z, input_n), (state_r, state_z, q) = input_R.chunk(3), recurrent_R.chunk(3)
    r, z = (input_r + state_r).sigmoid(), (input_z + state_z).sigmoid()
    n = (input_n + r * q).tanh()
    return (n + z * (state_SH[0] - n))[None]


lstm = SimpleNamespace(forward=_lstm_forward, backward=_lstm_backward, step=_lstm_step)
gru = SimpleNamespace(forward=_gru_forward, backward=_gru_backward, step=_gru_step)
