"""The section `data`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from typing_extensions import Doc

from rnnsparse.errors import UserError
from rnnsparse.settings.marks import Incidental, OnlyWith, OnOneMachine, OtherRun, PathName


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
        Incidental,  # which text it is, its fingerprint tells
        Doc(
            "text: a UTF-8 file (packed by gzip, xz or bzip2 too), or a folder or .zip of them; files with train, "
            "valid or test as a word of their name or of a folder's around them are those splits (wiki.test.raw, "
            "train/1.txt), without such names all is divided 90/5/5. wikitext*: a local folder in the hub's layout"
        ),
    ] = None
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

    def __post_init__(self) -> None:
        if self.source == "text" and not self.path:
            raise UserError("data.path: missing, and data.source=text needs it; set it to a UTF-8 file or a folder")
        if self.source == "python_docs" and self.path:
            reason = "data.source=python_docs reads no files; set data.source=text to train on it"
            raise UserError(f"data.path={self.path}: {reason}")
