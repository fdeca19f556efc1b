"""A corpus: the text that a config names, tokenized and split, mapped from the cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typing_extensions import Doc

from rnnsparse.data.cache import default_root, tokenized
from rnnsparse.data.sources import Source, python_docs_source, text_source, wikitext_source
from rnnsparse.data.split import Split
from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.data.vocabulary import read_vocabulary
from rnnsparse.errors import UserError
from rnnsparse.paths import PathName

__all__ = ["Corpus", "DataConfig", "Split", "load_corpus", "load_text_split"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to train on, and in which symbols."""

    source: Annotated[
        Literal["wikitext103", "wikitext2", "text", "python_docs"],
        Doc(
            "wikitext103 or wikitext2 (from the Hugging Face hub, or from a local copy in data.path), "
            "text (your own, in data.path), or python_docs (that of this Python, 0.5 MB, no download)"
        ),
    ] = "python_docs"
    path: Annotated[
        PathName | None,
        Doc(
            "text: a UTF-8 file or a folder of them (.gz and .xz too); files or folders in it named train, valid and "
            "test (train-1.txt too) are those splits, anything else is divided 90/5/5. wikitext*: a local folder in "
            "the hub's layout"
        ),
    ] = None
    tokenizer: Annotated[
        Literal["byte", "char"],
        Doc("byte (256 symbols, reads every text) or char (the characters of the training text)"),
    ] = "byte"
    vocabulary: Annotated[
        PathName | None,
        Doc(
            "char: run, checkpoint or tokenizer.json whose characters are the symbols, in the place of those of the "
            "training text, as to go on with its model (start.weights) on another text; others are one unknown symbol"
        ),
    ] = None
    cache: Annotated[
        PathName | None,
        Doc(
            "folder for tokenized texts; by default $RNNSPARSE_CACHE, else $XDG_CACHE_HOME/rnnsparse, "
            "else ~/.cache/rnnsparse"
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.source == "text" and not self.path:
            raise UserError("data.path: missing, and data.source=text needs it; set it to a UTF-8 file or a folder")
        if self.source == "python_docs" and self.path:
            reason = "data.source=python_docs reads no files; set data.source=text to train on it"
            raise UserError(f"data.path={self.path}: {reason}")


@dataclass(frozen=True)
class Corpus:
    """Three splits in the symbols of one tokenizer.

    `description` is one line for people; `fingerprint` identifies text and division, whatever the tokenizer.
    """

    tokenizer: Tokenizer
    train: Split
    validation: Split
    test: Split
    description: str
    fingerprint: str

    def unknown(self) -> str:
        """Return how many characters the tokenizer does not know, in the parts that training reads; "" for none."""
        parts = (("training", self.train), ("validation", self.validation))
        counts = {name: (split.unknown_symbols(self.tokenizer), split.characters) for name, split in parts}
        return " and ".join(f"{n:,} of {of:,} characters of the {name} text" for name, (n, of) in counts.items() if n)


def load_corpus(config: DataConfig, tokenizer: Tokenizer | None = None, minimum: int = 2) -> Corpus:
    """Load the corpus that `config` names: tokenized into the cache the first time, mapped ever after.

    A given tokenizer (a checkpoint's) replaces those of `config`. Raises a UserError when the text is
    missing, empty, not UTF-8 or out of reach, or when a split has fewer than `minimum` symbols; RunFailed
    when the disk is full.
    """
    source = _open_source(config)
    entry = tokenized(source, tokenizer or given_tokenizer(config), divide=True, root=_cache_root(config.cache))
    for name, split in entry.splits.items():
        if len(split.tokens) < minimum:
            raise UserError(
                f"{_setting(config)}: the text is too short: its {name} part has {len(split.tokens)} symbols "
                f"and needs at least {minimum}; give a longer text"
            )
    sizes = ", ".join(f"{name} {split.bytes:,}" for name, split in entry.splits.items())
    return Corpus(
        tokenizer=entry.tokenizer,
        **entry.splits,
        description=f"{source.name} ({sizes} bytes)",
        fingerprint=source.digest,
    )


def given_tokenizer(config: DataConfig) -> Tokenizer | None:
    """Return the tokenizer that `config` names, or None for the one that the text's own characters make.

    Raises:
        UserError: `config.vocabulary` is none.
    """
    if config.tokenizer == "byte":
        return Tokenizer.byte()
    return None if config.vocabulary is None else read_vocabulary(config.vocabulary)


def load_text_split(path: str | Path, tokenizer: Tokenizer, key: str = "--data", cache: str | None = None) -> Split:
    """Load a UTF-8 file or a folder of them, whatever the files are called, as one split.

    Characters that the tokenizer does not know become its unknown id. `key` is what errors call the path.
    Raises as `load_corpus` does.
    """
    source = text_source(path, key, find_splits=False)
    split = tokenized(source, tokenizer, divide=False, root=_cache_root(cache)).splits["text"]
    if len(split.tokens) < 2:
        raise UserError(f"{key}={path}: the text has one symbol, and the first is never scored; give a longer text")
    return split


def _open_source(config: DataConfig) -> Source:
    if config.source == "python_docs":
        return python_docs_source()
    if config.source == "text":
        assert config.path is not None  # DataConfig saw to it
        return text_source(config.path, "data.path")
    return wikitext_source(config.source, config.path)


def _setting(config: DataConfig) -> str:
    return f"data.source={config.source}" if config.path is None else f"data.path={config.path}"


def _cache_root(cache: str | None) -> Path:
    return Path(cache) if cache else default_root()
