"""report.html: everything in one file without scripts, to be read on a phone, on a desk or on paper."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

from rnnsparse.reporting.compare import ABOUT_TABLE, Setting, table
from rnnsparse.reporting.plots.figure import Plot
from rnnsparse.reporting.plots.network import of_setting
from rnnsparse.reporting.runs import Run

CSS = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; background: #fff; color: #1a1a1a;
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.25; }
h2 { margin-top: 2.5rem; border-top: 1px solid #999; padding-top: 1rem; }
.scroll { overflow-x: auto; }
.scroll:focus { outline: 2px solid #0072b2; }
table { border-collapse: collapse; font-size: .9rem; overflow-wrap: normal; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ccc; text-align: right; white-space: nowrap;
  vertical-align: top; }
thead th { white-space: normal; vertical-align: bottom; border-bottom: 2px solid #1a1a1a; }
th:first-child { text-align: left; white-space: normal; min-width: 8rem; font-weight: 600; }
.plots { columns: 24rem; column-gap: 1.5rem; }
figure { margin: 0 0 1rem; break-inside: avoid; }
figure h3 { margin-top: 0; }
figcaption { font-size: .9rem; color: #444; }
img { max-width: 100%; height: auto; }
nav ul { padding-left: 1.2rem; }
a { color: #004b87; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: .1rem .3rem; white-space: normal; }
  .plots { columns: 2; }
  img { max-height: 22cm; }
  h2, h3 { break-after: avoid; }
  nav { display: none; }
}
"""


def report(settings: Sequence[Setting], overview: Sequence[Plot], left_out: Sequence[str]) -> str:
    """Return the page."""
    several = len(settings) > 1
    count = sum(len(setting.runs) for setting in settings)
    sections = [_section(number, setting) for number, setting in enumerate(settings, start=1)]
    links = "".join(f'<li><a href="#setting-{i}">{_text(s.label)}</a></li>' for i, s in enumerate(settings, start=1))
    omitted = "".join(f"<li>{_text(line)}</li>" for line in left_out)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">",
        f"<title>rnnsparse: {_counted(count, 'run')}</title><style>{CSS}</style></head><body>",
        f"<h1>{_counted(len(settings), 'setting')}, {_counted(count, 'run')}</h1>",
        f"<p>{_text(ABOUT_TABLE)}</p>",
        _table(table(settings), "all settings"),
        f"<p>Left out, or uncertain:</p><ul>{omitted}</ul>" if left_out else "",
        f"<nav><p>In detail:</p><ul>{links}</ul></nav>" if several else "",
        _figures(overview),
        *sections,
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _section(number: int, setting: Setting) -> str:
    pictured = next((run for run in setting.runs if run.pictures), None)
    if pictured is None:
        about = "No picture of connections: its checkpoint was not there."
    else:
        about = f"Pictures of connections are of the run with seed {pictured.summary.seed}."
        if pictured.pictures and len(pictured.pictures.steps) == 1:
            about += " It recorded no connections while it trained, so they show the end only."
    return "\n".join(
        [
            f'<section><h2 id="setting-{number}">{_text(setting.label)}</h2>',
            _table(_run_rows(setting.runs), f"runs of {setting.label}"),
            f"<p>{_text(about)}</p>",
            _figures(of_setting(setting)),
            "</section>",
        ]
    )


def _run_rows(runs: Iterable[Run]) -> list[list[str]]:
    header = [
        "run",
        "seed",
        "bits per character",
        "best while training",
        "bits per byte",
        "steps",
        "characters",
        "time (s)",
    ]
    rows = [header]
    for run in runs:
        summary = run.summary
        best = summary.best_bits_per_character
        rows.append(
            [
                run.name,
                str(summary.seed),
                f"{summary.bits_per_character:.4f}",
                "–" if best is None else f"{best:.4f}",
                f"{summary.bits_per_byte:.4f}",
                f"{summary.steps:,}",
                f"{summary.characters_seen:,}",
                f"{summary.seconds:,.0f}",
            ]
        )
    return rows


def _table(rows: Sequence[Sequence[str]], label: str) -> str:
    """Return a table in a box of its own, which scrolls where the screen is too narrow."""
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in rows[0])
    body = "".join(
        f'<tr><th scope="row">{_text(row[0])}</th>{"".join(f"<td>{_text(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows[1:]
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table: {_text(label)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _figures(plots: Iterable[Plot]) -> str:
    figures = [
        f"<figure><h3>{_text(plot.title)}</h3>"
        f'<img alt="{_text(plot.description)}" src="data:image/png;base64,{base64.b64encode(plot.png).decode()}">'
        f"<figcaption>{_text(plot.description)}</figcaption></figure>"
        for plot in plots
    ]
    return f'<div class="plots">{"".join(figures)}</div>'


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _text(text: str) -> str:
    return html.escape(text, quote=True)
