"""The characters of another run as those of a text, which may have others."""

from __future__ import annotations

from pathlib import Path

from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.errors import UserError

FILE = "tokenizer.json"


def read_vocabulary(path: str | Path, key: str = "data.vocabulary") -> Tokenizer:
    """Return the character tokenizer of a run (its last checkpoint), of a checkpoint, or in a tokenizer.json.

    Raises:
        UserError: there is none, it is damaged, or its symbols are bytes; `key` is what the error calls the path.
    """
    path = Path(path)
    try:
        found = next((place for place in (path, path / FILE, path / "last" / FILE) if place.is_file()), None)
    except OSError as error:
        raise UserError(f"{key}: {path}: cannot be read: {error.strerror}") from None
    if found is None:
        reason = f"holds no {FILE}" if path.exists() else "there is no such file or folder"
        raise UserError(f"{key}: {path}: {reason}; name a run, a checkpoint, or a {FILE}")
    try:
        tokenizer = Tokenizer.load(found)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    if tokenizer.kind != "char":
        raise UserError(f"{key}: {path}: its symbols are bytes, which read every text; use data.tokenizer=byte instead")
    return tokenizer
