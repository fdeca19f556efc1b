"""The house rules that a reader cannot see in any one file: who may import whom, and who may print."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "rnnsparse").rglob("*.py"))

# A module imports from its own floor and those below. The longest prefix counts.
FLOORS = [
    ["rnnsparse"],  # the package itself: its version, and where the public names are
    [f"rnnsparse.{name}" for name in ("errors", "files", "layered", "randomness", "streams", "yaml12")],
    ["rnnsparse.kernels"],
    ["rnnsparse.cells"],
    ["rnnsparse.settings", "rnnsparse.settings.training", "rnnsparse.settings.run"],
    ["rnnsparse.data", "rnnsparse.nn"],
    ["rnnsparse.sparsity"],
    ["rnnsparse.storage"],
    [f"rnnsparse.{name}" for name in ("dynamic", "evaluation", "code_lengths", "sampling", "flops", "training.step")],
    ["rnnsparse.config"],
    ["rnnsparse.training"],
    ["rnnsparse.interpolation", "rnnsparse.recipes", "rnnsparse.reporting", "rnnsparse.trained"],
    ["rnnsparse.cli", "rnnsparse.__main__"],
]
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}

# Neighbours on a floor that must not know each other, and floors that must not know a lower one.
STRANGERS = [
    ("rnnsparse.settings", "rnnsparse.kernels"),
    ("rnnsparse.data", "rnnsparse.kernels"),
    ("rnnsparse.data", "rnnsparse.cells"),
    ("rnnsparse.data", "rnnsparse.nn"),
    ("rnnsparse.data", "rnnsparse.settings.training"),
    ("rnnsparse.data", "rnnsparse.settings.run"),
    ("rnnsparse.nn", "rnnsparse.data"),
    ("rnnsparse.nn", "rnnsparse.settings.training"),
    ("rnnsparse.nn", "rnnsparse.settings.run"),
    ("rnnsparse.sparsity", "rnnsparse.data"),
    ("rnnsparse.sparsity", "rnnsparse.settings.training"),
    ("rnnsparse.sparsity", "rnnsparse.settings.run"),
]

# Who alone may import these.
RESERVED = {
    "datasets": ["rnnsparse.data"],
    "pyarrow": ["rnnsparse.data"],
    "tokenizers": ["rnnsparse.data"],
    "matplotlib": ["rnnsparse.reporting.plots"],
    "tensorboard": ["rnnsparse.training.run.logging"],
    "torch.utils.tensorboard": ["rnnsparse.training.run.logging"],
    "tqdm": ["rnnsparse.training.run.logging", "rnnsparse.recipes", "rnnsparse.reporting.reading"],
    "argparse": ["rnnsparse.cli"],
}


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path.read_text(encoding="utf-8") for path in MODULES}
PACKAGES = [module_name(path) for path in MODULES if path.name == "__init__.py"]


def home(module: str) -> str:
    """The entry of FLOORS that a module (or a name imported from one) belongs to."""
    homes = [name for name in FLOOR_OF if within(module, name)]
    if module.startswith("rnnsparse.") and homes == ["rnnsparse"] and not module.startswith("rnnsparse.__"):
        raise AssertionError(f"{module} has no floor: add it to FLOORS")
    return max(homes, key=len)


def imports(source: str) -> Iterator[str]:
    """Every dotted name that a module imports, wherever in it: `from a import b` is a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def trespasses(module: str, source: str) -> list[str]:
    """What is wrong with the imports of `module`, one line each."""
    wrong = []
    for name in imports(source):
        if within(name, "rnnsparse"):
            here, there = home(module), home(name)
            if FLOOR_OF[there] > FLOOR_OF[here]:
                wrong.append(f"{module} imports {name} from a floor above its own")
            if (here, there) in STRANGERS:
                wrong.append(f"{module} imports {name}, but {here} must not know {there}")
        for package, owners in RESERVED.items():
            if within(name, package) and not any(within(module, owner) for owner in owners):
                wrong.append(f"{module} imports {name}, which only {' and '.join(owners)} may")
    return wrong


