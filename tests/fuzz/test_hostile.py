"""What the search has found, each with the smallest input that shows it."""

from __future__ import annotations

import bz2
import copy
import gzip
import io
import json
import lzma
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnnsparse.data.corpus import load_corpus
from rnnsparse.data.sources import text_source
from rnnsparse.errors import UserError, one_line
from rnnsparse.recipes.sweep import load_sweep
from rnnsparse.reporting.compare import as_markdown
from rnnsparse.settings.data import DataConfig
from tests.fuzz.judge import Crash, command, refused_or_valid
from tests.fuzz.kinds import kinds
from tests.fuzz.workplace import FINISHED, RUN, workplace


@pytest.fixture(scope="module", autouse=True)
def _work() -> Iterator[None]:
    with workplace():
        yield


def accepts(kind: str, data: bytes) -> bool:
    return refused_or_valid(kinds()[kind].run, data)


@given(text=st.text())
def test_an_error_is_one_printable_line_whatever_a_file_holds(text: str) -> None:
    line = one_line(f"a{text}")
    assert line.isprintable()
    assert len(line) <= 2000


def test_an_escape_in_an_error_does_not_reach_the_terminal() -> None:
    assert one_line("key \x1b[31m\x9b\u202e") == r"key \x1b[31m\x9b\u202e"


@pytest.mark.parametrize(
    "shape",
    [
        "hidden_size: 1048576",
        "hidden_size: 1048576, num_layers: 1000",
        "embedding_dim: 1048576",
        "readout_dims: [1048576, 1048576]",
        "hidden_size: 1048576}\nsparsity: {basis: dct",
        "hidden_size: 1048576}\nsparsity: {method: small_dense",
    ],
)
def test_the_sizes_in_a_checkpoint_are_compared_with_its_weights_before_they_take_memory(shape: str) -> None:
    assert not accepts("config.yaml of a checkpoint", f"data: {{tokenizer: char}}\nmodel: {{{shape}}}\n".encode())


def test_a_model_beyond_any_memory_is_validated_without_memory() -> None:
    assert accepts("configuration", b"model: {hidden_size: 1048576, num_layers: 20}\nsparsity: {basis: dct}\n")


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    state = torch.load(RUN / "last/training_state.pt", weights_only=True)
    change(state)
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def of_optimizer(**entries: Any) -> Callable[[dict[str, Any]], object]:
    return lambda state: state["optimizer"]["state"][0].update(entries)


def of_history(**entries: Any) -> Callable[[dict[str, Any]], object]:
    return lambda state: state["sparsifier"]["ever_active"]["embedding"].update(entries)


def test_the_state_of_a_run_is_accepted_as_it_is() -> None:
    assert accepts("training state", changed(lambda state: None))


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(step=1),
        lambda state: state.update(step=10**9),
        lambda state: state.update(step=-1),
        lambda state: state.update(best="x"),
        lambda state: state.update(seconds=float("nan")),
        lambda state: state.update(characters_seen=10**300),
        lambda state: state["lanes"].update(position=-5),
        lambda state: state["lanes"].update(position="5"),
        lambda state: state.update(recurrent_state=state["recurrent_state"][..., :2].clone()),
        lambda state: state.update(recurrent_state=torch.zeros(1).expand(1, 1, 10**9, 6)),
        lambda state: state["recurrent_state"].fill_(torch.nan),
        of_optimizer(exp_avg=torch.zeros(1)),
        of_optimizer(exp_avg=torch.zeros(1).expand(10**12)),
        of_optimizer(exp_avg_sq=torch.zeros(3, dtype=torch.int64)),
        of_optimizer(step=torch.tensor(-1.0)),
        lambda state: state["optimizer"]["state"].update({99: {}}),
        lambda state: state["optimizer"]["param_groups"][0].update(betas=(2.0, 2.0)),
        lambda state: state["sparsifier"].update(due="x"),
        of_history(initial="x"),
        of_history(stride=0),
        of_history(bits=torch.zeros(1, dtype=torch.uint8)),
    ],
)
def test_a_state_that_does_not_fit_the_run_is_refused_before_a_step(change: Callable[[dict[str, Any]], object]) -> None:
    assert not accepts("training state", changed(change))


def test_a_compressed_state_is_not_unpacked() -> None:
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(RUN / "last/training_state.pt") as stored,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for entry in stored.infolist():
            small.writestr(entry.filename, stored.read(entry))
    assert not accepts("training state", packed.getvalue())


def test_the_numbers_of_symbols_are_looked_at_before_the_library_counts_up_to_them() -> None:
    tokenizer = json.loads((FINISHED / "last/tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["z"] = 2**31
    assert not accepts("tokenizer.json", json.dumps(tokenizer).encode())


def zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("text", data)
    return file.getvalue()


def zipped_gzip(data: bytes) -> bytes:
    return zipped(gzip.compress(data))


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("bomb.gz", gzip.compress),
        ("bomb.xz", lzma.compress),
        ("bomb.bz2", bz2.compress),
        ("bomb", gzip.compress),
        ("bomb.zip", zipped),
        ("bomb", zipped_gzip),
    ],
)
def test_a_bomb_is_not_unpacked(name: str, pack: Callable[[bytes], bytes]) -> None:
    Path(name).write_bytes(pack(b"a" * (66 << 20)))
    with pytest.raises(UserError, match="unpacks to more than 100 times its size"):
        load_corpus(DataConfig(source="text", path=name, cache="bombs"))
    assert list(Path("bombs").iterdir()) == []


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, zipped])
def test_a_word_repeated_in_a_small_file_is_no_bomb(pack: Callable[[bytes], bytes]) -> None:
    Path("words").write_bytes(pack(b"word " * 100_000))
    assert load_corpus(DataConfig(source="text", path="words", cache="words-cache")).train.bytes == 450_000


