"""What packing brings: a training step of M runs together against the same M runs one after another.

A step is all that the trainer does for it: batch, forward, backward, clipping, Adam; topology updates are left out, as
packing changes nothing about them. One after another, each run takes all its steps of a turn before the next begins.
Both contenders are real learners in masked execution, on the text that comes with Python, and take turns in one
process, so that whatever else the machine does falls on both. The ratio is that of the speeds of all M together, the
median over rounds of (one after another / together) with its quartiles: above 1, packing is faster.

    python scripts/benchmark_packed.py --device cuda
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from benchmark_masked import machine

from rnnsparse.config import RunConfig, parse_config
from rnnsparse.data.corpus import Corpus, load_corpus
from rnnsparse.training.build import build_learner, new_model
from rnnsparse.training.pack import take_steps
from rnnsparse.training.step.distributed import Ranks
from rnnsparse.training.step.learner import Learner

QUICK = {"hidden_size": 64, "embedding_dim": 16, "batch_size": 8, "sequence_length": 32, "rounds": 4}


def config_of(arguments: argparse.Namespace, seed: int) -> RunConfig:
    shape = {"cell": arguments.cell, "hidden_size": arguments.hidden_size, "embedding_dim": arguments.embedding_dim}
    training = {"batch_size": arguments.batch_size, "sequence_length": arguments.sequence_length}
    data = {
        "run": {"seed": seed},
        "data": {"source": "python_docs"},
        "model": {**shape, "execution": "masked"},
        "sparsity": {"method": "rigl", "sparsity": arguments.sparsity},
        "training": {**training, "steps": 10**6, "device": arguments.device},
    }
    return parse_config(data, "benchmark")


def learners(arguments: argparse.Namespace, count: int, corpus: Corpus) -> list[Learner]:
    device = torch.device(arguments.device)
    made = []
    for seed in range(count):
        config = config_of(arguments, seed)
        model, budgets = new_model(config, corpus.tokenizer.vocab_size, device)
        made.append(build_learner(config, model, budgets, corpus, Ranks()))
    return made


def seconds(call: Callable[[], None], device: str) -> float:
    _synchronise(device)
    started = time.perf_counter()
    call()
    _synchronise(device)
    return time.perf_counter() - started


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def compare(arguments: argparse.Namespace, count: int, corpus: Corpus) -> dict[str, Any]:
    """Return the times of a step of all runs in milliseconds (medians), and the ratio with its quartiles."""
    alone, packed = learners(arguments, count, corpus), learners(arguments, count, corpus)
    random_numbers = [contextlib.nullcontext() for _ in packed]  # there is no dropout to draw them for

    def one_after_another() -> None:
        for learner in alone:
            for _ in range(arguments.turn):
                learner.take_step()

    def together() -> None:
        for _ in range(arguments.turn):
            for rest in take_steps(packed, random_numbers):
                rest()

    contenders = {"one after another": one_after_another, "together": together}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(-arguments.warm_up, arguments.rounds):
        # Each goes first equally often, so that none always follows the other.
        for name in sorted(contenders, reverse=bool(round_number % 2)):
            spent = seconds(contenders[name], arguments.device)
            if round_number >= 0:
                times[name].append(spent / arguments.turn)
    ratios = [a / b for a, b in zip(times["one after another"], times["together"], strict=True)]
    return {
        "runs": count,
        "milliseconds": {name: round(statistics.median(values) * 1e3, 2) for name, values in times.items()},
        "ratio": [round(quartile, 3) for quartile in statistics.quantiles(ratios, n=4, method="inclusive")],
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", type=int, default=[2, 4, 16], help="M, each at least 2")
    parser.add_argument("--cell", choices=["gru", "lstm"], default="gru")
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--embedding-dim", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--sparsity", type=float, default=0.75)
    parser.add_argument("--rounds", type=int, default=10, help="turns of each contender, at least 2")
    parser.add_argument("--turn", type=int, default=3, help="steps in a turn")
    parser.add_argument("--warm-up", type=int, default=1, help="rounds that do not count")
    parser.add_argument("--threads", type=int, help="CPU threads; by default PyTorch's choice")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="a small network and few rounds: does it work at all?")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        vars(arguments).update(QUICK)
    if min(arguments.runs) < 2 or arguments.rounds < 2:
        parser.error("--runs and --rounds must be at least 2")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    corpus = load_corpus(config_of(arguments, 0).data)
    title = f"{machine(arguments.device)}; torch {torch.__version__}; {arguments.cell}"
    lanes = f"{arguments.hidden_size} units, {arguments.batch_size} x {arguments.sequence_length} symbols"
    if not arguments.json:
        print(f"{title}, {lanes}\n{'runs':>4} {'one after another':>18} {'together':>10}  ratio (quartiles)")
    results = []
    for count in arguments.runs:
        results.append(result := compare(arguments, count, corpus))
        if not arguments.json:
            alone, together = result["milliseconds"].values()
            low, middle, high = result["ratio"]
            print(f"{count:>4} {alone:>15.1f} ms {together:>7.1f} ms  {middle:.2f} ({low:.2f}-{high:.2f})", flush=True)
    if arguments.json:
        print(json.dumps({"machine": title, "batch": lanes, "results": results}))


if __name__ == "__main__":
    main()
