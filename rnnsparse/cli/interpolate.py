"""`interpolate`: measure the straight lines between runs, and count the connections that they share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import combinations

from rnnsparse.cli.messages import warn
from rnnsparse.errors import UserError
from rnnsparse.files import require_new, write_new
from rnnsparse.interpolation import Line, common_text, interpolate
from rnnsparse.reporting.compare import as_text
from rnnsparse.reporting.places import short_names
from rnnsparse.storage import checkpoint
from rnnsparse.training.build import restore
from rnnsparse.training.device import choose_device


def run(arguments: argparse.Namespace) -> int:
    if arguments.out:
        require_new(arguments.out, "--out")
        if arguments.out.suffix != ".png":
            raise UserError(f"--out: {arguments.out}: is a picture; let the name end in .png")
    folders = [path.resolve() for path in arguments.runs]
    checkpoints = {checkpoint.resolve(path).resolve() for path in arguments.runs}
    if len(checkpoints) < max(2, len(folders)):
        raise UserError(f"{arguments.runs[-1]}: a line has two ends; name two runs or more, each once")
    device = choose_device(arguments.device)
    runs = [restore(path, device) for path in arguments.runs]
    text, warnings = common_text(runs, arguments.symbols)
    warn(warnings)
    named = list(zip(told_apart(list(short_names(folders).values())), runs, strict=True))
    config = runs[0].config.evaluation
    lines = {
        (first, second): interpolate(ours.model, theirs.model, text, ours.tokenizer, config, arguments.points)
        for (first, ours), (second, theirs) in combinations(named, 2)
    }
    if arguments.json:
        pairs = [_plain(first, second, line) for (first, second), line in lines.items()]
        print(json.dumps({"split": "validation", "symbols": len(text.tokens), "pairs": pairs}))
    else:
        print("\n\n".join([_losses(lines), *(_connections(*names, line) for names, line in lines.items())]))
    if arguments.out:
        from rnnsparse.reporting.plots.lines import straight_lines  # brings the drawing, which takes a second

        png = straight_lines(lines)
        write_new(arguments.out, lambda file: file.write(png))
        if not arguments.json:
            print(arguments.out)
    return 0


def told_apart(names: Sequence[str]) -> list[str]:
    """Return the names that a sweep has given without what all have in common, such as `seed=1`."""
    common = set.intersection(*(set(name.split(",")) for name in names))
    return [",".join(word for word in name.split(",") if word not in common) or name for name in names]


def _plain(first: str, second: str, line: Line) -> dict[str, object]:
    groups = [
        {
            "name": group.name,
            "first": group.first,
            "second": group.second,
            "shared": group.shared,
            "by_chance": group.by_chance,
        }
        for group in line.shared
    ]
    return {
        "first": first,
        "second": second,
        "places": line.places,
        "bits_per_character": list(line.bits),
        "barrier": line.barrier,
        "summit": line.summit,
        "groups": groups,
    }


def _losses(lines: dict[tuple[str, str], Line]) -> str:
    """Return a table with a column for each line: bits per character from one end to the other, and the barrier."""
    found = list(lines.values())
    rows = [["bits per character", *(f"{first} to {second}" for first, second in lines)]]
    rows += [[f"at {place:.3g}", *(f"{line.bits[i]:.4f}" for line in found)] for i, place in enumerate(found[0].places)]
    rows.append(["barrier", *(f"{line.barrier:.4f}" for line in found)])
    rows.append(["highest at", *(f"{line.summit:.3g}" for line in found)])
    return as_text(rows)


def _connections(first: str, second: str, line: Line) -> str:
    rows = [["connections", first, second, "shared", "by chance"]]
    rows += [
        [group.name, f"{group.first:,}", f"{group.second:,}", f"{group.shared:,}", f"{group.by_chance:,.0f}"]
        for group in line.shared
    ]
    totals = [sum(getattr(group, key) for group in line.shared) for key in ("first", "second", "shared", "by_chance")]
    rows.append(["all", *(f"{total:,.0f}" for total in totals)])
    return as_text(rows)
