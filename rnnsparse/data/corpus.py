"""A corpus: the text that a config names, tokenized and split, mapped from the cache."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rnnsparse.data.cache import default_root, tokenized
from rnnsparse.data.division import NINETY_FIVE_FIVE, Division, conventional
from rnnsparse.data.hub import hub_source, wikitext_source
from rnnsparse.data.pieces import BYTE_FOR_BYTE, Piece, Reading
from rnnsparse.data.sources import Source, python_docs_source, text_source
from rnnsparse.data.split import Split
from rnnsparse.data.split_names import SPLITS
from rnnsparse.data.tokenizer import Chunk, Tokenizer
from rnnsparse.data.vocabulary import read_vocabulary
from rnnsparse.errors import UserError
from rnnsparse.settings.data import DataConfig

__all__ = ["Corpus", "Split", "TextIdentity", "load_corpus", "load_text_split"]


@dataclass(frozen=True)
class TextIdentity:
    """What tells a text from others, wherever it lies: a fingerprint of its content and its division.

    `bytes` are for people who wonder what has changed: those of each split, if they are known.
    """

    fingerprint: str
    bytes: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Corpus:
    """Three splits in the symbols of one tokenizer.

    `description` is one line for people, and `notes` are more: which files were taken as which split, and what was left
    out. `identity` is that of the whole text, whatever the tokenizer and however much of it is trained on.
    """

    tokenizer: Tokenizer
    train: Split
    validation: Split
    test: Split
    description: str
    identity: TextIdentity
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        return self.identity.fingerprint

    def limited(self, symbols: int | None) -> Corpus:
        """Return the corpus with the first `symbols` of its training text only (`data.limit`), None for all.

        Raises:
            UserError: it has fewer.
        """
        if symbols is None:
            return self
        if symbols > len(self.train.tokens):
            raise UserError(
                f"data.limit: {symbols}: the training text has {len(self.train.tokens)} symbols; use at most so many, "
                "or null for all"
            )
        limited = f"{self.description}; the first {symbols:,} symbols of train"
        return replace(self, train=self.train.head(symbols, self.tokenizer), description=limited)

    def unknown(self) -> str:
        """Return how many characters the tokenizer does not know, in the parts that training reads; "" for none."""
        parts = (("training", self.train), ("validation", self.validation))
        counts = {name: (split.unknown_symbols(self.tokenizer), split.characters) for name, split in parts}
        return " and ".join(f"{n:,} of {of:,} characters of the {name} text" for name, (n, of) in counts.items() if n)


def load_corpus(
    config: DataConfig, tokenizer: Tokenizer | None = None, minimum: int = 2, key: str = "data.path"
) -> Corpus:
    """Load the corpus that `config` names: tokenized into the cache the first time, mapped ever after.

    A given tokenizer (a checkpoint's) replaces those of `config`; `key` is what errors call the path. Raises a
    UserError when the text is missing, empty, not UTF-8 or out of reach, or when a split has fewer than `minimum`
    symbols; RunFailed when the disk is full.
    """
    source = _open_source(config, key)
    entry = tokenized(source, tokenizer or given_tokenizer(config), divide=True, root=_cache_root(config.cache))
    for name, split in entry.splits.items():
        if len(split.tokens) < minimum:
            raise UserError(
                f"{_setting(config, key)}: the text is too short: its {name} part has {len(split.tokens)} symbols "
                f"and needs at least {minimum}; give a longer text"
            )
    sizes = ", ".join(f"{name} {split.bytes:,}" for name, split in entry.splits.items())
    return Corpus(
        tokenizer=entry.tokenizer,
        **_readable(entry.splits, source),
        description=f"{source.name} ({sizes} bytes)",
        identity=TextIdentity(source.digest, {name: entry.splits[name].bytes for name in SPLITS}),
        notes=source.notes,
    )


def text_fingerprint(config: DataConfig) -> str:
    """Return the fingerprint of the text that `config` names; it is read, but neither tokenized nor cached.

    Raises:
        UserError, RunFailed: as `load_corpus`.
    """
    return _open_source(config, "data.path").digest


def given_tokenizer(config: DataConfig) -> Tokenizer | None:
    """Return the tokenizer that `config` names, or None for the one that the text's own characters make.

    Raises:
        UserError: `config.vocabulary` is none.
    """
    if config.tokenizer == "byte":
        return Tokenizer.byte()
    return None if config.vocabulary is None else read_vocabulary(config.vocabulary)


def load_text_split(
    path: str | Path,
    tokenizer: Tokenizer,
    key: str = "--data",
    cache: str | None = None,
    reading: Reading = BYTE_FOR_BYTE,
) -> Split:
    """Load a UTF-8 file, or a folder or .zip of them, whatever the files are called, as one split.

    Characters that the tokenizer does not know become its unknown id. `key` is what errors call the path.
    Raises as `load_corpus` does.
    """
    source = text_source(path, key, find_splits=False, reading=reading)
    split = _readable(tokenized(source, tokenizer, divide=False, root=_cache_root(cache)).splits, source)["text"]
    if split.characters < 2:
        raise UserError(f"{key}={path}: the text has one character, and the first is never scored; give a longer text")
    return split


def cached_where_asked(recorded: DataConfig) -> DataConfig:
    """Return a run's configuration for commands that take no settings: $RNNSPARSE_CACHE goes before its data.cache."""
    return replace(recorded, cache=None) if os.environ.get("RNNSPARSE_CACHE") else recorded


def _readable(splits: Mapping[str, Split], source: Source) -> dict[str, Split]:
    """Return the splits with what reads their original text again: unknown ids do not hold it."""
    readable, start = {}, 0
    for name, split in splits.items():
        own = name in source.parts  # or it is a stretch of the one text that was divided
        pieces, begin = (source.parts[name], 0) if own else (source.parts["text"], start)
        chunks = partial(_stretch, pieces, begin, begin + split.bytes)
        readable[name] = replace(split, chunks=chunks)
        start += split.bytes
    return readable


def _stretch(pieces: Sequence[Piece], start: int, stop: int) -> Iterator[Chunk]:
    """Yield the bytes of a text from `start` to `stop`; reads to its end, where a file that has changed is noticed."""
    position = 0
    for piece in pieces:
        for chunk in piece.chunks():
            part = memoryview(chunk)[max(start - position, 0) : max(stop - position, 0)]
            position += len(chunk)
            if part:
                yield part


def reading_of(config: DataConfig) -> Reading:
    """Return how the files in `data.path` are read."""
    return Reading(config.column if config.source == "hub" else None, config.source == "text" and config.spaced)


def _open_source(config: DataConfig, key: str) -> Source:
    division = None if config.split is None else Division(config.split)
    match config.source:
        case "python_docs":
            return replace(python_docs_source(), division=division or NINETY_FIVE_FIVE)
        case "wikitext103" | "wikitext2":
            return wikitext_source(config.source, config.path, key)
        case "hub" if config.path is None:
            assert config.name is not None  # DataConfig saw to it
            return hub_source(config.name, config.config, config.column, division)
    assert config.path is not None  # DataConfig saw to it
    if config.source in ("enwik8", "text8"):
        return replace(text_source(config.path, key, find_splits=False), division=conventional(config.source))
    return text_source(config.path, key, reading=reading_of(config), division=division)


def _setting(config: DataConfig, key: str) -> str:
    return f"{key}={config.path}" if config.path else config.told


def _cache_root(cache: str | None) -> Path:
    return Path(cache) if cache else default_root()
