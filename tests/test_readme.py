"""README.md keeps its word: its commands run, its links lead somewhere, its tables are those of the code."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from rnnsparse import yaml12
from rnnsparse.cli import main
from rnnsparse.config import SECTIONS, load_config
from rnnsparse.settings.setting import settings_of
from rnnsparse.sparsity.method import METHODS
from rnnsparse.storage import checkpoint

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. A function is Once The é\n" * 40

# What is appended to every `train` of the README, so that it takes about a second.
SMALL = [
    "model.hidden_size=64",
    "training.steps=4",
    "training.batch_size=4",
    "training.sequence_length=8",
    "training.warmup=0",
    "evaluation.interval=2",
    "evaluation.priming=16",
    "evaluation.symbols=200",
    "logging.interval=2",
    "logging.pictures=4",
]


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> Iterator[list[str]]:
    for block in code_blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder like a fresh clone, with the texts that the README supposes a reader has; the current folder."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path_factory.mktemp("clone")
    (folder / "checkpoints").mkdir()
    for name in ("configs", "scripts", "tests", "rnnsparse", "checkpoints/demo"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "my_text.txt").write_text(TEXT, encoding="utf-8")
    (folder / "opening.txt").write_text("It was ", encoding="utf-8")
    (folder / "books").mkdir()
    for name in ("one.txt", "two.txt"):
        (folder / "books" / name).write_text(TEXT, encoding="utf-8")
    # As the README tells the reader to make it: the hub's parquet files in a folder, and nothing else.
    (folder / "wikitext-103").mkdir()
    table = pyarrow.table({"text": ["", " = Title = \n", *TEXT.splitlines(keepends=True)]})
    for split in ("train", "validation", "test"):
        pyarrow.parquet.write_table(table, folder / "wikitext-103" / f"{split}-00000-of-00001.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("RNNSPARSE_CACHE", str(folder / "cache"))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets-cache")
        yield folder


@pytest.fixture(scope="module")
def executed(clone: Path) -> int:
    """Run every command of the README, in order, in one folder; return how many there were."""
    every = list(commands())
    for words in every:
        run(words)
    return len(every)


def run(words: list[str]) -> None:
    """Run one command of the README, or what of it fits into a test; fail if it cannot work for a reader."""
    said = f"README: {shlex.join(words)}"
    match words:
        case ["bash", script, *_]:
            subprocess.run(["bash", "-n", script], check=True)
            if script == "scripts/quickstart.sh":  # what it trains, later commands use
                train(["configs/quickstart.yaml"], said)
        case ["source", ".venv/bin/activate"]:
            assert ".venv" in Path("scripts/setup.sh").read_text()
        case ["python", script, *arguments]:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # what the editable install does for a reader
            command = [sys.executable, script, *arguments, "--help"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{said}\n{done.stderr}"
        case ["tensorboard", "--logdir", folder]:
            assert find_spec("tensorboard"), said
            assert list(Path(folder).glob("**/events.out.*")), f"{said}: there is nothing to show"
        case ["torchrun", *arguments]:
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *arguments, *SMALL]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{said}\n{done.stderr}"
        case ["rnnsparse", "train", *arguments]:
            train(arguments, said)
        case ["rnnsparse", "sweep", path]:
            sweep(Path(path), said)
        case ["rnnsparse", *arguments]:
            assert main(arguments) == 0, said
        case _:
            pytest.fail(f"{said}: this test does not know how to check it")


def train(arguments: list[str], said: str) -> None:
    small = list(SMALL)
    if load_config(Path(arguments[0])).data.source == "wikitext103" and not any(
        a.startswith("data.path=") for a in arguments
    ):
        small.append("data.path=wikitext-103")
    assert main(["train", *arguments, *small]) == 0, said


def sweep(path: Path, said: str) -> None:
    """Run two of a sweep's runs, small."""
    settings = yaml12.read(path.read_text(encoding="utf-8"))
    small = dict(override.split("=") for override in SMALL)
    settings["overrides"] |= {key: int(value) for key, value in small.items()}
    settings["config"] = str(path.resolve().parent / settings["config"])
    settings["grid"] |= {"run.seed": [1], "sparsity.method": ["static", "rigl"], "sparsity.drop_fraction": [0.3]}
    Path("small_sweep.yaml").write_text(yaml12.write(settings))
    assert main(["sweep", "small_sweep.yaml"]) == 0, said


def test_the_sweep_shown_is_the_one_in_the_file() -> None:
    lines = (ROOT / "configs/sweeps/quick.yaml").read_text(encoding="utf-8").splitlines(keepends=True)
    assert "".join(line for line in lines if not line.startswith("#")) in code_blocks("yaml")


