"""The kinds of files that come from strangers: for each, valid ones to start from, and how it is changed and read."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import re
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from random import Random

import numpy as np
import safetensors.torch
import torch

from rnnsparse import yaml12
from rnnsparse.config import load_config, parse_config
from rnnsparse.data.corpus import DataConfig, load_corpus
from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.errors import UserError
from rnnsparse.nn.storage import block_tensors
from rnnsparse.recipes.sweep import load_sweep
from rnnsparse.training import manifest
from rnnsparse.training.assembly import choose_device, empty_model, require_execution, restore
from tests.fuzz import mutate
from tests.fuzz.judge import command, lines_of, require

CPU = torch.device("cpu")
TEXT = "the quick brown fox jumps over the lazy dog, ünd ein ß.\n" * 20
TINY = """\
data: {source: text, tokenizer: char, path: text.txt, cache: cache}
model: {embedding_dim: 4, hidden_size: 6, readout_dims: [3], execution: masked}
sparsity: {method: rigl, sparsity: 0.5, interval: 2, dense: [output], overrides: {rnn.0.input: 0.2}}
training: {steps: 3, batch_size: 3, sequence_length: 5, threads: 1}
evaluation: {interval: 1, lanes: 1, symbols: 100}
checkpoint: {keep: [2]}
logging: {interval: 1, tensorboard: false, pictures: null}
"""
SWEEP = """\
config: tiny.yaml
dir: runs
overrides: {training.steps: 4}
grid: {sparsity.method: [static, set], sparsity.drop_fraction: [0.1, 0.3], run.seed: [1, 2]}
processes: 2
memory: 4GB
"""
RUN, FINISHED = Path("run"), Path("finished")


@dataclass(frozen=True)
class Kind:
    """`run` returns whether an input was accepted; it is called in a folder of its own, made by `workplace`."""

    seeds: Callable[[], list[bytes]]
    change: Callable[[Random, bytes, bytes], bytes]
    run: Callable[[bytes], bool]
    quick: int = 12  # inputs in the tests


@contextmanager
def workplace() -> Iterator[Path]:
    """Work in a new folder that holds a text, configurations, a finished run, and one to be resumed."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            Path("text.txt").write_text(TEXT, encoding="utf-8")
            Path("tiny.yaml").write_text(TINY)
            Path("sweep.yaml").write_text(SWEEP)
            assert command("train", "tiny.yaml", f"run.dir={FINISHED}")[0]
            shutil.copytree(FINISHED, RUN)
            for file in ("summary.json", "metrics.jsonl", "connectivity.jsonl"):
                (RUN / file).unlink()
            shutil.rmtree(RUN / "last")
            shutil.copytree(FINISHED / "step_2", RUN / "last")
            command("compare", FINISHED, "--out", "comparison")
            yield Path(name)
        finally:
            os.chdir(before)


def _reads(*paths: str | Path) -> Callable[[], list[bytes]]:
    return lambda: [Path(path).read_bytes() for path in paths]


@contextmanager
def _in_place_of(file: Path, data: bytes) -> Iterator[None]:
    """Give a file of a checkpoint other content, and the checkpoint a manifest that says so."""
    before, old_manifest = file.read_bytes(), (file.parent / manifest.NAME).read_bytes()
    file.write_bytes(data)
    try:
        if file.name != manifest.NAME:
            (file.parent / manifest.NAME).unlink()
            manifest.write(file.parent, step=json.loads(old_manifest)["step"])
        yield
    finally:
        file.write_bytes(before)
        (file.parent / manifest.NAME).write_bytes(old_manifest)


# ---- configurations


def _config(data: bytes) -> bool:
    path = Path("input.yaml")
    path.write_bytes(data)
    accepted, out = command("validate", path)
    lines_of(out)
    if accepted and not data.strip().startswith(b"grid"):
        _require_same_again(path)
    return accepted


