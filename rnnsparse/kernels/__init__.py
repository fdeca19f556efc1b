"""Arithmetic on connections: pure functions on tensors, no modules, no autograd."""

# Whether the fast kernels can be used; otherwise PyTorch's sparse products stand in for them.
try:
    import numba  # noqa: F401
except ImportError:  # not installed, or not with this version of something else
    COMPILED = False
else:
    COMPILED = True
