from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from rnnsparse.streams import lasting, lasting_output, write_at_once

ROOT = Path(__file__).parent.parent


@pytest.fixture
def broken() -> Iterator[TextIO]:
    """A stream into a pipe whose reader has left."""
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    os.close(reader)
    yield stream
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    stream.close()


def test_what_cannot_be_written_is_left_out(broken: TextIO) -> None:
    with pytest.raises(BrokenPipeError):
        print("x", file=broken, flush=True)
    stream = lasting(broken)
    for _ in range(3):
        print("x" * 100_000, file=stream, flush=True)
    assert not stream.isatty()


def test_a_stream_that_was_closed_is_one_that_cannot_be_written(tmp_path: Path) -> None:
    stream = lasting((tmp_path / "log").open("w"))
    stream.close()
    print("x", file=stream, flush=True)
    assert not stream.isatty()


def test_after_a_failure_it_is_tried_again() -> None:
    class Full(io.StringIO):
        full = True

        def write(self, text: str) -> int:
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    disk = Full()
    stream = lasting(disk)
    stream.write("lost\n")
    disk.full = False
    stream.write("kept\n")
    assert disk.getvalue() == "kept\n"


def test_output_that_lasts_leaves_nothing_that_fails_at_the_exit(
    broken: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", broken)
    with lasting_output("stdout"):
        sys.stdout.write("x")
    assert sys.stdout is broken
    sys.stdout.flush()


def test_nobody_waits_for_a_reader_that_does_not_read() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    size = os.write(writer, b"x" * (1 << 24))
    os.set_blocking(writer, True)
    with os.fdopen(writer, "w") as stream:
        write_at_once(stream, "a word")
        assert os.read(reader, size) == b"x" * size
        write_at_once(stream, "a word")
        assert os.read(reader, size) == b"a word"
    os.close(reader)


def test_closed_descriptors_are_never_those_of_another_file(tmp_path: Path) -> None:
    code = (
        "import sys; from rnnsparse.streams import open_missing; open_missing(); file = open('file', 'w');"
        "assert file.fileno() > 2; print('out'); print('err', file=sys.stderr); file.write(str(file.fileno()))"
    )
    command = f'cd {tmp_path}; exec {sys.executable} -c "{code}" <&- >&- 2>&-'
    done = subprocess.run(command, shell=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 0
    assert int((tmp_path / "file").read_text()) > 2
