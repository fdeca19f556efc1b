"""Arithmetic on connections: pure functions on tensors, no modules, no autograd."""

import importlib.util

# Whether the fast kernels can be used; otherwise PyTorch's sparse products stand in for them.
COMPILED = importlib.util.find_spec("numba") is not None
