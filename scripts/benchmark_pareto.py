#!/usr/bin/env python3
"""The same machine, the same minutes: dense and sparse networks after equal processor time of training.

The training step of each network is timed first, in processor time of one thread, topology updates included
(rnnsparse/training/speed.py). Each run then gets as many steps as fit into its minutes. Its bits per character are
those of the whole validation text after training, which the minutes do not include. A run is what `rnnsparse train`
makes of configs/pareto.yaml and of the settings that the result names. What is finished is not repeated, so the
benchmark goes on where it was stopped.

    python scripts/benchmark_pareto.py --list
    python scripts/benchmark_pareto.py --minutes 10 --networks "dense gru-256" "gru-512 90 %*"
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from itertools import product
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, StrMethodFormatter

import rnnsparse as rs
from rnnsparse.config import load_config
from rnnsparse.training.speed import Speeds, steps_in
from rnnsparse.training.train import train

CONFIG = Path(__file__).parent.parent / "configs/pareto.yaml"
QUICK = {"data.source": "python_docs", "training.batch_size": 2, "training.sequence_length": 8}
COLORS = {"dense": "#c44e52", "sparse": "#4c72b0"}
SIZES, SPARSITIES = (320, 384, 440, 448, 512, 640, 768, 896, 1024, 1536, 2048), (0.6, 0.75, 0.8, 0.9, 0.95)
# How connections move at the large rates that LayerNorm allows; see checkpoints/results/README.md.
GENTLE = {"sparsity.drop_fraction": 0.1, "training.betas": [0.9, 0.99]}
AXES: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "minutes of training on one core": lambda row: row["minutes"],
    "connections": lambda row: row["connections"],
    "kilobytes of the checkpoint's weights": lambda row: row["checkpoint_bytes"] / 1e3,
}


def networks() -> dict[str, dict[str, Any]]:
    """Return what distinguishes the contenders, by name."""
    found: dict[str, dict[str, Any]] = {}
    for cell, norm in (("gru", ""), ("lstm", ""), ("gru", " LN"), ("lstm", " LN")):
        kind = {"model.cell": cell} | ({"model.layer_norm": True} if norm else {})
        for hidden in (128, 256, 384, 512):
            found[f"dense {cell}-{hidden}{norm}"] = kind | {"model.hidden_size": hidden, "sparsity.method": "dense"}
        sparse = kind | (GENTLE if norm else {})
        for hidden, sparsity, rows in product(SIZES, SPARSITIES, (1, 8, 16)):
            name = f"{cell}-{hidden}{norm} {sparsity:.0%}".replace("%", " %")
            found[name + (f" blocks of {rows}" if rows > 1 else "")] = sparse | {
                "model.hidden_size": hidden,
                "sparsity.sparsity": sparsity,
                "sparsity.block_rows": rows,
            }
    return found


def overrides(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def written_per_second(folder: Path, length: int = 2000) -> float:
    """Return how many characters a run writes in a second of processor time."""
    trained = rs.load(folder)
    trained.sample("The ", length=100)  # compiles
    started = time.process_time()
    trained.sample("The ", length=length)
    return length / (time.process_time() - started)


def contend(name: str, minutes: float, rate: float, seed: int, shared: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Train a network for so many minutes, unless that is done; return what came of it."""
    settings = networks()[name] | dict(shared)
    folder = out / f"{name}, {minutes:g} minutes, rate {rate:g}, seed {seed}"
    if not (folder / "summary.json").exists():
        of_run: dict[str, Any] = {"training.learning_rate": rate, "run.seed": seed, "run.dir": str(folder)}
        steps = steps_in(minutes, Speeds(out / "speeds.jsonl").of(load_config(CONFIG, overrides(settings | of_run))))
        of_run |= {"training.steps": steps, "evaluation.interval": steps}
        train(load_config(CONFIG, overrides(settings | of_run)), resume=(folder / "last").exists())
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "name": name,
        "settings": {key: value for key, value in settings.items() if key != "data.path"},
        "minutes": minutes,
        "rate": rate,
        "seed": seed,
        "steps": summary["steps"],
        "characters_seen": summary["characters_seen"],
        "bits_per_character": summary["bits_per_character"],
        "connections": summary["connections"],
        "checkpoint_bytes": (folder / "last/model.safetensors").stat().st_size,
        "written_per_second": round(written_per_second(folder)),
    }


