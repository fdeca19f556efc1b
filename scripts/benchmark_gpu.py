#!/usr/bin/env python3
"""Measure this GPU, what cuDNN makes of it, and masked execution against cuDNN; at most ten minutes.

    ceilings   copying memory, and dense matrix products: what nothing can exceed
    layers     one nn.LSTM or nn.GRU: microseconds a time step, and the kernels that the profiler sees most time in
    steps      a training step of a character model, masked against plain modules (benchmark_masked.py; ratios are
               lower quartile, median, upper quartile), and one with an update
    graphs     the same ordinary step, captured in a CUDA graph, so that launching its kernels costs nothing
    sampling   one symbol after another, with each of them drawn on the CPU

    python scripts/benchmark_gpu.py          prints tables, and writes checkpoints/results/gpu-NAME.json
    python scripts/benchmark_gpu.py --json   prints that file's content instead
    python scripts/benchmark_gpu.py --device cpu --quick   runs the same code on little; its numbers mean nothing

A case that fails is reported with its error, and those that no time is left for are named; the others count.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmark_masked import batches, compare, machine, masked_step, plain_step, synchronise
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.nn.language_model import CharLM
from rnnsparse.sampling import Sampler, SamplingConfig
from rnnsparse.settings.model import ModelConfig
from rnnsparse.settings.sparsity import BudgetConfig
from rnnsparse.sparsity.allocation import allocate, connect_randomly
from rnnsparse.sparsity.methods.rigl import RigL
from rnnsparse.training.device import COMPUTE_TYPES, allow_tf32

RESULTS = Path(__file__).resolve().parent.parent / "checkpoints" / "results"
MODULES = {"lstm": nn.LSTM, "gru": nn.GRU}
INPUTS, SPARSITY = 128, 0.75
SHOWN_KERNELS = 3


class Sizes(NamedTuple):
    """How much is measured."""

    precisions: tuple[str, ...] = ("fp16", "bf16", "tf32", "fp32")
    layer_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    layer_batches: tuple[int, ...] = (32, 128)
    step_sizes: tuple[int, ...] = (512, 1024)
    step_batch: int = 32
    times: int = 256
    rounds: int = 12
    matrix: int = 8192
    copied_bytes: int = 1 << 30
    symbols: int = 500


QUICK = Sizes(("fp32",), (8,), (2,), (8,), 2, 4, 2, 16, 1 << 12, 3)

# What is measured, by a function that returns its numbers, and for which parameters.
Case = tuple[dict[str, Any], Callable[[], dict[str, Any]]]


def milliseconds(function: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Return the median time of a call; the first calls, in which libraries choose their kernels, do not count."""
    times = []
    for number in range(-3, rounds):
        synchronise(device)
        started = time.perf_counter()
        function()
        synchronise(device)
        if number >= 0:
            times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


def kernels(function: Callable[[], object], device: torch.device) -> list[str]:
    """Return the names of the kernels that a call spends most time in (on a CPU: of the operators)."""
    on_cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as profiler:
        function()
        synchronise(device)
    times: Counter[str] = Counter()
    for event in profiler.key_averages():
        times[event.key] += round(1e3 * (event.self_device_time_total if on_cuda else event.self_cpu_time_total))
    return [name[:120] for name, spent in times.most_common(SHOWN_KERNELS) if spent]


# ---- sections


