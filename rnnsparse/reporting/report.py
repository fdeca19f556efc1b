"""report.html: one file without scripts. Its first page says which setting is best, details are folded away."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rnnsparse.reporting.answer import ABOUT_RANKING, answer, table_of_settings
from rnnsparse.reporting.compare import Setting
from rnnsparse.reporting.markup import counted, figures, folded, plain_table, swatch, text
from rnnsparse.reporting.plots.figure import Plot
from rnnsparse.reporting.plots.network import of_setting
from rnnsparse.reporting.plots.series import colour_of_methods
from rnnsparse.reporting.plots.while_training import GRADIENTS
from rnnsparse.reporting.runs import Run
from rnnsparse.reporting.stylesheet import CSS


def report(settings: Sequence[Setting], overview: Sequence[Plot], left_out: Sequence[str]) -> str:
    """Return the page."""
    runs = counted(sum(len(setting.runs) for setting in settings), "run")
    colours = colour_of_methods(settings)
    folded_away = [plot for plot in overview if plot.name == GRADIENTS]
    omitted = "".join(f"<li>{text(line)}</li>" for line in left_out)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">",
        f"<title>rnnsparse: {runs}</title><style>{CSS}</style></head><body><main>",
        f"<h1>{counted(len(settings), 'setting')}, {runs}</h1>",
        answer(settings),
        f"<p>Left out, or uncertain:</p><ul>{omitted}</ul>" if left_out else "",
        table_of_settings(settings, colours),
        '<p class="note">Marked: the best of its column at that sparsity. ≈: behind it by no more than noise.</p>',
        folded("How settings are ranked", f"<p>{text(ABOUT_RANKING)}</p>"),
        "<h2>Plots</h2>",
        figures(plot for plot in overview if plot not in folded_away),
        "<h2>Details</h2>",
        *(
            folded(f"{text(plot.title)}: the norm of the gradient while training", figures([plot]))
            for plot in folded_away
        ),
        folded("Configurations: what differs, and what is the same", _configurations(settings)),
        *(_details(number, setting, colours[setting.method]) for number, setting in enumerate(settings, start=1)),
        "</main></body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _details(number: int, setting: Setting, colour: str) -> str:
    """Return the runs of a setting, and what one of its networks learned to look at."""
    pictured = next((run for run in setting.runs if run.pictures), None)
    if pictured is None:
        about = "No picture of connections: its checkpoint was not there."
    else:
        about = f"Pictures of connections are of the run with seed {pictured.summary.seed}."
        if pictured.pictures and len(pictured.pictures.steps) == 1:
            about += " It recorded no connections while it trained, so they show the end only."
    runs = plain_table(_run_rows(setting.runs), f"runs of {setting.label}")
    summary = f"{swatch(colour)}{text(setting.label)}: {counted(len(setting.runs), 'run')}"
    content = f'{runs}<p class="note">{text(about)}</p>{figures(of_setting(setting, colour))}'
    return folded(summary, content, f"setting-{number}")


def _configurations(settings: Sequence[Setting]) -> str:
    """Return a table of what is special about each setting, and one of what is the same in all."""
    each = [setting.runs[0].settings() for setting in settings]
    keys = sorted({key for setting in settings for key in setting.special})
    rows = [["setting", *keys]]
    rows += [
        [setting.label, *(_value(setting.special[key]) if key in setting.special else "–" for key in keys)]
        for setting in settings
    ]
    same = [["key", "value"]]
    same += [
        [key, _value(value)]
        for key, value in sorted(each[0].items())
        if all(key in one and one[key] == value for one in each)
    ]
    differences = plain_table(rows, "what differs", "words") if keys else "<p>They differ in the method only.</p>"
    return f"{differences}<p>The same in all settings, besides places, seeds, threads and logging:</p>" + plain_table(
        same, "what is the same", "words"
    )


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


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
