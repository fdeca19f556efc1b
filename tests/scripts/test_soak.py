"""scripts/soak.py watches a run from outside, and finds what grows in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scripts import soak

if not Path("/proc/self/fd").is_dir():
    pytest.skip("the soak looks into /proc", allow_module_level=True)

MB = 1 << 20
STILL = {"step": 10, "memory": 300 * MB, "mapped": 100 * MB, "handles": 7, "threads": 2, "folder": MB}
LEAKING = """
import sys, time
lost = []
with open(sys.argv[1] + "/metrics.jsonl", "w") as metrics:
    for step in range(1, 10_000):
        print('{"step": %d}' % step, file=metrics, flush=True)
        lost += [open("/dev/null"), bytearray(MB)]
        time.sleep(0.02)
"""


def parts(**changes: list[int]) -> list[list[soak.Sample]]:
    """Two samples in each of five parts of ten seconds; `changes` are what a number is at least in each part."""
    samples = [soak.Sample(seconds=0.5, **(STILL | {"memory": 1, "handles": 1}))]  # the warm-up
    for part in range(5):
        least = STILL | {name: of_parts[part] for name, of_parts in changes.items()}
        samples.append(soak.Sample(seconds=1.1 + 1.8 * part, **least))
        samples.append(soak.Sample(seconds=2.7 + 1.8 * part, **{name: 2 * number for name, number in least.items()}))
    return soak.parts_of(samples, 10)


def test_what_stays_or_is_held_for_a_moment_only_is_no_growth() -> None:
    assert soak.growth(parts()) == []
    assert soak.growth(parts(memory=[300 * MB, 340 * MB, 280 * MB, 290 * MB, 310 * MB], folder=[1, 2, 3, 4, 5])) == []
    assert soak.growth(parts(handles=[9, 8, 7, 7, 7], mapped=[1, 2, 3, 4, 10**9])) == []


def test_what_is_lost_is_growth() -> None:
    assert soak.growth(parts(memory=[MB, 5 * MB, 9 * MB, 13 * MB, 18 * MB])) == [
        "memory grew from 1,048,576 to 18,874,368 (tolerated: 16,777,216)"
    ]
    grew = soak.growth(parts(handles=[7, 7, 7, 7, 8], threads=[2, 2, 2, 2, 3]))
    assert grew == ["handles grew from 7 to 8 (tolerated: 0)", "threads grew from 2 to 3 (tolerated: 0)"]


def test_a_process_that_loses_memory_and_files_is_found_out(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", LEAKING.replace("MB", str(MB)), str(tmp_path)])
    try:
        samples = soak.watch(process, tmp_path, seconds=3)
    finally:
        process.kill()
        process.wait()
    memory, handles = soak.growth(soak.parts_of(samples, 3))
    assert memory.startswith("memory grew")
    assert handles.startswith("handles grew")


def test_a_real_run_is_watched_and_stopped(tmp_path: Path) -> None:
    small = ["model.hidden_size=32", "training.batch_size=4", "logging.interval=2", "evaluation.symbols=500"]
    watched = soak.soak(0.05, tmp_path / "run", small)
    steps = [part[-1].step for part in watched]
    assert steps == sorted(steps)
    assert 0 < steps[0] < steps[-1]
    assert all(s.memory > 50 * MB and s.handles >= 3 and s.folder > 1000 for part in watched for s in part)
    assert len(soak.table(watched).splitlines()) == 2 + soak.PARTS
    with pytest.raises(SystemExit, match=r"exit code 2:\n(.|\n)*training\.steps"):
        soak.soak(0.1, tmp_path / "refused", ["training.steps=0"])
