"""Checkpoint folders: a model, its tokenizer and config, and what training needs to go on.

    model.safetensors   connections and biases (weights.py)
    tokenizer.json
    config.yaml         the resolved config
    training_state.pt   only what torch.load(weights_only=True) accepts; absent from a slim checkpoint
    manifest.json       format version, step, text, size and sha256 of every other file (manifest.py)

Nothing is trusted before it is verified, and no pickle is ever executed.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from rnnsparse import files, yaml12
from rnnsparse.data.corpus import TextIdentity
from rnnsparse.errors import RunFailed, UserError, suggest
from rnnsparse.nn.language_model import CharLM
from rnnsparse.storage import atomic, manifest, weights
from rnnsparse.storage import training_state as state_file
from rnnsparse.storage.manifest import Manifest, damaged
from rnnsparse.storage.weights import WeightsFile

WEIGHTS, TOKENIZER, CONFIG, STATE = "model.safetensors", "tokenizer.json", "config.yaml", "training_state.pt"
READ_ATTEMPTS = 100
T = TypeVar("T")
LARGEST_TEXT = 1 << 26  # bytes; a vocabulary of every Unicode character has 30 MB


def save(
    folder: Path,
    *,
    step: int,
    model: CharLM,
    tokenizer_json: str,
    config_yaml: str,
    training_state: dict[str, Any] | None,
    text: TextIdentity | None = None,
    keep: Path | None = None,
    halved: bool = False,
) -> None:
    """Write a checkpoint in the place of the one in `folder`, if any; without `training_state` a slim one.

    `text` is what the model was trained on, None where that is not known. `halved` rounds values and biases to fp16.

    At every instant `resolve(folder)` is a complete checkpoint, the old or the new one. The old one then takes the
    place of that in `keep`, if given.

    Raises:
        RunFailed: disk full, read-only, no permission; the old checkpoint is intact and nothing else is left.
        UserError: `folder` or `keep` holds other things than a checkpoint.
    """
    try:
        for place in (folder, keep):
            if place is not None:
                _refuse_to_replace_other_things(place)
        with atomic.replacing(folder, keep=keep) as new:
            new.joinpath(TOKENIZER).write_text(tokenizer_json, encoding="utf-8", newline="")
            new.joinpath(CONFIG).write_text(config_yaml, encoding="utf-8", newline="")
            new.joinpath(WEIGHTS).write_bytes(weights.to_bytes(model, {"format": "pt"}, halved=halved))
            if training_state is not None:
                with new.joinpath(STATE).open("wb") as file:
                    torch.save(training_state, file)
            manifest.write(new, step, text)
    except (OSError, RuntimeError) as error:
        cause = files.os_error(error)
        reason = f"{cause.strerror or cause}" + (f" ({cause.filename})" if cause.filename else "")
        kept = "there is no earlier one" if atomic.existing(folder) is None else "the previous one is intact"
        again = "train again" if atomic.existing(folder.parent / "last") is None else "train again with --resume"
        raise RunFailed(
            f"{folder}: the checkpoint of step {step} cannot be written: {reason}; {kept}; free some space "
            f"or make the folder writable, then {again}"
        ) from error


def resolve(path: Path) -> Path:
    """Return the checkpoint folder that `path` stands for: itself, or the last one of a run folder.

    Raises:
        UserError: it is neither, or cannot be read.
    """
    try:
        for folder in (path, path / "last"):
            found = atomic.existing(folder)
            if found is not None and found.joinpath(manifest.NAME).is_file():
                return found
        if path.joinpath(WEIGHTS).exists() or path.joinpath("last").exists():
            reason = f"has no {manifest.NAME}, so it is incomplete"
            raise damaged(path if path.joinpath(WEIGHTS).exists() else path / "last", reason)
        raise UserError(f"{path}: {_why_no_checkpoint(path)}")
    except OSError as error:
        raise _unreadable(path, error) from error


def load(path: Path) -> Checkpoint:
    """Open the checkpoint that `path` stands for, after verifying the size and sha256 of every file.

    A training run may replace it meanwhile: either the old or the new one is opened, never a mixture.

    Raises:
        UserError: no checkpoint there; a corrupt, truncated or foreign one; one in another format version.
    """
    for _ in range(READ_ATTEMPTS):
        folder = resolve(path)
        before = _identity(folder)
        try:
            checkpoint = _open(folder)
        except UserError:
            if _identity(folder) == before:
                raise
        else:
            if _identity(folder) == before:
                return checkpoint
    raise UserError(f"{path}: is replaced faster than it can be read; stop the run that writes it, or copy it")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A verified checkpoint. Its weights stay readable when the folder is replaced.

    `config` is what stands in `config_yaml`. `warning` says why it is used in the place of another one.
    """

    folder: Path
    config: dict[str, Any]
    config_yaml: str
    tokenizer_json: str
    weights: WeightsFile = field(repr=False)
    manifest: Manifest = field(repr=False)
    warning: str = ""

    @property
    def step(self) -> int:
        return self.manifest.step

    @property
    def weights_sha256(self) -> str:
        return self.manifest.sha256[WEIGHTS]

    @property
    def has_training_state(self) -> bool:
        return STATE in self.manifest.sha256

    def trained_text(self) -> TextIdentity | None:
        """Return what tells the text that it was trained on from others; None if it does not say.

        A checkpoint of an earlier version says so in its training state, if it has one.

        Raises:
            UserError: as `training_state`.
        """
        if self.manifest.text is not None or not self.has_training_state:
            return self.manifest.text
        fingerprint = self.training_state().get("corpus")
        return TextIdentity(fingerprint) if isinstance(fingerprint, str) else None

    def training_state(self) -> dict[str, Any]:
        """Return the training state that was saved, with all tensors on the CPU.

        Raises:
            UserError: a slim checkpoint, one replaced since it was loaded, or a foreign file.
        """
        if not self.has_training_state:
            raise UserError(
                f"{self.folder}: has no {STATE}, so no run can resume from it; evaluate, sample or export "
                f"it, or resume from a checkpoint that has one"
            )
        try:
            return state_file.read(self.folder / STATE, self.manifest.sha256[STATE])
        except OSError as error:
            raise _unreadable(self.folder / STATE, error) from error

    def told_by_state(self, read: Callable[[dict[str, Any]], T]) -> T:
        """Return what `read` finds in the training state.

        Raises:
            UserError: as `training_state`, or by `read`, or something is not there or not what it should be.
        """
        try:
            return read(self.training_state())
        except UserError:
            raise
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise damaged(self.folder / STATE, "does not fit this run") from error


