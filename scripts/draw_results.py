"""Draw the picture on the front page and print the table above it, from the runs in checkpoints/results.

Bits per character of GRUs with 256 units, by method and sparsity: means over seeds. Where a method was tried with
several drop fractions, that of methods_gru256.json counts at every sparsity: it did best on validation at 90 %.

    python scripts/draw_results.py
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rnnsparse.reporting.compare import Setting, as_markdown, group
from rnnsparse.reporting.plots.overview import overview
from rnnsparse.reporting.reading import read_results
from rnnsparse.reporting.runs import Run

RESULTS = Path(__file__).resolve().parent.parent / "checkpoints" / "results"
PICTURE = RESULTS / "methods_gru256.png"
RANKED = 0.9  # the sparsity by which methods are ranked


def settings() -> list[Setting]:
    chosen = read_results(RESULTS / "methods_gru256.json").runs
    kinds = {_kind(run) for run in chosen} | {("dense", None)}
    others = [run for share in (75, 95) for run in read_results(RESULTS / f"methods_gru256_{share}.json").runs]
    return group([*chosen, *(run for run in others if _kind(run) in kinds)])


def _kind(run: Run) -> tuple[str, float | None]:
    return run.summary.method, run.config["sparsity"].get("drop_fraction")


def table(found: list[Setting]) -> str:
    """Return a row for each method, the best first; in Markdown."""
    sparsities = sorted({setting.sparsity for setting in found})
    methods: dict[str, dict[float, Setting]] = {}
    for setting in found:
        methods.setdefault(setting.method, {})[setting.sparsity] = setting
    rows = [["method", *(f"{sparsity:.0%} sparse" for sparsity in sparsities), f"arithmetic at {RANKED:.0%}"]]
    for method, of in sorted(methods.items(), key=lambda item: item[1].get(RANKED, found[0]).bits.mean):
        bits = [of[sparsity].bits if sparsity in of else None for sparsity in sparsities]
        flops = of.get(RANKED, next(iter(of.values()))).statistic("training_flops_vs_dense")
        assert flops is not None
        cells = [f"{one.mean:.3f} ± {one.deviation:.3f}" if one else "" for one in bits]
        rows.append([method, *cells, f"{flops.mean:.2f}"])
    return as_markdown(rows)


def picture(found: list[Setting]) -> bytes:
    """Return bits per character against sparsity as PNG, with the table as its description."""
    (plot,) = [plot for plot in overview(found) if plot.name == "bits_by_sparsity"]
    assert plot.png is not None
    about, out = PngInfo(), io.BytesIO()
    about.add_itxt("Description", table(found))
    Image.open(io.BytesIO(plot.png)).save(out, "png", optimize=True, pnginfo=about)
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PICTURE, help="where the picture goes (default: %(default)s)")
    arguments = parser.parse_args()
    found = settings()
    arguments.out.write_bytes(picture(found))
    print(table(found))


if __name__ == "__main__":
    main()
