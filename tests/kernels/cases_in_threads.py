"""Kernels in every surrounding of threads and processes; a program that test_threads.py runs.

Prints one line of JSON per case: its name, and what went wrong. A case that hangs ends the program with a traceback of
every thread; a child that hangs, which has no such watchdog, is ended by an alarm before that.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rnnsparse.kernels import gru, layer_norm, lstm, matrix, products, recurrence, sliced, threads

SECONDS = 30
# Two threads share these tiles and meet at every step; three take one each.
K, T, H, B, N = 3, 4, 7, 2 * products.vector_width(torch.float64), 60
GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=GENERATOR)


def connections(rows: int) -> matrix.Matrix:
    return matrix.build_matrix(torch.randperm(rows * H, generator=GENERATOR)[:N].sort().values, rows, H)


LSTM, GRU = connections(4 * H), connections(3 * H)
# 64 rows, 16 of which are a group: threads share several. PyTorch would copy many more with its own threads, which do
# not survive a fork.
BLOCKS = matrix.build_matrix(torch.randperm(16 * H, generator=GENERATOR)[:N].sort().values, 16, H, block_rows=4)
# Columns of three groups.
WIDE_BLOCKS = matrix.build_matrix(torch.randperm(4 * 150, generator=GENERATOR)[:N].sort().values, 4, 150, block_rows=4)
VALUES, BIAS, STATES, X = normal(N), normal(4 * H), normal(2, K, T + 1, H, B), normal(K * T, H, B)
BLOCK_VALUES, BLOCK_Y = normal(N, 4), normal(K * T, 64, B)
DY, DSTATES = normal(K, T, H, B), normal(2, K, H, B)
TABLE, TOKENS = normal(4 * H, B), torch.randint(B, (K * T, B), generator=GENERATOR, dtype=torch.int32)


def results(tiles: int = K) -> dict[str, Tensor]:
    """Run every kernel, and return all that they wrote."""
    found: dict[str, Tensor] = {}
    for name, kernel, structure in (("lstm", lstm, LSTM), ("gru", gru, GRU)):
        rows, own = structure.row_count, 2 if name == "lstm" else 1
        sources = {
            "symbols": recurrence.LayerInput(
                BIAS[:rows], table_VR=TABLE[:rows].T.contiguous(), tokens_MB=TOKENS[: tiles * T]
            ),
            "sequence": recurrence.LayerInput(BIAS[:rows], structure, VALUES, X[: tiles * T]),
        }
        for kind, source in sources.items():
            h, dstates = STATES[0, :tiles].clone(), DSTATES[:own, :tiles].clone()
            c = STATES[1, :tiles, 0].clone()
            gates = torch.zeros(tiles, T, 4 * H, B, dtype=torch.float64)
            if name == "lstm":
                kept = kernel.forward(structure, VALUES, source, gates, h, c)
            else:
                kept = h
                kernel.forward(structure, VALUES, source, BIAS[:H], gates, h)
            last = gates.clone()
            dy = DY[:tiles]
            sums = kernel.backward(
                structure, VALUES, gates, kept, lambda first, last, dy=dy: dy[:, first:last].contiguous(), *dstates
            )
            found |= {
                f"{name} {kind} gates": last, f"{name} {kind} gradients": gates,
                f"{name} {kind} states": h, f"{name} {kind} cell": c, f"{name} {kind} initial": dstates,
                f"{name} {kind} sums": sums,
            }  # fmt: skip
    g = last.flatten(0, 1)
    found |= {"sampled": torch.zeros_like(VALUES), "product": g.clone(), "transposed": X[: tiles * T].clone()}
    products.add_sampled_product(LSTM, g, X[: tiles * T], found["sampled"])
    products.add_product(LSTM, VALUES, X[: tiles * T], found["product"])
    products.add_transposed_product(LSTM, VALUES, g, found["transposed"])
    found |= {
        "blocks": BLOCK_Y[: tiles * T].clone(),
        "blocks transposed": torch.zeros(tiles * T, 150, B, dtype=X.dtype),
        "blocks sampled": BLOCK_VALUES * 0,
    }
    products.add_sampled_product(BLOCKS, found["blocks"], X[: tiles * T], found["blocks sampled"])
    products.add_transposed_product(WIDE_BLOCKS, BLOCK_VALUES, BLOCK_Y[: tiles * T, :16], found["blocks transposed"])
    products.add_product(BLOCKS, BLOCK_VALUES, X[: tiles * T], found["blocks"])
    of_norm = layer_norm.forward(X[: tiles * T], BIAS[:H], BIAS[H : 2 * H], 1e-5)
    gradients = layer_norm.backward(found["transposed"], X[: tiles * T], BIAS[:H], *of_norm[1:])
    found |= {f"norm {i}": value for i, value in enumerate((*of_norm, *gradients))}
    found |= {"table": torch.empty(2, 4 * H, B // 2, dtype=X.dtype), "vector": BIAS.clone()}
    products.sum_by_symbol(g, TOKENS[: tiles * T], found["table"])
    found["turned"] = products.transposed(g)
    found["new"] = products.transposed_product(LSTM, VALUES, g)
    sliced.VectorProduct(LSTM, VALUES).add(X[0, :, 0].contiguous(), found["vector"])
    return found


def assert_right(found: dict[str, Tensor]) -> None:
    wrong = [name for name, value in found.items() if not torch.equal(value, EXPECTED[name])]
    assert not wrong, f"these differ from those of one thread: {wrong}"


def number_of_threads() -> None:
    for tiles in (1, 2, 3):
        torch.set_num_threads(1)
        expected = results(tiles)
        for count in (1, 2, 3, 5, 2, 1):
            torch.set_num_threads(count)
            for _ in range(2):
                found = results(tiles)
                wrong = [name for name, value in found.items() if not torch.equal(value, expected[name])]
                assert not wrong, f"{tiles} tiles and {count} threads give other {wrong}"


def more_threads_than_cores() -> None:
    torch.set_num_threads((os.cpu_count() or 1) + 3)
    assert_right(results())


def several_callers() -> None:
    torch.set_num_threads(2)
    found: list[dict[str, Tensor]] = []
    callers = [threading.Thread(target=lambda: found.extend(results() for _ in range(3))) for _ in range(5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 15
    for one in found:
        assert_right(one)


def several_callers_with_numbers_of_their_own() -> None:
    def call(count: int) -> dict[str, Tensor]:
        torch.set_num_threads(count)
        return results()

    with ThreadPoolExecutor(3) as pool:
        for one in pool.map(call, [1, 3, 2, 1, 2, 3, 1, 4, 2]):
            assert_right(one)


def a_thread_pool() -> None:
    torch.set_num_threads(3)
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(results) for _ in range(6)]:
            assert_right(future.result())


def a_fork() -> None:
    torch.set_num_threads(3)
    results()
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS // 2)
        status = 1
        try:
            assert_right(results())
            torch.set_num_threads(2)
            assert_right(results())
            status = 0
        finally:
            os._exit(status)
    assert_right(results())
    assert os.waitpid(child, 0)[1] == 0, "the child failed"
    assert_right(results())


def a_fork_while_others_compute() -> None:
    torch.set_num_threads(2)
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            results()

    background = threading.Thread(target=compute)
    background.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                signal.alarm(SECONDS // 2)
                status = 1
                try:
                    assert_right(results())
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0, "the child failed"
    finally:
        stop.set()
        background.join()


class Results(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        signal.alarm(SECONDS // 2)
        torch.set_num_threads(2)
        return results()


def data_workers() -> None:
    torch.set_num_threads(2)
    results()
    loader = DataLoader(Results(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    for one in loader:
        assert_right(one)
        assert_right(results())


def an_exception() -> None:
    torch.set_num_threads(3)
    for unlucky in (0, 1, 2):

        def fail(thread: int, count: int, unlucky: int = unlucky) -> None:
            if thread == unlucky:
                raise OverflowError(f"in thread {thread} of {count}")

        with pytest.raises(OverflowError, match=f"in thread {unlucky} of 3"):
            threads.run(fail)
        assert_right(results())


def interrupts() -> None:
    """A handler that raises, as Ctrl-C does in a notebook, at any moment."""
    torch.set_num_threads(2)

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    interrupted = 0
    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        for i in range(2000):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + i % 97 * 3e-5)
                results()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert interrupted > 500
    for _ in range(5):
        assert_right(results())


CASES: list[Callable[[], None]] = [
    number_of_threads,
    more_threads_than_cores,
    several_callers,
    several_callers_with_numbers_of_their_own,
    a_thread_pool,
    a_fork,
    a_fork_while_others_compute,
    data_workers,
    an_exception,
    interrupts,
]

if __name__ == "__main__":
    # Even products of this size are to be shared out.
    assert sliced.ONE_THREAD_CONNECTIONS > 0
    sliced.ONE_THREAD_CONNECTIONS = 0
    torch.set_num_threads(1)
    EXPECTED = results()
    for case in CASES:
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        problem = ""
        try:
            case()
        except BaseException:
            problem = traceback.format_exc()
        sys.stdout.write(json.dumps([case.__name__, problem]) + "\n")
        sys.stdout.flush()
        faulthandler.cancel_dump_traceback_later()