def _require_same_again(path: Path) -> None:
    try:
        config = load_config(path)
    except UserError:
        load_sweep(path)
        return
    again = parse_config(yaml12.read(config.to_yaml()), "again")
    require(again == config, "what is written is read as the same")
    require(again.to_yaml() == config.to_yaml(), "what is read is written as the same")


def _overrides(data: bytes) -> bool:
    words = data.decode("utf-8", "replace").replace("\0", "").split("\n")
    config = load_config(Path("tiny.yaml"), words)
    empty_model(config, 256, choose_device("cpu"))
    require_execution(config, choose_device("cpu"))
    require(parse_config(yaml12.read(config.to_yaml()), "again") == config, "what is written is read as the same")
    return True


OVERRIDES = """\
training.steps=100
sparsity.overrides.rnn.0.recurrent.n=0.5
model.readout_dims=[3, 4]
training.betas=[0.9, 0.99]
sparsity.dense=[output, embedding]
run.name="a b"
sparsity.method=prune
training.learning_rate=1e-3
"""


def _sweep(data: bytes) -> bool:
    Path("input.yaml").write_bytes(data)
    accepted, out = command("validate", "input.yaml")
    lines_of(out)
    return accepted


# ---- checkpoints


def _tokenizer(data: bytes) -> bool:
    with _in_place_of(FINISHED / "last/tokenizer.json", data):
        accepted, _ = command("sample", FINISHED, "--prompt", "the ", "--length", "3")
        if accepted:
            tokenizer = Tokenizer.load(FINISHED / "last/tokenizer.json")
            require(Tokenizer.from_json(tokenizer.to_json()) == tokenizer, "the same tokenizer again")
            require(len(set(tokenizer.symbols)) == tokenizer.vocab_size, "each symbol has one number")
            ids = np.array([i for i in range(tokenizer.vocab_size) if i != tokenizer.unknown_id])
            if tokenizer.kind == "char":
                require((tokenizer.encode(tokenizer.decode(ids)) == ids).all(), "decode and encode agree")
        return accepted


def _weights(data: bytes) -> bool:
    with _in_place_of(FINISHED / "last/model.safetensors", data):
        accepted, out = command("inspect", FINISHED)
        lines_of(out)
        if accepted:
            model = restore(FINISHED, CPU).model
            for weight in model.sparse_weights().values():
                inside = (weight.indices >= 0) & (weight.indices < weight.positions)
                require(bool(inside.all()), "every connection is in its matrix")
                require(bool((weight.indices.diff() > 0).all()), "connections are sorted and differ")
            stored, found = safetensors.torch.load(data), block_tensors(model)
            require(stored.keys() == found.keys(), "every tensor of the file is one of the model")
            for name, tensor in stored.items():
                same = tensor.shape == found[name].shape and tensor.double().equal(found[name].double())
                require(
                    same or bool(tensor.is_floating_point() and tensor.isnan().any()), f"{name} is that of the file"
                )
            command("sample", FINISHED, "--length", "2")
            command("evaluate", FINISHED)
        return accepted


def _checkpoint_config(data: bytes) -> bool:
    with _in_place_of(FINISHED / "last/config.yaml", data):
        accepted, out = command("inspect", FINISHED)
        lines_of(out)
        if accepted:
            command("sample", FINISHED, "--length", "2")
            command("evaluate", FINISHED, "--data", "text.txt")
            command("inspect", FINISHED, "--json")
        return accepted


def _manifest(data: bytes) -> bool:
    with _in_place_of(FINISHED / "last/manifest.json", data):
        accepted, out = command("inspect", FINISHED)
        lines_of(out)
        return accepted


def _change_manifest(random: Random, data: bytes, other: bytes) -> bytes:
    changed = mutate.change_json(random, data, other)
    if random.random() < 0.6:
        try:
            content = json.loads(changed)
            content["sha256"] = manifest._own_sha256(content)
            return json.dumps(content).encode()
        except (ValueError, TypeError, AttributeError, RecursionError):
            pass
    return changed


