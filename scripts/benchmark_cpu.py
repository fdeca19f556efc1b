#!/usr/bin/env python3
"""Measure sparse execution on this CPU against what PyTorch does with dense weights of the same shape.

Every ratio is taken inside one process, with the two sides interleaved and medians compared, so that a busy machine
slows both; beside each stands that of the processor time, which other programs cost less. Measuring goes on until the
quartiles of every side lie within 5 % of each other, four times as long at most; the spread that is left is said. Peak
memory is measured in a process of its own. Prints tables, and each target as met or not.

    python scripts/benchmark_cpu.py            all of it, about fifteen minutes on two cores
    python scripts/benchmark_cpu.py --quick    one size, about two minutes
    python scripts/benchmark_cpu.py --json     the numbers as JSON

`--keep FILE` writes each measurement down once it is made; the same command goes on where an earlier one was stopped.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from rnnsparse import files
from rnnsparse.cells.cell import CELLS
from rnnsparse.nn import sparse
from rnnsparse.nn.cross_entropy import cross_entropy
from rnnsparse.nn.gradients import DenseGradient
from rnnsparse.nn.language_model import CharLM
from rnnsparse.nn.recurrent import RecurrentLayer
from rnnsparse.nn.reference import run as run_textbook_cell
from rnnsparse.settings.model import ModelConfig
from rnnsparse.settings.sparsity import BudgetConfig
from rnnsparse.sparsity.allocation import allocate, connect_randomly
from rnnsparse.sparsity.blocks import set_block_rows
from rnnsparse.sparsity.methods.rigl import RigL
from rnnsparse.sparsity.selection import best_absent, draw_positions
from rnnsparse.sparsity.updater import Updater
from rnnsparse.training.peak_memory import peak_memory

DENSE = {"lstm": nn.LSTM, "gru": nn.GRU}
DENSE_CELL = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}
LARGEST_SPREAD = 0.05
# By rows of a block, then by sparsity: times faster than dense.
LAYER_TARGETS = {
    1: {0.75: 2.2, 0.90: 5.0, 0.95: 8.0, 0.99: 16.0},
    8: {0.75: 3.8, 0.90: 8.5, 0.95: 12.0, 0.99: 20.0},
}
STEP_TARGETS = {
    1: {0.75: 2.0, 0.90: 4.0, 0.95: 6.0, 0.99: 10.0},
    8: {0.75: 3.0, 0.90: 6.5, 0.95: 9.0, 0.99: 14.0},
}
SAMPLING_TARGETS = {1: {0.90: 5.0, 0.99: 10.0}, 8: {0.90: 12.0}}
MEMORY_TARGETS = {8192: 1.2e9, 16384: 2.5e9}


class Times(NamedTuple):
    """Median seconds of the clock and of the processor, and how far apart the clock's quartiles are, relatively."""

    wall: float
    processor: float
    spread: float


def medians(rounds: int, **sides: Callable[[], object]) -> dict[str, Times]:
    """Measure each side: one uncounted call each, then interleaved ones, `rounds` or up to four times as many."""
    wall: dict[str, list[float]] = {name: [] for name in sides}
    processor: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    for done in range(1, 4 * rounds + 1):
        for name, side in sides.items():
            started, used = time.perf_counter(), time.process_time()
            side()
            wall[name].append(time.perf_counter() - started)
            processor[name].append(time.process_time() - used)
        if done >= rounds and max(map(spread, wall.values())) < LARGEST_SPREAD:
            break
    return {
        name: Times(statistics.median(wall[name]), statistics.median(processor[name]), spread(wall[name]))
        for name in sides
    }


def spread(values: list[float]) -> float:
    """Return how far apart the quartiles are, relative to the median."""
    if len(values) < 2:
        return 0.0
    quartiles = statistics.quantiles(values, n=4, method="inclusive")
    return (quartiles[2] - quartiles[0]) / quartiles[1]


def random_layer(cell: str, inputs: int, hidden: int, sparsity: float, block_rows: int = 1) -> RecurrentLayer:
    layer = RecurrentLayer(CELLS[cell], "rnn.0", inputs, hidden, block_rows=block_rows)
    for weight in (layer.input, layer.recurrent):
        positions = weight.positions // block_rows
        count = round(positions * (1 - sparsity))
        weight.connect(draw_positions(count, positions, torch.Generator().manual_seed(0)))
        weight.values.data.normal_(std=(hidden * (1 - sparsity)) ** -0.5)
    return layer


