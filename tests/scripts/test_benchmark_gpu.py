"""scripts/benchmark_gpu.py works before it has a GPU: nobody has one for long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ("ceilings", "steps", "layers", "sampling", "graphs")


def test_every_section_runs_on_a_cpu_and_leaves_no_results() -> None:
    results = ROOT / "checkpoints/results"
    before = sorted(results.glob("*"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "scripts/benchmark_gpu.py"), "--device", "cpu", "--quick", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert all(report[section] for section in SECTIONS)
    for row in report["steps"]:
        assert row["plain ms"] > 0
        assert len(row["rigl_with_updates / plain"]) == 3
        assert row["kernels, rigl"]
    assert sorted(results.glob("*")) == before


def test_what_no_time_is_left_for_is_named(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark_gpu.py", "--device", "cpu", "--quick", "--minutes", "0"])
    with pytest.raises(SystemExit, match="sampling: cell gru, hidden 8, error no time left"):
        benchmark.main()
    out, err = capsys.readouterr()
    assert "sampling: cell gru, hidden 8, error no time left" in err
    assert "| cell | hidden | error |" in out


def test_a_cpu_is_not_measured_as_a_gpu(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark_gpu.py", "--device", "cpu"])
    with pytest.raises(SystemExit, match="2"):
        benchmark.main()
    assert capsys.readouterr().err.count("add --quick") == 1