def _state(data: bytes) -> bool:
    with _in_place_of(RUN / "last/training_state.pt", data):
        kept = {path: path.read_bytes() for path in (RUN / "last").iterdir()}
        try:
            accepted, _ = command("train", "tiny.yaml", f"run.dir={RUN}", "--resume")
            if accepted:
                summary = json.loads((RUN / "summary.json").read_text())
                require(summary["steps"] == 3, "a run ends with its last step")
                lines_of(command("compare", RUN)[1])
            return accepted
        finally:
            for path, content in kept.items():
                path.write_bytes(content)
            for file in ("summary.json", "metrics.jsonl", "connectivity.jsonl"):
                (RUN / file).unlink(missing_ok=True)


def _folder(data: bytes) -> bool:
    """Each line names an entry of a checkpoint, and what becomes of it."""
    folder = Path("folder")
    shutil.copytree(FINISHED, folder, symlinks=True)
    try:
        for line in data.decode("utf-8", "replace").replace("\0", "").split("\n"):
            what, _, rest = line.partition(" ")
            name, _, target = rest.partition(" ")
            path = folder / name
            if not name or ".." in name or name.startswith("/"):
                continue
            try:
                if what == "link":
                    path.unlink(missing_ok=True)
                    path.symlink_to(target or "/dev/zero")
                elif what == "pipe":
                    path.unlink(missing_ok=True)
                    os.mkfifo(path)
                elif what == "folder":
                    path.unlink(missing_ok=True)
                    path.mkdir()
                elif what == "gone":
                    path.unlink()
                elif what == "huge":
                    os.truncate(path, 1 << 36)
                elif what == "new":
                    path.write_text(target, encoding="utf-8")
            except OSError:
                pass
        accepted, out = command("inspect", folder)
        lines_of(out)
        command("compare", folder)
        return accepted
    finally:
        shutil.rmtree(folder)


FILES = [
    "last",
    "best",
    *(f"last/{n}" for n in ("model.safetensors", "config.yaml", "tokenizer.json", "manifest.json")),
]
FILES += [
    "summary.json",
    "config.yaml",
    "metrics.jsonl",
    "connectivity.jsonl",
    "last/training_state.pt",
    ".last.previous",
]


def _change_folder(random: Random, data: bytes, other: bytes) -> bytes:
    lines = data.decode("utf-8", "replace").split("\n")
    places = ["/dev/zero", "/etc/passwd", ".", "..", "last", "nowhere", "config.yaml", "../text.txt", ""]
    for _ in range(random.choice([1, 1, 2])):
        name = random.choice([*FILES, *FILES, "new", "last/x", "last/\x1b[31m", "a\u202eb", "last/sub"])
        lines.append(
            f"{random.choice(['link', 'link', 'pipe', 'folder', 'gone', 'huge', 'new'])} {name} {random.choice(places)}"
        )
    return "\n".join(lines[-4:]).encode()


# ---- runs that are compared


def _compared(name: str) -> Callable[[bytes], bool]:
    def run(data: bytes) -> bool:
        file = FINISHED / name
        before = file.read_bytes()
        file.write_bytes(data)
        try:
            return _compare(FINISHED, draws=_seldom(data))
        finally:
            file.write_bytes(before)

    return run


def _results(data: bytes) -> bool:
    Path("input.json").write_bytes(data)
    return _compare(Path("input.json"), draws=_seldom(data))


def _seldom(data: bytes) -> bool:
    return sum(data) % 40 == 1  # drawing takes seconds


def _compare(path: Path, draws: bool) -> bool:
    shutil.rmtree("drawn", ignore_errors=True)
    trace = sys.gettrace()
    if draws:
        sys.settrace(None)  # matplotlib would take a minute
    accepted, out = command("compare", path, *(["--out", "drawn"] if draws else []))
    sys.settrace(trace)
    lines_of("" if draws else out)
    if accepted:
        table = lines_of(command("compare", path, "--markdown")[1])
        require(len({re.sub(r"\\\\.", "", line).count("|") for line in table[:-1]}) == 1, "one table")
        require(not any("<" in line for line in table), "no HTML in Markdown")
        if draws:
            _Harmless().feed(Path("drawn/report.html").read_text(encoding="utf-8"))
            require(
                command("compare", "drawn/results.json")[1] == command("compare", path)[1], "results.json tells all"
            )
    return accepted