def prints(source: str) -> list[int]:
    """The lines that call print."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


@pytest.mark.parametrize("module", SOURCES)
def test_imports_only_go_up_the_house(module: str) -> None:
    assert trespasses(module, SOURCES[module]) == []


@pytest.mark.parametrize("module", SOURCES)
def test_only_the_command_line_prints(module: str) -> None:
    if not within(module, "rnnsparse.cli"):
        assert prints(SOURCES[module]) == []


def parts(package: str, sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Of each part of a package (modules and packages in it; for the whole product, entries of FLOORS) what it imports.

    Late imports, within a function, count too.
    """

    def part_of(module: str) -> str:
        return home(module) if package == "rnnsparse" else ".".join(module.split(".")[: package.count(".") + 2])

    graph: dict[str, set[str]] = {part_of(module): set() for module in sources if within(module, package)}
    for module, source in sources.items():
        if within(module, package):
            modules = (name if name in sources else name.rpartition(".")[0] for name in imports(source))
            graph[part_of(module)] |= {part_of(name) for name in modules if name in sources and within(name, package)}
    return {part: needs - {part} for part, needs in graph.items()}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules of which each imports the next, and the last the first; none if imports go one way."""
    free: set[str] = set()
    while found := {module for module, needs in graph.items() if module not in free and needs <= free}:
        free |= found
    path: list[str] = []
    module = next((module for module in graph if module not in free), None)
    while module is not None and module not in path:
        path.append(module)
        module = next(needed for needed in graph[module] if needed not in free)
    return path[path.index(module) :] if module else []


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_within_a_package_go_one_way(package: str) -> None:
    assert circle(parts(package, SOURCES)) == []


def test_parts_of_a_package_are_what_stands_in_it() -> None:
    sources = {
        "rnnsparse.nn": "",
        "rnnsparse.nn.a": "from rnnsparse.nn import b\nfrom rnnsparse.nn.deep.c import C\nimport torch",
        "rnnsparse.nn.b": "from rnnsparse import __version__",
        "rnnsparse.nn.deep": "from rnnsparse.nn.deep import c",
        "rnnsparse.nn.deep.c": "def late():\n    from rnnsparse.nn.b import B",
        "rnnsparse.cells": "from rnnsparse.nn import a",
    }
    assert parts("rnnsparse.nn", sources) == {
        "rnnsparse.nn": set(),
        "rnnsparse.nn.a": {"rnnsparse.nn.b", "rnnsparse.nn.deep"},
        "rnnsparse.nn.b": set(),
        "rnnsparse.nn.deep": {"rnnsparse.nn.b"},
    }
    assert parts("rnnsparse", sources) == {"rnnsparse.nn": set(), "rnnsparse.cells": {"rnnsparse.nn"}}


def test_a_circle_is_noticed() -> None:
    assert circle({"a": {"b"}, "b": {"c", "d"}, "c": {"b"}, "d": set()}) == ["b", "c"]


def test_what_a_text_is_read_with_does_not_load_the_network() -> None:
    """Importing a module runs the __init__.py of its package, so that of settings must import nothing."""
    assert list(imports(SOURCES["rnnsparse.settings"])) == []


def test_the_drawing_has_every_module_once() -> None:
    from tests import floors  # which draws what is here

    rows = [re.fullmatch(r"[ \d]\d?  +(\S+) +(\d+) files +([\d,]+) lines.*", line) for line in floors.drawing()]
    drawn = {row[1]: (int(row[2]), int(row[3].replace(",", ""))) for row in rows if row}
    assert list(drawn) == [name.removeprefix("rnnsparse.") for floor in reversed(FLOORS) for name in floor]
    modules, lines = (sum(numbers) for numbers in zip(*drawn.values(), strict=True))
    assert (modules, lines) == (len(MODULES), sum(source.count("\n") for source in SOURCES.values()))
    assert floors.counts()[0] == f"{modules} modules, {lines:,} lines"
    assert floors.circles() == []


def test_every_file_is_named_after_its_idea() -> None:
    vague = {"util", "utils", "helper", "helpers", "common", "misc"}
    python_files = [*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    assert [path for path in python_files if vague & set(path.relative_to(ROOT).with_suffix("").parts)] == []


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rnnsparse.nn.layers", "from rnnsparse.sparsity.method import Method"),
        ("rnnsparse.nn.layers", "import rnnsparse.sparsity"),
        ("rnnsparse.nn.layers", "from rnnsparse import sparsity"),
        ("rnnsparse.nn.layers", "from rnnsparse.data.tokenizer import Tokenizer"),
        ("rnnsparse.data.corpus", "from rnnsparse.kernels import cpu"),
        ("rnnsparse.data.corpus", "from rnnsparse.settings.training import TrainingConfig"),
        ("rnnsparse.settings.data", "from rnnsparse.data.corpus import Corpus"),
        ("rnnsparse.config", "from rnnsparse.training.trainer import train"),
        ("rnnsparse.config", "def late():\n    from rnnsparse import training"),
        ("rnnsparse.errors", "import rnnsparse.nn"),
        ("rnnsparse.storage.checkpoint", "from rnnsparse.training.trainer import Trainer"),
        ("rnnsparse.training.step.learner", "from rnnsparse.config import RunConfig"),
        ("rnnsparse.training.step.loss", "from rnnsparse.training.build import restore"),
        ("rnnsparse.training.trainer", "import datasets"),
        ("rnnsparse.training.trainer", "from torch.utils.tensorboard import SummaryWriter"),
        ("rnnsparse.training.trainer", "from torch.utils import tensorboard"),
        ("rnnsparse.reporting.compare", "import matplotlib.pyplot as plt"),
        ("rnnsparse.__main__", "import argparse"),
    ],
)
def test_a_trespass_is_noticed(module: str, source: str) -> None:
    assert len(trespasses(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rnnsparse.data.corpus", "from rnnsparse.settings.data import DataConfig"),
        ("rnnsparse.storage.checkpoint", "from rnnsparse import __version__"),
        ("rnnsparse.training.run.logging", "from tqdm import tqdm"),
        ("rnnsparse.recipes.sweep", "from tqdm import tqdm"),
        ("rnnsparse.evaluation", "from rnnsparse.data.corpus import Split"),
        ("rnnsparse.data.corpus", "from datasets import load_dataset"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert trespasses(module, source) == []


def test_a_module_without_a_floor_is_noticed() -> None:
    with pytest.raises(AssertionError, match="no floor"):
        trespasses("rnnsparse.novelty", "import rnnsparse.nn")


def test_a_print_is_noticed() -> None:
    assert prints("x = 1\nif x:\n    print(x)\nfile.print(x)\n") == [3]
