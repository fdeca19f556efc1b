"""The README files keep their word: their commands run, their examples too, and their links lead somewhere.

Their tables are in test_readme_tables.py.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from rnnsparse import yaml12
from rnnsparse.cli import main
from rnnsparse.config import load_config, parse_config
from rnnsparse.recipes.sweep import load_sweep
from rnnsparse.sparsity.method import METHODS
from rnnsparse.storage import checkpoint
from tests.readme import FILES, ROOT, TEXTS, code_blocks, table

TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. A function is Once The é\n" * 40

# What is appended to every `train` of the documents, so that it takes about a second.
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


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def commands() -> Iterator[list[str]]:
    for block in code_blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


# ---- commands


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder like a fresh clone, with the texts that the documents suppose a reader has; the current folder."""
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
    # As the reader is told to make it: the hub's parquet files in a folder, and nothing else.
    (folder / "wikitext-103").mkdir()
    table = pyarrow.table({"text": ["", " = Title = \n", *TEXT.splitlines(keepends=True)]})
    for split in ("train", "validation", "test"):
        pyarrow.parquet.write_table(table, folder / "wikitext-103" / f"{split}-00000-of-00001.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("RNNSPARSE_CACHE", str(folder / "cache"))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets-cache")
        patch.syspath_prepend(ROOT / "scripts")  # where scripts find each other
        yield folder


@pytest.fixture(scope="module")
def executed(clone: Path) -> int:
    """Run every command of the documents, in order, in one folder; return how many there were."""
    every = list(commands())
    for words in every:
        run(words)
    return len(every)


def run(words: list[str]) -> None:
    """Run one command, or what of it fits into a test; fail if it cannot work for a reader."""
    said = f"README: {shlex.join(words)}"
    match words:
        case ["bash", script, *_]:
            subprocess.run(["bash", "-n", script], check=True)
            if script == "scripts/quickstart.sh":  # what it trains, later commands use
                train(["configs/quickstart.yaml"], said)
        case ["source", ".venv/bin/activate"]:
            assert ".venv" in Path("scripts/setup.sh").read_text()
        case ["python", script, *arguments]:
            options = {word for word in arguments if word.startswith("--")}
            assert options <= set(re.findall(r"--[a-z0-9-]+", help_of(script))), said
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
        case ["rnnsparse", "evaluate", *arguments, "--dynamic"]:  # of a short text, as it learns from every piece
            assert main(["evaluate", *arguments, "--dynamic", "--data", "my_text.txt"]) == 0, said
        case ["rnnsparse", "interpolate", *arguments]:
            assert main(["interpolate", *arguments, "--points", "3", "--symbols", "200"]) == 0, said
        case ["rnnsparse", *arguments]:
            assert main(arguments) == 0, said
        case _:
            pytest.fail(f"{said}: this test does not know how to check it")


def help_of(script: str) -> str:
    """Return what a script prints about itself, in this process: to start one takes seconds."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(sys, "argv", [script, "--help"])
        with pytest.raises(SystemExit) as ending:
            runpy.run_path(script, run_name="__main__")
    assert not ending.value.code, script
    return out.getvalue()


def train(arguments: list[str], said: str) -> None:
    small, config = list(SMALL), load_config(Path(arguments[0]))
    if config.data.source == "wikitext103" and not any(a.startswith("data.path=") for a in arguments):
        small.append("data.path=wikitext-103")
    if config.training.precision == "fp16":
        small.append("training.precision=fp32")  # the other takes a GPU
    arguments = [re.sub("/step_[1-9][0-9]*$", "/step_0", argument) for argument in arguments]  # later ones are beyond
    assert main(["train", *arguments, *small]) == 0, said


def sweep(path: Path, said: str) -> None:
    """Train, small, a run of each method in each part of a sweep's grid, the ones that others start from first."""
    if path.name == "quick.yaml":
        sweep_in_processes(path, said)
        return
    small = [*SMALL, "sparsity.interval=1", "sparsity.prune_share=0.7", "data.path=wikitext-103"]
    if path.name == "extended.yaml":
        small.append("sparsity.sparsity=0.5")  # at 90 % no dense network is as small
    if path.name in ("extended.yaml", "equal_arithmetic.yaml"):
        small.remove("sparsity.interval=1")  # of which a window of 25 steps would be all
    if path.name == "deep_bootstrap.yaml":
        small.remove("training.warmup=0")  # which its grid sets
    found = load_sweep(path.resolve(), small)
    seen: set[tuple[str, ...]] = set()
    for run in found.runs:
        kind = (run.config.method.name, *sorted(override.partition("=")[0] for override in run.overrides))
        if kind not in seen:
            overrides = [re.sub(r"^data\.limit=\d+$", "data.limit=500", override) for override in run.overrides]
            overrides = [re.sub(r"^training\.warmup=\d+$", "training.warmup=0", override) for override in overrides]
            assert main(["train", str(found.base), *overrides]) == 0, f"{said}: {run.name}"
        seen.add(kind)


