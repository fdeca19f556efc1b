"""Folders of runs, by names that mean something on every machine."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rnnsparse.training.run_folder import PLACES

# Every run has these, so they say nothing without its name.
_CHECKPOINT = re.compile(r"last|previous|best|previous_best|ticket|step_\d+")


def short_names(folders: Sequence[Path]) -> dict[Path, str]:
    """Return the shortest ends of the paths that tell them apart; a checkpoint is called by its run as well."""
    length = 1
    while True:
        names = {
            folder: "/".join(folder.parts[-length - bool(_CHECKPOINT.fullmatch(folder.name)) :]) for folder in folders
        }
        if len(set(names.values())) == len(folders):
            return names
        length += 1


def shorten_places(configs: Sequence[dict[str, dict[str, Any]]]) -> None:
    """Replace the paths by which configurations name other runs, in place, by names that still tell them apart."""
    keys = [key.split(".") for key in sorted(PLACES)]
    named = [(config[section], key) for config in configs for section, key in keys if config[section][key] is not None]
    folders = {section[key]: Path(os.path.abspath(section[key])) for section, key in named}
    names = short_names(list(set(folders.values())))
    for section, key in named:
        section[key] = names[folders[section[key]]]
