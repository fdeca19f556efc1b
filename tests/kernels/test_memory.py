"""Memory for activations belongs to one tensor of one process at a time, and is used again when nobody holds it."""

from __future__ import annotations

import gc
import os
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from rnnsparse.kernels import memory

BIG = (3, 1 << 20)


def big(value: float) -> Tensor:
    return memory.empty(BIG, torch.float32).fill_(value)


@pytest.mark.parametrize("shape", [(2, 3), (0, 4), (1, 1 << 19), BIG, ((1 << 18) + 1, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeros_are_zeros_of_the_shape_asked_for_on_used_memory_too(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for _ in range(3):
        x = memory.zeros(shape, dtype)
        assert x.shape == memory.empty(shape, dtype).shape == shape
        assert x.dtype == memory.empty(shape, dtype).dtype == dtype
        assert x.is_contiguous()
        assert not x.any()
        x += 1


def test_memory_that_nobody_holds_is_used_again() -> None:
    x = big(1)
    place = x.data_ptr()
    del x
    assert big(2).data_ptr() == place


@pytest.mark.parametrize(
    "hold",
    [
        lambda x: x,
        lambda x: x[1:],
        lambda x: x.view(-1)[-3:],
        lambda x: x.detach(),
        lambda x: x.numpy(),
        lambda x: x[0].numpy()[5:],
        lambda x: memoryview(x.numpy()),
        lambda x: torch.ones(1, requires_grad=True) * x,  # saved for its backward pass
    ],
    ids=["itself", "rows", "end", "detached", "numpy", "slice", "memoryview", "saved"],
)
def test_memory_that_somebody_holds_is_not_used(hold: Any) -> None:
    x = big(1)
    start, stop = x.data_ptr(), x.data_ptr() + x.nbytes
    holder = hold(x)
    del x
    gc.collect()
    others = [big(2) for _ in range(3)]
    assert all(other.data_ptr() + other.nbytes <= start or other.data_ptr() >= stop for other in others)
    del holder


def test_memory_is_not_shared_with_a_forked_child() -> None:
    used, x = big(0), big(0)
    del used  # the child gets a piece that is free in both
    child = os.fork()
    if child == 0:
        x.fill_(1)
        big(1)
        os._exit(0)
    mine = big(0)
    assert os.waitpid(child, 0)[1] == 0
    assert not x.any()
    assert not mine.any()


def test_a_child_that_was_forked_while_others_take_memory_can_take_some() -> None:
    stop = threading.Event()

    def take() -> None:
        while not stop.is_set():
            memory.empty((1 << 19,), torch.float32)

    takers = [threading.Thread(target=take) for _ in range(3)]
    for taker in takers:
        taker.start()
    try:
        for _ in range(60):
            child = os.fork()
            if child == 0:
                # A lock that another thread held at the fork would never be released here.
                threading.Timer(5, os._exit, [1]).start()
                memory.empty((1 << 19,), torch.float32)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0, "the child waits for ever"
    finally:
        stop.set()
        for taker in takers:
            taker.join()


def test_threads_never_get_the_same_memory() -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        for i in range(30):
            pieces = [memory.empty((1 << 18,), torch.float32).fill_(number * 100 + i + j) for j in range(3)]
            wrong.extend(1 for j, piece in enumerate(pieces) if not bool((piece == number * 100 + i + j).all()))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Knot:
    """Holds a tensor, and itself: only the garbage collector frees it, at any moment."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.itself = x, self


def test_garbage_may_be_collected_while_memory_is_taken() -> None:
    thresholds = gc.get_threshold()
    try:
        for threshold in (1, 2, 3, 5):
            gc.set_threshold(threshold)
            for i in range(150):
                # Many sizes, so that what comes back is often of a size that was not there.
                Knot(memory.empty(((1 << 18) + i * 1024 * threshold,), torch.float32))
                memory.empty((1 << 18,), torch.float32)
    finally:
        gc.set_threshold(*thresholds)