def sweep_in_processes(path: Path, said: str) -> None:
    """Run one of a sweep's runs, small."""
    settings = yaml12.read(path.read_text(encoding="utf-8"))
    small = dict(override.split("=") for override in SMALL)
    settings["overrides"] |= {key: int(value) for key, value in small.items()}
    settings["config"] = str(path.resolve().parent / settings["config"])
    settings["grid"] |= {"run.seed": [1], "sparsity.method": ["rigl"], "sparsity.drop_fraction": [0.3]}
    Path("small_sweep.yaml").write_text(yaml12.write(settings))
    assert main(["sweep", "small_sweep.yaml"]) == 0, said


def test_every_command_runs(executed: int) -> None:
    assert executed > 15, "commands are in ```bash blocks"


def test_every_file_of_a_run_and_of_a_checkpoint_is_listed(executed: int, clone: Path) -> None:
    runs = [path.parent for path in clone.glob("checkpoints/*/summary.json")]
    numbered = {re.sub(r"_\d+", "_N", path.name) + "/" * path.is_dir() for run in runs for path in run.iterdir()}
    assert numbered - {".lock"} <= table("in the folder of a run").codes(0)
    assert {path.name for run in runs for path in (run / "last").iterdir()} == table("in a checkpoint").codes(0)


def test_every_file_of_a_comparison_is_listed(executed: int, clone: Path) -> None:
    written = {re.sub(r".*\.png", "*.png", path.name) for path in (clone / "checkpoints/comparison").iterdir()}
    assert written == table("file").codes(0)


def test_python_examples_run(executed: int, clone: Path) -> None:
    examples = [block for block in code_blocks("python") if "@register" not in block]
    assert len(examples) >= 3
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})


def test_rigl_takes_at_most_twelve_lines_of_an_own_loop() -> None:
    (loop,) = [block for block in code_blocks("python", "README.md") if "sparsify" in block]
    assert 0 < len([line for line in loop.splitlines() if re.search(r"\brs\b|sparsifier", line)]) <= 12


def test_the_sweep_shown_is_the_one_in_the_file() -> None:
    lines = (ROOT / "configs/sweeps/quick.yaml").read_text(encoding="utf-8").splitlines(keepends=True)
    assert "".join(line for line in lines if not line.startswith("#")) in code_blocks("yaml")


def test_the_search_shown_is_valid_and_as_long_as_it_says(tmp_path: Path) -> None:
    (shown,) = [block for block in code_blocks("yaml") if "search:" in block]
    (tmp_path / "search.yaml").write_text(shown.replace("config: ", f"config: {ROOT}/configs/"))
    found = load_sweep(tmp_path / "search.yaml")
    assert found.search is not None
    assert [(rung.trials, 10 * rung.share) for rung in found.search.ladder()] == [(64, 0.625), (16, 2.5), (4, 10)]


def test_the_method_shown_is_the_one_in_the_code() -> None:
    shown = [block for block in code_blocks("python") if "@register" in block]
    assert shown == [(ROOT / "rnnsparse/sparsity/methods/rigl.py").read_text(encoding="utf-8")]


# ---- what is where


def test_the_front_page_is_short() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 250


def test_the_front_page_leads_to_all_other_pages() -> None:
    pages = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("[!.]*/**/README.md"))
    assert sorted(FILES[1:]) == pages
    _, _, last = TEXTS["README.md"].partition("## Where to find what")
    assert [page for page in pages if f"]({page})" not in last] == []


@pytest.mark.parametrize("name", FILES)
def test_every_link_leads_somewhere(name: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", without_code(TEXTS[name])) if "://" not in link]
    assert links
    assert [link for link in links if not leads_somewhere(ROOT / name, link)] == []


def leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    return target.exists() and target.is_relative_to(ROOT) and (not anchor or anchor in anchors(target))


def anchors(page: Path) -> set[str]:
    """Return what the headings of a page are called in links, as GitHub does."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_configuration_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(path) for path in sorted(ROOT.glob("configs/**/*.yaml"))]
    assert main(["validate", *paths]) == 0
    captured = capsys.readouterr()
    assert captured.out.count(": valid") == len(paths)
    assert captured.err == "", "a setting without effect does not belong into a configuration that people copy"


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_small_configuration_fits_every_method_without_a_warning(method: str) -> None:
    assert load_config(ROOT / "configs/small.yaml", [f"sparsity.method={method}"]).warnings == ()


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
    made_by = load_config(ROOT / "configs/demo.yaml", ["run.dir=checkpoints/demo-run"])
    assert parse_config(saved.config, "demo") == made_by
