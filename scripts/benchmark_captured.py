"""What capturing brings: a training step whose forward and backward pass is one CUDA graph, against an ordinary one.

A step is all that the trainer does for it: batch, forward, backward, clipping, Adam, and the updates of `scout`, each
of which takes a new graph. Both contenders are real learners in masked execution, on the text that comes with Python.
They take turns in one process, so that whatever else the machine does falls on both. The ratio is that of their speeds,
the median over turns of (ordinary / captured) with its quartiles: above 1, capturing is faster.

    python scripts/benchmark_captured.py
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from benchmark_masked import machine

from rnnsparse.config import RunConfig, parse_config
from rnnsparse.data.corpus import Corpus, load_corpus
from rnnsparse.training.build import build_learner, new_model
from rnnsparse.training.step.captured import CapturedPass
from rnnsparse.training.step.distributed import Ranks
from rnnsparse.training.step.learner import Learner

INTERVAL = 50  # steps between updates, and in a turn


def config_of(arguments: argparse.Namespace, cell: str, hidden_size: int, precision: str) -> RunConfig:
    shape = {"cell": cell, "hidden_size": hidden_size, "embedding_dim": 64}
    training = {"batch_size": arguments.batch_size, "sequence_length": arguments.sequence_length}
    data = {
        "run": {"seed": 1},
        "data": {"source": "python_docs"},
        "model": {**shape, "execution": "masked"},
        "sparsity": {"method": "scout", "sparsity": arguments.sparsity, "interval": INTERVAL},
        "training": {**training, "steps": 10**6, "device": "cuda", "precision": precision},
    }
    return parse_config(data, "benchmark")


def learner_of(config: RunConfig, corpus: Corpus, *, captured: bool) -> Learner:
    model, budgets = new_model(config, corpus.tokenizer.vocab_size, torch.device("cuda"))
    learner = build_learner(config, model, budgets, corpus, Ranks())
    if not captured:
        assert isinstance(learner.forward_and_backward, CapturedPass)
        learner.forward_and_backward = learner.forward_and_backward.compute
    return learner


def compare(config: RunConfig, corpus: Corpus, turns: int) -> dict[str, Any]:
    """Return the times of a step in milliseconds (medians over turns), and the ratio with its quartiles."""
    contenders = {"ordinary": False, "captured": True}
    learners = {name: learner_of(config, corpus, captured=captured) for name, captured in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(-1, turns):  # the first does not count
        # Each goes first equally often, so that none always follows the other.
        for name in sorted(contenders, reverse=bool(turn % 2)):
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(INTERVAL):
                learners[name].take_step()
            torch.cuda.synchronize()
            if turn >= 0:
                times[name].append((time.perf_counter() - started) / INTERVAL)
    ratios = [a / b for a, b in zip(times["ordinary"], times["captured"], strict=True)]
    captured = statistics.median(times["captured"])
    return {
        "milliseconds": {name: round(statistics.median(values) * 1e3, 2) for name, values in times.items()},
        "ratio": [round(quartile, 3) for quartile in statistics.quantiles(ratios, n=4, method="inclusive")],
        "symbols per second": round(config.training.batch_size * config.training.sequence_length / captured),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=["gru", "lstm"], default=["gru", "lstm"])
    parser.add_argument("--hidden-sizes", nargs="+", type=int, default=[256, 512, 1024])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "tf32", "bf16", "fp16"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=64)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--turns", type=int, default=6, help="of each contender, at least 2")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    results = []
    title = (
        f"{machine('cuda')}; torch {torch.__version__}; {arguments.batch_size} x {arguments.sequence_length} symbols"
    )
    if not arguments.json:
        print(f"{title}\n{'':>15} {'ordinary':>11} {'captured':>11}  ratio (quartiles)   symbols per second")
    for cell, hidden, precision in itertools.product(arguments.cells, arguments.hidden_sizes, arguments.precisions):
        config = config_of(arguments, cell, hidden, precision)
        found = compare(config, load_corpus(config.data), arguments.turns)
        results.append({"cell": cell, "hidden": hidden, "precision": precision, **found})
        if not arguments.json:
            ordinary, captured = found["milliseconds"].values()
            low, middle, high = found["ratio"]
            print(
                f"{cell:>4} {hidden:>5} {precision} {ordinary:>8.2f} ms {captured:>8.2f} ms  "
                f"{middle:.2f} ({low:.2f}-{high:.2f})   {found['symbols per second']:>11,}",
                flush=True,
            )
    if arguments.json:
        print(json.dumps({"machine": title, "results": results}, indent=1))


if __name__ == "__main__":
    main()
