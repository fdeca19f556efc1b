"""Outside a clone: what `pip install` of the wheel gives is all that is needed, in an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import rnnsparse

ROOT = Path(__file__).parent.parent
SMALL = ["training.steps=3", "model.hidden_size=16", "evaluation.symbols=2000", "model.execution=masked"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built where nothing else of the clone is and nothing that was built before."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("rnnsparse", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import setuptools.build_meta as builder, sys; builder.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, out], cwd=source, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of a virtual environment that has the wheel, and sees the packages of this one beside it."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True)
    # A folder named in a .pth file is searched last, and the .pth files in it, such as that of a clone, do not count.
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "dependencies.pth").write_text("\n".join({sysconfig.get_path(name) for name in ("purelib", "platlib")}))
    return python.parent


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("empty")


def run(command: list[object], folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    walk = os.walk(ROOT / "rnnsparse", followlinks=True)
    files = {os.path.relpath(Path(folder, name), ROOT) for folder, _, names in walk for name in names}
    files = {name for name in files if not name.endswith((".pyc", ".md"))}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == files
    assert {"rnnsparse/py.typed", "rnnsparse/__init__.pyi", "rnnsparse/configs/quickstart.yaml"} <= names


def test_two_commands_train_and_a_third_writes(installed: Path, empty: Path) -> None:
    rnnsparse = installed / "rnnsparse"
    assert "new" in run([rnnsparse, "--help"], empty)
    assert run([rnnsparse, "new", "my.yaml"], empty) == "my.yaml\n"
    assert "validation: " in run([rnnsparse, "train", "my.yaml", *SMALL], empty)
    assert run([rnnsparse, "sample", "checkpoints/my", "--length", "20"], empty).strip()
    assert (empty / "checkpoints/my/summary.json").is_file()


def test_what_is_imported_is_the_wheels(installed: Path, empty: Path) -> None:
    use = "import torch, rnnsparse as rs; print(rs.LSTM(3, 4)(torch.ones(2, 1, 3))[0].shape, rs.__file__)"
    said = run([installed / "python", "-c", use], empty)
    assert str(installed.parent) in said
    assert "torch.Size([2, 1, 4])" in said
    assert run([installed / "rnnsparse", "--version"], empty) == f"rnnsparse {rnnsparse.__version__}\n"
