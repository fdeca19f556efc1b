from __future__ import annotations

import errno
import fcntl
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rnnsparse.errors import UserError
from rnnsparse.training.run import lock

ROOT = Path(__file__).parent.parent.parent
HOLD = "import sys; from pathlib import Path; from rnnsparse.training.run import lock\n" + (
    "with lock.held(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
)


@contextmanager
def other_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of `folder` until its input is closed or it is killed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_process_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    with other_process(tmp_path) as process:
        who = rf"process {process.pid} on \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d \S+"
        for use in (lock.refuse_if_held, lambda folder: lock.held(folder).__enter__()):
            with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path))}: {who} trains in this run\.dir; wait"):
                use(tmp_path)
        assert re.fullmatch(who, lock.holder(tmp_path) or "")


def test_the_lock_of_a_killed_process_never_blocks(tmp_path: Path) -> None:
    with other_process(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / lock.NAME).exists()
    assert lock.holder(tmp_path) is None
    lock.refuse_if_held(tmp_path)
    with lock.held(tmp_path) as warning:
        assert warning == ""
        assert f"process {os.getpid()} on " in (lock.holder(tmp_path) or "")
    assert os.listdir(tmp_path) == []


def test_a_lock_ends_with_its_block_however_that_ends(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock.held(tmp_path):
        _ = 1 / 0
    with lock.held(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_who_opened_a_lock_file_that_was_removed_since_locks_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock
    removed = []

    def remove_first(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append((tmp_path / lock.NAME).stat().st_ino)
            (tmp_path / lock.NAME).unlink()
            (tmp_path / "keeps the number from being used again").touch()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with lock.held(tmp_path):
        monkeypatch.undo()
        assert removed
        assert lock.holder(tmp_path) is not None


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_warned_about_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock.held(tmp_path) as warning:
        assert warning.startswith(f"{tmp_path}: this file system has no locks")
        assert lock.holder(tmp_path) is None
    assert os.listdir(tmp_path) == []


def test_a_folder_where_nothing_can_be_made_is_an_error_of_the_system(tmp_path: Path) -> None:
    assert lock.holder(tmp_path / "nothing") is None
    with pytest.raises(FileNotFoundError), lock.held(tmp_path / "nothing"):
        pass


def test_without_the_locks_of_the_system_one_line_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(ImportError, match=r"^rnnsparse needs Linux or macOS, .* WSL$"):
        runpy.run_path(str(lock.__file__))
