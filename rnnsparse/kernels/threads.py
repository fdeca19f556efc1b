"""One kernel on several threads at once, each of which surely runs.

Kernels meet at barriers inside, so every one of their threads must exist and be running: a pool that runs two pieces
one after another would wait for ever. Kernels therefore have operating-system threads of their own; these release
Python's lock while they compute, take no part in any other pool, and are made anew after a fork. One of them leads: it
takes jobs one at a time, whichever thread they come from, and starts the others. The caller only waits, so that an
exception from a signal (Ctrl-C) can never leave a kernel with a part of its threads.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch


class _Job:
    """A call that another thread makes, and its outcome."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._error: BaseException | None = None
        # A bare lock: an exception from a signal would leave those that threading builds on it in a useless state.
        self._is_done, self._running = False, threading.Lock()
        self._running.acquire()

    def carry_out(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self._error = error
        finally:
            self._is_done = True
            self._running.release()

    def wait(self) -> None:
        """Return when the call has, or raise what it raised, or else what has interrupted the waiting."""
        interruption = self._wait()
        if self._error or interruption:
            raise self._error or interruption  # type: ignore[misc]

    def outcome(self) -> BaseException | None:
        """Wait for the call and return what it raised, if anything; for threads that no signal interrupts."""
        self._wait()
        return self._error

    def _wait(self) -> BaseException | None:
        interruption: BaseException | None = None
        while not self._is_done:
            try:
                self._running.acquire()
            except BaseException as error:
                interruption = error
        return interruption


class _Worker:
    """A thread that carries out jobs in the order in which they come."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=f"rnnsparse {name}", daemon=True).start()

    def _work(self) -> None:
        while True:
            self._jobs.get().carry_out()

    def begin(self, call: Callable[[], Any]) -> _Job:
        job = _Job(call)
        self._jobs.put(job)
        return job


_leader: _Worker | None = None
_helpers: list[_Worker] = []
_making_leader = threading.Lock()


def _forget_workers() -> None:
    """Threads do not survive a fork; neither may a lock that one of them held."""
    global _leader, _making_leader
    _leader, _making_leader = None, threading.Lock()
    _helpers.clear()


os.register_at_fork(after_in_child=_forget_workers)


def thread_count() -> int:
    """Return how many threads a kernel uses: PyTorch's number."""
    return torch.get_num_threads()


def run(kernel: Callable[..., None], *arguments: Any) -> None:
    """Call `kernel(thread, threads, *arguments)` for every thread at the same time, and wait for all.

    Calls from several Python threads take turns.
    """
    global _leader
    threads = thread_count()
    if threads == 1:
        kernel(0, 1, *arguments)
        return
    if _leader is None:
        with _making_leader:
            if _leader is None:
                _leader = _Worker("leader")
    _leader.begin(partial(_lead, kernel, threads, arguments)).wait()


def _lead(kernel: Callable[..., None], threads: int, arguments: tuple[Any, ...]) -> None:
    while len(_helpers) < threads - 1:
        _helpers.append(_Worker(f"helper {len(_helpers) + 1}"))
    jobs = [
        helper.begin(partial(kernel, i, threads, *arguments)) for i, helper in enumerate(_helpers[: threads - 1], 1)
    ]
    own = _Job(partial(kernel, 0, threads, *arguments))
    own.carry_out()
    # All have ended before the first error, if any, is raised: none may still write.
    errors = [error for job in (own, *jobs) if (error := job.outcome())]
    if errors:
        raise errors[0]