def test_tables_of_results_are_what_their_command_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    tables = re.findall(r"^<!-- rnnsparse (.*) -->\n((?:\|.*\n)+)", README, re.MULTILINE)
    assert tables
    for command, table in tables:
        assert main(shlex.split(command)) == 0
        assert capsys.readouterr().out == table, command


def test_every_command_runs(executed: int) -> None:
    assert executed > 15, "commands are in ```bash blocks"


def test_python_examples_run(executed: int, clone: Path) -> None:
    examples = [block for block in code_blocks("python") if "@register" not in block]
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})


def test_the_method_shown_is_the_one_in_the_code() -> None:
    shown = [block for block in code_blocks("python") if "@register" in block]
    assert shown == [(ROOT / "rnnsparse/sparsity/methods/rigl.py").read_text(encoding="utf-8")]


def test_every_relative_link_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_the_model_that_comes_along_is_small_and_tells_nothing_of_the_machine_that_trained_it() -> None:
    demo = ROOT / "checkpoints" / "demo"
    assert sum(path.stat().st_size for path in demo.iterdir()) < 5e6
    saved = checkpoint.load(demo)
    assert not saved.has_training_state
    places = re.findall(
        r"^ *(?:path|vocabulary|cache|dir|weights|topology|rewind|teacher|basis_from): (.+)$", saved.config_yaml, re.M
    )
    assert places
    assert not [place for place in places if place.startswith(("/", "~"))]


def test_every_configuration_is_mentioned() -> None:
    configurations = sorted(path.relative_to(ROOT) for path in ROOT.glob("configs/**/*.yaml"))
    assert not [path for path in configurations if path.name not in README]


def test_every_configuration_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(path) for path in sorted(ROOT.glob("configs/**/*.yaml"))]
    assert main(["validate", *paths]) == 0
    captured = capsys.readouterr()
    assert captured.out.count(": valid") == len(paths)
    assert captured.err == "", "a setting without effect does not belong into a configuration that people copy"


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_small_configuration_fits_every_method_without_a_warning(method: str) -> None:
    assert load_config(ROOT / "configs/small.yaml", [f"sparsity.method={method}"]).warnings == ()


def test_every_method_has_a_row() -> None:
    assert not [name for name in METHODS if f"\n| `{name}` |" not in README]


def test_the_reference_has_every_key_with_its_default_and_meaning() -> None:
    _, _, reference = README.partition("\n## Configuration\n")
    reference = reference.partition("\n## ")[0]
    found = [line for line in reference.splitlines() if line.startswith("| `")]
    wanted = [row for section in SECTIONS for row in rows(section)]
    missing = [row for row in wanted if row not in found]
    assert not missing, "rows to add to README.md:\n" + "\n".join(missing)
    stale = [row for row in found if row not in wanted]
    assert not stale, "rows to remove from README.md:\n" + "\n".join(stale)


def rows(section: str) -> list[str]:
    """Return the rows of the reference for one section: those of its dataclass, and of the methods."""
    lines = fields(SECTIONS[section])
    if section == "sparsity":
        names = ", ".join(f"`{name}`" for name in sorted(METHODS))
        lines = {"method": ("static", f"one of {names}"), **lines}
        own: dict[str, dict[str, tuple[Any, str]]] = {}
        for name, method in METHODS.items():
            for key, line in fields(method).items():
                own.setdefault(key, {})[name] = line
        for key, of_method in own.items():
            names = ", ".join(f"`{name}`" for name in sorted(of_method))
            defaults = {name: value for name, (value, _) in of_method.items()}
            usual = max(defaults.values(), key=list(defaults.values()).count)
            exceptions = [f"{shown(value)} in `{name}`" for name, value in defaults.items() if value != usual]
            meaning = min((text for _, text in of_method.values()), key=lambda text: -len(text))
            lines[key] = (usual, f"{'; '.join([meaning, *exceptions])} ({names})")
    return [f"| `{section}.{key}` | {shown(value)} | {meaning} |" for key, (value, meaning) in lines.items()]


def fields(component: Any) -> dict[str, tuple[Any, str]]:
    """Return the default and the meaning of each key, with its choices where it has some."""
    hints = get_type_hints(component)
    lines = {}
    for key, setting in settings_of(component).items():
        meaning = setting.help
        choices = get_args(hints[key]) if get_origin(hints[key]) is Literal else ()
        if not all(choice in meaning for choice in choices):
            meaning += f" ({', '.join(choices)})"
        lines[key] = (setting.default, re.sub(r"([|*$<])", r"\\\1", meaning))
    return lines


def shown(value: Any) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"
