"""`rnnsparse new`: a configuration to start from, which is one of those that the repository shows."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from operator import methodcaller
from pathlib import Path

from rnnsparse import files
from rnnsparse.errors import printable

CONFIGS = Path(__file__).parent.parent / "configs"  # in a clone a link; the wheel has the files
LIKE = {
    "quickstart": "quickstart.yaml",
    "wikitext103": "wikitext103/rigl_gru512_short.yaml",
    "sweep": "sweeps/quick.yaml",
}


def run(arguments: argparse.Namespace) -> int:
    files.require_new(arguments.path)  # so it has a name
    texts = written(CONFIGS, LIKE[arguments.like], arguments.path)
    for path in texts:
        files.require_new(path)
    for path, text in texts.items():
        files.write_new(path, methodcaller("write", text.encode()))
        print(path)
    return 0


def written(folder: Path, name: str, path: Path) -> dict[Path, str]:
    """Return the text of each file to write, so that `path` is as `name` in a folder and needs no other file of it.

    A configuration that it names as its `base` or `config` comes to lie beside it, as PATH_base or PATH_config.
    """
    text = (folder / name).read_text(encoding="utf-8")
    text = text.replace(f"configs/{name}", printable(shlex.quote(str(path))))
    found = re.search(r"^(base|config): (\S+)", text, re.MULTILINE)
    if not found:
        return {path: text}
    beside = path.with_stem(f"{path.stem}_{found[1]}")
    named = (folder / name).parent / found[2]
    text = text.replace(found[0], f"{found[1]}: {json.dumps(beside.name)}")
    return {path: text} | written(folder, str(named.resolve().relative_to(folder.resolve())), beside)
