"""Trainers end, after saving themselves, when the process that has started them does, even if that is killed.

Each inherits one end of a pipe; the operating system closes the other one, which only the parent has, at its end.
"""

from __future__ import annotations

import os
import platform
import re
import signal
import stat
import threading
from contextlib import suppress
from typing import Any

VARIABLE = "RNNSPARSE_PARENT"  # PROCESS:DESCRIPTOR


class Lifeline:
    """The parent's end of the pipe."""

    def __init__(self) -> None:
        self._theirs, self._ours = os.pipe()

    def options(self) -> dict[str, Any]:
        """Return the options of `subprocess.Popen` that give a child its end."""
        return {
            "pass_fds": (self._theirs,),
            "env": {**os.environ, VARIABLE: f"{os.getpid()}:{self._theirs}"},
        }

    def close(self) -> None:
        """Let all children end that still run."""
        os.close(self._ours)
        os.close(self._theirs)


def follow_parent() -> None:
    """From now on send this process a SIGTERM when its parent ends, if it was started with a lifeline."""
    given = _given()
    if given is None:
        return

    def watch(descriptor: int = given[1]) -> None:
        with suppress(OSError):
            while os.read(descriptor, 1):
                pass
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def introduction() -> str:
    """Return what a trainer tells about itself in its lock: its process, and its parent's if it ends with that."""
    given = _given()
    of_parent = f" (started by process {given[0]})" if given else ""
    return f"process {os.getpid()} on {platform.node()}{of_parent}"


def is_ending(introduced: str) -> bool:
    """Return whether a trainer on this machine is about to end because its parent has, by how it introduced itself."""
    found = re.match(r"process \d+ on (.*) \(started by process (\d{1,9})\)", introduced)
    if found is None or found[1] != platform.node():
        return False
    try:
        os.kill(int(found[2]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _given() -> tuple[int, int] | None:
    """Return the parent's process and our end of the pipe, if there is one."""
    found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", os.environ.get(VARIABLE, ""))
    if found is None:
        return None
    process, descriptor = map(int, found.groups())
    with suppress(OSError):
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return process, descriptor
    return None
