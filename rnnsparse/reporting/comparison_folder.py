"""The folder that `rnnsparse compare --out` writes: the table, the results, the plots and the report."""

from __future__ import annotations

from collections.abc import Sequence
from operator import methodcaller
from pathlib import Path

from rnnsparse import files
from rnnsparse.errors import RunFailed, UserError
from rnnsparse.reporting.compare import Setting, as_csv
from rnnsparse.reporting.plots.overview import OVERVIEW, overview
from rnnsparse.reporting.reading import is_results
from rnnsparse.reporting.report import report
from rnnsparse.reporting.runs import Results

TABLE, RESULTS, REPORT = "results.csv", "results.json", "report.html"


def write(folder: Path, settings: Sequence[Setting], left_out: Sequence[str]) -> list[Path]:
    """Write results.csv, results.json, the plots and report.html; return their paths.

    What an earlier comparison wrote there is replaced, file by file: its results may be all that is left of runs.

    Raises:
        RunFailed: a file cannot be written.
        UserError: the folder cannot be made, or files of these names in it are not of an earlier comparison.
    """
    pictures = {name: f"{name}.png" for name in OVERVIEW}
    _claim(folder, [RESULTS, TABLE, REPORT, *pictures.values()])  # before all is drawn, which takes seconds
    plots = overview(settings)
    runs = [run for setting in settings for run in setting.runs]
    contents = {
        RESULTS: Results(runs=runs).to_json().encode(),  # first: the other files are known by it as a comparison's
        TABLE: as_csv(settings).encode(),
        **{pictures[plot.name]: plot.png for plot in plots if plot.png},
        REPORT: report(settings, plots, left_out).encode(),
    }
    for name, data in contents.items():
        try:
            files.replace(folder / name, methodcaller("write", data))
        except OSError as error:
            raise RunFailed(
                f"{folder / name}: cannot be written ({error.strerror}) and is what it was; free some space, or name "
                "another folder as --out"
            ) from error
    for name in set(pictures.values()) - set(contents):
        folder.joinpath(name).unlink(missing_ok=True)
    return [folder / name for name in contents]


def _claim(folder: Path, names: Sequence[str]) -> None:
    """Make the folder, and make sure that what will be replaced in it is from an earlier comparison."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {folder}: cannot be a folder: {error.strerror}; name another") from None
    there = [folder / name for name in names if folder.joinpath(name).exists()]
    if there and not is_results(folder / RESULTS):
        raise UserError(
            f"--out: {there[0]}: is not from an earlier comparison and would be overwritten; name another folder"
        )
