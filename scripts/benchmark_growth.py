"""What choosing connections costs in sparse execution: a whole interval of training steps, and its peak memory.

An interval is the steps between two updates and the update, in a network of one layer, each step with forward,
backward, clipping and Adam. `static` never updates, `set` draws, `rigl` needs one dense gradient (made by tiles), and
`scout` sums gradients at a pool of positions at every step. All take turns in one process; a figure is the median over
rounds of the mean time of an interval's steps, relative to `static` in the same round. Peak memory is that of a process
of its own, which trains one interval.

    python scripts/benchmark_growth.py --hidden-sizes 2048 --sparsity 0.99
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from rnnsparse.nn.cross_entropy import cross_entropy
from rnnsparse.nn.language_model import CharLM
from rnnsparse.settings.model import ModelConfig
from rnnsparse.settings.sparsity import BudgetConfig
from rnnsparse.settings.training import TrainingConfig
from rnnsparse.sparsity.allocation import allocate, connect_randomly
from rnnsparse.sparsity.drop_grow import DropGrow
from rnnsparse.sparsity.method import Method
from rnnsparse.sparsity.methods.rigl import RigL
from rnnsparse.sparsity.methods.scout import Scout
from rnnsparse.sparsity.methods.set import SET
from rnnsparse.sparsity.methods.static import Static
from rnnsparse.sparsity.updater import Updater
from rnnsparse.training.peak_memory import peak_memory
from rnnsparse.training.step.optim import build_optimizer, clip_gradients

VOCABULARY, EMBEDDING = 256, 128
ENDLESS = 10**9  # steps: the benchmark stays at the beginning of a run, where an update replaces most


def methods(interval: int) -> dict[str, Method]:
    chosen: dict[str, DropGrow] = {
        "set": SET(interval=interval),
        "rigl": RigL(interval=interval),
        "scout, pool 1": Scout(interval=interval, pool=1.0),
        "scout, pool 3": Scout(interval=interval, pool=3.0),
    }
    return {"static": Static(), **chosen}


def trainer(method: Method, cell: str, hidden_size: int, arguments: argparse.Namespace) -> Callable[[], float]:
    """Return a function that trains one interval and returns the mean seconds of its steps."""
    model = CharLM(ModelConfig(cell=cell, embedding_dim=EMBEDDING, hidden_size=hidden_size), VOCABULARY)  # type: ignore[arg-type]
    model.execution = "sparse"
    budgets = allocate(list(model.sparse_weights().values()), BudgetConfig(sparsity=arguments.sparsity))
    connect_randomly(budgets, seed=0)
    model.reset_parameters(seed=0)
    optimizer = build_optimizer(TrainingConfig(), model.parameters())
    sparsifier = Updater(method, budgets, optimizer, seed=0, total_steps=ENDLESS)
    state = model.initial_state(arguments.batch_size)
    step = 0

    def interval() -> float:
        nonlocal state, step
        started = time.perf_counter()
        for _ in range(arguments.interval):
            step += 1
            text_TB = torch.randint(VOCABULARY, (arguments.sequence_length + 1, arguments.batch_size))
            sparsifier.before_backward(step)
            logits_TBV, state = model(text_TB[:-1], state)
            state = state.detach()
            cross_entropy(logits_TBV, text_TB[1:]).backward()
            del logits_TBV
            clip_gradients(model.parameters(), 10.0)
            if sparsifier.after_backward(step):
                optimizer.step()
            sparsifier.after_step(step)
            optimizer.zero_grad(set_to_none=True)
        return (time.perf_counter() - started) / arguments.interval

    return interval


def compare(cell: str, hidden_size: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return milliseconds of a step of `static`, ratios to it by method, and peak memory in bytes by method."""
    memory = {name: _peak_memory(name, cell, hidden_size, arguments) for name in methods(arguments.interval)}
    trainers = {name: trainer(m, cell, hidden_size, arguments) for name, m in methods(arguments.interval).items()}
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for number in range(arguments.rounds + 1):
        for name, interval in trainers.items():
            seconds = interval()
            if number:  # the first round pays for compilation and caches
                times[name].append(seconds)
    ratios = {
        name: statistics.median(a / b for a, b in zip(values, times["static"], strict=True))
        for name, values in times.items()
    }
    return {
        "cell": cell,
        "hidden_size": hidden_size,
        "static_milliseconds": statistics.median(times["static"]) * 1e3,
        "ratios": ratios,
        "peak_memory_bytes": memory,
    }


def _peak_memory(name: str, cell: str, hidden_size: int, arguments: argparse.Namespace) -> int:
    command = [sys.executable, __file__, "--memory-of", name, cell, str(hidden_size)]
    for option in ("sparsity", "batch_size", "sequence_length", "interval"):
        command += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=["gru", "lstm"], default=["gru", "lstm"])
    parser.add_argument("--hidden-sizes", nargs="+", type=int, default=[1024, 4096])
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=64)
    parser.add_argument("--interval", type=int, default=20, help="steps from update to update")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--memory-of", nargs=3, metavar=("METHOD", "CELL", "HIDDEN"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        name, cell, hidden_size = arguments.memory_of
        trainer(methods(arguments.interval)[name], cell, int(hidden_size), arguments)()
        print(peak_memory())
        return
    results = [compare(cell, size, arguments) for cell in arguments.cells for size in arguments.hidden_sizes]
    if arguments.json:
        print(json.dumps(results))
        return
    names = list(methods(arguments.interval))
    print(
        f"sparsity {arguments.sparsity}, an update every {arguments.interval} steps, {torch.get_num_threads()} threads"
    )
    print(f"{'':10} {'ms a step':>10}" + "".join(f"{name:>15}" for name in names))
    for result in results:
        title = f"{result['cell'].upper()} {result['hidden_size']}"
        print(
            f"{title:10} {result['static_milliseconds']:10.1f}"
            + "".join(f"{result['ratios'][name]:15.2f}" for name in names)
        )
        memory = "".join(f"{result['peak_memory_bytes'][name] / 1e6:15,.0f}" for name in names)
        print(f"{'':10} {'peak MB':>10}{memory}")


if __name__ == "__main__":
    main()
