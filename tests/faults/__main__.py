"""Inject all faults, or a share of them, and print a table; the exit code is 1 if anything was lost.

python -m tests.faults [--seed S] [--share X] [--only REGEX]
"""

from __future__ import annotations

import argparse
import math
import random
import re
import sys
import time

from tests.faults.bench import Bench, bench
from tests.faults.campaigns import CAMPAIGNS, impossible


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the faults of each kind, by default all (1.0)")
    parser.add_argument("--only", default="", metavar="REGEX", help="only kinds whose name matches")
    arguments = parser.parse_args()
    started = time.monotonic()
    with bench(arguments.seed) as found:
        totals = [0, 0]
        say(f"seed {arguments.seed}\n{'fault':38} injected  survived  lost")
        for kind in CAMPAIGNS:
            if re.search(arguments.only, kind):
                injected, lost = inject(found, kind, arguments.seed, arguments.share)
                totals = [totals[0] + injected, totals[1] + lost]
        injected, lost = totals
        say(f"{'all':38} {injected:8}  {injected - lost:8}  {lost:4}")
        say(f"{time.monotonic() - started:,.0f} s")
    return 1 if lost or not injected else 0


def inject(found: Bench, kind: str, seed: int, share: float) -> tuple[int, int]:
    """Inject one kind of fault and print its row; return how many were injected, and how many lost something."""
    if (reason := impossible(found, kind)) is not None:
        say(f"{kind:38} skipped: {reason}")
        return 0, 0
    campaign, _, count = CAMPAIGNS[kind]
    found.numbers = random.Random(f"{seed} {kind}")
    results = list(campaign(found, math.ceil(min(count, len(found.calls)) * share)))
    losses = [result for result in results if result.lost is not None]
    say(f"{kind:38} {len(results):8}  {len(results) - len(losses):8}  {len(losses):4}")
    for result in losses:
        say(f"    {result.fault}: {result.lost}")
    return len(results), len(losses)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
