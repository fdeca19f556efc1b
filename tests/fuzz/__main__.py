"""`python -m tests.fuzz`: the long search, one process for each kind; prints a table, exits with 1 after a crash.

Inputs that crash are written to --out. A million of them: python -m tests.fuzz --inputs 1000000
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fuzz import lines

if TYPE_CHECKING:
    from tests.fuzz.kinds import Kind

SHARE = 200  # inputs of a kind that is read alone for each of one that only commands read
COLUMNS = ["input", "inputs", "by commands", "refused", "accepted", "crashes", "lines reached", "a CPU second"]


def main() -> int:
    lines.watch()  # before anything imports what is watched

    import torch

    from tests.fuzz.kinds import kinds
    from tests.fuzz.workplace import workplace

    known = kinds()
    arguments = _parse(list(known))
    arguments.out.mkdir(parents=True, exist_ok=True)
    out = arguments.out.resolve()
    torch.set_num_threads(1)
    names = arguments.only or list(known)
    shares = _shares(arguments.inputs, {name: known[name] for name in names}) if arguments.inputs else {}
    print(f"| {' | '.join(COLUMNS)} |\n|---{'|---:' * (len(COLUMNS) - 1)}|", flush=True)
    totals = [0] * 5
    with workplace() as folder:
        for name in names:
            limits = {"inputs": shares[name]} if shares else {"seconds": arguments.seconds / len(names)}
            told = _in_a_process(known[name], name, limits, arguments.seed, folder, out)
            rate = told["inputs"] / max(told["seconds"], 1e-3)
            numbers = [told["inputs"], told["whole"], told["refused"], told["accepted"], len(told["crashes"])]
            totals = [a + b for a, b in zip(totals, numbers, strict=True)]
            print(f"| {name} | {' | '.join(f'{n:,}' for n in numbers)} | {told['lines']:,} | {rate:,.0f} |", flush=True)
            for what, file in told["crashes"].items():
                print(f"{file}: {what}", file=sys.stderr, flush=True)
    print(f"| all | {' | '.join(f'{n:,}' for n in totals)} | | |")
    return 1 if totals[-1] else 0


def _parse(known: list[str]) -> argparse.Namespace:
    description, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=description, epilog=more)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, default=600, help="in all, shared by the kinds (default: %(default)s)")
    help_text = f"instead: so many in all; {SHARE} of a fast kind (configurations and the like) for each of another"
    length.add_argument("--inputs", type=int, metavar="N", help=help_text)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=known, help="this kind; may be repeated")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "rnnsparse-fuzz", metavar="DIR")
    return parser.parse_args()


def _shares(inputs: int, chosen: Mapping[str, Kind]) -> dict[str, int]:
    """Return how many inputs each kind gets, `inputs` in all."""
    weights = {name: SHARE if kind.read else 1 for name, kind in chosen.items()}
    shares, left, weight_left = {}, inputs, sum(weights.values())
    for name, weight in weights.items():
        shares[name] = left * weight // weight_left
        left, weight_left = left - shares[name], weight_left - weight
    return shares


def _in_a_process(
    kind: Kind, name: str, limits: Mapping[str, Any], seed: int, folder: Path, out: Path
) -> dict[str, Any]:
    """Search in a process of its own, with a copy of the workplace: an input may take both with it."""
    result = out / "result.json"
    result.unlink(missing_ok=True)
    memory = Path("/dev/shm")  # a folder without a disk, where there is one: files are replaced all the time
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as copy:
        current = Path(copy) / "current"
        child = os.fork()
        if child == 0:
            try:
                shutil.copytree(folder, copy, dirs_exist_ok=True)
                os.chdir(copy)
                result.write_text(json.dumps(_search(kind, name, limits, seed, out, current)))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        if result.exists():
            told: dict[str, Any] = json.loads(result.read_text())
            return told
        # No Python error: a library hung, or took the process with it. Its last input is still there.
        killed = out / f"{_slug(name)}-{seed}-killed"
        if current.exists():
            shutil.copy(current, killed)
    return {
        "inputs": 1,
        "whole": 0,
        "refused": 0,
        "accepted": 0,
        "crashes": {"the process died": str(killed)},
        "lines": 0,
        "seconds": 0.0,
    }


def _search(kind: Kind, name: str, limits: Mapping[str, Any], seed: int, out: Path, current: Path) -> dict[str, Any]:
    from tests.fuzz.search import search

    outcome = search(kind, name, seed=seed, before_each=current.write_bytes, **limits)
    crashes = {}
    for number, (what, data) in enumerate(outcome.crashes.items()):
        file = out / f"{_slug(name)}-{seed}-{number}"
        file.write_bytes(data)
        crashes[what] = str(file)
    told = {"inputs": outcome.inputs, "refused": outcome.refused, "accepted": outcome.accepted}
    return told | {"crashes": crashes, "lines": outcome.lines, "whole": outcome.whole, "seconds": time.process_time()}


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


if __name__ == "__main__":
    sys.exit(main())
