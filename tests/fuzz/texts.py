"""Texts, packed or not, and the cache of a tokenized one."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

from rnnsparse.data.corpus import load_corpus
from rnnsparse.settings.data import DataConfig
from tests.fuzz import mutate
from tests.fuzz.judge import require
from tests.fuzz.workplace import TEXT


def of_text(data: bytes) -> bool:
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
        unpacked = unpack(content)
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


def unpack(content: bytes) -> bytes:
    """Return the text of a file, by other means than the program's."""
    if zipfile.is_zipfile(io.BytesIO(content)) and content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = sorted(name for name in archive.namelist() if not name.startswith("."))
            return b"".join(unpack(archive.read(name)) for name in names)
    how = {b"\x1f": gzip.decompress, b"B": bz2.decompress, b"\xfd": lzma.decompress, b"]": lzma.decompress}
    try:
        return how[content[:1]](content) or content
    except (KeyError, OSError, EOFError, lzma.LZMAError, ValueError, zlib.error):
        return content


def zipped(text: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("one", text)
        archive.writestr("two", text)
    return file.getvalue()


def text_seeds() -> list[bytes]:
    text, zeros = TEXT.encode(), bytes(3 << 20)
    small = [bytes([0]) + text, bytes([3]) + text, bytes([1]) + gzip.compress(text), bytes([2]) + lzma.compress(text)]
    return [
        *small,
        bytes([1]) + gzip.compress(zeros),
        bytes([4]) + gzip.compress(text) * 2,
        bytes([5]) + lzma.compress(text),
        bytes([0]) + bz2.compress(text),
        bytes([3]) + zipped(text),
    ]


def change_text(random: Random, data: bytes, other: bytes) -> bytes:
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
class Cache:
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
