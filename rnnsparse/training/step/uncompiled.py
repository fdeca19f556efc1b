"""PyTorch's optimizers without what only torch.compile needs of them, whose import takes seconds at every start."""

from __future__ import annotations

import inspect

import torch


def _uncompiled(optimizer: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Take off the decorators that keep the compiler out, and for that import it."""
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        setattr(optimizer, name, inspect.unwrap(getattr(optimizer, name)))
    optimizer.step = torch.no_grad()(inspect.unwrap(optimizer.step))  # type: ignore[method-assign]
    return optimizer


@_uncompiled
class SGD(torch.optim.SGD):
    """That of PyTorch, bit for bit."""


@_uncompiled
class Adam(torch.optim.Adam):
    """That of PyTorch, bit for bit."""
