"""The README files as they are read by their tests: in the order in which a reader comes to them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = "configs", "checkpoints", "checkpoints/results", "scripts", "tests", "rnnsparse"
FILES = ["README.md", *(f"{name}/README.md" for name in FOLDERS)]
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in FILES}


def code_blocks(language: str, *names: str) -> list[str]:
    """Return the blocks of a language, of the named files or of all."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [block for name in names or FILES for block in pattern.findall(TEXTS[name])]


class Table(NamedTuple):
    """A table: its file, the command in a comment above it ("" for none), its text, and its cells."""

    file: str
    command: str
    text: str
    header: list[str]
    rows: list[list[str]]

    def column(self, number: int) -> list[str]:
        return [row[number] for row in self.rows]

    def codes(self, number: int) -> set[str]:
        """Return what is in code in a column."""
        return set(re.findall(r"`([^`]+)`", " ".join(self.column(number))))


def tables() -> list[Table]:
    found = []
    for file, text in TEXTS.items():
        for command, lines in re.findall(r"^(?:<!-- (.*) -->\n)?((?:\|.*\n)+)", text, re.MULTILINE):
            cells = [re.split(r"(?<!\\)\|", line[1:-1]) for line in lines.splitlines()]
            header, _, *rows = [[cell.strip() for cell in row] for row in cells]
            found.append(Table(file, command, lines, header, rows))
    return found


def table(first: str) -> Table:
    """Return the table whose header begins so."""
    (found,) = [table for table in tables() if table.header[0] == first and not table.command]
    return found
