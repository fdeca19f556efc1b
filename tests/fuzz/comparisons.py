"""Files of runs that are compared, and the results.json of an earlier comparison."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable, Sequence
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path

from rnnsparse.reporting.compare import as_csv, as_markdown, as_text, group, table
from rnnsparse.reporting.reading import _curves, _require_method, read_records, read_results, read_summary
from rnnsparse.reporting.runs import Results, Run
from tests.fuzz.judge import command, lines_of, require, required
from tests.fuzz.workplace import FINISHED

RESULTS = Path("comparison/results.json")


class OfRun:
    """A summary or the metrics beside what else is known of a finished run."""

    @cached_property
    def finished(self) -> Run:
        (run,) = read_results(RESULTS).runs
        return dataclasses.replace(run, pictures=None)

    def read_summary(self, data: bytes) -> bool:
        file = FINISHED / "summary.json"
        before = file.read_bytes()
        file.write_bytes(data)
        try:
            run = dataclasses.replace(self.finished, summary=read_summary(FINISHED))
        finally:
            file.write_bytes(before)
        _require_method(run, file)
        _require_kept([run])
        return True

    def read_metrics(self, data: bytes) -> bool:
        file = Path("input.jsonl")
        file.write_bytes(data)
        run = dataclasses.replace(self.finished, curves=_curves(read_records(file)))
        if sum(data) % 8 == 1:  # nothing is refused here, and this takes the longest
            _require_kept([run])
        return True


def read_results_json(data: bytes) -> bool:
    file = Path("input.json")
    file.write_bytes(data)
    _require_table(read_results(file).runs)
    return True


def _require_kept(runs: list[Run]) -> None:
    """What was read can be shown, and written for another comparison."""
    _require_table(runs)
    file = Path("kept.json")
    file.write_text(Results(runs=runs).to_json(), encoding="utf-8")
    with required("results.json tells all"):
        again = read_results(file).runs
    require(again == runs, "results.json tells all")


def _require_table(runs: Sequence[Run]) -> None:
    settings = group(runs)
    rows = table(settings)
    lines_of(as_text(rows))
    _require_markdown(as_markdown(rows))
    as_csv(settings)


def _require_markdown(text: str) -> None:
    lines = lines_of(text)
    require(len({re.sub(r"\\\\.", "", line).count("|") for line in lines[:-1]}) == 1, "one table")
    require(not any("<" in line for line in lines), "no HTML in Markdown")


def compared(name: str) -> Callable[[bytes], bool]:
    def run(data: bytes) -> bool:
        file = FINISHED / name
        before = file.read_bytes()
        file.write_bytes(data)
        try:
            return _compare(FINISHED, draws=_seldom(data))
        finally:
            file.write_bytes(before)

    return run


def results(data: bytes) -> bool:
    Path("input.json").write_bytes(data)
    return _compare(Path("input.json"), draws=_seldom(data))


def _seldom(data: bytes) -> bool:
    return sum(data) % 100 == 1  # drawing takes seconds


def _compare(path: Path, draws: bool) -> bool:
    shutil.rmtree("drawn", ignore_errors=True)
    accepted, out = command("compare", path, *(["--out", "drawn"] if draws else []))
    lines_of("" if draws else out)
    if accepted:
        _require_markdown(command("compare", path, "--markdown")[1])
        if draws:
            _Harmless().feed(Path("drawn/report.html").read_text(encoding="utf-8"))
            require(
                command("compare", "drawn/results.json")[1] == command("compare", path)[1], "results.json tells all"
            )
    return accepted


# fmt: off
TAGS = [
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "ul", "li", "nav", "a", "table", "thead",
    "tbody", "tr", "th", "td", "div", "section", "figure", "figcaption", "img",
]
# fmt: on


class _Harmless(HTMLParser):
    """Crashes at a tag or an attribute that a report has not."""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        require(tag in TAGS, f"a report has no <{tag}>")
        for name, value in attributes:
            require(not name.startswith("on") and name != "style", f"a report has no attribute {name}")
            if name in ("href", "src"):
                require(
                    (value or "").startswith(("#", "data:image/png;base64,")), f"{name}={value!r} stays in the file"
                )
