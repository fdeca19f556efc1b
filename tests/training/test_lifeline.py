from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rnnsparse.training.run import lifeline
from rnnsparse.training.run.lifeline import VARIABLE, Lifeline, introduction, is_ending

ROOT = Path(__file__).parent.parent.parent


def test_a_child_gets_a_sigterm_at_the_end_of_its_parent() -> None:
    code = (
        "from rnnsparse.training.run.lifeline import follow_parent, introduction\n"
        "follow_parent(); print(introduction(), flush=True)\n"
        "import time; time.sleep(60)"
    )
    line = Lifeline()
    options = line.options()
    options["env"]["PYTHONPATH"] = str(ROOT)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, **options) as child:
        assert child.stdout is not None
        told = child.stdout.readline().strip()
        assert told == f"process {child.pid} on {platform.node()} (started by process {os.getpid()})"
        assert child.poll() is None
        line.close()
        assert child.wait(30) == -signal.SIGTERM


@pytest.mark.parametrize("given", ["", "x", "1:", "1:999999", "1:0x"])
def test_what_is_no_lifeline_is_none(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, given)
    assert introduction() == f"process {os.getpid()} on {platform.node()}"


def test_a_file_is_no_lifeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "file").open("w") as file:
        monkeypatch.setenv(VARIABLE, f"1:{file.fileno()}")
        assert lifeline._given() is None


def test_who_has_lost_its_parent_is_ending() -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    here = platform.node()
    since = "since 2000-01-01 00:00:00 UTC"
    assert is_ending(f"process 7 on {here} (started by process {ended.pid}) {since}")
    assert not is_ending(f"process 7 on {here} (started by process {os.getpid()}) {since}")
    assert not is_ending(f"process 7 on {here} {since}")
    assert not is_ending(f"process 7 on not-{here} (started by process {ended.pid}) {since}")
