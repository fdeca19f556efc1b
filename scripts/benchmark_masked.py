"""What masked execution costs: one training step against the same network of plain nn.GRU or nn.LSTM modules.

A step is forward, backward, clipping and Adam (fused, for both). In bf16 and fp16 the plain network is so throughout,
parameters and optimizer too, which is the least that it can cost; CharLM keeps its parameters in fp32, as it always
does. Three contenders take turns in one process, so that whatever else the machine does falls on all of them: the
plain network, CharLM with every connection, and CharLM with RigL. A ratio is the median over rounds of (this turn /
the plain turn of the same round), printed with its quartiles. A RigL update is timed by itself and counted once per
interval.

    python scripts/benchmark_masked.py --hidden-sizes 512 --sequence-length 128
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnnsparse.nn.language_model import CharLM
from rnnsparse.settings.model import ModelConfig
from rnnsparse.settings.sparsity import BudgetConfig
from rnnsparse.settings.training import TrainingConfig
from rnnsparse.sparsity.allocation import allocate, connect_randomly
from rnnsparse.sparsity.method import Method
from rnnsparse.sparsity.methods.dense import Dense
from rnnsparse.sparsity.methods.rigl import RigL
from rnnsparse.sparsity.updater import Updater
from rnnsparse.training.device import COMPUTE_TYPES, allow_tf32
from rnnsparse.training.step.optim import build_optimizer, clip_gradients

VOCABULARY = 256
TRAINING = TrainingConfig()
ENDLESS = 10**9  # steps: the benchmark stays at the beginning of a run, where an update replaces most

Step = Callable[[int, Tensor, Tensor], None]  # step number, inputs [T, B], targets [T, B]


class PlainLM(nn.Module):
    """The same network without rnnsparse."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        recurrent = nn.GRU if config.cell == "gru" else nn.LSTM
        self.embedding = nn.Embedding(VOCABULARY, config.embedding_dim)
        self.rnn = recurrent(config.embedding_dim, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, VOCABULARY)

    def forward(self, tokens_TB: Tensor, state: Any) -> tuple[Tensor, Any]:
        y_TBH, state = self.rnn(self.embedding(tokens_TB), state)
        return self.output(y_TBH), state


def plain_step(
    config: ModelConfig, device: torch.device, dtype: torch.dtype = torch.float32, *, capturable: bool = False
) -> Step:
    """Return a training step as anybody would write it."""
    model = PlainLM(config).to(device, dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=TRAINING.learning_rate, fused=True, capturable=capturable)
    state: Any = None

    def step(number: int, inputs_TB: Tensor, targets_TB: Tensor) -> None:
        nonlocal state
        logits_TBV, state = model(inputs_TB, state)
        state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        F.cross_entropy(logits_TBV.flatten(0, 1).float(), targets_TB.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), TRAINING.grad_clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def masked_step(
    config: ModelConfig,
    method: Method,
    sparsity: float,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    capturable: bool = False,
) -> Step:
    """Return a training step with everything that the trainer does for sparsity."""
    model = CharLM(config, VOCABULARY).to(device)
    model.compute_dtype = dtype
    budgets = allocate(
        list(model.sparse_weights().values()), BudgetConfig(sparsity=0 if method.stays_dense else sparsity)
    )
    connect_randomly(budgets, seed=0, initial=method.initial_connections)
    model.reset_parameters(seed=0)
    optimizer = build_optimizer(TRAINING, model.parameters())
    optimizer.param_groups[0]["capturable"] = capturable
    sparsifier = Updater(method, budgets, optimizer, seed=0, total_steps=ENDLESS)
    state = model.initial_state(batch_size)

    def backward(inputs_TB: Tensor, targets_TB: Tensor) -> None:
        nonlocal state
        logits_TBV, state = model(inputs_TB, state)
        state = state.detach()
        F.cross_entropy(logits_TBV.flatten(0, 1).float(), targets_TB.flatten()).backward()

    def step(number: int, inputs_TB: Tensor, targets_TB: Tensor) -> None:
        sparsifier.before_backward(number)
        backward(inputs_TB, targets_TB)
        clip_gradients(model.parameters(), TRAINING.grad_clip)
        if sparsifier.after_backward(number):
            optimizer.step()
        sparsifier.after_step(number)
        optimizer.zero_grad(set_to_none=True)

    return step


