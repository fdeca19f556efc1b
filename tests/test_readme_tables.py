"""Every table of the README files is made by the command above it, or says what the code and the results say."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import re
import runpy
import shlex
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from PIL import Image

from rnnsparse.cells.cell import CELLS
from rnnsparse.cli import main
from rnnsparse.config import SECTIONS
from rnnsparse.settings.data import DataConfig
from rnnsparse.settings.setting import settings_of
from rnnsparse.sparsity.method import METHODS
from tests.faults.campaigns import CAMPAIGNS, EVERY
from tests.fuzz.kinds import kinds
from tests.readme import FILES, ROOT, TEXTS, Table, table, tables

RESULTS = ROOT / "checkpoints" / "results"
TABLES = tables()
# Those of files that a run leaves are compared with runs, in test_readme.py.
OF_RUNS = ["in the folder of a run", "in a checkpoint", "file"]


@pytest.mark.parametrize("one", [pytest.param(t, id=t.command) for t in TABLES if t.command.startswith("rnnsparse")])
def test_tables_of_results_are_what_their_command_prints(
    one: Table, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(shlex.split(one.command)[1:]) == 0
    assert capsys.readouterr().out == one.text


def test_the_picture_on_the_front_page_and_the_table_beside_it_have_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (one,) = [t for t in TABLES if t.command == "python scripts/draw_results.py"]
    assert one.file == "README.md"
    monkeypatch.setattr("sys.argv", ["draw_results.py", "--out", str(tmp_path / "picture.png")])
    runpy.run_path(str(ROOT / "scripts/draw_results.py"), run_name="__main__")
    assert capsys.readouterr().out == one.text
    path = RESULTS / "methods_gru256.png"
    assert str(path.relative_to(ROOT)) in TEXTS["README.md"]
    with Image.open(path) as shown, Image.open(tmp_path / "picture.png") as drawn:
        assert shown.info["Description"] + "\n" == one.text
        assert shown.size == drawn.size
    assert path.stat().st_size < 100_000


# ---- tables of what the code has, by how their header begins

CHECKS: dict[str, Callable[[Table], None]] = {}


def checks(first: str) -> Callable[[Callable[[Table], None]], Callable[[Table], None]]:
    def register(check: Callable[[Table], None]) -> Callable[[Table], None]:
        CHECKS[first] = check
        return check

    return register


@checks("setting")
def settings(one: Table) -> None:
    keys = {f"{section}.{key}" for section in SECTIONS for key in fields(SECTIONS[section])}
    assert {key for cell in one.column(0) for key in re.findall("`(.*?)`", cell)} <= keys | {"sparsity.method"}


@checks("`sparsity.method`")
def methods(one: Table) -> None:
    assert sorted(one.column(0)) == sorted(f"`{name}`" for name in METHODS)
    for name, *_, dense_gradient, flops in one.rows:
        method = METHODS[name.strip("`")]
        assert dense_gradient == method.dense_gradient, name
        assert flops == f"{training_flops(method.name):.2f}", name


def training_flops(method: str) -> float:
    """Return the share of dense training that a long run of configs/small.yaml takes at 75 % sparsity everywhere."""
    settings = {"method": method, "sparsity": 0.75, "distribution": "uniform"}
    overrides = [*(f"sparsity.{key}={value}" for key, value in settings.items()), "training.steps=200000"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["inspect", str(ROOT / "configs/small.yaml"), "--json", *overrides]) == 0
    share: float = json.loads(out.getvalue())["training_flops_vs_dense"]
    return share


@checks("you want to")
def pages(one: Table) -> None:
    assert re.findall(r"\]\((.*?)\)", " ".join(one.column(1))) == FILES[1:]


@checks("configuration")
def configurations(one: Table) -> None:
    assert sorted(links(one, 0)) == sorted(
        str(path.relative_to(ROOT / "configs")) for path in ROOT.glob("configs/**/*.yaml")
    )


@checks("question")
def experiments(one: Table) -> None:
    """Each is a sweep that says what it asks and how to try it, and has a command here."""
    for sweep in links(one, 1):
        path = (ROOT / one.file).parent / sweep
        text = path.read_text(encoding="utf-8")
        about, _, _ = text.partition("\nbase:" if "\nbase:" in text else "\nconfig:")
        assert "?" in about
        assert "toy length" in about
        assert f"rnnsparse sweep configs/sweeps/{path.name}\n" in TEXTS[one.file]


@checks("script")
def scripts(one: Table) -> None:
    found = [path for end in ("sh", "py") for path in (ROOT / "scripts").rglob(f"*.{end}")]
    assert sorted(links(one, 0)) == sorted(str(path.relative_to(ROOT / "scripts")) for path in found)


def links(one: Table, column: int) -> list[str]:
    return re.findall(r"\]\((.*?)\)", " ".join(one.column(column)))


@checks("package")
def packages(one: Table) -> None:
    found = {path.parent.name for path in (ROOT / "rnnsparse").glob("*/__init__.py")}
    assert found <= one.codes(0)


@checks("data set")
def data_sets(one: Table) -> None:
    """Every source that is not Python's own documentation is in the table, and so are the settings for it."""
    named = " ".join(one.column(1))
    sources = get_args(get_type_hints(DataConfig)["source"])
    assert all(source in re.findall(r"\w+", named) for source in sources if source != "python_docs")
    settings = {code.split(":")[0] for code in one.codes(1) if code.startswith("data.")}
    assert settings == {f"data.{key}" for key in ("source", "path", "name", "config", "column", "spaced")}