def ceilings(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    def copy() -> dict[str, Any]:
        source = torch.zeros(sizes.copied_bytes, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        spent = milliseconds(lambda: target.copy_(source), device, sizes.rounds)
        return {"GB/s": 2 * sizes.copied_bytes / spent / 1e6}  # read and written

    def multiply(precision: str) -> dict[str, Any]:
        shape = (sizes.matrix, sizes.matrix)
        one = torch.randn(shape, device=device).to(COMPUTE_TYPES.get(precision, torch.float32))
        allow_tf32(precision == "tf32")
        spent = milliseconds(lambda: one @ one, device, sizes.rounds)
        return {"TFLOP/s": 2 * sizes.matrix**3 / spent / 1e9}

    yield {"what": "copy"}, copy
    for precision in sizes.precisions:
        yield {"what": f"{precision} product"}, lambda precision=precision: multiply(precision)


def layers(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    def measure(cell: str, precision: str, hidden: int, batch: int) -> dict[str, Any]:
        dtype = COMPUTE_TYPES.get(precision, torch.float32)
        allow_tf32(precision == "tf32")
        layer = MODULES[cell](INPUTS, hidden).to(device, dtype)
        x_TBI = torch.randn(sizes.times, batch, INPUTS, device=device, dtype=dtype, requires_grad=True)

        def forward() -> Tensor:
            y_TBH: Tensor = layer(x_TBI)[0]
            return y_TBH

        gradient_TBH = torch.randn_like(forward())

        def both() -> None:
            forward().backward(gradient_TBH)
            layer.zero_grad()

        per_step = 1e3 / sizes.times
        return {
            "forward us": milliseconds(forward, device, sizes.rounds) * per_step,
            "forward and backward us": milliseconds(both, device, sizes.rounds) * per_step,
            "kernels": kernels(both, device),
        }

    parameters = itertools.product(MODULES, sizes.precisions, sizes.layer_sizes, sizes.layer_batches)
    for cell, precision, hidden, batch in parameters:
        case = {"cell": cell, "precision": precision, "hidden": hidden, "batch": batch}
        yield case, lambda case=case: measure(**case)


def training_steps(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Yield the parameters of a character model's training step."""
    for precision, cell, hidden in itertools.product(sizes.precisions, MODULES, sizes.step_sizes):
        yield {"cell": cell, "precision": precision, "hidden": hidden}


def steps(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    def measure(cell: str, precision: str, hidden: int) -> dict[str, Any]:
        config = ModelConfig(cell=cell, embedding_dim=INPUTS, hidden_size=hidden)  # type: ignore[arg-type]
        shape = {"batch_size": sizes.step_batch, "sequence_length": sizes.times}
        turns = {"rounds": sizes.rounds, "turn": 4, "warm_up": 2, "sparsity": SPARSITY}
        result = compare(config, argparse.Namespace(device=device, precision=precision, **shape, **turns))
        ordinary = ordinary_steps(sizes, device, cell, precision, hidden)
        # Masked execution has to end up in the recurrent kernel of the plain module.
        seen = {f"kernels, {name}": kernels(step, device) for name, step in ordinary.items()}
        times = {f"{name} ms": value for name, value in result["milliseconds"].items()}
        return times | {f"{name} / plain": quartiles for name, quartiles in result["ratios"].items()} | seen

    for case in training_steps(sizes):
        yield case, lambda case=case: measure(**case)


def ordinary_steps(
    sizes: Sizes, device: torch.device, cell: str, precision: str, hidden: int, *, capturable: bool = False
) -> dict[str, Callable[[], None]]:
    """Return a training step without an update, of a plain network and of one with RigL, always with the same text."""
    config = ModelConfig(cell=cell, embedding_dim=INPUTS, hidden_size=hidden)  # type: ignore[arg-type]
    dtype = COMPUTE_TYPES.get(precision, torch.float32)
    allow_tf32(precision == "tf32")
    text = next(batches(sizes.step_batch, sizes.times, device))
    plain = plain_step(config, device, dtype, capturable=capturable)
    rigl = masked_step(config, RigL(), SPARSITY, sizes.step_batch, device, dtype, capturable=capturable)
    return {"plain": lambda: plain(1, *text), "rigl": lambda: rigl(1, *text)}


def graphs(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    def captured(step: Callable[[], None]) -> Callable[[], None]:
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay

    def measure(cell: str, precision: str, hidden: int) -> dict[str, Any]:
        spent = {}
        for name, step in ordinary_steps(sizes, device, cell, precision, hidden, capturable=True).items():
            spent[f"{name} ms"] = milliseconds(step, device, sizes.rounds)
            if device.type == "cuda":  # nothing else has such graphs
                spent[f"{name}, captured ms"] = milliseconds(captured(step), device, sizes.rounds)
        return spent

    for case in training_steps(sizes):
        yield case, lambda case=case: measure(**case)


def sampling(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    tokenizer = Tokenizer.byte()

    def measure(cell: str, hidden: int) -> dict[str, Any]:
        config = ModelConfig(cell=cell, embedding_dim=INPUTS, hidden_size=hidden)  # type: ignore[arg-type]
        model = CharLM(config, tokenizer.vocab_size).to(device)
        connect_randomly(allocate(list(model.sparse_weights().values()), BudgetConfig(sparsity=SPARSITY)), seed=0)
        model.reset_parameters(seed=0)
        sampler = Sampler(model, tokenizer, "The ")

        def sample() -> None:
            for _ in sampler.stream(SamplingConfig(length=sizes.symbols)):
                pass

        return {"symbols/s": sizes.symbols / milliseconds(sample, device, 3) * 1e3}

    for cell, hidden in itertools.product(MODULES, sizes.step_sizes):
        case = {"cell": cell, "hidden": hidden}
        yield case, lambda case=case: measure(**case)


# What the trainer's own graphs bring is in benchmark_captured.py.
SECTIONS = {"ceilings": ceilings, "steps": steps, "layers": layers, "sampling": sampling, "graphs": graphs}

# ---- all of it


def measure(sizes: Sizes, device: torch.device, minutes: float, file: Path | None) -> dict[str, Any]:
    """Return the results of each section: the parameters of each case, and its numbers or its error.

    What has been measured is in the file at any time, if one is given.
    """
    deadline = time.monotonic() + 60 * minutes
    report: dict[str, Any] = {"environment": environment(device), "sizes": sizes._asdict()}
    report |= {section: [] for section in SECTIONS}
    for section, cases in SECTIONS.items():
        for case, run in cases(sizes, device):
            torch.manual_seed(0)
            if time.monotonic() > deadline:
                found = {"error": "no time left"}
            else:
                try:
                    found = run()
                except Exception as error:  # whatever it is, the other cases can be measured
                    found = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
            report[section].append(case | found)
            print(f"{section}: {as_line(case | found)}", file=sys.stderr, flush=True)
            if file:
                file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def environment(device: torch.device) -> dict[str, Any]:
    """Return what the numbers depend on."""
    root = RESULTS.parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    on_cuda = device.type == "cuda"
    return {
        "machine": machine(device.type),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if on_cuda else None,
        "capability": torch.cuda.get_device_capability() if on_cuda else None,
        "commit": commit or None,
    }


def as_table(rows: list[dict[str, Any]]) -> str:
    """Return rows as a table in Markdown, with a column for each key of any."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, ["---"] * len(columns)] + [[_shown(row.get(key, "")) for key in columns] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def as_line(row: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_shown(value)}" for key, value in row.items())


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(_shown, value))
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def failures(report: dict[str, Any]) -> list[str]:
    return [f"{name}: {as_line(row)}" for name in SECTIONS for row in report[name] if "error" in row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--minutes", type=float, default=8.0, help="no case begins after so long")
    arguments = parser.parse_args()
    if arguments.device == "cpu" and not arguments.quick:
        parser.error("--device cpu: this script measures GPUs, and only tries itself on a CPU; add --quick")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds none on this machine")
    file = None
    if not arguments.quick:
        RESULTS.mkdir(parents=True, exist_ok=True)
        file = RESULTS / f"gpu-{re.sub('[^a-z0-9]+', '-', machine('cuda').lower())}.json"
    report = measure(QUICK if arguments.quick else Sizes(), torch.device(arguments.device), arguments.minutes, file)
    if arguments.json:
        print(json.dumps(report, indent=1))
    else:
        print(as_line(report["environment"]))
        for name in SECTIONS:
            print(f"\n{name}\n{as_table(report[name])}")
    if failed := failures(report):
        raise SystemExit("\n".join(["not measured:", *failed]))


if __name__ == "__main__":
    main()
