"""Changes to inputs: of bytes, of the tree in a JSON or YAML file, of the tensors in a checkpoint."""

from __future__ import annotations

import copy
import functools
import io
import json
import math
import struct
from collections.abc import Callable
from random import Random
from typing import Any

import safetensors.torch
import torch

from rnnsparse import yaml12

WORDS = [
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3", b"\xed\xa0\x80", "\u2028\u202e\x9b".encode(), b"\x1b[31m", b"\r",
    b"!!python/object/apply:os.system [id]", b"&a [*a]", b"<<: *x", b"---\n", b"%YAML 9", b"? ", b"[[[[", b"{a: {b: ",
    b"9" * 50, b"1e999", b".nan", b"-0", b"0x10", b"'", b'"', b"#", b": ", b"\t", b"null", b"\\ud800",
    b"../../../etc/passwd", b"<script>alert(1)</script>", b"=cmd|'/c calc'!A0",
]  # fmt: skip
HUGE_WORDS = [b"- " * 500, b"[" * 3000, b"{a: " * 300, b"9" * 5000, b"x" * 100_000]
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 255, 256, 1000, 2**20, 2**20 + 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**9,
    10**18, 10**300, 10**1000, 0.0, -0.0, 0.5, 0.999999999, 1e-320, 1e-9, 1e38, 1e308, -1e308, math.inf, math.nan, "", "0",
    "x", "*", "rnn.*", "[!", "\0", "\ud800", "\u202e", "\x1b]0;x\x07", "a\nb", "null", "1e-3", "../..", "/dev/zero", "~nobody/x",
    "<img src=x onerror=alert(1)>", "](javascript:alert(1))", "|", "`", "=1+1", "lstm", "dense", "dct", "svd", "cell",
    "fp64", "sparse", "masked", "snfs", "prune", "small_dense", "lottery", "sgd", "char", "text", "wikitext103",
    [], {}, [[]], [0], [1.0], [-1], ["x"], {"x": 1}, [None],
]  # fmt: skip
HUGE: list[Any] = [
    [1] * 20_000, list(range(2000)), ["*"] * 3000, {f"rnn.{i}": 0.5 for i in range(3000)}, "x" * 70_000,
]  # fmt: skip
SELDOM = 1 / 500  # what is huge takes a hundred times as long to read as anything else


def value(random: Random) -> Any:
    """Return a value as nobody would write it."""
    return copy.deepcopy(random.choice(HUGE if random.random() < SELDOM else VALUES))


def change_bytes(random: Random, data: bytes, other: bytes) -> bytes:
    """Change some bytes: bits, runs, cuts, repeats, foreign words, parts of another input."""
    changed = bytearray(data)
    for _ in range(random.choice([1, 1, 1, 2, 4, 16])):
        at = random.randrange(len(changed) + 1)
        size = random.choice([1, 1, 2, 4, 8, 64, 1024])
        kind = random.randrange(8)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            changed[at : at + size] = random.randbytes(size)
        elif kind == 2:
            del changed[at : at + size]
        elif kind == 3:
            changed[at:at] = changed[at : at + size] * random.choice([1, 2, 30])
        elif kind == 4:
            changed[at:at] = random.choice(HUGE_WORDS if random.random() < SELDOM else WORDS)
        elif kind == 5:
            start = random.randrange(len(other) + 1)
            changed[at : at + size] = other[start : start + size]
        elif kind == 6:
            del changed[at:]
        else:
            changed[at : at + size] = struct.pack("<q", random.choice([0, -1, 1, 2**31, 2**40, 2**63 - 1]))
    return bytes(changed[: 1 << 20])


def change_tree(random: Random, tree: Any, change_leaf: Callable[[Random, Any], Any] | None = None) -> Any:
    """Return a copy with some nodes replaced, left out, repeated, moved, renamed or wrapped."""
    root = [copy.deepcopy(tree)]
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        nodes = _nodes(root)
        parent, key = random.choice(nodes)
        old, kind = parent[key], random.randrange(9)
        if kind <= 2:
            parent[key] = value(random)
        elif kind == 3 and parent is not root:
            del parent[key]
        elif kind == 4:
            other, name = random.choice(nodes)
            if name in other if isinstance(other, dict) else name < len(other):
                parent[key] = copy.deepcopy(other[name])
        elif kind == 5 and isinstance(old, list) and old:
            old *= random.choice([2, 3, 3, 3000 if random.random() < SELDOM else 30]) if len(old) < 100 else 2
        elif kind == 6 and isinstance(parent, dict):
            parent[random.choice(["x", "", "0", "null", "__class__", "\x1b", "a.b", str(key) + "s", str(key)])] = old
        elif kind == 7:
            for _ in range(random.choice([1, 2, 50])):
                parent[key] = [parent[key]] if random.random() < 0.5 else {"x": parent[key]}
        else:
            parent[key] = (change_leaf or _change_leaf)(random, old)
    return root[0]


def _nodes(root: list[Any]) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    open_nodes: list[Any] = [root]
    while open_nodes and len(found) < 5000:
        node = open_nodes.pop()
        keys = list(node) if isinstance(node, dict) else range(min(len(node), 200))
        for key in keys:
            found.append((node, key))
            if isinstance(node[key], dict | list):
                open_nodes.append(node[key])
    return found


