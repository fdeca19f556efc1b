"""Arithmetic on connections: pure functions on tensors, no modules, no autograd."""

import functools


@functools.cache
def are_compiled() -> bool:
    """Return whether the fast kernels can be used; otherwise PyTorch's sparse products stand in for them.

    Asked only where it matters, because importing numba takes half a second.
    """
    try:
        import numba  # noqa: F401
    except ImportError:  # not installed, or not with this version of something else
        return False
    return True
