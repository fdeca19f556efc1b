"""`compare`: compare finished runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rnnsparse.cli.evaluate import measure
from rnnsparse.cli.messages import complain
from rnnsparse.errors import UserError
from rnnsparse.reporting.compare import ABOUT_TABLE, as_markdown, as_text, group, table
from rnnsparse.reporting.reading import read_runs


def run(arguments: argparse.Namespace) -> int:
    def test(run: Path) -> float:
        return measure(run, "auto")[-1].bits_per_character

    runs, left_out = read_runs(arguments.runs, test if arguments.test else None)
    for line in left_out:
        complain(line)
    if not runs:
        raise UserError(f"{arguments.runs[0]}: no run here is finished; compare them when they are")
    settings = group(runs)
    rows = table(settings)
    print(as_markdown(rows) if arguments.markdown else f"{as_text(rows)}\n\n{ABOUT_TABLE}")
    if arguments.out:
        from rnnsparse.reporting.comparison_folder import write  # brings the drawing, which takes a second

        for path in write(arguments.out, settings, left_out):
            print(path, file=sys.stderr if arguments.markdown else sys.stdout)
    return 0
