"""Folders of runs, by names that mean something on every machine."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rnnsparse.config import keys
from rnnsparse.reporting.runs import Run, known_texts
from rnnsparse.settings.marks import OtherRun

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
    """Replace the paths by which configurations name other runs, in place, by names that still tell them apart.

    A run that starts from one of its own seed, which a sweep has named `method=static,seed=1`, is the same setting with
    every seed: the name then leaves the seed out.
    """
    others = [key.split(".") for key in keys(OtherRun)]
    named = [(config[section], key, config["run"]["seed"]) for config in configs for section, key in others]
    named = [(section, key, seed) for section, key, seed in named if section.get(key) is not None]
    folders = {section[key]: Path(os.path.abspath(section[key])) for section, key, _ in named}
    names = short_names(list(set(folders.values())))
    for section, key, seed in named:
        section[key] = re.sub(rf",seed={seed}(?=,|/|$)", "", names[folders[section[key]]])


def shorten_texts(runs: Sequence[Run]) -> None:
    """Replace the path of each run's text, in place, by its name, or by as much as tells it from other texts so called.

    A text is called the same wherever a copy of it lies. One without a fingerprint may be any of that name.
    """
    names: dict[str, str] = {}
    for (_, name), texts in known_texts(runs).items():
        if name and len(texts) > 1:
            places = {text: Path(os.path.abspath(run.config["data"]["path"])) for text, run in texts.items()}
            short = short_names(list(set(places.values())))
            names |= {text: short[place] for text, place in places.items()}
    for run in runs:
        if name := run.named_text[1]:
            run.config["data"]["path"] = names.get(run.summary.text or "", name)