@checks("key")
def reference(one: Table) -> None:
    found = one.text.splitlines()[2:]
    wanted = [row for section in SECTIONS for row in rows(section)]
    missing = [row for row in wanted if row not in found]
    assert not missing, f"rows to add to {one.file}:\n" + "\n".join(missing)
    stale = [row for row in found if row not in wanted]
    assert not stale, f"rows to remove from {one.file}:\n" + "\n".join(stale)


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


# ---- tables of what was measured


@checks("WikiText-103-raw")
def demo(one: Table) -> None:
    measured = json.loads((RESULTS / "demo.json").read_text())
    assert one.rows == [[m["split"], f"{m['bits_per_character']:.3f}", f"{m['bits_per_byte']:.3f}"] for m in measured]


def test_quickstart_promises_what_its_recorded_run_has() -> None:
    (run,) = json.loads((RESULTS / "quickstart.json").read_text())["runs"]
    bits = [run["summary"][key] for key in ("bits_per_character", "test_bits_per_character")]
    promise = "about {:.2f} on the validation text and {:.2f} on the test text".format(*bits)
    assert promise in " ".join(TEXTS["README.md"].split())


@checks("measured")
def on_a_cpu(one: Table) -> None:
    """Sparse execution is chosen ("auto") from the sparsity on at which it won."""
    report = json.loads((RESULTS / "cpu-xeon-sapphire-rapids.json").read_text())
    wanted = []
    for key, measured, calls in (
        ("layer_step", "one layer", 1),
        ("training_step", "whole step", 1),
        ("sampling", "sampling", 20),
    ):
        for row in sorted(report[key], key=lambda row: not row["of"].startswith("lstm")):
            cell, *blocks = row["of"].split(",")
            dense, *others = (wall for wall, _, _ in row["seconds"].values())
            milliseconds = dense * 1e3 / calls
            shown = f"{milliseconds:,.0f} ms" if milliseconds >= 10 else f"{milliseconds:.1f} ms"
            ratios = [f"{dense / other:.1f}x" for other in others]
            wanted.append([measured, ",".join([f"{cell.upper()} {row['hidden']}", *blocks]), shown, *ratios])
            if measured != "sampling":
                wins_from = CELLS[cell].sparse_wins_from
                wins = [dense > other for other in others]
                assert wins == [float(sparsity) >= wins_from for sparsity in list(row["seconds"])[1:]], row["of"]
    assert one.rows == wanted


@checks("layer")
def on_a_gpu(one: Table) -> None:
    report = json.loads((RESULTS / "gpu-nvidia-h100-80gb-hbm3.json").read_text())
    wanted = []
    for step, graph in zip(report["steps"], report["graphs"], strict=True):
        case = [f"{step['cell'].upper()} {step['hidden']:,}", step["precision"]]
        ratios = [step["rigl / plain"], step["rigl_with_updates / plain"]]
        shown = [f"{median:.3f} ({low:.3f}-{high:.3f})" for low, median, high in ratios]
        captured = [f"{graph[f'{who}, captured ms']:.1f}" for who in ("plain", "rigl")]
        wanted.append([*case, f"{step['plain ms']:.1f}", *shown, *captured])
    assert one.rows == wanted


