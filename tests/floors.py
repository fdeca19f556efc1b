"""The house as a drawing: its floors, what is on them and what imports what, circles if there are any, and its size.

python -m tests.floors
"""

from __future__ import annotations

import re

from tests.test_floors import FLOORS, PACKAGES, SOURCES, circle, home, parts


def drawing() -> list[str]:
    """Return a line for each entry of a floor, the highest first: files, lines, and the entries it imports from."""
    graph, lines = parts("rnnsparse", SOURCES), []
    for number, floor in reversed(list(enumerate(FLOORS))):
        for place, entry in enumerate(floor):
            sources = [source for module, source in SOURCES.items() if home(module) == entry]
            size = f"{len(sources):>3} files {sum(map(_lines, sources)):>7,} lines"
            imported = [_short(name) for other in FLOORS for name in other if name in graph.get(entry, ())]
            lines.append(f"{'' if place else number:>2}  {_short(entry):<18} {size}   {', '.join(imported)}".rstrip())
    return lines


def circles() -> list[str]:
    """Return, for each package whose parts import each other in a circle, one such circle."""
    found = {package: circle(parts(package, SOURCES)) for package in PACKAGES}
    return [f"circle in {package}: {' -> '.join([*ring, ring[0]])}" for package, ring in found.items() if ring]


def counts() -> list[str]:
    """Return how large the product is, and in how many of its modules the name of one cell stands."""
    sizes = {module: _lines(source) for module, source in SOURCES.items()}
    longest = max(sizes, key=lambda module: sizes[module])
    naming = [module for module, source in SOURCES.items() if re.search("lstm", source, re.IGNORECASE)]
    return [
        f"{len(SOURCES)} modules, {sum(sizes.values()):,} lines",
        f"longest: {longest}, {sizes[longest]} lines",
        f"{len(naming)} name LSTM: {', '.join(map(_short, naming))}",
    ]


def _lines(source: str) -> int:
    return len(source.splitlines())


def _short(module: str) -> str:
    return module.removeprefix("rnnsparse.")


if __name__ == "__main__":
    print("\n".join([*drawing(), "", *(circles() or ["no circles"]), *counts()]))