def _open(folder: Path) -> Checkpoint:
    try:
        verified = manifest.verify(folder, required={WEIGHTS, TOKENIZER, CONFIG}, optional={STATE})
        config_yaml, tokenizer_json = _read_text(folder / CONFIG), _read_text(folder / TOKENIZER)
        weights_file = WeightsFile(folder / WEIGHTS)
    except OSError as error:
        raise _unreadable(folder, error) from error
    try:
        config = yaml12.read(config_yaml)
    except ValueError as error:
        raise damaged(folder / CONFIG, f"is not YAML ({error})") from error
    if not isinstance(config, dict):
        raise damaged(folder / CONFIG, "holds no keys")
    return Checkpoint(folder, config, config_yaml, tokenizer_json, weights_file, verified)


def _read_text(path: Path) -> str:
    try:
        return files.read(path, LARGEST_TEXT).decode("utf-8")
    except UnicodeDecodeError as error:
        raise damaged(path, "is not UTF-8") from error


def _refuse_to_replace_other_things(folder: Path) -> None:
    if folder.exists():
        others = {path.name for path in folder.iterdir()} - {WEIGHTS, TOKENIZER, CONFIG, STATE, manifest.NAME}
        if others:
            raise UserError(
                f"{folder}: a checkpoint would replace this folder, which also holds {min(others)!r}; move "
                f"that elsewhere, or set another run.dir"
            )


def _identity(folder: Path) -> tuple[int, int, int] | None:
    """Return what tells a folder from one that took its place."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _unreadable(path: Path, error: OSError) -> UserError:
    reason = error.strerror or error
    if error.errno == errno.EIO:
        return damaged(Path(error.filename or path), f"cannot be read: {reason}")
    return UserError(f"{error.filename or path}: cannot be read: {reason}; check the path and its permissions")


def _why_no_checkpoint(path: Path) -> str:
    if path.is_file():
        return f"is a file; give the folder of a run or of a checkpoint, such as {path.parent}"
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        return f"there is no such folder{suggest(path.name, siblings)}; give that of a run or of a checkpoint"
    if path.joinpath(CONFIG).exists():
        return "this run has no checkpoint yet; wait until it has saved one, or train it again"
    return f"neither a run (which holds last/) nor a checkpoint (which holds {manifest.NAME}); give one of these"
