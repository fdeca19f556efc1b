"""The section `data`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, MinLen
from typing_extensions import Doc

from rnnsparse.errors import UserError
from rnnsparse.settings.marks import Incidental, KeptOnRewind, OnlyWith, OnOneMachine, OtherRun, PathName

NEED_PATH = {
    "text": "a UTF-8 file or a folder",
    "enwik8": "the file enwik8 or enwik8.zip",
    "text8": "the file text8 or text8.zip",
}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to train on, and in which symbols."""

    source: Annotated[
        Literal["wikitext103", "wikitext2", "hub", "enwik8", "text8", "text", "python_docs"],
        Doc(
            "wikitext103 or wikitext2 (from the Hugging Face hub, or from a local copy in data.path), hub (any data "
            "set of it in data.name, or tables in data.path), enwik8 or text8 (the file or its .zip in data.path), "
            "text (your own, in data.path), or python_docs (that of this Python, 0.5 MB, no download)"
        ),
    ] = "python_docs"
    name: Annotated[
        str | None,
        OnlyWith("source", ("hub",)),
        Doc("hub: which data set, such as roneneldan/TinyStories"),
    ] = None
    config: Annotated[str | None, OnlyWith("source", ("hub",)), Doc("hub: which config of it, if it has several")] = (
        None
    )
    column: Annotated[
        str,
        MinLen(1),
        OnlyWith("source", ("hub",)),
        Doc("hub: the column of text, whose rows each end with a line end"),
    ] = "text"
    path: Annotated[
        PathName | None,
        Incidental,  # which text it is, its fingerprint tells
        Doc(
            "text: a UTF-8 file (packed by gzip, xz, bzip2 or zstd too), or a folder or .zip of them; files with "
            "train, valid or test as a word of their name or of a folder's around them are those splits "
            "(wiki.test.raw, train/1.txt), without such names all is divided by data.split. hub: tables (parquet, "
            "JSON lines, CSV) in the place of data.name, likewise. wikitext*: a local folder in the hub's layout"
        ),
    ] = None
    split: Annotated[
        tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)], Annotated[float, Gt(0)]] | None,
        OnlyWith("source", ("hub", "text", "python_docs")),
        Doc(
            "train, validation and test, in this order, of a text without splits, or else of what is for training: "
            "shares that add up to 1, or numbers of bytes; null: its splits, or [0.9, 0.05, 0.05]"
        ),
    ] = None
    limit: Annotated[
        Annotated[int, Ge(2)] | None,
        KeptOnRewind,
        Doc(
            "train on the first so many symbols of the training text only, null for all; vocabulary, validation and "
            "test stay those of the whole text"
        ),
    ] = None
    spaced: Annotated[
        bool,
        OnlyWith("source", ("text",)),
        Doc(
            "text: symbols stand between spaces, which are left out, and _ is a space, as in the Penn Treebank's "
            "character files"
        ),
    ] = False
    tokenizer: Annotated[
        Literal["byte", "char"],
        Doc("byte (256 symbols, reads every text) or char (the characters of the training text)"),
    ] = "byte"
    vocabulary: Annotated[
        PathName | None,
        OtherRun,
        OnlyWith("tokenizer", ("char",)),
        Doc(
            "char: run, checkpoint or tokenizer.json whose characters are the symbols, in the place of those of the "
            "training text, as to go on with its model (start.weights) on another text; others are one unknown symbol"
        ),
    ] = None
    cache: Annotated[
        PathName | None,
        OnOneMachine,
        Doc(
            "folder for tokenized texts; by default $RNNSPARSE_CACHE, else $XDG_CACHE_HOME/rnnsparse, "
            "else ~/.cache/rnnsparse"
        ),
    ] = None

    @property
    def place(self) -> str:
        """Where the text comes from: a path, the name of a data set, or what needs none."""
        return self.path or (self.name if self.source == "hub" and self.name else self.source)

    @property
    def told(self) -> str:
        """The setting that says so, with its value."""
        key = "path" if self.path else "name" if self.source == "hub" else "source"
        return f"data.{key}={self.place}"

    def __post_init__(self) -> None:
        if self.source in NEED_PATH and not self.path:
            raise UserError(
                f"data.path: missing, and data.source={self.source} needs it; set it to {NEED_PATH[self.source]}"
            )
        if self.source == "hub" and not (self.path or self.name):
            raise UserError(
                "data.name: missing, and data.source=hub needs it; set it to a data set, or data.path to tables"
            )
        if self.source == "python_docs" and self.path:
            reason = "data.source=python_docs reads no files; set data.source=text to train on it"
            raise UserError(f"data.path={self.path}: {reason}")
        if self.split and not (
            (max(self.split) < 1 and abs(sum(self.split) - 1) < 1e-6)
            or all(size >= 1 and float(size).is_integer() for size in self.split)
        ):
            raise UserError(
                f"data.split={list(self.split)}: must be three shares that add up to 1, as [0.9, 0.05, 0.05], or three "
                "numbers of bytes, as [90000000, 5000000, 5000000]"
            )
