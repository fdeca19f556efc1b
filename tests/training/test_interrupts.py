from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from types import FrameType

import pytest

from rnnsparse.training.run.interrupts import SAVING, SIGNALS, STOPPING, interrupts_for_all_signals, stop_on_signals


@pytest.fixture(autouse=True)
def _handlers_come_back() -> Iterator[None]:
    before = [signal.getsignal(number) for number in SIGNALS]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests may ignore them
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_a_wish_and_no_exception(number: signal.Signals) -> None:
    with stop_on_signals() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested


def test_the_second_interrupt_acts_as_always() -> None:
    with stop_on_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.requested


def test_the_second_interrupt_cuts_no_saving_short() -> None:
    with stop_on_signals() as stop:
        with stop.saving():
            for _ in range(3):
                signal.raise_signal(signal.SIGINT)
            assert stop.insisted
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with stop_on_signals() as stop:
        stop.save_from_here()
        with stop.saving():
            pass
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        assert stop.requested


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGHUP])
def test_only_a_person_insists(first: signal.Signals, second: signal.Signals) -> None:
    """A shell and the kernel each send a SIGHUP when a terminal closes; torchrun sends a SIGTERM after a SIGINT."""
    with stop_on_signals() as stop:
        for number in (first, second, second):
            signal.raise_signal(number)
        assert stop.requested
        assert not stop.insisted
        if first != signal.SIGINT:
            signal.raise_signal(signal.SIGINT)


def test_signals_are_acknowledged_at_once_even_amid_a_write() -> None:
    class Interrupting(io.FileIO):
        def write(self, data: object) -> int:
            signal.raise_signal(signal.SIGINT)
            return super().write(data)  # type: ignore[arg-type]

    reader, writer = os.pipe()
    with os.fdopen(reader, encoding="utf-8") as text:
        with io.TextIOWrapper(io.BufferedWriter(Interrupting(writer, "w"))) as stream, stop_on_signals(stream) as stop:
            stop.save_from_here()
            for _ in range(2):
                stream.write("progress\n")
                stream.flush()
        assert text.read() == f"{STOPPING}\nprogress\n{SAVING}\nprogress\n"


def test_where_nobody_listens_a_signal_is_a_wish_all_the_same() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream, stop_on_signals(stream) as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
    with stop_on_signals(io.StringIO()) as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested


def test_handlers_are_restored_after_success_and_after_failure() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with stop_on_signals():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with pytest.raises(ZeroDivisionError), stop_on_signals():
        _ = 1 / 0
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_signals_ignored_before_are_ignored_after() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_on_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interrupts_for_all_signals(), stop_on_signals() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert not stop.requested


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_before_and_after_training_every_signal_is_an_interrupt_once(number: signal.Signals) -> None:
    with interrupts_for_all_signals():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        for another in (signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(another)
    assert signal.getsignal(number) is signal.SIG_DFL

    def handler(number: int, frame: FrameType | None) -> None:
        pass

    signal.signal(number, handler)
    with interrupts_for_all_signals():
        assert signal.getsignal(number) is handler
