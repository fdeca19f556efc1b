"""What can be said about masked execution on a GPU without having one."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_a_training_step_waits_for_no_number_and_mixes_no_devices() -> None:
    """In a process of its own, as PyTorch can be given another device only once."""
    command = [sys.executable, str(Path(__file__).with_name("cases_on_fake_gpu.py"))]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