@checks("bits in blocks of rows")
def in_blocks(one: Table) -> None:
    found: dict[tuple[str, float, str, int], list[float]] = {}
    for run in json.loads((RESULTS / "blocks_256.json").read_text())["runs"]:
        model, sparsity = run["config"]["model"], run["config"]["sparsity"]
        case = model["cell"], sparsity["sparsity"], sparsity["method"], sparsity["block_rows"]
        found.setdefault(case, []).append(run["summary"]["bits_per_character"])
    wanted = []
    for cell, sparsity, method in itertools.product(["gru", "lstm"], [0.75, 0.9, 0.95], ["scout", "rigl", "set"]):
        both = [found[cell, sparsity, method, rows] for rows in (1, 4, 8, 16)]
        wanted.append([f"{cell.upper()}, {sparsity:.0%}, {method}", *map(spread, both)])
    assert one.rows == wanted


@checks("bits in blocks of")
def methods_in_blocks(one: Table) -> None:
    found: dict[tuple[str, str, int], list[float]] = {}
    for name in ("methods_gru256_5e-3", "methods_lstm256_5e-3", "blocks_256", "methods_blocks_256"):
        for run in json.loads((RESULTS / f"{name}.json").read_text())["runs"]:
            sparsity, cell = run["config"]["sparsity"], run["config"]["model"]["cell"]
            setting = {"gse": f", {sparsity.get('candidates')}", "mest": ", soft_bound" * sparsity.get("soft_bound", 0)}
            method = sparsity["method"] + setting.get(sparsity["method"], "")
            is_default = method != "scout" or sparsity["pool"] == 3
            of_others = name == "blocks_256" and sparsity["block_rows"] == 1  # which the tables of methods have too
            if sparsity["sparsity"] == 0.9 and is_default and not of_others:
                bits = found.setdefault((method, cell, sparsity["block_rows"]), [])
                bits.append(run["summary"]["bits_per_character"])
    cases = list(itertools.product(["gru", "lstm"], [1, 8]))
    kinds = sorted({method for method, *_ in found} - {"dense", "small_dense"})
    wanted = [[kind, *(spread(found[kind, cell, rows]) for cell, rows in cases)] for kind in kinds]
    assert sorted(one.rows) == wanted


def spread(bits: list[float]) -> str:
    assert len(bits) == 2
    return f"{statistics.mean(bits):.3f} ± {statistics.stdev(bits):.3f}"


@checks("at equal arithmetic")
def equal_arithmetic(one: Table) -> None:
    """RigL's bits for as much arithmetic lie on the line through its own, once and twice as long, over log FLOPs."""
    found: dict[tuple[str, float, Any, float], list[tuple[float, float]]] = {}
    for run in json.loads((RESULTS / "equal_arithmetic.json").read_text())["runs"]:
        sparsity, summary = run["config"]["sparsity"], run["summary"]
        case = run["config"]["model"]["cell"], sparsity["sparsity"], sparsity.get("pool")
        costs = summary["bits_per_character"], summary["training_flops"]
        found.setdefault((*case, run["config"]["training"]["multiplier"]), []).append(costs)
    wanted = []
    for cell, sparsity in [*(("gru", share) for share in (0.75, 0.9, 0.95, 0.98)), ("lstm", 0.9), ("lstm", 0.95)]:
        once, twice, default, cheap = (
            found[cell, sparsity, *rest] for rest in ((None, 1.0), (None, 2.0), (3.0, 1.0), (1.0, 1.0))
        )
        bits = [statistics.mean(b for b, _ in runs) for runs in (once, twice)]
        row = [f"{cell.upper()}, {sparsity:.0%}", *(f"{b:.3f}" for b in bits)]
        slope = (bits[1] - bits[0]) / math.log(twice[0][1] / once[0][1])
        for runs in (default, cheap):
            own, times = statistics.mean(b for b, _ in runs), runs[0][1] / once[0][1]
            row += [f"{own:.3f}", f"{times:.2f}", f"{bits[0] + slope * math.log(times) - own:+.3f}"]
        wanted.append(row)
    assert one.rows == wanted


