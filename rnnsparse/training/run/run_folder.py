"""What is in a run's folder: whether a new run may have it, and what an old one goes on from."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rnnsparse.config import RunConfig, keys
from rnnsparse.errors import Damaged, UserError
from rnnsparse.settings.marks import Incidental, Limit, OtherRun
from rnnsparse.storage import atomic, checkpoint
from rnnsparse.training.build import read_config
from rnnsparse.training.run import lock, stretches

LAST, PREVIOUS = "last", "previous"
BEST, PREVIOUS_BEST = "best", "previous_best"
SPARES = {LAST: PREVIOUS, BEST: PREVIOUS_BEST}  # where the one before goes, should the new one be damaged


def claim(folder: Path) -> None:
    """Make sure that a new run overwrites nothing; what a run leaves that is killed before its first save is nothing.

    Raises:
        UserError: there is something in the folder already.
    """
    try:
        if not folder.exists() or (folder.is_dir() and all(map(_is_nothing, folder.iterdir()))):
            return
        way_out = "continue it with --resume, or choose another run.dir"
        # The rounds of a recipe come before its own first checkpoint.
        if not has_checkpoint(folder) and not folder.joinpath("rounds").exists():
            way_out = "it holds no checkpoint to continue from, so remove it, or choose another run.dir"
        raise UserError(f"{folder}: run.dir exists already and nothing is overwritten; {way_out}")
    except OSError as error:
        raise _unusable(folder, error) from error


def _is_nothing(path: Path) -> bool:
    return path.name == lock.NAME or atomic.is_left_over(path)


def has_checkpoint(folder: Path) -> bool:
    """Return whether there is something to resume from, damaged or not."""
    return any(atomic.existing(folder / name) is not None for name in (LAST, PREVIOUS))


def make(folder: Path) -> None:
    """Make the folder of a new run.

    Raises:
        UserError: it cannot be made where it should be.
        OSError: the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _unusable(folder, error) from error


def _unusable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: run.dir cannot be a folder for this run: {error.strerror}; choose another run.dir")


def last_checkpoint(config: RunConfig, *, changing: bool = False) -> checkpoint.Checkpoint:
    """Open the checkpoint that a run continues from: the last one, or else, with a warning, the newest that is whole.

    Args:
        changing: whether a new stretch may begin, with other settings such as more steps.

    Raises:
        UserError: there is none, all are damaged, or the settings would make another run of it.
    """
    if not config.folder.is_dir():
        raise UserError(f"{config.folder}: run.dir holds no run to resume; train without --resume to start it")
    saved = _newest(config.folder)
    was = read_config(saved)
    if changing:
        stretches.require_changeable(differences(was, config), config, saved.step)
    else:
        refuse_another_run(was, config)
    return saved


def _newest(folder: Path) -> checkpoint.Checkpoint:
    try:
        return checkpoint.load(folder / LAST)
    except UserError as error:
        last = atomic.existing(folder / LAST)
        if not isinstance(error, Damaged) and last is not None and any(last.iterdir()):
            raise
        others = list(_whole_others(folder))
        if not others:
            raise
        reason = f"{error.what}: damaged" if isinstance(error, Damaged) else f"{folder / LAST}: is missing"
    newest = max(others, key=lambda saved: saved.step)
    warning = f"{reason}; the run goes on from {newest.folder} and does all after step {newest.step} again"
    return replace(newest, warning=warning)


def _whole_others(folder: Path) -> Iterator[checkpoint.Checkpoint]:
    for place in (folder / PREVIOUS, *folder.glob("step_*")):
        with contextlib.suppress(UserError):
            saved = checkpoint.load(place)
            if saved.has_training_state:
                yield saved


def make_ready(folder: Path, saved: checkpoint.Checkpoint) -> None:
    """Remove what killed processes have left in a run, and make the previous checkpoint the last if that is damaged.

    Raises:
        OSError: read-only, no permission.
    """
    for path in folder.iterdir():
        if atomic.is_left_over(path):
            atomic.remove(path)
    if saved.folder.name == PREVIOUS:
        atomic.put_in_place(saved.folder, saved.folder.with_name(LAST))


def mend_best(folder: Path) -> str:
    """Put the spare in the place of a damaged best model; return "", or a warning that says so.

    What the run computes does not depend on either; its record stays what it was, so only a better model replaces it.

    Raises:
        OSError: read-only, no permission.
    """
    try:
        checkpoint.load(folder / BEST)
        return ""
    except UserError as error:
        best = atomic.existing(folder / BEST)
        if best is not None and not isinstance(error, Damaged):
            return ""  # somebody's files are in it, which the next save names
        reason = f"{error.what}: damaged" if isinstance(error, Damaged) else f"{folder / BEST}: is missing"
    try:
        spare = checkpoint.load(folder / PREVIOUS_BEST)
    except UserError:
        return "" if best is None else f"{reason}, and there is no whole {folder / PREVIOUS_BEST}"
    atomic.put_in_place(spare.folder, folder / BEST)
    return f"{reason}; the best model before it, of step {spare.step}, takes its place"


def refuse_another_run(was: RunConfig, config: RunConfig) -> None:
    """Make sure that a run which `was` configured so is the one that `config` asks for in the same folder.

    Raises:
        UserError: a setting that decides its numbers differs.
    """
    for key, (before, value) in differences(was, config).items():
        raise stretches.refusal(config, key, before, value)


def others(config: RunConfig) -> dict[str, str]:
    """Return, by section.key, the SHA-256 of what a run takes of the others that it names, as far as they are there."""
    found = {}
    for key, path in config.marked(OtherRun).items():
        if path is not None:
            with contextlib.suppress(UserError):
                files = checkpoint.load(Path(path)).manifest.sha256
                found[key] = files[checkpoint.TOKENIZER if key == "data.vocabulary" else checkpoint.WEIGHTS]
    return found


def differences(was: RunConfig, config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return, by section.key, the settings that decide a run's numbers and differ: what they were, what they are."""
    old, new = was.settings(Incidental, Limit), config.settings(Incidental, Limit)
    differing = {key: (old.get(key), new.get(key)) for key in old | new if old.get(key) != new.get(key)}
    # What a run started from or learns from, it did or does all the same, wherever that is now.
    moved = {key for key in keys(OtherRun) & differing.keys() if None not in differing[key]}
    return {key: values for key, values in differing.items() if key not in moved}