def layer_step(
    cell: str, hidden: int, block_rows: int, sparsities: list[float], batch: int, times: int, rounds: int
) -> dict[str, Times]:
    """Forward and backward of one recurrent layer with 128 inputs, everything differentiated."""
    inputs = 128
    dense = DENSE[cell](inputs, hidden)
    x_TBI, y_TBH = torch.randn(times, batch, inputs), torch.randn(times, batch, hidden)
    tiles = sparse.Tiles(batch, torch.float32)
    x_MIB, y_MHB = (tiles.cut(each.transpose(1, 2)).flatten(0, 1) for each in (x_TBI, y_TBH))

    def run_dense() -> None:
        x = x_TBI.clone().requires_grad_()
        dense(x)[0].backward(y_TBH)
        dense.zero_grad()

    def run_sparse(layer: RecurrentLayer) -> None:
        x = x_MIB.clone().requires_grad_()
        state = torch.zeros(1, layer.cell.states, batch, hidden)
        sparse.run_layers([layer], None, x, state, 0.0, tiles)[0].backward(y_MHB)
        layer.zero_grad()

    sides: dict[str, Callable[[], object]] = {"dense": run_dense}
    for sparsity in sparsities:
        sides[str(sparsity)] = partial(run_sparse, random_layer(cell, inputs, hidden, sparsity, block_rows))
    return medians(rounds, **sides)


