"""Ctrl-C as a wish to stop soon instead of an exception anywhere."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

from rnnsparse.streams import write_at_once

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPING = "stopping after this step, then saving; a second Ctrl-C gives up what came after the last checkpoint"
SAVING = "saving; that is not cut short"


class Interrupted(Exception):
    """The run was asked to stop; it has saved itself."""


class StopRequest:
    """Whether somebody has asked to stop.

    Attributes:
        requested: whether there was a signal.
        is_saving: whether something is being written that a second Ctrl-C must not cut short.
        insisted: whether there was a second Ctrl-C while that was so.
    """

    def __init__(self) -> None:
        self.requested = self.is_saving = self.insisted = False

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Within the `with` a second Ctrl-C changes nothing."""
        before, self.is_saving = self.is_saving, True
        try:
            yield
        finally:
            self.is_saving = before

    def save_from_here(self) -> None:
        """From now on a second Ctrl-C changes nothing: all that comes is saving."""
        self.is_saving = True


@contextmanager
def interrupts_for_all_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP be a KeyboardInterrupt, once, within the `with`, unless they are handled or ignored."""
    ours = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_DFL]

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in ours:
            signal.signal(each, signal.SIG_IGN)  # who sends one may send another, while we clean up
        raise KeyboardInterrupt

    try:
        for number in ours:
            signal.signal(number, interrupt)
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def stop_on_signals(stream: TextIO | None = None) -> Iterator[StopRequest]:
    """Turn SIGINT, SIGTERM and SIGHUP into a request; a second SIGINT acts as it always does, but not while saving.

    Only a person who presses Ctrl-C twice is impatient. The other two come several times by themselves: from a shell
    and the kernel when a terminal closes, from torchrun, from a batch system. A SIGHUP that `nohup` ignores stays so.

    Args:
        stream: where the request is acknowledged, at once; None says nothing.
    """
    request = StopRequest()
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    if previous[signal.SIGHUP] is signal.SIG_IGN:
        del previous[signal.SIGHUP]
    interrupts = 0

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def say(text: str) -> None:
        if stream is not None:
            # After what the terminal shows for the keys, ^C, and a progress bar.
            write_at_once(stream, f"\n{text}\n" if stream.isatty() else f"{text}\n")

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if not request.requested:
            request.requested = True
            say(STOPPING)
        elif number != signal.SIGINT or interrupts < 2:
            pass
        elif request.is_saving:
            request.insisted = True
            say(SAVING)
        else:
            restore()
            signal.raise_signal(number)

    try:
        for number in previous:
            signal.signal(number, note)
        yield request
    finally:
        restore()