def _change_leaf(random: Random, value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return random.choice([value + 1, value - 1, -value, value * 1000, 2 * value, value // 2, float(value % 2**60)])
    if isinstance(value, float):
        return random.choice([-value, 1 - value, value * 1e6, value / 1e6, 0.0, value + 1])
    if isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass")
        return change_bytes(random, text, text).decode("utf-8", "replace")
    return value


def change_json(random: Random, data: bytes, other: bytes) -> bytes:
    """Change the tree of a JSON file, or its bytes."""
    try:
        tree = _json(data)
    except (ValueError, RecursionError):
        return change_bytes(random, data, other)
    if random.random() < 0.2:
        return change_bytes(random, data, other)
    return json.dumps(change_tree(random, tree), indent=1 if random.random() < 0.1 else None).encode()


def change_lines(random: Random, data: bytes, other: bytes) -> bytes:
    """Change the tree of one line of a .jsonl file, the order and number of its lines, or its bytes."""
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    kind = random.randrange(4)
    if kind <= 1:
        lines[at] = change_json(random, lines[at], other).replace(b"\n", b" ")
    elif kind == 2:
        lines[at:at] = [random.choice(lines)] * random.choice([1, 2, 200])
    else:
        random.shuffle(lines)
    return b"\n".join(lines)[: 1 << 20]


def change_yaml(random: Random, data: bytes, other: bytes, allowed: Callable[[Any], bool] = lambda tree: True) -> bytes:
    """Change the tree of a YAML file so that it is `allowed`, or its bytes."""
    readable, tree = _yaml(data)
    if not readable:
        return change_bytes(random, data, other)
    if random.random() < 0.3:
        return change_bytes(random, data, other)
    while not allowed(changed := change_tree(random, tree)):
        pass
    # JSON is YAML; infinity is not, and stays a word.
    return json.dumps(changed, indent=1 if random.random() < 0.1 else None).encode()


# The same few inputs are changed again and again, each time in a copy.
@functools.lru_cache(maxsize=500)
def _json(data: bytes) -> Any:
    return json.loads(data)


@functools.lru_cache(maxsize=500)
def _yaml(data: bytes) -> tuple[bool, Any]:
    try:
        return True, yaml12.read(data.decode())
    except ValueError:
        return False, None


def _change_tensor(random: Random, tensor: Any) -> Any:
    """Change numbers, shape, type or memory of a tensor."""
    if not isinstance(tensor, torch.Tensor):
        return _change_leaf(random, tensor)
    kind = random.randrange(8)
    if kind <= 2 and tensor.numel():
        flat = tensor.clone().flatten()
        limits = [0, 1, -1, 2, 127, 255]
        if not flat.is_floating_point():
            # A clamp for the type: what does not fit it cannot be written.
            info = torch.iinfo(flat.dtype) if flat.dtype != torch.bool else None
            limits = [n for n in [*limits, 2**31 - 1, -(2**31), 2**63 - 1] if info is None or info.min <= n <= info.max]
        for _ in range(random.choice([1, 1, 2, 8])):
            at = random.randrange(len(flat))
            floats = [math.nan, math.inf, -math.inf, 1e30, -0.0, 0.0]
            flat[at] = random.choice(floats if flat.is_floating_point() else limits)
        return flat.view(tensor.shape)
    if kind == 3 and tensor.numel() > 1:
        at = random.randrange(tensor.numel() - 1)
        flat = tensor.clone().flatten()
        flat[at], flat[at + 1] = flat[at + 1].clone(), flat[at].clone()
        return flat.view(tensor.shape)
    if kind == 4:
        return tensor.flatten()[: random.randrange(tensor.numel() + 1)].clone()
    if kind == 5:
        return torch.cat([tensor.flatten(), tensor.flatten()[-1:]])
    if kind == 6:
        types = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8]
        return tensor.nan_to_num().clamp(0, 100).to(random.choice([*types, torch.bool, torch.int16, torch.complex64]))
    return tensor.new_zeros(random.choice([(0,), (), (1, 1), (tensor.numel(), 1), (1,) * 30, (3, 0)]))


def change_safetensors(random: Random, data: bytes, other: bytes) -> bytes:
    """Change tensors, or the header alone, or bytes."""
    choice = random.random()
    try:
        if choice < 0.6:
            tensors = change_tree(random, safetensors.torch.load(data), _change_tensor)
            kept = {n: t.contiguous() for n, t in tensors.items() if isinstance(t, torch.Tensor)}
            return safetensors.torch.save(kept, metadata={"format": "pt"})
        if choice < 0.9:
            size = struct.unpack("<Q", data[:8])[0]
            header = json.dumps(change_tree(random, json.loads(data[8 : 8 + size]))).encode()
            return struct.pack("<Q", len(header)) + header + data[8 + size :]
    except Exception:  # whatever a library says to a tree that is no file
        pass
    return change_bytes(random, data, other)


def change_torch(random: Random, data: bytes, other: bytes) -> bytes:
    """Change the tree of a torch file with its tensors, or bytes."""
    if random.random() < 0.85:
        try:
            tree = change_tree(random, torch.load(io.BytesIO(data), weights_only=True), _change_state)
            file = io.BytesIO()
            torch.save(tree, file)
            return file.getvalue()
        except Exception:  # whatever a library says to a tree that is no file
            pass
    return change_bytes(random, data, other)


def _change_state(random: Random, value: Any) -> Any:
    if isinstance(value, torch.Tensor) and random.random() < 0.1:
        # Few bytes in a file, terabytes once they are copied.
        return value.new_zeros(1).expand(10**11)
    return _change_tensor(random, value)
