"""Pieces of a page: text that is shown and never obeyed, tables, pictures, and what is folded away."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

from rnnsparse.reporting.plots.figure import Plot


def text(words: str) -> str:
    return html.escape(words, quote=True)


def breakable(markup: str) -> str:
    """Return names such as drop_fraction=0.3 so that a narrow column breaks them where they have parts."""
    return markup.replace("_", "_<wbr>").replace("=", "=<wbr>")


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def swatch(colour: str) -> str:
    """Return a small field of a colour, which says to those who see it what a name beside it says to all."""
    return f'<span class="swatch" style="background:{text(colour)}" aria-hidden="true"></span>'


def boxed(table: str, label: str) -> str:
    """Return a table in a box of its own, which scrolls where the screen is too narrow."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="Table: {text(label)}">{table}</div>'


def header(titles: Iterable[str]) -> str:
    cells = "".join(f'<th scope="col">{text(title)}</th>' for title in titles)
    return f"<thead><tr>{cells}</tr></thead>"


def plain_table(rows: Sequence[Sequence[str]], label: str, kind: str = "numbers") -> str:
    """Return a boxed table of words: the first row and the first of each row are headers."""
    body = "".join(
        f'<tr><th scope="row">{text(row[0])}</th>{"".join(f"<td>{text(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows[1:]
    )
    return boxed(f'<table class="{kind}">{header(rows[0])}<tbody>{body}</tbody></table>', label)


def figures(plots: Iterable[Plot]) -> str:
    found = [
        f'<figure><h3>{text(plot.title)}</h3><img alt="{text(f"{plot.title}. {plot.description}")}" '
        f'src="data:image/{plot.kind};base64,{base64.b64encode(plot.shown).decode()}">'
        f"<figcaption>{text(plot.description)}</figcaption></figure>"
        for plot in plots
    ]
    return f'<div class="plots">{"".join(found)}</div>' if found else ""


def folded(summary: str, content: str, name: str | None = None) -> str:
    """Return what opens by a touch of its summary; both are markup. A link to `name` opens it as well."""
    anchor = f' id="{name}"' if name else ""
    return f"<details><summary>{summary}</summary><div{anchor}>{content}</div></details>"
