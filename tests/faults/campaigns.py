"""Each kind of fault: how it is injected, and what counts as a loss."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rnnsparse.storage import checkpoint
from rnnsparse.training.run import run_folder
from tests.faults.bench import RECORDS, STEPS, Bench, Ending, damage, pause, traces
from tests.faults.child import FAILURES, PHASES, Announce, AtCall, FillDisk, Output

NOT_CLEAR = "not told in one line"


@dataclass(frozen=True)
class Result:
    """One injected fault: what it was, and what was lost, None for nothing."""

    fault: str
    lost: str | None


Campaign = Callable[[Bench, int], Iterator[Result]]


# ---- killed


def killed_in(phase: str) -> Campaign:
    """SIGKILL at a random instant of a phase, up to four times in one run."""

    def campaign(bench: Bench, count: int) -> Iterator[Result]:
        faults: list[str] = []
        while len(faults) < count:
            place, chain = bench.place(cache=phase != "start"), []
            reason = None
            for _ in range(min(4, count - len(faults))):
                number = bench.numbers.randint(1, max(1, bench.counts[phase] // 2))
                delay = bench.numbers.uniform(0, bench.seconds[phase])
                resume = run_folder.has_checkpoint(place / "run")
                trainer = bench.start(place, resume=resume, fault=Announce(phase, number))
                if trainer.reaches():
                    pause(delay)
                if trainer.kill().code != -signal.SIGKILL:
                    break  # it was faster: the run has ended
                chain.append(f"{phase} {number}, {delay * 1000:.1f} ms after its beginning")
                reason = reason or damage(place / "run")
            reason = reason or bench.loss(place)
            shutil.rmtree(place)
            for fault in chain:
                yield Result(fault, reason)
            faults += chain

    return campaign


def at_calls(action: str, exchange: bool = True) -> Campaign:
    """Killed at calls that change files: `count` of them, or all."""

    def campaign(bench: Bench, count: int) -> Iterator[Result]:
        for number in sorted(bench.numbers.sample(range(1, len(bench.calls) + 1), min(count, len(bench.calls)))):
            yield at_call(bench, AtCall(number, action, exchange))

    return campaign


def at_call(bench: Bench, fault: AtCall) -> Result:
    place = bench.place()
    ending = bench.train(place, fault=fault)
    reason = None if ending.is_clear or ending.code == -signal.SIGKILL else f"{NOT_CLEAR}: {ending}"
    reason = reason or bench.loss(place)
    shutil.rmtree(place)
    return Result(f"{fault.action} at call {fault.number} ({bench.calls[fault.number - 1]})", reason)


def failing(names: tuple[str, ...]) -> Campaign:
    """Each call of these names fails once, by turns because of the device and because the disk is full."""

    def campaign(bench: Bench, count: int) -> Iterator[Result]:
        numbers = [number for number, call in enumerate(bench.calls, 1) if call.startswith(names)]
        for number in sorted(bench.numbers.sample(numbers, min(count, len(numbers)))):
            yield at_call(bench, AtCall(number, FAILURES[number % len(FAILURES)]))

    return campaign


# ---- damaged files


def damaged(folder: str, how: str) -> Campaign:
    """Bits flipped, or the end cut off, in each file of a part of an interrupted run, at random places."""

    def campaign(bench: Bench, count: int) -> Iterator[Result]:
        root = bench.interrupted
        files = sorted(p.relative_to(root) for p in root.glob(folder) if p.is_file() and p.name != ".lock")
        for number in range(count):
            place = bench.place(like=root)
            file = files[number % len(files)]
            fault = harm(bench, place / file, how)
            yield Result(f"{file}: {fault}", _loss_after_damage(bench, place, file))
            shutil.rmtree(place)

    return campaign


def harm(bench: Bench, path: Path, how: str) -> str:
    """Flip a bit of a file, or cut it off; return what was done."""
    content = bytearray(path.read_bytes())
    if how == "cut":
        length = bench.numbers.randrange(max(1, len(content) - 1))  # without its last line end a file says the same
        path.write_bytes(content[:length])
        return f"{length} of {len(content)} bytes left"
    position, bit = bench.numbers.randrange(len(content)), bench.numbers.randrange(8)
    content[position] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {position} flipped"


def _loss_after_damage(bench: Bench, place: Path, file: Path) -> str | None:
    ending = bench.go_on(place)
    if ending.code != 0 or not ending.is_clear:
        return f"does not go on: {ending}"
    if file.parts[:2] == ("run", "last") and f"warning: run/last/{file.name}" not in ending.said:
        return f"no warning: {ending}"
    found, expected = traces(place / "run"), dict(bench.expected)
    if file.name in RECORDS:
        # What a damaged line said is gone, or not what it was; it is told, and all other lines are there.
        lines, wanted = found.pop(file.name), expected.pop(file.name)
        if [line for line in lines if line in wanted] != [line for line in wanted if line in lines]:
            return f"{file.name} is out of order"
        if lines != wanted and f"warning: run/{file.name}" not in ending.said:
            return f"{file.name}: no warning: {ending}"
    different = [name for name in expected if found.get(name) != expected[name]]
    return f"differs from an undisturbed run in {', '.join(different)}" if different else None


def both_damaged(bench: Bench, count: int) -> Iterator[Result]:
    """Nothing is left to resume from: told in one line, and nothing is touched."""
    for _ in range(count):
        place = bench.place(like=bench.interrupted)
        for name in ("last", "previous"):
            harm(bench, place / "run" / name / "model.safetensors", "flip")
        before = _contents(place / "run")
        yield Result("a bit of last and one of previous", _refusal(bench.go_on(place), "run/last/model.safetensors"))
        if _contents(place / "run") != before:
            yield Result("a bit of last and one of previous", "a refused run has changed")
        shutil.rmtree(place)


def _refusal(ending: Ending, said: str) -> str | None:
    if ending.code not in (1, 2) or not ending.is_clear or said not in ending.said:
        return f"{NOT_CLEAR}: {ending}"
    return None


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- disks and folders


def full_files(bench: Bench, count: int) -> Iterator[Result]:
    """From a random step on no file can grow beyond a random size."""
    for _ in range(count):
        place, step = bench.place(), bench.numbers.randint(1, bench.counts["step"])
        size = round(2 ** bench.numbers.uniform(4, 14))
        ending = bench.train(place, fault=FillDisk(step, size))
        reason = None if ending.is_clear else f"{NOT_CLEAR}: {ending}"
        yield Result(f"full from step {step} on, files of {size} bytes at most", reason or bench.loss(place))
        shutil.rmtree(place)


def can_mount(bench: Bench) -> bool:
    place = bench.place()
    done = subprocess.run(["mount", "-t", "tmpfs", "none", place], capture_output=True, check=False)
    if done.returncode == 0:
        subprocess.run(["umount", place], check=True)
    return done.returncode == 0


def full_disk(bench: Bench, count: int) -> Iterator[Result]:
    """The run's folder is a disk of its own, with room for less than the run needs; later it gets more."""
    for _ in range(count):
        place, size = bench.place(), round(bench.bytes * bench.numbers.uniform(0.3, 2.2))
        run = place / "run"
        run.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", run], check=True)
        try:
            ending = bench.train(place)
            reason = None if ending.is_clear else f"{NOT_CLEAR}: {ending}"
            subprocess.run(["mount", "-o", "remount,size=64m", run], check=True)
            yield Result(f"a disk of {size} bytes", reason or bench.loss(place))
        finally:
            subprocess.run(["umount", "-l", run], check=True)
            shutil.rmtree(place)


