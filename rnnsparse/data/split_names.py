"""Which split a file is for, by the words in its name and in those of the folders around it.

What is meant for the test must never be trained on without a word, so names that may announce a split, but do not say
clearly which one, are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import PurePath

from rnnsparse.errors import UserError

SPLITS = ("train", "validation", "test")
WORDS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "devel": "validation",
    "development": "validation",
    "test": "test",
    "testing": "test",
}
# For validation or for test: for whichever of them no other name is.
HELD_OUT = "held out"
HELD_OUT_WORDS = {"eval", "evaluation", "heldout", "holdout"}
HELD_OUT_PAIRS = {("held", "out"), ("hold", "out")}
# What stands beside the word in names like trainset.txt and tests.txt.
COMPOUNDS = {"s", "set", "sets", "data", "file", "files", "split", "splits", "text", "texts", "corpus"}

BEGINNING = re.compile("train|val|dev|test")  # of all WORDS
LETTERS = re.compile(r"[^\W\d_]+")
CAMEL_BORDER = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
EXAMPLES = "train.txt, valid-1.txt, wiki.test.raw or test/"


def by_split(names: Sequence[PurePath], label: str) -> Mapping[str, list[PurePath]] | None:
    """Return the names that are for each split, in their order, or None if no name announces one.

    A word counts wherever it stands in a path as a word of its own: between separators, digits or the borders of
    camelCase. Raises a UserError that begins with `label` if a path is for two splits, if a name may be for
    validation or test, if some splits have names and others have none, or if words that are parts of longer ones
    (trainset, testset) look as if they announced splits.
    """
    groups: dict[str, list[PurePath]] = {split: [] for split in SPLITS}
    held_out: list[PurePath] = []
    others: list[PurePath] = []
    for name in names:
        splits = announced_by(name)
        if splits & {"validation", "test"}:
            splits -= {HELD_OUT}  # eval/test.txt says it more exactly
        if len(splits) > 1:
            raise UserError(
                f"{label}: {name}: is for {' and for '.join(sorted(splits))} by the words in its name; rename it, or "
                "the folders that it is in, after one of them or none"
            )
        if not splits:
            others.append(name)
        for split in splits:
            (held_out if split == HELD_OUT else groups[split]).append(name)
    if held_out:
        free = [split for split in ("validation", "test") if not groups[split]]
        if len(free) == 1:
            groups[free[0]] = held_out
        elif free:
            raise UserError(
                f"{label}: {held_out[0]}: may be for validation or for test by its name; rename it like {EXAMPLES}"
            )
    _refuse_lookalikes(others, groups, label)
    way_out = "rename it, or join all files into one, to have all of it divided 90/5/5"
    if not groups["train"]:
        if for_others := [*groups["validation"], *groups["test"]]:
            raise UserError(
                f"{label}: {for_others[0]}: is for validation or test by its name, and no file is for train; name "
                f"those like {EXAMPLES}, or {way_out}"
            )
        return None
    if missing := [split for split, members in groups.items() if not members]:
        raise UserError(
            f"{label}: has files for train ({groups['train'][0]}) but none for {' and '.join(missing)}; add some, "
            f"named like {EXAMPLES}, or {way_out}"
        )
    return groups


def announced_by(name: PurePath) -> set[str]:
    """Return every split (HELD_OUT too) of which a word stands in a path."""
    splits: set[str] = set()
    for part in name.parts:
        words = [word.lower() for word in LETTERS.findall(CAMEL_BORDER.sub(" ", part))]
        splits.update(WORDS[word] for word in words if word in WORDS)
        if HELD_OUT_WORDS.intersection(words) or HELD_OUT_PAIRS.intersection(pairwise(words)):
            splits.add(HELD_OUT)
    return splits


def _refuse_lookalikes(names: Iterable[PurePath], groups: Mapping[str, Sequence[PurePath]], label: str) -> None:
    """Refuse trainset.txt beside testset.txt: as one text, it would be trained on what is meant for the test.

    One such name alone is no reason, nor are testament.txt and trainspotting.txt: the rest of the word must be the
    same, or a usual one, and what looks like it must not be announced already.
    """
    alike: dict[str, dict[str, PurePath]] = {}  # by the rest of the word, then by split
    for name in names:
        lowered = str(name).lower()
        if not BEGINNING.search(lowered):
            continue
        for run in LETTERS.findall(lowered):
            if run in WORDS:
                continue
            for word, split in WORDS.items():
                if groups[split]:
                    continue
                if run.startswith(word):
                    alike.setdefault(f"*{run[len(word) :]}", {}).setdefault(split, name)
                elif run.endswith(word):
                    alike.setdefault(f"{run[: -len(word)]}*", {}).setdefault(split, name)
    usual: dict[str, PurePath] = {}
    for rest, found in alike.items():
        if len(found) > 1 or rest.strip("*") in COMPOUNDS:
            usual = {**found, **usual}
    in_pairs = any(len(found) > 1 for found in alike.values())
    seen = usual.keys() | {split for split in SPLITS if groups[split]}
    if usual and (in_pairs or ("train" in seen and len(seen) > 1)):
        listed = ", ".join(str(usual[split]) for split in SPLITS if split in usual)
        raise UserError(
            f"{label}: {listed}: no names of splits, as a letter stands beside the word; rename them like {EXAMPLES}, "
            "or join all files into one, to have all of it divided 90/5/5"
        )
