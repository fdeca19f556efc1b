"""Draw which characters win connections while a run trains, as an animated picture.

A frame for each line of the run's connectivity.jsonl; logging.pictures=50 records one every 50 steps.

    python scripts/animate_embedding.py RUN --out embedding.gif
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from rnnsparse.errors import RunFailed, UserError
from rnnsparse.files import require_new, write_new
from rnnsparse.reporting.pictures import are_counts, read_pictures
from rnnsparse.reporting.plots.animation import Kind, animation
from rnnsparse.reporting.reading import read_records

WIDTHS, FRAMES = (100, 4000), (2, 1000)


def animate(run: Path, out: Path, width: int, frames: int) -> None:
    """Write the picture to `out`, in the format that its name ends with.

    Raises:
        UserError: there is no such run, it recorded no connections while it trained, `out` is no new picture, or width
            or frames are too many or too few.
        RunFailed: it cannot be written.
    """
    require_new(out, "--out")
    for option, value, (least, most) in (("--width", width, WIDTHS), ("--frames", frames, FRAMES)):
        if not least <= value <= most:
            raise UserError(f"{option}: {value}: is not from {least} to {most}; use a number that is")
    kinds = {f".{kind}": kind for kind in get_args(Kind)}
    if out.suffix not in kinds:
        raise UserError(f"--out: {out}: is an animated picture; let the name end in {', '.join(kinds)}")
    pictures = read_pictures(run, read_records(run / "connectivity.jsonl", are_counts), frames - 1)
    if len(pictures.steps) < 2:
        raise UserError(f"{run}: recorded no connections while it trained; name the folder of a run, not a checkpoint")
    picture = animation(pictures, width, kinds[out.suffix])
    write_new(out, lambda file: file.write(picture))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="a new file: .gif, .png (an animated one) or .webp")
    parser.add_argument("--width", type=int, default=442, help="in pixels (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=60, help="at most so many moments (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        animate(arguments.run, arguments.out, arguments.width, arguments.frames)
    except (UserError, RunFailed) as error:
        print(f"animate_embedding: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
