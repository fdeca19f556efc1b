"""One kernel on several threads at once, each of which surely runs.

Kernels meet at barriers inside, so every one of their threads must exist and be running: a pool that runs two pieces
one after another would wait for ever. Each call therefore has operating-system threads of its own; they release
Python's lock while they compute, take no part in any other pool, and are made anew after a fork.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch


class _Worker:
    """A thread that runs what it is handed, one call at a time."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="rnnsparse kernel", daemon=True).start()

    def _work(self) -> None:
        while True:
            call = self._calls.get()
            try:
                call()
            except BaseException as error:
                self._results.put(error)
            else:
                self._results.put(None)

    def begin(self, call: Callable[[], Any]) -> None:
        self._calls.put(call)

    def finish(self) -> BaseException | None:
        return self._results.get()


_workers: list[_Worker] = []
_in_use = threading.Lock()


def _forget_workers() -> None:
    """Threads do not survive a fork; neither may a lock that one of them held."""
    global _in_use
    _workers.clear()
    _in_use = threading.Lock()


os.register_at_fork(after_in_child=_forget_workers)


def thread_count() -> int:
    """Return how many threads a kernel uses: PyTorch's number."""
    return torch.get_num_threads()


def run(kernel: Callable[..., None], *arguments: Any) -> None:
    """Call `kernel(thread, threads, *arguments)` for every thread at the same time, and wait for all.

    Calls from several Python threads take turns.
    """
    threads = thread_count()
    with _in_use:
        while len(_workers) < threads - 1:
            _workers.append(_Worker())
        helpers = _workers[: threads - 1]
        for number, worker in enumerate(helpers, start=1):
            worker.begin(partial(kernel, number, threads, *arguments))
        errors: list[BaseException | None] = []
        try:
            kernel(0, threads, *arguments)
        finally:
            errors = [worker.finish() for worker in helpers]
        for error in errors:
            if error is not None:
                raise error
