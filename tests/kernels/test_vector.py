"""The compiled sigmoid and tanh are exact to a few units in the last place, for every number there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba import njit
from numpy.typing import NDArray

from rnnsparse.kernels.emit import VECTOR_BYTES
from rnnsparse.kernels.functions import sigmoid, tanh
from rnnsparse.kernels.vector import load, store

Function = Callable[[NDArray[np.floating], NDArray[np.floating]], None]
TOLERANCE: dict[Any, float] = {np.float32: 1.6e-7, np.float64: 1e-15}
DTYPES = [np.float32, np.float64]


@njit(error_model="numpy")
def compiled_sigmoid(x, y):  # type: ignore[no-untyped-def]
    for i in range(0, x.size, VECTOR_BYTES // x.itemsize):
        store(y, i, sigmoid(load(x, i)))


@njit(error_model="numpy")
def compiled_tanh(x, y):  # type: ignore[no-untyped-def]
    for i in range(0, x.size, VECTOR_BYTES // x.itemsize):
        store(y, i, tanh(load(x, i)))


def exact_sigmoid(x: NDArray[np.floating]) -> NDArray[np.floating]:
    wide = x.astype(np.longdouble)
    return 1 / (1 + np.exp(-wide))


def exact_tanh(x: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.tanh(x.astype(np.longdouble))


FUNCTIONS = [
    pytest.param(compiled_sigmoid, exact_sigmoid, id="sigmoid"),
    pytest.param(compiled_tanh, exact_tanh, id="tanh"),
]


def applied(function: Function, numbers: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the function of any number of numbers: whole vectors go in, the last one filled up with a NaN."""
    x = np.full(-(-numbers.size // 64) * 64, np.nan, numbers.dtype)
    x[: numbers.size] = numbers
    y = np.zeros_like(x)
    function(x, y)
    return y[: numbers.size]


def both_signs(numbers: NDArray[np.floating], dtype: Any) -> NDArray[np.floating]:
    return np.concatenate([numbers, -numbers]).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("function", "exact"), FUNCTIONS)
def test_the_relative_error_is_tiny_wherever_the_result_is_a_normal_number(
    function: Function, exact: Callable[[NDArray[np.floating]], NDArray[np.floating]], dtype: Any
) -> None:
    info = np.finfo(dtype)
    limit = 87 if dtype == np.float32 else 708
    x = np.concatenate(
        [
            both_signs(np.linspace(0, 1, 20_001), dtype),
            both_signs(np.linspace(0, limit, 40_001), dtype),
            both_signs(np.geomspace(info.tiny, limit, 40_001), dtype),
            # Around where one formula hands over to the other.
            *(np.nextafter(dtype(limit), np.array([0, limit, 1], dtype)) for limit in (0.25, 0.625)),
        ]
    )
    expected = exact(x)
    found = applied(function, x).astype(np.longdouble)
    # tanh(0) is the one result that is zero.
    error = np.abs(found - expected) / np.where(expected == 0, 1, np.abs(expected))
    worst = int(error.argmax())
    assert error[worst] <= TOLERANCE[dtype], (x[worst], found[worst], expected[worst])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("function", "exact"), FUNCTIONS)
def test_huge_and_infinite_numbers_give_the_limits(
    function: Function, exact: Callable[[NDArray[np.floating]], NDArray[np.floating]], dtype: Any
) -> None:
    info = np.finfo(dtype)
    x = both_signs(np.array([90, 104, 710, 746, 1e4, info.max, np.inf]), dtype)
    with np.errstate(over="ignore"):
        expected = exact(x).astype(dtype)
    # Below the normal numbers the result may be cut off, but stays there.
    np.testing.assert_allclose(applied(function, x), expected, rtol=TOLERANCE[dtype], atol=2 * info.tiny)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("function", "exact"), FUNCTIONS)
def test_what_is_not_a_number_stays_so_and_spoils_no_neighbour(
    function: Function, exact: Callable[[NDArray[np.floating]], NDArray[np.floating]], dtype: Any
) -> None:
    x = np.tile(np.array([np.nan, 1, -np.nan, -2, 0.1], dtype), 13)
    found = applied(function, x)
    assert np.isnan(found[np.isnan(x)]).all()
    np.testing.assert_allclose(found[~np.isnan(x)], exact(x[~np.isnan(x)]).astype(dtype), rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_smallest_numbers_and_negative_zero_go_through_tanh_unchanged(dtype: Any) -> None:
    info = np.finfo(dtype)
    x = both_signs(np.array([0, info.smallest_subnormal, 100 * info.smallest_subnormal, info.tiny / 3]), dtype)
    found = applied(compiled_tanh, x)
    np.testing.assert_array_equal(found, x)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(x))
    np.testing.assert_array_equal(applied(compiled_sigmoid, x), np.full_like(x, 0.5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_stay_in_their_range_and_rise(dtype: Any) -> None:
    x = np.concatenate([np.linspace(-100, 100, 100_001), np.linspace(-0.3, 0.3, 10_001)]).astype(dtype)
    for function, low in ((compiled_sigmoid, 0), (compiled_tanh, -1)):
        y = applied(function, x)
        assert low <= y.min()
        assert y.max() <= 1
        # Neighbours may be equal or, by their rounding, a few units in the last place out of order.
        assert np.diff(y[:100_001]).min() >= -4 * np.finfo(dtype).eps
