"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from rnnsparse import files


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_what_a_full_disk_stops_is_named_and_what_was_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("old")

    def write(_: BinaryIO) -> None:
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"new")

    with pytest.raises(OSError, match="No space left on device") as raised:
        files.replace(path, write)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(path))
    assert (path.read_text(), os.listdir(tmp_path)) == ("old", [path.name])
