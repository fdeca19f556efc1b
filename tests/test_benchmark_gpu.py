"""scripts/benchmark_gpu.py works before it has a GPU: nobody has one for long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SECTIONS = ("ceilings", "steps", "layers", "sampling", "graphs")


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "scripts/benchmark_gpu.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_every_section_runs_on_a_cpu_and_leaves_no_results() -> None:
    results = ROOT / "checkpoints/results"
    before = sorted(results.glob("*"))
    done = benchmark("--device", "cpu", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert all(report[section] for section in SECTIONS)
    for row in report["steps"]:
        assert row["plain ms"] > 0
        assert len(row["rigl_with_updates / plain"]) == 3
        assert row["kernels, rigl"]
    assert sorted(results.glob("*")) == before


def test_what_no_time_is_left_for_is_named() -> None:
    done = benchmark("--device", "cpu", "--quick", "--minutes", "0")
    assert done.returncode == 1
    assert "sampling: cell gru, hidden 8, error no time left" in done.stderr
    assert "| cell | hidden | error |" in done.stdout


def test_a_cpu_is_not_measured_as_a_gpu() -> None:
    done = benchmark("--device", "cpu")
    assert (done.returncode, done.stderr.count("add --quick")) == (2, 1)