@checks("recipe")
def recipes(one: Table) -> None:
    wanted = []
    runs = json.loads((RESULTS / "recipe.json").read_text())["runs"]
    for run in sorted(runs, key=lambda run: run["summary"]["bits_per_character"]):
        model, training, summary = run["config"]["model"], run["config"]["training"], run["summary"]
        shape = f"{model['cell'].upper()}, {model['num_layers']} x {model['hidden_size']}"
        shape += ", LayerNorm" * model["layer_norm"] + ", skip" * model["skip_connections"]
        numbers = f"{training['learning_rate']:g}", f"{training['betas'][1]:g}", f"{training['sequence_length']}"
        wanted.append([shape, *numbers, f"{summary['bits_per_character']:.3f}", f"{summary['connections']:,}"])
    assert one.rows == wanted


@checks("in core minutes")
def first_recipe_and_recommended(one: Table) -> None:
    bits: dict[str, dict[int, list[float]]] = {"gru": {}, "lstm": {}}
    for run in json.loads((RESULTS / "defaults.json").read_text())["runs"]:
        of_length = bits[run["config"]["model"]["cell"]].setdefault(run["config"]["training"]["steps"], [])
        of_length.append(run["summary"]["bits_per_character"])
    rows = [[spread(each) for _, each in sorted(lengths.items())] for lengths in bits.values()]
    assert one.rows == [["the first recipe", *rows[0]], ["recommended.yaml", *rows[1]]]


@checks("minutes")
def in_the_same_minutes(one: Table) -> None:
    table_of = runpy.run_path(str(ROOT / "scripts/benchmark_pareto.py"))["table"]
    lines = table_of(json.loads((RESULTS / "pareto.json").read_text())["runs"]).splitlines()
    assert one.rows == [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@checks("first steps of")
def moving_connections(one: Table) -> None:
    runs = json.loads((RESULTS / "moving_start.json").read_text())["runs"]
    assert one.rows == [[run["name"], *(f"{bits:.3f}" for bits in run["training_bits_per_character"])] for run in runs]


@checks("joined")
def straight_lines(one: Table) -> None:
    lines = json.loads((RESULTS / "interpolation.json").read_text())["lines"]
    for row in one.rows:
        of = [line for line in lines if row[0] == f"{line['first']} and {line['second']}"]
        shared, by_chance = (sum(line[key] for line in of) / len(of) for key in ("shared", "by_chance"))
        assert row[1:] == [*(f"{line['barrier']:.3f}" for line in of), f"{shared:,.0f}", f"{by_chance:,.0f}"]


@checks("network")
def captured(one: Table) -> None:
    results = json.loads((RESULTS / "captured-nvidia-h200.json").read_text())["results"]
    wanted = []
    for result in results:
        low, median, high = result["ratio"]
        row = [f"{result['cell'].upper()} {result['hidden']:,} {result['precision']}"]
        row += [f"{value:.1f}" for value in result["milliseconds"].values()]
        wanted.append([*row, f"{median:.2f} ({low:.2f}-{high:.2f})", f"{result['symbols per second']:,}"])
    assert one.rows == [row for row in wanted if "tf32" not in row[0]]


@checks("fault")
def faults(one: Table) -> None:
    assert one.rows == [[kind, "each" if n == EVERY else str(n)] for kind, (_, _, n) in CAMPAIGNS.items()]


@checks("input")
def inputs(one: Table) -> None:
    assert one.column(0) == [*kinds(), "all"]
    *each, total = [[int(cell.replace(",", "")) for cell in row[1:]] for row in one.rows]
    assert [sum(column) for column in zip(*each, strict=True)] == total
    assert all(tried == refused + accepted + crashes for tried, refused, accepted, crashes in each)


@pytest.mark.parametrize("file", ["README.md", "checkpoints/README.md", "checkpoints/results/README.md"])
def test_bits_in_the_text_are_those_of_tables(file: str) -> None:
    words = re.sub(r"^[|].*$", "", TEXTS[file], flags=re.MULTILINE)
    told = {float(bits) for bits in re.findall(r"\b[1-9]\.\d{3}\b", words)}
    in_tables = {round(float(bits), 3) for t in TABLES for bits in re.findall(r"\b\d\.\d{3,4}\b", t.text)}
    assert told <= in_tables


# ---- all of them


@pytest.mark.parametrize("first", CHECKS)
def test_a_table_says_what_is_so(first: str) -> None:
    CHECKS[first](table(first))


def test_every_table_is_made_by_a_command_or_checked() -> None:
    assert sorted(t.header[0] for t in TABLES if not t.command) == sorted([*CHECKS, *OF_RUNS])
    drawn = [t.command for t in TABLES if t.command and not t.command.startswith("rnnsparse ")]
    assert drawn == ["python scripts/draw_results.py"]
