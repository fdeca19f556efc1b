"""Kernels meet at barriers inside, and still no surrounding of threads, processes or signals makes them wait for ever.

All cases run in one program of their own, so that one that hangs can be ended (cases_in_threads.py says where it hung).
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("cases_in_threads.py")


@dataclass
class Ran:
    problems: dict[str, str]
    status: int
    said: str


@pytest.fixture(scope="module")
def ran(environment: dict[str, str]) -> Ran:
    done = subprocess.run(
        [sys.executable, str(PROGRAM)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    problems = dict(json.loads(line) for line in done.stdout.splitlines())
    return Ran(problems, done.returncode, done.stderr)


@pytest.mark.parametrize(
    ("case", "claim"),
    [
        ("number_of_threads", "1, 2, 3 and 5 threads, and reruns, give the same bits"),
        ("more_threads_than_cores", "more threads than cores give the same bits"),
        ("several_callers", "several Python threads may call at once"),
        ("several_callers_with_numbers_of_their_own", "they may each have another number of threads"),
        ("a_thread_pool", "a ThreadPoolExecutor may call"),
        ("a_fork", "a forked child and its parent both go on"),
        ("a_fork_while_others_compute", "a fork may happen in the middle of other threads' kernels"),
        ("data_workers", "forked data workers may call"),
        ("an_exception", "an exception in any thread reaches the caller, and the next call is right"),
        ("interrupts", "Ctrl-C at any moment neither hangs nor spoils later results"),
    ],
)
def test_threads_neither_wait_for_ever_nor_change_a_bit(ran: Ran, case: str, claim: str) -> None:
    assert case in ran.problems, f"not so, it hangs: {claim}\n{ran.said}"
    assert not ran.problems[case], f"not so: {claim}\n{ran.problems[case]}"


def test_a_program_with_kernel_threads_ends(ran: Ran) -> None:
    assert ran.status == 0, ran.said
