"""The cross-entropy by kernels is the formula, and so is its gradient. Shapes as in the module."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rnnsparse.kernels.products import vector_width
from rnnsparse.nn.cross_entropy import _is_for_kernels, cross_entropy


def logits_of(times: int, vocabulary: int, batch: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Return logits [T, V, B], some of them so far apart that their exponentials alone would overflow."""
    numbers = torch.Generator().manual_seed(seed)
    logits = torch.randn(times, vocabulary, batch, generator=numbers, dtype=dtype)
    return logits * torch.tensor([1, 10, 300], dtype=dtype)[torch.randint(3, (times, 1, batch), generator=numbers)]


@given(
    times=st.integers(1, 5), vocabulary=st.integers(1, 150), vectors=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.float64]), seed=st.integers(0, 1000),
)  # fmt: skip
def test_nats_and_gradient_are_those_of_the_formula(
    times: int, vocabulary: int, vectors: int, dtype: torch.dtype, seed: int
) -> None:
    batch = vectors * vector_width(dtype)
    logits_TVB = logits_of(times, vocabulary, batch, dtype, seed).requires_grad_()
    targets_TB = torch.randint(vocabulary, (times, batch), generator=torch.Generator().manual_seed(seed))
    factors_TB = torch.randn(times, batch, generator=torch.Generator().manual_seed(seed + 1), dtype=dtype)
    logits_TBV = logits_TVB.transpose(1, 2)
    nats_TB = cross_entropy(logits_TBV, targets_TB, "none")
    (found,) = torch.autograd.grad((nats_TB * factors_TB).sum(), logits_TVB)

    exact_TVB = logits_TVB.detach().double().requires_grad_()
    terms_TVB = exact_TVB - exact_TVB.amax(1, keepdim=True).detach()
    expected = -terms_TVB.gather(1, targets_TB[:, None]).squeeze(1) + terms_TVB.exp().sum(1).log()
    (wanted,) = torch.autograd.grad((expected * factors_TB).sum(), exact_TVB)
    error = 1e-6 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(nats_TB.double(), expected, rtol=error, atol=300 * error)
    torch.testing.assert_close(found.double(), wanted, rtol=error, atol=300 * error)
    assert cross_entropy(logits_TBV, targets_TB) == nats_TB.mean()


def test_logits_of_other_layouts_give_the_same() -> None:
    logits_TVB = logits_of(3, 7, 16, torch.float64, 0)
    targets_TB = torch.randint(7, (3, 16), generator=torch.Generator().manual_seed(0))
    innermost_TBV, plain_TBV = logits_TVB.transpose(1, 2), logits_TVB.transpose(1, 2).contiguous()
    assert _is_for_kernels(innermost_TBV)
    assert not _is_for_kernels(plain_TBV)
    assert not _is_for_kernels(innermost_TBV[:, :5])
    torch.testing.assert_close(cross_entropy(innermost_TBV, targets_TB), cross_entropy(plain_TBV, targets_TB))
    part = cross_entropy(innermost_TBV[:, :5], targets_TB[:, :5], "none")
    torch.testing.assert_close(part, cross_entropy(innermost_TBV, targets_TB, "none")[:, :5])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_hidden(bad: float) -> None:
    """As torch has it: a logit that is not a number, or infinite, spoils its position and no other."""
    logits_TVB = logits_of(2, 5, 16, torch.float32, 0)
    logits_TVB[1, 2, 3] = bad
    targets_TB = torch.full((2, 16), 2)
    found = cross_entropy(logits_TVB.transpose(1, 2), targets_TB, "none")
    expected = F.cross_entropy(logits_TVB, targets_TB, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-4, equal_nan=True)
    assert not found[1, 3].isfinite()


@pytest.mark.parametrize("target", [-1, 5])
def test_a_target_that_is_no_symbol_is_refused(target: int) -> None:
    targets_TB = torch.zeros(2, 16, dtype=torch.int64)
    targets_TB[1, 3] = target
    with pytest.raises(IndexError, match="targets must lie in 0 to 4"):
        cross_entropy(torch.zeros(2, 5, 16).transpose(1, 2), targets_TB)


def test_the_gradient_has_the_layout_of_the_logits() -> None:
    """Products want it so; otherwise every step would copy it."""
    logits_TVB = logits_of(2, 5, 16, torch.float32, 0).requires_grad_()
    cross_entropy(logits_TVB.transpose(1, 2), torch.zeros(2, 16, dtype=torch.int64)).backward()
    assert logits_TVB.grad is not None
    assert logits_TVB.grad.is_contiguous()
