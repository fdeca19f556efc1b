"""Weights whose connections are coefficients in an orthogonal basis."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from rnnsparse.nn.basis import Basis, same_basis
from rnnsparse.nn.gradients import DenseGradient
from rnnsparse.nn.language_model import CharLM
from rnnsparse.nn.materialise import materialise
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.settings.model import ModelConfig

VOCAB = 7
KINDS = ["dct", "svd"]
shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def basis_of(kind: str, blocks: int, rows: int, cols: int) -> Basis:
    return Basis.dct(rows, cols) if kind == "dct" else Basis.svd(noise(blocks * rows, cols, seed=9), blocks)


def weight_in(kind: str, blocks: int, rows: int, cols: int, density: float = 1.0) -> SparseWeight:
    """A weight with random coefficients."""
    weight = SparseWeight("w", blocks * rows, cols, [f"w.{i}" for i in range(blocks)]).double()
    weight.basis = basis_of(kind, blocks, rows, cols)
    count = round(density * weight.positions)
    places = torch.randperm(weight.positions, generator=torch.Generator().manual_seed(1))[:count].sort().values
    weight.connect(places, noise(count, seed=2))
    return weight


def block_by_block(basis: Basis, coefficients: Tensor, blocks: int) -> Tensor:
    """A X B^T, one block after the other."""
    made = []
    for k, x_RC in enumerate(coefficients.chunk(blocks)):
        left_RR, right_CC = basis.left_KRR[k % len(basis.left_KRR)], basis.right_KCC[k % len(basis.right_KCC)]
        made.append(left_RR @ x_RC @ right_CC.T)
    return torch.cat(made)


def fast_dct(x: Tensor) -> Tensor:
    """The orthonormal DCT-II of each row, by the Fourier transform of the row and its mirror image."""
    n = x.shape[1]
    k = torch.arange(n, dtype=torch.float64)
    spectrum = torch.fft.fft(torch.cat([x, x.flip(1)], 1))[:, :n]
    cosines = (spectrum * torch.exp(-0.5j * torch.pi * k / n)).real / 2
    return cosines * ((1 + k.sign()) / n).sqrt()


@given(shapes)
def test_dct_coefficients_are_those_of_a_fourier_transform(shape: tuple[int, int, int]) -> None:
    blocks, rows, cols = shape
    matrix = noise(blocks * rows, cols)
    expected = torch.cat([fast_dct(fast_dct(x).T).T for x in matrix.chunk(blocks)])
    torch.testing.assert_close(Basis.dct(rows, cols).to_coefficients(matrix), expected, rtol=0, atol=1e-12)


@given(shapes)
def test_a_matrix_in_its_own_singular_vectors_is_diagonal_from_the_largest_value_down(
    shape: tuple[int, int, int],
) -> None:
    blocks, rows, cols = shape
    matrix = noise(blocks * rows, cols)
    coefficients = Basis.svd(matrix, blocks).to_coefficients(matrix)
    for x_RC, w_RC in zip(coefficients.chunk(blocks), matrix.chunk(blocks), strict=True):
        expected = torch.zeros_like(w_RC)
        expected.diagonal().copy_(torch.linalg.svdvals(w_RC))
        torch.testing.assert_close(x_RC, expected, rtol=0, atol=1e-12)


@given(shapes, st.sampled_from(KINDS))
def test_a_matrix_comes_back_from_its_coefficients_and_keeps_its_norm(shape: tuple[int, int, int], kind: str) -> None:
    blocks, rows, cols = shape
    basis, matrix = basis_of(kind, *shape), noise(blocks * rows, cols)
    coefficients = basis.to_coefficients(matrix)
    torch.testing.assert_close(basis.to_matrix(coefficients), matrix, rtol=0, atol=1e-12)
    torch.testing.assert_close(coefficients.norm(), matrix.norm(), rtol=1e-12, atol=0)


@given(shapes, st.sampled_from(KINDS), st.sampled_from([0.0, 0.4, 1.0]))
def test_a_materialised_matrix_and_all_gradients_are_those_of_autograd(
    shape: tuple[int, int, int], kind: str, density: float
) -> None:
    blocks, rows, cols = shape
    weight = weight_in(kind, *shape, density)
    assert weight.basis is not None
    upstream = noise(blocks * rows, cols, seed=5)
    everywhere = torch.arange(weight.positions)
    weight.start_pool(everywhere[::2])
    weight.dense_gradient = DenseGradient()
    (made,) = materialise([weight])
    (made.sin() * upstream).sum().backward()

    x = torch.zeros(weight.positions, dtype=torch.float64)
    x[weight.indices] = weight.values.detach()
    x = x.view(blocks * rows, cols).requires_grad_()
    oracle = block_by_block(weight.basis, x, blocks)
    (oracle.sin() * upstream).sum().backward()
    assert x.grad is not None
    assert weight.values.grad is not None
    assert weight.dense_gradient is not None
    close: dict[str, Any] = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(made, oracle, **close)
    torch.testing.assert_close(weight.to_dense(), oracle.detach(), **close)
    torch.testing.assert_close(weight.values.grad, x.grad.flatten()[weight.indices], **close)
    torch.testing.assert_close(weight.dense_gradient.rows(0, weight.rows), x.grad, **close)
    torch.testing.assert_close(weight.pool.gradient, x.grad.flatten()[::2], **close)


def test_half_precision_rounds_the_matrix_and_not_its_coefficients() -> None:
    weight = weight_in("dct", 2, 5, 4, density=0.5)
    (made,) = materialise([weight], dtype=torch.bfloat16)
    assert torch.equal(made, weight.to_dense().bfloat16())
    made.sum().backward()
    assert weight.values.grad is not None
    assert weight.values.grad.dtype == torch.float64


def test_coefficients_have_no_sparse_execution() -> None:
    with pytest.raises(ValueError, match="no entries"):
        weight_in("dct", 1, 3, 3).matrix()


def test_bases_are_the_same_only_bit_for_bit() -> None:
    assert same_basis(None, None)
    assert not same_basis(None, Basis.dct(3, 4))
    assert same_basis(Basis.dct(3, 4), Basis.dct(3, 4))
    assert not same_basis(Basis.dct(3, 4), Basis.dct(4, 3))
    assert not same_basis(Basis.svd(noise(6, 4), 2), Basis.svd(noise(6, 4) + 1e-9, 2))


# ---- a whole model


def models(kind: str, **shape: Any) -> tuple[CharLM, CharLM]:
    """The same network with all connections, in the canonical basis and in another one."""
    config = ModelConfig(**{"embedding_dim": 6, "hidden_size": 8, "num_layers": 2} | shape)
    pair = []
    for _ in range(2):
        model = CharLM(config, VOCAB).double()
        for weight in model.sparse_weights().values():
            weight.connect(torch.arange(weight.positions))
        model.reset_parameters(0)
        pair.append(model)
    for weight in pair[1].sparse_weights().values():
        rows = weight.rows // len(weight.gates)
        weight.express(weight.to_dense(), basis_of(kind, len(weight.gates), rows, weight.cols))
    return pair[0], pair[1]


def symbols(step: int = 0) -> Tensor:
    return torch.randint(VOCAB, (9, 4), generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [{}, {"cell": "lstm", "readout_dims": (6,), "tie_embeddings": True}])
def test_with_all_connections_any_basis_computes_the_same(kind: str, shape: dict[str, Any]) -> None:
    canonical, other = models(kind, **shape)
    tokens = symbols()
    torch.testing.assert_close(other(tokens), canonical(tokens), rtol=0, atol=1e-10)
    state = canonical.initial_state(4)
    torch.testing.assert_close(
        other.stepper().step(tokens[0], state), canonical.stepper().step(tokens[0], state), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_basis_follows_its_weight_to_another_type(kind: str) -> None:
    _, model = models(kind)
    tokens, expected = symbols(), model(symbols())[0]
    torch.testing.assert_close(model.float().double()(tokens)[0], expected, rtol=0, atol=1e-5)


def distance_after_training(kind: str, optimizer: type[torch.optim.Optimizer], **settings: Any) -> float:
    """The largest difference between the logits of two networks that started as the same in different bases."""
    pair = models(kind)
    for model in pair:
        descent = optimizer(model.parameters(), **settings)
        for step in range(20):
            text_TB = symbols(step)
            descent.zero_grad()
            cross_entropy(model(text_TB[:-1])[0].flatten(0, 1), text_TB[1:].flatten()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            descent.step()
    with torch.no_grad():
        before, one, other = (model(symbols())[0] for model in (models(kind)[0], *pair))
    assert (one - before).abs().max() > 0.1, "nothing was learned"
    return float((one - other).abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_descent_goes_the_same_way_in_every_orthogonal_basis(kind: str) -> None:
    sgd: dict[str, Any] = {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.01}
    assert distance_after_training(kind, torch.optim.SGD, **sgd) < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_adam_goes_another_way_in_every_basis(kind: str) -> None:
    assert distance_after_training(kind, torch.optim.Adam, lr=0.01) > 1e-3
