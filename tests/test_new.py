"""`rnnsparse new` writes what the repository shows, in a form that needs no other file of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rnnsparse.cli import main
from rnnsparse.cli.new import LIKE, written
from rnnsparse.config import load_config
from rnnsparse.recipes.sweep import load_sweep

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("like", ["quickstart", "wikitext103"])
def test_a_new_configuration_is_the_repositorys_with_its_own_name(
    like: str, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", "my.yaml", "--like", like]) == 0
    assert capsys.readouterr().out == "my.yaml\n"
    shown = (CONFIGS / LIKE[like]).read_text()
    assert Path("my.yaml").read_text() == shown.replace(f"configs/{LIKE[like]}", "my.yaml") != shown
    config = load_config(Path("my.yaml"))
    assert config.run.name == "my"
    assert config.data == load_config(CONFIGS / LIKE[like]).data


def test_without_a_word_it_trains_on_text_that_every_python_has() -> None:
    assert main(["new", "my.yaml"]) == 0
    config = load_config(Path("my.yaml"))
    assert (config.data.source, config.data.path) == ("python_docs", None)


def test_a_new_sweep_brings_the_configuration_of_its_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "my sweep: 1.yaml", "--like", "sweep"]) == 0
    assert capsys.readouterr().out.splitlines() == ["my sweep: 1.yaml", "my sweep: 1_config.yaml"]
    text = Path("my sweep: 1.yaml").read_text()
    assert "#   python -m rnnsparse sweep 'my sweep: 1.yaml'\n" in text
    sweep, shown = load_sweep(Path("my sweep: 1.yaml")), load_sweep(CONFIGS / LIKE["sweep"])
    assert [run.name for run in sweep.runs] == [run.name for run in shown.runs]
    assert [run.config.to_yaml() for run in sweep.runs] == [run.config.to_yaml() for run in shown.runs]


@pytest.mark.parametrize("there", ["my.yaml", "my_config.yaml"])
def test_nothing_is_overwritten_or_written_in_part(there: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(there).write_text("mine")
    assert main(["new", "my.yaml", "--like", "sweep"]) == 2
    error = capsys.readouterr().err
    assert error == f"rnnsparse: {there}: exists and is never overwritten; choose another name, or remove it first\n"
    assert [(path.name, path.read_text()) for path in Path().iterdir()] == [(there, "mine")]


@pytest.mark.parametrize("like", LIKE)
@pytest.mark.parametrize("place", [".", "/", "no/my.yaml"])
def test_a_place_for_no_new_file_is_refused_in_one_line(
    place: str, like: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", place, "--like", like]) == 2
    assert capsys.readouterr().err.startswith(f"rnnsparse: {place}: ")
    assert list(Path().iterdir()) == []


def test_what_a_configuration_builds_on_comes_along(tmp_path: Path) -> None:
    (tmp_path / "shown/of").mkdir(parents=True)
    (tmp_path / "shown/one.yaml").write_text("data: {source: text, path: one}\nmodel: {cell: lstm}\n")
    (tmp_path / "shown/of/two.yaml").write_text("base: ../one.yaml # the data\nmodel: {hidden_size: 5}\n")
    (tmp_path / "shown/three.yaml").write_text("# train configs/three.yaml\nbase: of/two.yaml\nrun: {seed: 3}\n")
    texts = written(tmp_path / "shown", "three.yaml", Path("my.yaml"))
    for path, text in texts.items():
        path.write_text(text)
    assert [str(path) for path in texts] == ["my.yaml", "my_base.yaml", "my_base_base.yaml"]
    assert texts[Path("my.yaml")] == '# train my.yaml\nbase: "my_base.yaml"\nrun: {seed: 3}\n'
    config = load_config(Path("my.yaml"))
    assert (config.run.seed, config.model.hidden_size, config.model.cell, config.data.path) == (3, 5, "lstm", "one")


@pytest.mark.parametrize("name", sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")))
def test_every_configuration_shown_could_be_written(name: str) -> None:
    for path, text in written(CONFIGS, name, Path("my.yaml")).items():
        path.write_text(text)
    if name.startswith("sweeps/"):
        assert load_sweep(Path("my.yaml")).runs
    else:
        assert load_config(Path("my.yaml")).method == load_config(CONFIGS / name).method