class DenseLM(nn.Module):
    """The same network from PyTorch's own layers."""

    def __init__(self, cell: str, vocabulary: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.rnn = DENSE[cell](embedding, hidden)
        self.output = nn.Linear(hidden, vocabulary)

    def forward(self, tokens_TB: Tensor) -> Tensor:
        logits: Tensor = self.output(self.rnn(self.embedding(tokens_TB))[0])
        return logits


def language_model(cell: str, hidden: int, sparsity: float, block_rows: int = 1, execution: str = "sparse") -> CharLM:
    model = CharLM(ModelConfig(cell=cell, embedding_dim=128, hidden_size=hidden), 256)  # type: ignore[arg-type]
    set_block_rows(list(model.sparse_weights().values()), block_rows)
    budgets = allocate(list(model.sparse_weights().values()), BudgetConfig(sparsity=sparsity))
    connect_randomly(budgets, 0)
    model.reset_parameters(0)
    model.execution = execution  # type: ignore[assignment]
    return model


def training_step(
    cell: str, hidden: int, block_rows: int, sparsities: list[float], batch: int, times: int, rounds: int
) -> dict[str, Times]:
    """A whole step of a character model: embedding, recurrence, output, loss, clipping, Adam; 256 symbols."""
    tokens = torch.randint(256, (times + 1, batch))

    def stepper(model: nn.Module, logits_of: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

        def step() -> None:
            loss = cross_entropy(logits_of(tokens[:-1]), tokens[1:])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return step

    dense = DenseLM(cell, 256, 128, hidden)
    sides = {"dense": stepper(dense, dense)}
    for sparsity in sparsities:
        model = language_model(cell, hidden, sparsity, block_rows)
        sides[str(sparsity)] = stepper(model, lambda tokens_TB, model=model: model(tokens_TB)[0])  # type: ignore[misc]
    return medians(rounds, **sides)


def sampling(cell: str, hidden: int, block_rows: int, sparsities: list[float], rounds: int) -> dict[str, Times]:
    """One symbol after another, batch 1: the recurrent cell, the embedding and the output."""
    symbols = 20
    dense_cell, head = DENSE_CELL[cell](128, hidden), nn.Linear(hidden, 256)
    embedding = nn.Embedding(256, 128)

    @torch.no_grad()
    def run_dense() -> None:
        state: Any = None
        for symbol in range(symbols):
            state = dense_cell(embedding(torch.tensor([symbol])), state)
            head(state[0] if cell == "lstm" else state)

    def run_sparse(stepper: Any, state: Tensor) -> None:
        for symbol in range(symbols):
            _, state = stepper.step(torch.tensor([symbol]), state)

    sides: dict[str, Callable[[], object]] = {"dense": run_dense}
    for sparsity in sparsities:
        model = language_model(cell, hidden, sparsity, block_rows)
        sides[str(sparsity)] = partial(run_sparse, model.stepper(), model.initial_state(1))
    return medians(rounds, **sides)


def alternatives(hidden: int, sparsity: float, batch: int, times: int, rounds: int) -> dict[str, Times]:
    """Forward of one LSTM layer: nn.LSTM, these kernels, torch.sparse in a loop, and a loop over masked weights."""
    layer = random_layer("lstm", 128, hidden, sparsity)
    dense = nn.LSTM(128, hidden)
    x_TBI = torch.randn(times, batch, 128)
    x_TIB, zeros_SHB = x_TBI.transpose(1, 2).contiguous(), torch.zeros(2, hidden, batch)
    tiles = sparse.Tiles(batch, torch.float32)
    x_MIB = tiles.cut(x_TIB).flatten(0, 1)
    weights = [weight.to_dense() for weight in (layer.input, layer.recurrent)]
    masks = [(weight != 0).float() for weight in weights]
    csr = [weight.to_sparse_csr() for weight in weights]

    @torch.no_grad()
    def run_torch_sparse() -> None:
        h, c = zeros_SHB
        for x_IB in x_TIB:
            i, f, g, o = (csr[0] @ x_IB + csr[1] @ h + layer.bias_ih[:, None]).chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()

    @torch.no_grad()
    def run_masked_loop() -> None:
        masked = [weight * mask for weight, mask in zip(weights, masks, strict=True)]
        run_textbook_cell("lstm", x_TBI, zeros_SHB.transpose(1, 2), *masked, layer.bias_ih, layer.bias_hh)

    @torch.no_grad()
    def run_sparse() -> None:
        sparse.run_layers([layer], None, x_MIB, zeros_SHB.transpose(1, 2)[None], 0.0, tiles)

    @torch.no_grad()
    def run_dense() -> None:
        dense(x_TBI)

    return medians(
        rounds, dense=run_dense, sparse=run_sparse, torch_sparse=run_torch_sparse, masked_loop=run_masked_loop
    )


def update_cost(hidden: int, sparsity: float, batch: int, times: int, rounds: int) -> dict[str, float]:
    """Choosing what grows in a recurrent LSTM matrix: strip by strip, and from a materialised gradient."""
    layer = random_layer("lstm", 128, hidden, sparsity)
    weight = layer.recurrent
    gradient = sparse.ProductGradient(torch.randn(times, 4 * hidden, batch), torch.randn(times, hidden, batch))
    count = weight.connections // 10
    dense_gradient, found = DenseGradient(gradient), {}

    def by_strips() -> None:
        strips = dense_gradient.strips(0, weight.rows, weight.cols)
        found["strips"] = best_absent(strips, torch.abs, weight.indices, count)

    def materialised() -> None:
        # From the same strips: one large product would round some entries otherwise.
        strips = dense_gradient.strips(0, weight.rows, weight.cols)
        scores = torch.cat([strip.gradient_RC for strip in strips]).abs().view(-1)
        scores[weight.indices] = -1
        found["materialised"] = scores.topk(count).indices.sort().values

    result = {name: times.wall for name, times in medians(rounds, strips=by_strips, materialised=materialised).items()}
    result["identical"] = float(torch.equal(found["strips"], found["materialised"]))
    return result


def print_peak_memory(hidden: int, sparsity: float, batch: int, times: int) -> None:
    """Run two training steps with an update in this process and print its peak memory in bytes."""
    torch.manual_seed(0)
    model = language_model("lstm", hidden, sparsity)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    budgets = allocate(list(model.sparse_weights().values()), BudgetConfig(sparsity=sparsity))
    sparsifier = Updater(RigL(interval=2), budgets, optimizer, seed=0, total_steps=10)
    started = peak_memory()
    peaks = []
    for step in (1, 2):
        tokens = torch.randint(256, (times + 1, batch))
        sparsifier.before_backward(step)
        logits, _ = model(tokens[:-1])
        loss = cross_entropy(logits, tokens[1:])
        loss.backward()
        del loss, logits
        if sparsifier.after_backward(step):
            optimizer.step()
        sparsifier.after_step(step)
        optimizer.zero_grad()
        peaks.append(peak_memory())
    print(json.dumps({"start": started, "step": peaks[0], "update": peaks[1]}))


def measured_memory(hidden: int, sparsity: float, batch: int, times: int) -> dict[str, float]:
    arguments = [str(hidden), str(sparsity), str(batch), str(times)]
    command = [sys.executable, __file__, "--peak-memory", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def verdict(name: str, target: float, measured: float, unit: str = "x", at_most: bool = False) -> dict[str, Any]:
    met = measured <= target if at_most else measured >= target
    return {"target": name, "wanted": target, "measured": measured, "unit": unit, "met": met}


def verdicts(name: str, targets: dict[float, float], times: dict[str, Times]) -> list[dict[str, Any]]:
    """Return those on the sparsities that were measured."""
    return [
        verdict(f"{name}, {sparsity:.0%} sparse", target, times["dense"].wall / times[str(sparsity)].wall)
        | {"processor": times["dense"].processor / times[str(sparsity)].processor}
        for sparsity, target in targets.items()
        if str(sparsity) in times
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--quick", action="store_true", help="hidden size 1024 only, fewer rounds, no memory")
    parser.add_argument("--hidden", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.75, 0.90, 0.95, 0.99])
    parser.add_argument("--block-rows", type=int, nargs="+", default=[1, 8], help="rows of a block; 1: no blocks")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--times", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path, metavar="FILE", help="write each measurement down, and go on from FILE")
    parser.add_argument(
        "--peak-memory", nargs=4, metavar=("HIDDEN", "SPARSITY", "BATCH", "TIMES"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    if arguments.peak_memory:
        hidden, sparsity, batch, times = arguments.peak_memory
        print_peak_memory(int(hidden), float(sparsity), int(batch), int(times))
        return
    if arguments.quick:
        arguments.hidden, arguments.rounds = [1024], 3
    report = measure(arguments)
    print(json.dumps(report, indent=1) if arguments.json else as_text(report))


class Kept:
    """Measurements by name, each made once; written to a file, if one is given, as soon as they are made."""

    def __init__(self, path: Path | None, conditions: dict[str, Any]) -> None:
        self.path, self.conditions = path, conditions
        self.results: dict[str, Any] = {}
        if path is None or not path.exists():
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            of_then, self.results = found["conditions"], found["results"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            self._refuse(f"not measurements that this script kept ({error}); name another file")
        if of_then != conditions:
            differ = ", ".join(key for key in conditions if of_then.get(key) != conditions[key])
            self._refuse(f"measured with other {differ}; name another file")

    def _refuse(self, why: str) -> NoReturn:
        print(f"benchmark_cpu: --keep {self.path}: {why}", file=sys.stderr)
        sys.exit(2)

    def __call__(self, name: str, measure: Callable[[], Any]) -> Any:
        if name not in self.results:
            self.results[name] = measure()
            if self.path is not None:
                content = {"conditions": self.conditions, "results": self.results}
                try:
                    files.replace(self.path, lambda file: file.write(json.dumps(content).encode()))
                except OSError as error:
                    self._refuse(f"cannot be written ({error.strerror}); name another file")
            print(f"measured: {name}", file=sys.stderr, flush=True)
        return self.results[name]

    def times(self, name: str, measure: Callable[[], dict[str, Times]]) -> dict[str, Times]:
        return {side: Times(*times) for side, times in self(name, measure).items()}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    batch, times, sparsities = arguments.batch, arguments.times, arguments.sparsity
    conditions = {
        "machine": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "batch": batch,
        "times": times,
    }
    asked = {"sparsity": sparsities, "rounds": arguments.rounds}
    kept = Kept(arguments.keep, conditions | asked)
    report: dict[str, Any] = conditions | {"layer_step": [], "targets": []}
    for cell, rows in product(("lstm", "gru"), arguments.block_rows):
        of = f"{cell}, blocks of {rows}" if rows > 1 else cell
        for hidden in arguments.hidden:
            rounds = max(2, arguments.rounds * 1024 // max(1024, hidden))
            step = partial(layer_step, cell, hidden, rows, sparsities, batch, times, rounds)
            seconds = kept.times(f"layer step {of} {hidden}", step)
            report["layer_step"].append({"of": of, "hidden": hidden, "seconds": seconds})
            if hidden >= 1024:
                report["targets"] += verdicts(f"{of} layer, H={hidden}", LAYER_TARGETS.get(rows, {}), seconds)
    hidden = 1024 if arguments.quick else 2048
    report["training_step"], report["sampling"] = [], []
    for cell, rows in product(("lstm", "gru"), arguments.block_rows):
        of = f"{cell}, blocks of {rows}" if rows > 1 else cell
        step = partial(training_step, cell, hidden, rows, sparsities, batch, times, max(2, arguments.rounds // 2))
        seconds = kept.times(f"training step {of} {hidden}", step)
        report["training_step"].append({"of": of, "hidden": hidden, "seconds": seconds})
        report["targets"] += verdicts(f"{of} training step, H={hidden}", STEP_TARGETS.get(rows, {}), seconds)
        symbols = partial(sampling, cell, hidden, rows, sparsities, 3 * arguments.rounds)
        seconds = kept.times(f"sampling {of} {hidden}", symbols)
        report["sampling"].append({"of": of, "hidden": hidden, "seconds": seconds})
        report["targets"] += verdicts(f"{of} sampling, H={hidden}", SAMPLING_TARGETS.get(rows, {}), seconds)
    report["alternatives"] = {
        str(s): kept.times(f"alternatives {s}", partial(alternatives, 1024, s, batch, 32, arguments.rounds))
        for s in (0.9, 0.99)
    }
    report["update"] = {
        str(h): kept(f"update {h}", partial(update_cost, h, 0.9, batch, times, 2))
        for h in ([1024] if arguments.quick else [1024, 4096])
    }
    report["memory"] = {}
    for hidden, limit in {} if arguments.quick else MEMORY_TARGETS.items():
        peak = kept(f"memory {hidden}", partial(measured_memory, hidden, 0.99, batch, times))
        report["memory"][str(hidden)] = peak
        name = f"peak memory of a training step, H={hidden}, 99% sparse"
        report["targets"].append(verdict(name, limit / 1e9, peak["step"] / 1e9, "GB", at_most=True))
    return report


def as_text(report: dict[str, Any]) -> str:
    lines = [
        f"{report['machine']}, {report['threads']} threads, torch {report['torch']}, fp32, "
        f"batch {report['batch']}, {report['times']} time steps",
    ]
    for key, title in (
        ("layer_step", "one layer, forward + backward"),
        ("training_step", "character model, whole training step"),
        ("sampling", "sampling 20 symbols, batch 1"),
    ):
        columns = [name for name in report[key][0]["seconds"] if name != "dense"]
        lines += ["", f"{title}: dense ms, then times faster by sparsity"]
        lines.append(f"{'':30}{'dense ms':>10}" + "".join(f"{float(name):>8.0%}" for name in columns))
        for row in report[key]:
            dense, widest = row["seconds"]["dense"], max(side.spread for side in row["seconds"].values())
            for clock in ("wall", "processor"):
                of_dense = getattr(dense, clock)
                ratios = "".join(f"{of_dense / getattr(row['seconds'][name], clock):>7.1f}x" for name in columns)
                start = f"{row['of']:24}{row['hidden']:>5} " if clock == "wall" else f"  {clock:28}"
                lines.append(f"{start}{of_dense * 1e3:>10.1f}{ratios}" + f"  +-{widest:.0%}" * (clock == "wall"))
    lines += ["", "forward of one LSTM layer, H=1024: times faster than nn.LSTM"]
    for sparsity, seconds in report["alternatives"].items():
        others = ", ".join(
            f"{name} {seconds['dense'].wall / value.wall:.2f}x" for name, value in seconds.items() if name != "dense"
        )
        lines.append(f"{float(sparsity):.0%} sparse: {others}")
    lines += ["", "choosing 10 % of the connections of a recurrent LSTM matrix to grow"]
    for hidden, result in report["update"].items():
        same = "identical set" if result["identical"] else "DIFFERENT SET"
        lines.append(
            f"H={hidden}: by strips {result['strips']:.2f} s, materialised {result['materialised']:.2f} s, {same}"
        )
    for hidden, peak in report["memory"].items():
        lines.append(
            f"memory H={hidden}, 99 % sparse: peak {peak['step'] / 1e9:.2f} GB of a step, "
            f"{peak['update'] / 1e9:.2f} GB with an update"
        )
    lines += ["", "targets"]
    for row in report["targets"]:
        mark, unit = "met" if row["met"] else "NOT MET", row["unit"]
        by_processor = f" (processor time {row['processor']:.2f}{unit})" if "processor" in row else ""
        lines.append(
            f"{row['target']}: wanted {row['wanted']:g}{unit}, got {row['measured']:.2f}{unit}{by_processor}: {mark}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
