"""What scripts/benchmark_pareto.py makes of its runs; the runs themselves are ordinary ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def run(name: str, rate: float, seed: int, bits: float) -> dict[str, Any]:
    counts = {"characters_seen": 10**6, "connections": 100, "checkpoint_bytes": 1000, "written_per_second": 7}
    return {"name": name, "minutes": 1.0, "rate": rate, "seed": seed, "bits_per_character": bits} | counts


def test_a_network_counts_by_the_learning_rate_that_is_best_over_its_seeds(benchmark: Any) -> None:
    rows = [run("dense gru-8", 1e-2, seed, bits) for seed, bits in ((1, 2.0), (2, 3.0))]
    rows += [run("dense gru-8", 1e-3, seed, bits) for seed, bits in ((1, 2.4), (2, 2.2))]
    (best,) = benchmark.best(rows)
    assert (best["rate"], best["bits"]) == (1e-3, [2.4, 2.2])
    assert "2.300 ± 0.141" in benchmark.table(rows)


def test_all_networks_are_ones_that_can_be_trained(benchmark: Any) -> None:
    for settings in benchmark.networks().values():
        benchmark.load_config(benchmark.CONFIG, benchmark.overrides(settings))


def test_the_race_goes_from_speeds_to_a_table_and_a_picture_and_repeats_nothing(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"model.hidden_size": 8, "evaluation.symbols": 100, "sparsity.interval": 2}
    monkeypatch.setattr(benchmark, "QUICK", benchmark.QUICK | {"data.source": "text", "data.path": text(tmp_path)})
    contenders = {"dense": small | benchmark.networks()["dense gru-128"] | small, "sparse": small}
    monkeypatch.setattr(benchmark, "networks", lambda: contenders)
    arguments = ["--quick", "--minutes", "0.001", "--rates", "0.01", "--out", str(tmp_path / "out")]
    benchmark.main(arguments)
    first = json.loads((tmp_path / "out/pareto.json").read_text())["runs"]
    assert [row["name"] for row in first] == ["dense", "sparse"]
    assert (tmp_path / "out/pareto.png").stat().st_size > 1000
    assert "| dense |" in capsys.readouterr().out
    folders = sorted(tmp_path.glob("out/*/summary.json"))
    written = [path.stat().st_mtime_ns for path in folders]
    benchmark.main(arguments)
    assert [path.stat().st_mtime_ns for path in folders] == written


def text(folder: Path) -> str:
    path = folder / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog\n" * 60, encoding="utf-8")
    return str(path)