def test_a_zip_bomb_of_overlapping_members_is_not_unpacked() -> None:
    """Ten thousand members that are one stretch of bytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0", b"a" * (1 << 20))
        for number in range(1, 10_000):
            other = copy.copy(archive.infolist()[0])
            other.filename = str(number)
            archive.filelist.append(other)
    Path("overlap.zip").write_bytes(packed.getvalue())
    with pytest.raises(UserError, match="unpacks to more than 100 times its size"):
        load_corpus(DataConfig(source="text", path="overlap.zip", cache="bombs"))


@given(data=st.binary(max_size=60), place=st.integers(0, 400), cut=st.integers(0, 400))
def test_a_damaged_zip_is_valid_or_refused(data: bytes, place: int, cut: int) -> None:
    packed = zipped(b"text of a member " * 20)
    changed = packed[:place] + data + packed[place + cut :]
    Path("changed.zip").write_bytes(changed)

    def read(_: bytes) -> bool:
        for piece in text_source("changed.zip", "data.path").parts["text"]:
            for _chunk in piece.chunks():
                pass
        return True

    refused_or_valid(read, b"")


@pytest.mark.parametrize("name", ["data.csv", "data.json", "data.arrow", "data.tar"])
def test_a_folder_of_anything_but_tables_is_not_read_as_a_data_set(name: str) -> None:
    folder = Path(f"of-{name}")
    folder.mkdir()
    for split in ("train", "validation", "test"):
        (folder / f"{split}-{name}").write_text('{"text": "x"}\n')
    with pytest.raises(UserError, match="cannot be loaded as a data set"):
        load_corpus(DataConfig(source="wikitext103", path=str(folder)))


@pytest.mark.parametrize("name", ["summary.json", "config.yaml", "metrics.jsonl", "connectivity.jsonl"])
@pytest.mark.parametrize("what", ["a pipe", "an endless device", "64 GB"])
def test_no_file_of_a_run_makes_a_comparison_wait_or_grow(name: str, what: str, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(FINISHED, folder)
    (folder / name).unlink()
    if what == "a pipe":
        os.mkfifo(folder / name)
    elif what == "64 GB":
        (folder / name).touch()
        os.truncate(folder / name, 1 << 36)
    else:
        (folder / name).symlink_to("/dev/zero")
    accepted = refused_or_valid(lambda data: command("compare", folder)[0], b"")
    assert accepted == (name.endswith("jsonl") and what != "64 GB")  # these may be missing


@pytest.mark.parametrize(
    "change",
    [
        lambda run: run["summary"].update(method="<script>"),
        lambda run: run["summary"].update(training_flops=1e308),
        lambda run: run["summary"].update(connections=-1),
        lambda run: run["summary"].update(seed=10**30),
        lambda run: run["curves"]["steps"].append(4),
        lambda run: run["curves"]["moved"].pop(),
        lambda run: run["pictures"]["blocks"][0].update(rows=0),
        lambda run: run["pictures"]["blocks"][0]["inputs"].update(counts=[]),
        lambda run: run["pictures"]["blocks"][0].update(over_time=[]),
        lambda run: run["pictures"]["units"][0]["inputs"][0].pop(),
        lambda run: run["pictures"]["symbols"][0].update(symbol="zz"),
        lambda run: run["pictures"].update(blocks=run["pictures"]["blocks"] * 5000),
    ],
)
def test_results_that_no_run_has_are_refused_before_they_are_drawn(change: Callable[[dict[str, Any]], object]) -> None:
    results = json.loads(Path("comparison/results.json").read_text())
    change(results["runs"][0])
    assert not accepts("results.json", json.dumps(results).encode())


def test_a_name_in_a_markdown_table_is_no_html_link_or_code() -> None:
    assert as_markdown([["<b>[x](y)`"]]).splitlines()[0] == r"| &lt;b>\[x\](y)\` |"


def test_a_grid_of_billions_is_refused() -> None:
    values = list(range(1000))
    Path("grid.yaml").write_text(f"config: tiny.yaml\ngrid: {{run.seed: {values}, training.steps: {values[1:]}}}\n")
    with pytest.raises(UserError, match="has 999,000 combinations; use at most 10,000"):
        load_sweep(Path("grid.yaml"))


@pytest.mark.parametrize("numbers", [b"\xff" * 9, b"\x80"])
def test_numbers_in_a_cache_that_stand_for_no_symbol_are_made_anew(numbers: bytes) -> None:
    (entry,) = Path("cache").glob("char-*")
    tokens = (entry / "tokens.bin").read_bytes()
    assert not accepts("cache: tokens.bin", numbers + tokens[len(numbers) :])


def test_an_endless_prompt_is_refused() -> None:
    assert not refused_or_valid(lambda data: command("sample", FINISHED, "--prompt", "@/dev/zero")[0], b"")


@pytest.mark.parametrize(
    "run",
    [
        lambda data: 1 / 0,
        lambda data: bytes(1 << 32),
        lambda data: "x" * (1 << 31),
        lambda data: all(True for _ in iter(int, 1)),
    ],
    ids=["error", "memory", "more memory", "hang"],
)
def test_what_is_a_crash_is_told_as_one(run: Callable[[bytes], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.judge.SECONDS", 0.5)
    with pytest.raises(Crash):
        refused_or_valid(run, b"")
