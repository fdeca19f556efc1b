"""manifest.json: what a checkpoint folder holds, so that a damaged or foreign one is recognised before use.

    {"format_version", "rnnsparse_version", "step", "text": {"fingerprint", "bytes": {SPLIT: N} or null},
     "files": {NAME: {"bytes", "sha256"}}, "sha256"}

`text` says which text the model was trained on; manifests of earlier versions lack it. The last key is the sha256 of
all the others as JSON with sorted keys: else a damaged step would go unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rnnsparse import __version__
from rnnsparse.data.corpus import TextIdentity
from rnnsparse.errors import Damaged, UserError

NAME = "manifest.json"
FORMAT_VERSION = 1
MAX_BYTES = 1 << 16


@dataclass(frozen=True)
class Manifest:
    """A manifest whose folder was verified: every listed file has the size and the sha256 given here."""

    step: int
    sha256: dict[str, str]
    text: TextIdentity | None


def write(folder: Path, step: int, text: TextIdentity | None = None) -> None:
    """Add a manifest to a folder that is otherwise complete."""
    files = {p.name: {"bytes": p.stat().st_size, "sha256": file_sha256(p)} for p in sorted(folder.iterdir())}
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "rnnsparse_version": __version__,
        "step": step,
        **({} if text is None else {"text": asdict(text)}),
        "files": files,
    }
    content["sha256"] = _own_sha256(content)
    folder.joinpath(NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def verify(folder: Path, required: set[str], optional: set[str]) -> Manifest:
    """Return the manifest of a folder that holds exactly the files it lists, none of them changed.

    Args:
        required, optional: the names it must and may list. No others are ever opened.

    Raises:
        UserError: a missing, additional or damaged file, a link, no manifest, another format version.
        OSError: a file cannot be read.
    """
    sizes = _sizes_of_plain_files(folder)
    content = _read(folder / NAME)
    files = content["files"]
    if not required <= set(files) <= required | optional:
        raise damaged(folder / NAME, f"lists other files than a checkpoint has: {sorted(files)}")
    for name in sorted(set(files) - set(sizes)):
        raise damaged(folder / name, "is missing")
    for name in sorted(set(sizes) - set(files) - {NAME}):
        raise UserError(f"{folder / name}: does not belong to the checkpoint; move it elsewhere")
    for name, entry in files.items():
        if sizes[name] != entry["bytes"]:
            raise damaged(folder / name, f"has {sizes[name]} bytes instead of {entry['bytes']}")
    for name, entry in files.items():
        if file_sha256(folder / name) != entry["sha256"]:
            raise damaged(folder / name, f"its sha256 is not the one in {NAME}")
    sha256 = {name: entry["sha256"] for name, entry in files.items()}
    text = TextIdentity(content["text"]["fingerprint"], content["text"]["bytes"]) if "text" in content else None
    return Manifest(content["step"], sha256, text)


def damaged(path: Path, reason: str) -> Damaged:
    """Return the error for a file of a checkpoint that cannot be trusted."""
    others = "previous/, best/ or previous_best/ of the same run"
    way_out = f"use another checkpoint (such as {others}), or restore this one from a copy"
    return Damaged(f"{path}: {reason}", way_out)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_sha256(content: dict[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _sizes_of_plain_files(folder: Path) -> dict[str, int]:
    sizes = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_file(follow_symlinks=False):
                kind = "a link" if entry.is_symlink() else "no plain file"
                raise UserError(f"{entry.path}: is {kind}; a checkpoint holds plain files only, so remove it")
            sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
    return sizes


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        text = file.read(MAX_BYTES)
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, "is not JSON") from error
    if not isinstance(content, dict) or type(content.get("format_version")) is not int:
        raise damaged(path, "has no format version")
    if content.get("sha256") != _own_sha256(content):
        raise damaged(path, "does not match its own sha256")
    if content["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"{path}: format version {content['format_version']}, but rnnsparse {__version__} reads version "
            f"{FORMAT_VERSION}; install the rnnsparse that wrote it ({content.get('rnnsparse_version')!r})"
        )
    if not _is_well_formed(content):
        raise damaged(path, "its keys or their types are wrong")
    return content


def _is_well_formed(content: dict[str, Any]) -> bool:
    files = content.get("files")
    if type(content.get("step")) is not int or not isinstance(files, dict):
        return False
    if "text" in content and not _is_text(content["text"]):
        return False
    return all(
        isinstance(entry, dict) and type(entry.get("bytes")) is int and isinstance(entry.get("sha256"), str)
        for entry in files.values()
    )


def _is_text(text: Any) -> bool:
    if not isinstance(text, dict) or not isinstance(text.get("fingerprint"), str) or "bytes" not in text:
        return False
    sizes = text["bytes"]
    return sizes is None or (isinstance(sizes, dict) and all(type(size) is int for size in sizes.values()))
