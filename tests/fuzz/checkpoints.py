"""Checkpoints and what is in them, and prompts to a model."""

from __future__ import annotations

import json
import os
import shutil
from functools import cached_property
from pathlib import Path
from random import Random

import numpy as np
import safetensors.torch
import torch

from rnnsparse.cli.sample import _prompt
from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.sampling import Sampler, SamplingConfig
from rnnsparse.storage import manifest, weights
from rnnsparse.storage.checkpoint import CONFIG, STATE, TOKENIZER, WEIGHTS
from rnnsparse.training.build import Restored, restore
from tests.fuzz import mutate
from tests.fuzz.judge import command, lines_of, require, required
from tests.fuzz.workplace import FINISHED, RUN, in_place_of

CPU = torch.device("cpu")


def read_tokenizer(data: bytes) -> bool:
    path = Path("input.json")
    path.write_bytes(data)
    tokenizer = Tokenizer.load(path)
    with required("a tokenizer that is written can be read"):
        require(Tokenizer.from_json(tokenizer.to_json()) == tokenizer, "the same tokenizer again")
    require(len(set(tokenizer.symbols)) == tokenizer.vocab_size, "each symbol has one number")
    ids = np.array([i for i in range(tokenizer.vocab_size) if i != tokenizer.unknown_id])
    if tokenizer.kind == "char":
        require((tokenizer.encode(tokenizer.decode(ids)) == ids).all(), "decode and encode agree")
    return True


def of_tokenizer(data: bytes) -> bool:
    with in_place_of(FINISHED / "last/tokenizer.json", data):
        return command("sample", FINISHED, "--prompt", "the ", "--length", "3")[0]


def of_weights(data: bytes) -> bool:
    with in_place_of(FINISHED / "last/model.safetensors", data):
        accepted, out = command("inspect", FINISHED)
        lines_of(out)
        if accepted:
            model = restore(FINISHED, CPU).model
            for weight in model.sparse_weights().values():
                inside = (weight.indices >= 0) & (weight.indices < weight.positions)
                require(bool(inside.all()), "every connection is in its matrix")
                require(bool((weight.indices.diff() > 0).all()), "connections are sorted and differ")
            stored, found = safetensors.torch.load(data), weights.tensors(model)
            require(stored.keys() == found.keys(), "every tensor of the file is one of the model")
            for name, tensor in stored.items():
                same = tensor.shape == found[name].shape and tensor.double().equal(found[name].double())
                require(
                    same or bool(tensor.is_floating_point() and tensor.isnan().any()), f"{name} is that of the file"
                )
            command("sample", FINISHED, "--length", "2")
            command("evaluate", FINISHED)
        return accepted


def of_config(data: bytes) -> bool:
    with in_place_of(FINISHED / "last/config.yaml", data):
        accepted, out = command("inspect", FINISHED)
        lines_of(out)
        if accepted:
            command("sample", FINISHED, "--length", "2")
            command("evaluate", FINISHED, "--data", "text.txt")
            command("inspect", FINISHED, "--json")
        return accepted


def of_manifest(data: bytes) -> bool:
    with in_place_of(FINISHED / "last/manifest.json", data):
        accepted, out = command("inspect", FINISHED)
        lines_of(out)
        return accepted


def read_manifest(data: bytes) -> bool:
    path = FINISHED / "last" / manifest.NAME
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        found = manifest.verify(path.parent, required={WEIGHTS, TOKENIZER, CONFIG}, optional={STATE})
        for name, sha256 in found.sha256.items():
            require(manifest.file_sha256(path.parent / name) == sha256, f"{name} is what the manifest says")
        return True
    finally:
        path.write_bytes(before)


def change_manifest(random: Random, data: bytes, other: bytes) -> bytes:
    changed = mutate.change_json(random, data, other)
    if random.random() < 0.6:
        try:
            content = json.loads(changed)
            content["sha256"] = manifest._own_sha256(content)
            return json.dumps(content).encode()
        except (ValueError, TypeError, AttributeError, RecursionError):
            pass
    return changed


def of_state(data: bytes) -> bool:
    with in_place_of(RUN / "last/training_state.pt", data):
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


def of_folder(data: bytes) -> bool:
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


def change_folder(random: Random, data: bytes, other: bytes) -> bytes:
    lines = data.decode("utf-8", "replace").split("\n")
    places = ["/dev/zero", "/etc/passwd", ".", "..", "last", "nowhere", "config.yaml", "../text.txt", ""]
    for _ in range(random.choice([1, 1, 2])):
        name = random.choice([*FILES, *FILES, "new", "last/x", "last/\x1b[31m", "a\u202eb", "last/sub"])
        lines.append(
            f"{random.choice(['link', 'link', 'pipe', 'folder', 'gone', 'huge', 'new'])} {name} {random.choice(places)}"
        )
    return "\n".join(lines[-4:]).encode()


class Prompt:
    """A prompt from a file to a model that is read once."""

    @cached_property
    def restored(self) -> Restored:
        return restore(FINISHED, CPU)

    def read(self, data: bytes) -> bool:
        Path("prompt.txt").write_bytes(data)
        prompt = _prompt("@prompt.txt")
        require(prompt.encode() == data, "the prompt is what the file holds")
        self.restored.tokenizer.encode(prompt)
        sampler = Sampler(self.restored.model, self.restored.tokenizer, prompt[-20:])  # the model is not under test
        "".join(sampler.stream(SamplingConfig(length=3, top_k=3))).encode()
        return True

    def run(self, data: bytes) -> bool:
        Path("prompt.txt").write_bytes(data)
        accepted, out = command("sample", FINISHED, "--prompt", "@prompt.txt", "--length", "3", "--top-k", "3")
        if accepted:
            require(out.startswith(data.decode()), "a sample begins with its prompt")
        return accepted