# fmt: off
TAGS = [
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "ul", "li", "nav", "a", "table", "thead",
    "tbody", "tr", "th", "td", "div", "section", "figure", "figcaption", "img",
]
# fmt: on


class _Harmless(HTMLParser):
    """Crashes at a tag or an attribute that a report has not."""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        require(tag in TAGS, f"a report has no <{tag}>")
        for name, value in attributes:
            require(not name.startswith("on") and name != "style", f"a report has no attribute {name}")
            if name in ("href", "src"):
                require(
                    (value or "").startswith(("#", "data:image/png;base64,")), f"{name}={value!r} stays in the file"
                )


# ---- texts


def _text(data: bytes) -> bool:
    """The first byte chooses the text's suffix, and its symbols; its content says how it is packed."""
    choice, content = (data[0] if data else 0), data[1:]
    path = Path(f"input{['.txt', '.gz', '.xz'][choice % 3]}")
    path.write_bytes(content)
    cache = Path("text-cache")
    try:
        corpus = load_corpus(
            DataConfig(source="text", path=str(path), tokenizer=("byte", "char")[choice // 3 % 2], cache=str(cache))
        )
        splits = corpus.train, corpus.validation, corpus.test
        whole = "".join(corpus.tokenizer.decode(split.tokens.tolist()) for split in splits)
        unpacked = _unpacked(content)
        if corpus.tokenizer.kind == "byte":
            require(b"".join(bytes(split.tokens) for split in splits) == unpacked, "every byte is there")
        else:
            require(sum(split.bytes for split in splits) == len(unpacked), "every byte is counted")
            require(sum(split.characters for split in splits) == len(unpacked.decode()), "every character is counted")
            require(len(whole) >= len(unpacked.decode()), "every character is there")
        return True
    finally:
        shutil.rmtree(cache, ignore_errors=True)
        path.unlink()


def _unpacked(content: bytes) -> bytes:
    """Return the text of a file, by other means than the program's."""
    if zipfile.is_zipfile(io.BytesIO(content)) and content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = sorted(name for name in archive.namelist() if not name.startswith("."))
            return b"".join(_unpacked(archive.read(name)) for name in names)
    unpack = {b"\x1f": gzip.decompress, b"B": bz2.decompress, b"\xfd": lzma.decompress, b"]": lzma.decompress}
    try:
        return unpack[content[:1]](content) or content
    except (KeyError, OSError, EOFError, lzma.LZMAError, ValueError, zlib.error):
        return content


def _text_seeds() -> list[bytes]:
    text, zeros = TEXT.encode(), bytes(3 << 20)
    small = [bytes([0]) + text, bytes([3]) + text, bytes([1]) + gzip.compress(text), bytes([2]) + lzma.compress(text)]
    return [
        *small,
        bytes([1]) + gzip.compress(zeros),
        bytes([4]) + gzip.compress(text) * 2,
        bytes([5]) + lzma.compress(text),
        bytes([0]) + bz2.compress(text),
        bytes([3]) + _zipped(text),
    ]


def _zipped(text: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("one", text)
        archive.writestr("two", text)
    return file.getvalue()


def _change_text(random: Random, data: bytes, other: bytes) -> bytes:
    """Change bytes, of what is packed too."""
    choice = data[0] if data else 0
    if choice % 3 and random.random() < 0.4:
        packed = gzip if choice % 3 == 1 else lzma
        try:
            return bytes([choice]) + packed.compress(mutate.change_bytes(random, packed.decompress(data[1:]), other))
        except (OSError, EOFError, lzma.LZMAError, ValueError, MemoryError):
            pass
        except Exception:  # zlib.error
            pass
    return mutate.change_bytes(random, data, other)


@dataclass(frozen=True)
class _Cache:
    """A tokenized text whose files come from elsewhere."""

    file: str

    @cached_property
    def entry(self) -> Path:
        return next(path for path in sorted(Path("cache").resolve().glob("char-*")))

    def seeds(self) -> list[bytes]:
        return [(self.entry / self.file).read_bytes()]

    def run(self, data: bytes) -> bool:
        folder, kept = self.entry, {p.name: p.read_bytes() for p in self.entry.iterdir()}
        (folder / self.file).write_bytes(data)
        try:
            corpus = load_corpus(DataConfig(source="text", path="text.txt", tokenizer="char", cache="cache"))
            for split in (corpus.train, corpus.validation, corpus.test):
                # What an entry of the user's own cache counts is not counted again.
                require(int(split.tokens.max()) < corpus.tokenizer.vocab_size, "every number stands for a symbol")
                require(0 <= split.unknown_bytes <= split.bytes, "bytes may be right")
                require(0 <= split.characters <= split.bytes, "characters may be right")
            return (folder / self.file).read_bytes() == data
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for name, content in kept.items():
                (folder / name).write_bytes(content)


def _prompt(data: bytes) -> bool:
    Path("prompt.txt").write_bytes(data)
    accepted, out = command("sample", FINISHED, "--prompt", "@prompt.txt", "--length", "3", "--top-k", "3")
    if accepted:
        require(out.startswith(data.decode()), "a sample begins with its prompt")
    return accepted


def kinds() -> dict[str, Kind]:
    """Return every kind by name; in a workplace."""
    meta, tokens, cached_tokenizer = _Cache("meta.json"), _Cache("tokens.bin"), _Cache("tokenizer.json")
    last = FINISHED / "last"
    return {
        "configuration": Kind(_reads("tiny.yaml", last / "config.yaml"), mutate.change_yaml, _config),
        "overrides": Kind(
            lambda: [OVERRIDES.encode(), *OVERRIDES.encode().split(b"\n")], mutate.change_bytes, _overrides
        ),
        "sweep": Kind(_reads("sweep.yaml"), mutate.change_yaml, _sweep),
        "weights": Kind(_reads(last / "model.safetensors"), mutate.change_safetensors, _weights),
        "config.yaml of a checkpoint": Kind(_reads(last / "config.yaml"), mutate.change_yaml, _checkpoint_config),
        "tokenizer.json": Kind(_reads(last / "tokenizer.json"), mutate.change_json, _tokenizer, quick=15),
        "manifest.json": Kind(_reads(last / "manifest.json"), _change_manifest, _manifest, quick=20),
        "training state": Kind(_reads(RUN / "last/training_state.pt"), mutate.change_torch, _state),
        "links, pipes, names": Kind(lambda: [b""], _change_folder, _folder),
        "summary.json": Kind(_reads(FINISHED / "summary.json"), mutate.change_json, _compared("summary.json")),
        "config.yaml of a run": Kind(_reads(FINISHED / "config.yaml"), mutate.change_yaml, _compared("config.yaml")),
        "metrics.jsonl": Kind(_reads(FINISHED / "metrics.jsonl"), mutate.change_lines, _compared("metrics.jsonl")),
        "connectivity.jsonl": Kind(
            _reads(FINISHED / "connectivity.jsonl"), mutate.change_lines, _compared("connectivity.jsonl")
        ),
        "results.json": Kind(_reads("comparison/results.json"), mutate.change_json, _results, quick=15),
        "text, gzip, xz": Kind(_text_seeds, _change_text, _text, quick=60),
        "cache: meta.json": Kind(meta.seeds, mutate.change_json, meta.run, quick=40),
        "cache: tokens.bin": Kind(tokens.seeds, mutate.change_bytes, tokens.run, quick=60),
        "cache: tokenizer.json": Kind(cached_tokenizer.seeds, mutate.change_json, cached_tokenizer.run, quick=60),
        "prompt": Kind(lambda: [b"the ", TEXT.encode(), b""], mutate.change_bytes, _prompt, quick=15),
    }