def read_only(bench: Bench, count: int) -> Iterator[Result]:
    """The run's folder, or the checkpoint in it, may not be written from a random step on, or when it is resumed."""
    for number in range(count):
        place = bench.place(nobody=True, like=bench.interrupted if number % 3 == 0 else None)
        folder = place / "run" / ("last" if number % 3 == 2 else "")
        if number % 3 == 0:
            fault = "run/ when it is resumed"
            folder.chmod(0o555)
            ending = bench.train(place, resume=True, nobody=True)
        else:
            step = bench.numbers.randint(1, bench.counts["step"])
            fault = f"{folder.relative_to(place)} from step {step} on"
            trainer = bench.start(place, fault=Announce("step", step, wait=True), nobody=True)
            assert trainer.reaches()
            folder.chmod(0o555)
            trainer.connection.send("go on")
            ending = trainer.wait()
        reason = None if ending.is_clear else f"{NOT_CLEAR}: {ending}"
        for path in (place / "run", *(place / "run").rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
        yield Result(fault, reason or bench.loss(place, nobody=True))
        shutil.rmtree(place)


# ---- nobody to tell

READERS = [("read", "read"), ("read", "elsewhere"), ("elsewhere", "read")]  # of stdout and stderr
SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP", "SIGINT, and another while it saves", ""]
OUTPUTS = [  # stdout, stderr, and when who reads them leaves
    *((*readers, when) for when in ("before the signal", "while it trains", "after the signal") for readers in READERS),
    *((*readers, "after it has begun to speak") for readers in READERS),
    *((*output, "") for kind in ("closed", "full") for output in ((kind, kind), (kind, "read"), ("read", kind))),
    *[("terminal", "terminal", "before the signal")] * 2,
]


def output_goes_away(bench: Bench, count: int) -> Iterator[Result]:
    """Nobody reads what a trainer says, from some moment on; a signal stops it in a random step, and that is saved."""
    for number in range(count):
        stdout, stderr, leaves = OUTPUTS[number * 7 % len(OUTPUTS)]
        sent = SIGNALS[number % len(SIGNALS)]
        step, delay = bench.numbers.randint(2, STEPS - 1), bench.numbers.uniform(0, bench.seconds["step"] * 3)
        place, twice = bench.place(), "another" in sent
        trainer = bench.start(place, fault=Output(step, stdout, stderr, saving=twice))
        if leaves.startswith("after it has begun"):
            assert trainer.speaks()
            trainer.leave()
        assert trainer.reaches()
        if leaves == "before the signal":
            trainer.leave()
        if sent:
            trainer.signal(signal.Signals[sent.partition(",")[0]])
        if leaves == "after the signal":
            trainer.leave()
        trainer.connection.send("go on")
        if leaves == "while it trains":
            pause(delay)
            trainer.leave()
        if twice and trainer.reaches():
            trainer.signal(signal.SIGINT)
            trainer.connection.send("go on")
        ending, reason = trainer.wait(), None
        stops = bool(sent) or stdout == "terminal"  # whose end is a SIGHUP
        if ending.code != (130 if stops else 0):
            reason = f"ends with {ending}"
        elif stops and (saved := checkpoint.load(place / "run").step) != step:
            reason = f"step {saved} is saved"
        output = f"stdout {stdout}, stderr {stderr}, who reads leaves {leaves or 'never'}"
        fault = f"{output}; {sent or 'no signal'}, step {step}"
        yield Result(fault, reason or bench.loss(place))
        shutil.rmtree(place)


# ---- two trainers


def two_trainers(bench: Bench, count: int) -> Iterator[Result]:
    """A second trainer comes while the first is at a random step: it is told who, and changes nothing."""
    for _ in range(count):
        place, step = bench.place(), bench.numbers.randint(1, bench.counts["step"])
        first = bench.start(place, fault=Announce("step", step, wait=True))
        assert first.reaches()
        before = _contents(place / "run")
        reason = _refusal(bench.train(place, resume=bool(step % 2)), f"process {first.process.pid} on ")
        if _contents(place / "run") != before:
            reason = reason or "the second trainer has changed the run"
        first.connection.send("go on")
        ending = first.wait()
        if ending.code != 0:
            reason = reason or f"the first trainer failed: {ending}"
        yield Result(f"a second trainer at step {step}", reason or bench.difference(place))
        shutil.rmtree(place)


def at_once(bench: Bench, count: int) -> Iterator[Result]:
    """Two trainers are started, or resume, at the same time: each run is trained once."""
    for number in range(count):
        place = bench.place(like=bench.interrupted if number % 2 else None)
        trainers = [bench.start(place, resume=bool(number % 2)) for _ in range(2)]
        endings = [trainer.wait() for trainer in trainers]
        codes = sorted(ending.code for ending in endings)
        # Both succeed if the second looks when the first has finished, and resumes a finished run.
        reason = None if codes in ([0, 2], [0, 0]) else f"they end with {endings}"
        yield Result("two trainers at once", reason or bench.difference(place))
        shutil.rmtree(place)


EVERY = 10**6
CAMPAIGNS: dict[str, tuple[Campaign, int, int]] = {  # how many in the quick subset, and in all
    **{f"SIGKILL, random instant: {phase}": (killed_in(phase), 2, 32) for phase in PHASES},
    "SIGKILL before each file call": (at_calls("kill before"), 3, EVERY),
    "SIGKILL after a file call": (at_calls("kill after"), 2, 40),
    "SIGKILL, no exchange of folders": (at_calls("kill before", exchange=False), 2, 40),
    "power cut: unsynced data gone": (at_calls("power cut"), 3, 40),
    "each fsync fails": (failing(("fsync",)), 3, EVERY),
    "each rename fails": (failing(("rename", "replace", "exchange")), 3, EVERY),
    "open, mkdir, unlink fails": (failing(("open", "mkdir", "unlink")), 2, 40),
    "last/: bit flipped": (damaged("run/last/*", "flip"), 3, 40),
    "last/: truncated": (damaged("run/last/*", "cut"), 2, 20),
    "previous/, best/: bit flipped": (damaged("run/[pb]*/*", "flip"), 2, 27),
    "other files: bit flipped": (damaged("run/*", "flip"), 4, 32),
    "other files: truncated": (damaged("run/*", "cut"), 4, 32),
    "text cache: bit flipped": (damaged("cache/*/*", "flip"), 1, 24),
    "text cache: truncated": (damaged("cache/*/*", "cut"), 1, 12),
    "last/ and previous/: bits flipped": (both_damaged, 1, 10),
    "disk full: files cannot grow": (full_files, 2, 30),
    "disk full: a small disk": (full_disk, 2, 30),
    "folder read-only": (read_only, 3, 30),
    "stdout or stderr goes away": (output_goes_away, 5, 40),
    "second trainer": (two_trainers, 1, 20),
    "two trainers at once": (at_once, 2, 20),
}


def impossible(bench: Bench, kind: str) -> str | None:
    """Return why a kind of fault cannot be injected here, or None."""
    if kind == "disk full: a small disk" and not (os.getuid() == 0 and can_mount(bench)):
        return "only root may mount a disk"
    return None
