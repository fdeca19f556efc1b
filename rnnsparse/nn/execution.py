"""How a layer that stands alone is computed: masked or sparse, by what it is given at each call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from rnnsparse.nn.weight import SparseWeight

Execution = Literal["auto", "masked", "sparse"]
Chosen = Literal["masked", "sparse"]
SPARSE_TYPES = (torch.float32, torch.float64)


def require_execution(value: str) -> Execution:
    """Return a layer's execution.

    Raises:
        ValueError: there is no such one.
    """
    for known in get_args(Execution):
        if value == known:
            return value  # type: ignore[return-value]
    raise ValueError(f"execution={value!r}: must be one of {', '.join(get_args(Execution))}")


def runs_sparse(execution: Execution, weights: Sequence[SparseWeight], x: Tensor, wins_from: float) -> bool:
    """Return whether a layer with these weights computes `x` from its connections alone.

    Args:
        wins_from: the sparsity from which that is faster, for "auto".

    Raises:
        ValueError: "sparse" is wanted where it is impossible.
    """
    if execution == "masked" or x.numel() == 0:
        return False
    if reason := _impossible(weights, x):
        if execution == "sparse":
            raise ValueError(f"{weights[0].name}: sparse execution is impossible here: {reason}; use execution='auto'")
        return False
    if execution == "sparse":
        return True
    positions = sum(weight.positions for weight in weights)
    return 1 - sum(weight.connections for weight in weights) / positions >= wins_from


def _impossible(weights: Iterable[SparseWeight], x: Tensor) -> str:
    if torch.compiler.is_compiling():
        return "torch.compile cannot look into its kernels, which are compiled already"
    if x.device.type != "cpu":
        return f"it is for CPUs, and the input is on {x.device}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast chooses the types of dense kernels"
    for weight in weights:
        if weight.values.dtype not in SPARSE_TYPES or x.dtype != weight.values.dtype:
            return f"it takes float32 or float64 alike, not {x.dtype} with values in {weight.values.dtype}"
        if weight.basis:
            return "values are coefficients in a basis, in which the matrix is dense"
    return ""


def choose(wanted: Execution, sparsity: float, wins_from: float, obstacle: str, favour: str) -> tuple[Chosen, str]:
    """Return how a whole model is computed, and why in a few words.

    Args:
        wins_from: the sparsity from which its cell is faster in sparse execution.
        obstacle: why that is impossible, or "".
        favour: why dense kernels are faster at any sparsity, or "".
    """
    if wanted == "masked":
        return "masked", "as configured"
    if obstacle:
        return "masked", obstacle
    if wanted == "sparse":
        return "sparse", "as configured"
    if favour:
        return "masked", favour
    if sparsity < wins_from:
        return "masked", f"dense kernels of this cell are faster below a sparsity of {wins_from}"
    return "sparse", f"faster than dense kernels of this cell from a sparsity of {wins_from}"


def require_floating(layer: str, x: Tensor) -> None:
    """Refuse numbers that a layer cannot compute with.

    Raises:
        ValueError: whole numbers.
    """
    if not x.is_floating_point():
        raise ValueError(f"{layer}: input of {x.dtype}: must be floating-point numbers; convert it, as by .float()")


def refuse_unsupported(layer: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse arguments of PyTorch's layer that this one does not take, by name, unless they say nothing.

    Raises:
        TypeError: there is no such argument.
        ValueError: it asks for something that is not supported.
    """
    for name, value in given.items():
        if name not in defaults:
            raise TypeError(f"{layer}: there is no argument {name!r}")
        if value != defaults[name]:
            raise ValueError(f"{layer}: {name}={value!r} is not supported; leave it out, or use torch.nn.{layer}")
