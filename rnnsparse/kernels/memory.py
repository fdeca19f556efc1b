"""Memory for activations: in large pages, and used again as soon as nobody holds it.

Fresh memory has to be zeroed by the system and entered into page tables, which costs more than the arithmetic of a
99 % sparse layer. A training step asks for the same sizes again and again.
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

SMALLEST = 1 << 20  # bytes; anything smaller is left to PyTorch
MEMORY_OF_USES = 64  # a block that was not taken for so many allocations goes back to the system
TIMES_TOO_LARGE = 8  # a free block that is so many times larger than needed will do, before more memory is asked for


class _Pool:
    """Free blocks by size. A block comes back when the storage of the tensor that was made on it is gone."""

    def __init__(self) -> None:
        # Blocks come back at any moment, in any thread, also while one is taken: into a queue that needs no lock.
        self._returned: deque[mmap.mmap] = deque()
        self._free: dict[int, list[tuple[int, mmap.mmap]]] = {}
        self._uses = 0
        self.lock = threading.Lock()

    def take(self, size: int) -> mmap.mmap:
        with self.lock:
            self._uses += 1
            while self._returned:
                block = self._returned.popleft()
                self._free.setdefault(len(block), []).append((self._uses, block))
            large_enough = [s for s, blocks in self._free.items() if blocks and size <= s <= TIMES_TOO_LARGE * size]
            found = self._free[min(large_enough)].pop()[1] if large_enough else None
            oldest = self._uses - MEMORY_OF_USES
            self._free = {s: [b for b in blocks if b[0] >= oldest] for s, blocks in self._free.items()}
        return found or _new_block(size)

    def give_back(self, block: mmap.mmap) -> None:
        self._returned.append(block)

    def trim(self) -> None:
        with self.lock:
            self._returned.clear()
            self._free.clear()


def _new_block(size: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    # Private: after a fork each process has its own.
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


_pool = _Pool()


def _renew_lock() -> None:
    """A thread that held the lock at a fork does not exist in the child."""
    _pool.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a tensor on the CPU that holds whatever was there."""
    size = math.prod(shape) * dtype.itemsize
    if size < SMALLEST:
        return torch.empty(*shape, dtype=dtype)
    block = _pool.take(size)
    # The tensor's storage keeps this view alive, and nothing else does: when it dies the block is free.
    view = np.frombuffer(block, np.uint8, size)
    weakref.finalize(view, _pool.give_back, block).atexit = False
    return torch.frombuffer(view, dtype=dtype).view(*shape)


def zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a tensor of zeros on the CPU."""
    return empty(shape, dtype).zero_()


def trim() -> None:
    """Give all memory that nobody holds back to the system, also what the C library keeps of PyTorch's."""
    _pool.trim()
    malloc_trim = _malloc_trim()
    if malloc_trim is not None:
        malloc_trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """Return the GNU C library's function of that name; other libraries have none."""
    try:
        function: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return function
