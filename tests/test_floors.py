"""The house rules that a reader cannot see in any one file: who may import whom, and who may print."""

from __future__ import annotations

import ast
from collections.abc import Iterator
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
    [f"rnnsparse.{name}" for name in ("evaluation", "code_lengths", "sampling", "flops", "training.step")],
    ["rnnsparse.config"],
    ["rnnsparse.training"],
    ["rnnsparse.recipes", "rnnsparse.reporting", "rnnsparse.trained"],
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


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_only_go_up_the_house(path: Path) -> None:
    assert trespasses(module_name(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_only_the_command_line_prints(path: Path) -> None:
    if not within(module_name(path), "rnnsparse.cli"):
        assert prints(path.read_text(encoding="utf-8")) == []


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


@pytest.mark.parametrize("package", ["rnnsparse.reporting", "rnnsparse.storage", "rnnsparse.training"])
def test_imports_within_a_package_go_one_way(package: str) -> None:
    """Late ones, within a function, count too."""
    names = {module_name(path): path for path in MODULES if within(module_name(path), package)}
    graph = {
        module: {part for name in imports(path.read_text(encoding="utf-8")) for part in (name, name.rpartition(".")[0])}
        & set(names)
        for module, path in names.items()
    }
    assert circle(graph) == []


def test_a_circle_is_noticed() -> None:
    assert circle({"a": {"b"}, "b": {"c", "d"}, "c": {"b"}, "d": set()}) == ["b", "c"]


def test_what_a_text_is_read_with_does_not_load_the_network() -> None:
    """Importing a module runs the __init__.py of its package, so that of settings must import nothing."""
    assert list(imports((ROOT / "rnnsparse/settings/__init__.py").read_text(encoding="utf-8"))) == []


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