def batches(batch_size: int, sequence_length: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    while True:
        text_TB = torch.randint(VOCABULARY, (sequence_length + 1, batch_size), generator=generator).to(device)
        yield text_TB[:-1], text_TB[1:]


def seconds(step: Step, numbers: Sequence[int], data: Iterator[tuple[Tensor, Tensor]], device: torch.device) -> float:
    """Return the mean time of the steps with these numbers."""
    prepared = [next(data) for _ in numbers]
    synchronise(device)
    started = time.perf_counter()
    for number, (inputs_TB, targets_TB) in zip(numbers, prepared, strict=True):
        step(number, inputs_TB, targets_TB)
    synchronise(device)
    return (time.perf_counter() - started) / len(numbers)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(config: ModelConfig, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return times in milliseconds (medians) and ratios (lower quartile, median, upper quartile)."""
    torch.manual_seed(0)
    device, dtype = torch.device(arguments.device), COMPUTE_TYPES.get(arguments.precision, torch.float32)
    allow_tf32(arguments.precision == "tf32")
    rigl = RigL()
    interval = rigl.interval
    steps = {
        "plain": plain_step(config, device, dtype),
        "full": masked_step(config, Dense(), 0.0, arguments.batch_size, device, dtype),
        "rigl": masked_step(config, rigl, arguments.sparsity, arguments.batch_size, device, dtype),
    }
    data = batches(arguments.batch_size, arguments.sequence_length, device)
    ordinary = range(1, arguments.turn + 1)
    times: dict[str, list[float]] = {name: [] for name in (*steps, "update")}
    names = list(steps)
    for round_number in range(-arguments.warm_up, arguments.rounds):
        # Each goes first equally often, so that none always follows the same other.
        turn = {n: seconds(steps[n], ordinary, data, device) for n in _rotated(names, round_number)}
        turn["update"] = seconds(steps["rigl"], [interval], data, device)
        if round_number >= 0:
            for name, value in turn.items():
                times[name].append(value)
    whole = [((interval - 1) * a + b) / interval for a, b in zip(times["rigl"], times["update"], strict=True)]
    return {
        "cell": config.cell,
        "hidden_size": config.hidden_size,
        "milliseconds": {name: round(statistics.median(values) * 1e3, 3) for name, values in times.items()},
        "ratios": {
            "full": _ratio(times["full"], times["plain"]),
            "rigl": _ratio(times["rigl"], times["plain"]),
            "rigl_with_updates": _ratio(whole, times["plain"]),
        },
    }


def _rotated(names: list[str], by: int) -> list[str]:
    start = by % len(names)
    return names[start:] + names[:start]


def _ratio(values: Sequence[float], plain: Sequence[float]) -> list[float]:
    quartiles = statistics.quantiles([a / b for a, b in zip(values, plain, strict=True)], n=4, method="inclusive")
    return [round(quartile, 3) for quartile in quartiles]


def machine(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=["gru", "lstm"], default=["gru", "lstm"])
    parser.add_argument("--hidden-sizes", nargs="+", type=int, default=[256, 512])
    parser.add_argument("--embedding-dim", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--sequence-length", type=int, default=64)
    parser.add_argument("--sparsity", type=float, default=0.75, help="of the RigL contender")
    parser.add_argument("--rounds", type=int, default=30, help="turns of each contender")
    parser.add_argument("--turn", type=int, default=4, help="ordinary steps in a turn (below RigL's interval, 100)")
    parser.add_argument("--warm-up", type=int, default=3, help="rounds that do not count")
    parser.add_argument("--threads", type=int, help="CPU threads; by default PyTorch's choice")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not 1 <= arguments.turn < 100 or arguments.rounds < 2:
        parser.error("--turn must be from 1 to 99, --rounds at least 2")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    title = {
        "machine": machine(arguments.device),
        "torch": torch.__version__,
        "precision": arguments.precision,
        "batch": [arguments.batch_size, arguments.sequence_length],
        "sparsity": arguments.sparsity,
        "rounds": arguments.rounds,
    }
    if not arguments.json:
        print(
            f"{title['machine']}; torch {title['torch']}; {arguments.precision}; "
            f"{arguments.batch_size} x {arguments.sequence_length} symbols"
        )
        print("ms of one step, and its ratio to plain: median (quartiles)")
        heads = ["0 %", f"RigL {arguments.sparsity:.0%}", "with updates"]
        print(f"{'cell':4} {'hidden':>6} {'plain':>9} " + " ".join(f"{head:>20}" for head in heads))
    results = []
    for cell in arguments.cells:
        for hidden_size in arguments.hidden_sizes:
            config = ModelConfig(cell=cell, embedding_dim=arguments.embedding_dim, hidden_size=hidden_size)
            results.append(result := compare(config, arguments))
            if not arguments.json:
                shown = [f"{mid:.3f} ({low:.3f}-{high:.3f})" for low, mid, high in result["ratios"].values()]
                plain = f"{result['milliseconds']['plain']:.1f} ms"
                print(f"{cell:4} {hidden_size:>6} {plain:>9} " + " ".join(f"{text:>20}" for text in shown), flush=True)
    if arguments.json:
        print(json.dumps({**title, "results": results}))


if __name__ == "__main__":
    main()
