"""A run's folder: claiming a new one, going on in an old one, and the small files beside the checkpoints."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rnnsparse import __version__
from rnnsparse.config import RunConfig
from rnnsparse.errors import Damaged, UserError
from rnnsparse.training import atomic, checkpoint
from rnnsparse.training.assembly import read_config
from rnnsparse.training.run import lock, stretches
from rnnsparse.training.run.stretches import Stretch

LAST, PREVIOUS = "last", "previous"
SUMMARY = "summary.json"
BEST, PREVIOUS_BEST = "best", "previous_best"
SPARES = {LAST: PREVIOUS, BEST: PREVIOUS_BEST}  # where the one before goes, should the new one be damaged
# What may change when a run is resumed: where things are, how fast it goes and what it tells, but never its numbers.
FREE_SECTIONS = {"logging", "checkpoint"}
# Other runs, which may have moved; what a run started from or learns from, it did or does all the same.
PLACES = {
    "data.vocabulary",
    "sparsity.basis_from",
    "start.topology",
    "start.weights",
    "start.rewind",
    "training.teacher",
}
FREE_KEYS = {
    "training.device",
    "training.threads",
    "training.early_stopping",
    "training.skip_bad_batches",
    "data.path",
    "data.cache",
    "run.dir",
    "run.name",
}


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


@contextlib.contextmanager
def held(config: RunConfig, *, resumed_at: int | None, claims: bool) -> Iterator[str]:
    """Hold the folder of a run, made if it is new, and make sure that no other has trained in it since we looked.

    Yields "", or a warning.

    Args:
        resumed_at: the step that the run goes on from, None if it is new.
        claims: whether a new run is the first to use the folder.

    Raises:
        UserError: another process trains in it, or has done so.
        OSError: the disk is full.
    """
    folder = config.folder
    if resumed_at is None:
        make(folder)
    with lock.held(folder) as warning:
        if resumed_at is None:
            if claims:
                claim(folder)
        else:
            saved = last_checkpoint(config, changing=True)
            if saved.step != resumed_at:
                raise UserError(f"{folder}: another process has trained in this run.dir meanwhile; start again")
            make_ready(folder, saved)
            warning = "; ".join(filter(None, (warning, saved.warning, mend_best(folder))))
        yield warning


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
            shutil.rmtree(path, ignore_errors=True)
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


def differences(was: RunConfig, config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return, by section.key, the settings that decide a run's numbers and differ: what they were, what they are."""
    old, new = was.to_dict(), config.to_dict()
    found = {}
    for section in [name for name in old if name not in FREE_SECTIONS]:
        for name in old[section] | new[section]:
            key, before, value = f"{section}.{name}", old[section].get(name), new[section].get(name)
            moved = key in PLACES and None not in (before, value)
            if before != value and key not in FREE_KEYS and not moved:
                found[key] = (before, value)
    return found


def describe(config: RunConfig, device: torch.device, ranks: Mapping[str, Any]) -> None:
    """Write the resolved configuration of a new run, and what it runs on; `ranks` tells how many processes do.

    Raises:
        OSError: it cannot be written.
    """
    write_settings(config)
    write_json(config.folder / "environment.json", _environment(device) | {"began": stretches.now()} | dict(ranks))


def write_settings(config: RunConfig) -> None:
    """Write the resolved configuration of a run.

    Raises:
        OSError: it cannot be written.
    """
    _write(config.folder / "config.yaml", config.to_yaml())


def write_stretches(folder: Path, others: Sequence[Stretch]) -> None:
    """Write the record of a run of more than one stretch; `others` are those after the first.

    Raises:
        OSError: it cannot be written.
    """
    if others:
        began = None
        with contextlib.suppress(OSError, ValueError, AttributeError):
            began = json.loads((folder / "environment.json").read_text(encoding="utf-8")).get("began")
        _write(folder / stretches.NAME, stretches.record(began, others))


def set_summary_aside(folder: Path, step: int) -> None:
    """Let the summary of a run that has ended, and goes on now, tell in its name that it is of an earlier `step`.

    Raises:
        OSError: it cannot be renamed.
    """
    path = folder / SUMMARY
    if path.exists():
        with contextlib.suppress(OSError, ValueError, AttributeError):
            step = int(json.loads(path.read_text(encoding="utf-8")).get("steps", step))
        path.rename(folder / f"summary_{step}.json")


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a small file so that it is there whole or not at all."""
    _write(path, json.dumps(data, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _environment(device: torch.device) -> dict[str, Any]:
    return {
        "rnnsparse": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
