"""A run's folder: claiming a new one, going on in an old one, and the small files beside the checkpoints."""

from __future__ import annotations

import errno
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rnnsparse import __version__
from rnnsparse.config import RunConfig
from rnnsparse.errors import UserError
from rnnsparse.training import checkpoint, lock
from rnnsparse.training.assembly import read_config

# What may change when a run is resumed: where things are, how fast it goes and what it tells, but never its numbers.
FREE_SECTIONS = {"logging", "checkpoint"}
# Other runs, which may have moved; what a run started from or learns from, it did or does all the same.
PLACES = {"sparsity.basis_from", "start.topology", "start.weights", "start.rewind", "training.teacher"}
FREE_KEYS = {
    "training.device",
    "training.threads",
    "training.early_stopping",
    "data.path",
    "data.cache",
    "run.dir",
    "run.name",
}


def claim(folder: Path) -> None:
    """Make sure that a new run overwrites nothing; a lock is nothing.

    Raises:
        UserError: there is something in the folder already.
    """
    try:
        if not folder.exists() or (folder.is_dir() and all(path.name == lock.NAME for path in folder.iterdir())):
            return
        way_out = "continue it with --resume, or choose another run.dir"
        # The rounds of a recipe come before its own first checkpoint.
        if not folder.joinpath("last").exists() and not folder.joinpath("rounds").exists():
            way_out = "it holds no checkpoint to continue from, so remove it, or choose another run.dir"
        raise UserError(f"{folder}: run.dir exists already and nothing is overwritten; {way_out}")
    except OSError as error:
        raise _unusable(folder, error) from error


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


def last_checkpoint(config: RunConfig) -> checkpoint.Checkpoint:
    """Open the checkpoint that a run continues from.

    Raises:
        UserError: there is none, it is damaged, or the settings would make another run of it.
    """
    if not config.folder.is_dir():
        raise UserError(f"{config.folder}: run.dir holds no run to resume; train without --resume to start it")
    saved = checkpoint.load(checkpoint.resolve(config.folder / "last"))
    refuse_another_run(read_config(saved), config)
    return saved


def refuse_another_run(was: RunConfig, config: RunConfig) -> None:
    """Make sure that a run which `was` configured so is the one that `config` asks for in the same folder.

    Raises:
        UserError: a setting that decides its numbers differs.
    """
    old, new = was.to_dict(), config.to_dict()
    for section in [name for name in old if name not in FREE_SECTIONS]:
        for key in old[section] | new[section]:
            before, now = old[section].get(key), new[section].get(key)
            moved = f"{section}.{key}" in PLACES and None not in (before, now)
            if before != now and f"{section}.{key}" not in FREE_KEYS and not moved:
                raise UserError(
                    f"{config.folder}: {section}.{key}: the run to resume has {before!r}, not {now!r}; keep it, or "
                    "start a new run with another run.dir"
                )


def describe(config: RunConfig, device: torch.device, ranks: Mapping[str, Any]) -> None:
    """Write the resolved configuration of a new run, and what it runs on; `ranks` tells how many processes do.

    Raises:
        OSError: it cannot be written.
    """
    (config.folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    write_json(config.folder / "environment.json", _environment(device) | dict(ranks))


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a small file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
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
