"""YAML files that build on others: `base: FILE`, relative to the file that says so, has what that one leaves open."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnnsparse import yaml12
from rnnsparse.errors import UserError

KEY = "base"
LONGEST_CHAIN = 20
Merge = Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Layers:
    """The data of a file and of those that it builds on, merged, and which file each setting is from.

    Attributes:
        data: without the key `base`; anything else than a mapping stays what it is.
        files: the file itself, its base, the base of that, and so on.
        origins: the file of each "section.key", or of a key that is no section.
    """

    data: Any
    files: tuple[Path, ...]
    origins: Mapping[str, Path]


def by_section(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two files of sections with settings: a setting of `own` goes before that of `base`."""
    merged = dict(base)
    for section, values in own.items():
        both = isinstance(values, dict) and isinstance(base.get(section), dict)
        if both or values is not None or section not in base:
            merged[section] = {**base[section], **values} if both else values
    return merged


def read(
    path: Path,
    *,
    is_text: Callable[[str], bool] | None = None,
    pipes: bool = False,
    merge: Merge = by_section,
    places: tuple[str, ...] = (),
) -> Layers:
    """Read a YAML file and all that it builds on.

    Args:
        is_text, pipes: as in `yaml12.read_file`; a base is no pipe.
        merge: joins a base and what builds on it.
        places: keys that name a file relative to the one in which they stand.

    Raises:
        ValueError, OSError: as `yaml12.read_file`, of the file itself.
        UserError: a base is not there, is no such file, or builds on itself.
    """
    own = yaml12.read_file(path, pipes=pipes, is_text=is_text)
    files, data, origins = [path], own, _origins(own, path)
    while isinstance(own, dict) and KEY in own:
        last, name = files[-1], own[KEY]
        if not isinstance(name, str) or not name:
            raise UserError(f"{last}: base: {name!r}: must name the YAML file that this one builds on")
        base = last.parent / os.path.expanduser(name)
        if base.resolve() in [file.resolve() for file in files]:
            raise UserError(f"{last}: base: {name}: builds on this file itself; name another one, or leave it out")
        if len(files) == LONGEST_CHAIN:
            raise UserError(f"{last}: base: {name}: more than {LONGEST_CHAIN} files build on each other; use fewer")
        own = _read_base(last, name, base, is_text)
        for key in places:
            if isinstance(own.get(key), str):
                own[key] = os.path.relpath(base.parent / os.path.expanduser(own[key]), path.parent)
        files.append(base)
        data, origins = merge(own, data), {**_origins(own, base), **origins}
    if isinstance(data, dict):
        data = {key: value for key, value in data.items() if key != KEY}
    return Layers(data, tuple(files), origins)


def _read_base(last: Path, name: str, base: Path, is_text: Callable[[str], bool] | None) -> dict[str, Any]:
    try:
        data = yaml12.read_file(base, is_text=is_text)
    except OSError as error:
        raise UserError(
            f"{last}: base: {name}: cannot be read ({error.strerror}); name a YAML file, relative to this one"
        ) from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{base}: {error}") from None
    if data is not None and not isinstance(data, dict):
        raise UserError(f"{last}: base: {name}: its top level must be keys, as in this file")
    return dict(data or {})


def _origins(data: Any, path: Path) -> dict[str, Path]:
    """Return the file for each key and each setting of a section."""
    if not isinstance(data, dict):
        return {}
    inner = {f"{section}.{key}": path for section, keys in data.items() if isinstance(keys, dict) for key in keys}
    return inner | dict.fromkeys(data, path)
