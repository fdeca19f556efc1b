"""training_state.pt: read without trust, and compared with the run that goes on before anything of it is used.

torch.load(weights_only=True) executes nothing, but a file can hold tensors of any size and type, views that unfold to
terabytes, and other data than the names promise.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from rnnsparse.errors import UserError
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.sparsity.allocation import Counted
from rnnsparse.sparsity.method import Method
from rnnsparse.storage.manifest import damaged

LARGEST_COUNT = 1 << 62
COUNTS = ("step", "characters_seen", "timed_characters", "evaluations_without_gain")
LATER_COUNTS = ("skipped", "bad_in_a_row", "peak_memory_bytes")  # which those of earlier versions lack
SECONDS = ("seconds", "timed_seconds")


def read(path: Path, sha256: str) -> dict[str, Any]:
    """Return what is in the file, with all tensors on the CPU, if it still is the one that was verified.

    Raises:
        UserError: it was replaced, or is foreign.
        OSError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise UserError(f"{path}: was replaced since it was verified; run the command again")
            _require_unpacked(file)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, UserError):
        raise
    except Exception as error:  # foreign bytes can make torch.load raise anything
        raise damaged(path, "is not a torch file, or holds more than tensors and plain values") from error
    if not isinstance(state, dict):
        raise damaged(path, "holds no dictionary")
    return state


def _require_unpacked(file: IO[bytes]) -> None:
    """Make sure that a torch file takes no more memory than it has bytes.

    Raises:
        ValueError: it is of an older format than torch.save writes, or parts of it are compressed or overlap.
    """
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        size = file.seek(0, 2)
    if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or sum(e.file_size for e in entries) > size:
        raise ValueError("is compressed")
    file.seek(0)


def require_fitting(
    state: Mapping[str, Any],
    fresh: Mapping[str, Any],
    parameters: Sequence[Tensor],
    weights: Mapping[str, SparseWeight],
    method: Method,
) -> None:
    """Compare a training state with that of the same run before its first step.

    Args:
        state: as it was loaded.
        fresh: what the run would save now.
        parameters: in the order of the optimizer; weights: those of the model, by name; method: the run's own.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: it does not fit.
    """
    for name in COUNTS:
        _require(_is_count(state[name]), name)
    for name in LATER_COUNTS:
        _require(_is_count(state.get(name, 0)), name)
    for name in SECONDS:
        _require(_is_finite(state[name]) and state[name] >= 0, name)
    _require(state["best"] is None or _is_finite(state["best"]), "best")
    _require(_is_count(state["lanes"]["position"]), "lanes")
    _require_like(state["recurrent_state"], fresh["recurrent_state"], "recurrent_state")
    _require_like(state["generators"]["cpu"], fresh["generators"]["cpu"], "generators")
    cuda = state["generators"]["cuda"]
    _require(cuda is None or _is_plain(cuda, torch.uint8), "generators")
    _require(state["scaler"].keys() == fresh["scaler"].keys(), "scaler")
    _require(all(_is_finite(number) for number in state["scaler"].values()), "scaler")
    # Another teacher is refused by itself, and may have other shapes.
    if fresh["teacher"] is not None and state["teacher"]["sha256"] == fresh["teacher"]["sha256"]:
        _require_like(state["teacher"]["recurrent_state"], fresh["teacher"]["recurrent_state"], "teacher")
    communication = state.get("communication", (0, 0))
    _require(len(communication) == 2 and all(map(_is_count, communication)), "communication")
    _require_optimizer(state["optimizer"], fresh["optimizer"], parameters)
    _require_sparsifier(state["sparsifier"], fresh["sparsifier"], weights)
    _require_method(state["sparsifier"]["method"], method.state_shapes(weights.values()))


