"""`python -m tests.fuzz`: the long search, one process for each kind; prints a table, exits with 1 after a crash.

Inputs that crash are written to --out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch

from tests.fuzz.kinds import kinds, workplace
from tests.fuzz.search import search


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="in all, shared by the kinds (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=list(kinds()), help="this kind; may be repeated")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "rnnsparse-fuzz", metavar="DIR")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    out = arguments.out.resolve()
    torch.set_num_threads(1)
    names = arguments.only or list(kinds())
    print(
        "| input | inputs | refused | accepted | crashes | lines reached |\n|---|---:|---:|---:|---:|---:|", flush=True
    )
    totals = [0] * 4
    with workplace() as folder:
        for name in names:
            told = _in_a_process(name, arguments.seconds / len(names), arguments.seed, folder, out)
            numbers = [told["inputs"], told["refused"], told["accepted"], len(told["crashes"])]
            totals = [a + b for a, b in zip(totals, numbers, strict=True)]
            print(f"| {name} | {' | '.join(f'{n:,}' for n in numbers)} | {told['lines']:,} |", flush=True)
            for what, file in told["crashes"].items():
                print(f"{file}: {what}", file=sys.stderr)
    print(f"| all | {' | '.join(f'{n:,}' for n in totals)} | |")
    return 1 if totals[-1] else 0


def _in_a_process(name: str, seconds: float, seed: int, folder: Path, out: Path) -> dict[str, Any]:
    """Search in a process of its own, with a copy of the workplace: an input may take both with it."""
    result, current = out / "result.json", out / "current"
    result.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as copy:
        child = os.fork()
        if child == 0:
            try:
                shutil.copytree(folder, copy, dirs_exist_ok=True)
                os.chdir(copy)
                result.write_text(json.dumps(_search(name, seconds, seed, out, current)))
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
        current.replace(killed)
    return {"inputs": 1, "refused": 0, "accepted": 0, "crashes": {"the process died": str(killed)}, "lines": 0}


def _search(name: str, seconds: float, seed: int, out: Path, current: Path) -> dict[str, Any]:
    outcome = search(kinds()[name], name, seed=seed, seconds=seconds, before_each=current.write_bytes)
    crashes = {}
    for number, (what, data) in enumerate(outcome.crashes.items()):
        file = out / f"{_slug(name)}-{seed}-{number}"
        file.write_bytes(data)
        crashes[what] = str(file)
    told = {"inputs": outcome.inputs, "refused": outcome.refused, "accepted": outcome.accepted}
    return told | {"crashes": crashes, "lines": outcome.lines}


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


if __name__ == "__main__":
    sys.exit(main())
