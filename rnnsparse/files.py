"""Files that may come from strangers, read whole but never without bounds."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from rnnsparse.errors import UserError


def read(path: Path, largest: int, pipes: bool = False) -> bytes:
    """Return the bytes of a file of at most `largest`; one that never ends costs no more memory than that.

    Args:
        pipes: whether it may also be a pipe or a device, as what a user names on the command line may be.

    Raises:
        UserError: it has more bytes, or is no plain file.
        OSError: it cannot be read.
    """
    # Opening a pipe would wait for somebody to write to it.
    with os.fdopen(os.open(path, os.O_RDONLY | (0 if pipes else os.O_NONBLOCK)), "rb") as file:
        if not pipes and not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UserError(f"{path}: is no plain file; remove it, or put a file in its place")
        data = file.read(largest + 1)
    if len(data) > largest:
        raise UserError(f"{path}: has more than {largest:,} bytes, too many for what it should hold; use another file")
    return data