def _require_optimizer(state: Mapping[str, Any], fresh: Mapping[str, Any], parameters: Sequence[Tensor]) -> None:
    _require(state.keys() == fresh.keys(), "optimizer")
    for key in state.keys() - {"state", "param_groups"}:
        _require(type(state[key]) is type(fresh[key]), f"optimizer.{key}")
        if isinstance(state[key], list):
            _require(all(map(_is_finite, state[key])), f"optimizer.{key}")
    _require(len(state["param_groups"]) == len(fresh["param_groups"]), "optimizer.param_groups")
    for group, own in zip(state["param_groups"], fresh["param_groups"], strict=True):
        # The learning rate is set anew at every step.
        _require({**group, "lr": 0} == {**own, "lr": 0} and _is_finite(group["lr"]), "optimizer.param_groups")
    names = {frozenset(entry) for entry in state["state"].values()}
    _require(len(names) <= 1, "optimizer.state")
    for number, entry in state["state"].items():
        _require(type(number) is int and 0 <= number < len(parameters), "optimizer.state")
        for name, value in entry.items():
            if value is None:
                continue
            if isinstance(value, Tensor) and value.dim() == 0 and name == "step":
                _require(_is_plain(value, torch.float32) and float(value) >= 0, f"optimizer.state.{name}")
            else:
                shape = parameters[number].shape
                _require(_is_plain(value) and value.shape == shape, f"optimizer.state.{name}")
                _require(bool(value.isfinite().all()), f"optimizer.state.{name}")
                _require(value.dtype.is_floating_point or bool((value >= 0).all()), f"optimizer.state.{name}")


def _require_sparsifier(
    state: Mapping[str, Any], fresh: Mapping[str, Any], weights: Mapping[str, SparseWeight]
) -> None:
    counts = state.get("budgets", fresh["budgets"])
    _require(len(counts) == len(fresh["budgets"]) and all(map(_is_count, counts)), "sparsifier.budgets")
    _require(_is_count(state["updates"]) and _is_count(state["connections_moved"]), "sparsifier")
    _require(_is_finite(state["last_moved_share"]), "sparsifier.last_moved_share")
    _require(state["due"] is None or _is_count(state["due"]), "sparsifier.due")
    as_counted(state.get("counted"), len(fresh["budgets"]))
    for name, (positions, total) in state["probes"].items():
        _require(_is_plain(positions, torch.int64) and positions.dim() == 1, "sparsifier.probes")
        size = len(positions) * weights[name].block_rows
        _require(_is_plain(total) and total.shape[-1:] == (size,) and total.dim() <= 2, "sparsifier.probes")
        if len(positions):
            inside = positions[0] >= 0 and positions[-1] < weights[name].topology.positions
            _require(bool(inside and (positions[1:] > positions[:-1]).all()), "sparsifier.probes")
    for name, history in state["ever_active"].items():
        stride, start, bits = history["stride"], history["start"], history["bits"]
        counts = all(_is_count(history[key]) for key in ("stride", "start", "initial", "grown"))
        _require(counts and start < stride, "sparsifier.ever_active")
        followed = len(range(start, weights[name].topology.positions, stride))
        _require(_is_plain(bits, torch.uint8) and bits.shape == (-(-followed // 8),), "sparsifier.ever_active")


def as_counted(counted: Any, budgets: int) -> Counted | None:
    """Return what an `Updater` of so many budgets has counted, if that is what it is; earlier versions had none.

    Raises:
        ValueError, TypeError: it is something else.
    """
    if counted is None:
        return None
    steps, sums = counted
    _require(len(sums) == budgets and all(map(_is_count, (steps, *sums))), "sparsifier.counted")
    return steps, list(sums)


def _require_method(state: Mapping[str, Any], shapes: Mapping[str, Mapping[str, Tensor]]) -> None:
    for kind, tensors in state.items():
        for name, tensor in tensors.items():
            own = shapes[kind][name]
            _require(_is_plain(tensor, own.dtype) and tensor.shape == own.shape, "sparsifier.method")


def _require_like(found: Any, own: Tensor, name: str) -> None:
    _require(_is_plain(found, own.dtype) and found.dim() == own.dim(), name)
    # Of several ranks the file has all lanes.
    same = [a == b for axis, (a, b) in enumerate(zip(found.shape, own.shape, strict=True)) if axis != 2]
    _require(all(same) and bool(found.isfinite().all()), name)


def _is_plain(value: Any, dtype: torch.dtype | None = None) -> bool:
    """Whether a value is an ordinary tensor on the CPU, that has its own memory for each number."""
    return (
        type(value) is Tensor
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
        and value.is_contiguous()
        and (dtype is None or value.dtype == dtype)
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST_COUNT


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and -1e308 < value < 1e308


def _require(fits: bool, name: str) -> None:
    if not fits:
        raise ValueError(f"{name} does not fit")