def best(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield what each network came to in so many minutes with the learning rate that is best over its seeds."""
    for name, minutes in dict.fromkeys((row["name"], row["minutes"]) for row in rows):
        by_rate: dict[float, list[Mapping[str, Any]]] = {}
        for row in rows:
            if (row["name"], row["minutes"]) == (name, minutes):
                by_rate.setdefault(row["rate"], []).append(row)
        bits = {rate: [row["bits_per_character"] for row in own] for rate, own in by_rate.items()}
        rate = min(bits, key=lambda rate: statistics.mean(bits[rate]))
        yield {**by_rate[rate][0], "bits": bits[rate], "mean": statistics.mean(bits[rate])}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as a Markdown table, by minutes and bits."""
    titles = (
        "minutes",
        "network",
        "rate",
        "bits per character",
        "connections",
        "KB",
        "million characters",
        "written a second",
    )
    lines = [f"| {' | '.join(titles)} |", "|---:|---|" + "---:|" * (len(titles) - 2)]
    for row in sorted(best(rows), key=lambda row: (row["minutes"], row["mean"])):
        deviation = f" ± {statistics.stdev(row['bits']):.3f}" if len(row["bits"]) > 1 else ""
        cells = (
            f"{row['minutes']:g}",
            row["name"],
            f"{row['rate']:g}",
            f"{row['mean']:.3f}{deviation}",
            f"{row['connections']:,}",
            f"{row['checkpoint_bytes'] / 1e3:,.0f}",
            f"{row['characters_seen'] / 1e6:.1f}",
            f"{row['written_per_second']:,}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw bits against minutes, connections and bytes; a line joins what nothing of its kind beats."""
    chosen = list(best(rows))
    figure = Figure(figsize=(12, 4.2), dpi=110, layout="constrained")
    for panel, (label, of) in zip(figure.subplots(1, 3, sharey=True), AXES.items(), strict=True):
        for kind, color in COLORS.items():
            own = sorted(
                (row for row in chosen if row["name"].startswith("dense") == (kind == "dense")),
                key=lambda row: (of(row), row["mean"]),
            )
            ahead = [row for i, row in enumerate(own) if all(row["mean"] < other["mean"] for other in own[:i])]
            panel.scatter([of(row) for row in own], [row["mean"] for row in own], color=color, label=kind, s=26)
            panel.step([of(row) for row in ahead], [row["mean"] for row in ahead], where="post", color=color)
        panel.set(xscale="log", xlabel=label)
        shown = sorted({of(row) for row in chosen})
        panel.xaxis.set_major_locator(FixedLocator(shown) if len(shown) <= 5 else LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.grid(alpha=0.3)
    figure.axes[0].set_ylabel("bits per character, validation")
    figure.axes[0].legend()
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", nargs="+", type=float, default=[10.0], help="of processor time, for each run")
    parser.add_argument("--networks", nargs="+", default=["*"], help="names or patterns of those that take part")
    parser.add_argument("--rates", nargs="+", type=float, default=[2e-3, 5e-3, 1e-2], help="learning rates")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--data", type=Path, help="a folder with the text; by default WikiText-103 from the hub")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/pareto"), help="for runs, table and picture")
    parser.add_argument("--list", action="store_true", help="name the networks, and do nothing")
    parser.add_argument("--quick", action="store_true", help="tiny batches of Python's documentation: does it work?")
    arguments = parser.parse_args(argv)
    names = [name for name in networks() if any(fnmatch(name, pattern) for pattern in arguments.networks)]
    if not names:
        parser.error(f"no network is called {' or '.join(arguments.networks)}; see --list")
    if arguments.list:
        print("\n".join(names))
        return
    shared: dict[str, Any] = dict(QUICK) if arguments.quick else {}
    if arguments.data:
        shared["data.path"] = str(arguments.data.resolve())
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for minutes, name, rate, seed in product(arguments.minutes, names, arguments.rates, arguments.seeds):
        rows.append(row := contend(name, minutes, rate, seed, shared, arguments.out))
        print(
            f"{minutes:g} minutes, {name}, rate {rate:g}: {row['bits_per_character']:.3f}", file=sys.stderr, flush=True
        )
    result = {"torch": torch.__version__, "runs": rows}
    (arguments.out / "pareto.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(rows, arguments.out / "pareto.png")
    print(table(rows))


if __name__ == "__main__":
    main()
