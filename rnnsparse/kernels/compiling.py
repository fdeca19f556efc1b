"""How kernels are compiled: once per machine, kept on disk, without Python's lock.

They allocate nothing. Without numba's runtime, which would count references to every array that is handed on, helpers
cost nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from llvmlite import binding
from numba import njit

_OPTIONS: Any = {"nogil": True, "error_model": "numpy", "_nrt": False}


def vector_bytes() -> int:
    """Return how wide a vector register is: 64 bytes with AVX-512, else 32 (narrower ones are used in pairs)."""
    chosen = numba.config.CPU_FEATURES
    features = chosen if chosen is not None else binding.get_host_cpu_features().flatten()
    return 64 if "+avx512f" in features.split(",") else 32


def _cache_folder() -> Path:
    """Return a folder that belongs to these very sources: numba looks only at the file of the function itself."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return Path(root) / "rnnsparse" / "kernels" / hashlib.sha256(sources + bytes([vector_bytes()])).hexdigest()[:16]


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function that other Python code calls; its machine code is cached where that is possible."""
    previous = numba.config.CACHE_DIR
    try:
        folder = _cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        numba.config.CACHE_DIR = str(folder)
        return njit(cache=True, **_OPTIONS)(function)
    except (OSError, RuntimeError):
        # No place to write: compile at every start, which takes seconds.
        return njit(**_OPTIONS)(function)
    finally:
        numba.config.CACHE_DIR = previous


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a function for use inside kernels, where it becomes part of its caller."""
    return njit(forceinline=True, **_OPTIONS)(function)
