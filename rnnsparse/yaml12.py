"""YAML as version 1.2 reads it: `1e-3` is a number, `no` is a word, a repeated key is an error."""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from rnnsparse import files

LARGEST_FILE = 100_000  # characters; a configuration is a page of text, and reading takes time

# What is said of a text without quotes that has a colon, an @ or an asterisk.
OF_UNQUOTED_TEXT = (
    "mapping values are not allowed",
    "cannot start any token",
    "aliases (*name)",
    "expected alphabetic or numeric character",
)


class _Loader(yaml.SafeLoader):
    """Plain data only: no tags that construct objects, no aliases (ten lines of them can unfold to gigabytes)."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not supported", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} appears twice", problem_mark=key.start_mark)
            seen.add(key.value)
        # A block name such as 0 or null is a word where it is a key.
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}


# Tags (!!name) construct these and nothing else: no dates, no sets, no bytes.
_Loader.yaml_constructors = {
    tag: yaml.SafeLoader.yaml_constructors[tag]
    for tag in (None, "tag:yaml.org,2002:null", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")
}
# Only what follows is not a word: the resolvers of YAML 1.1 (yes, 1_000, 12:30, dates) are left behind.
_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)


def _construct_number(loader: Any, node: yaml.ScalarNode) -> int | float:
    # SafeLoader's own would read 0123 as octal; here leading zeros mean nothing.
    return int(node.value) if node.tag.endswith(":int") else float(node.value)


def _construct_bool(loader: Any, node: yaml.ScalarNode) -> bool:
    if node.value.lower() not in ("true", "false"):
        raise yaml.MarkedYAMLError(problem=f"{node.value!r} is not true or false", problem_mark=node.start_mark)
    return bool(node.value.lower() == "true")


def _construct_text(loader: Any, node: yaml.ScalarNode) -> str:
    text = str(loader.construct_scalar(node))
    # Escapes can write what is no text: neither a path nor a prompt could hold it.
    if re.search("[\0\ud800-\udfff]", text):
        raise yaml.MarkedYAMLError(problem="NUL and lone surrogates are no text", problem_mark=node.start_mark)
    return text


_Loader.add_constructor("tag:yaml.org,2002:bool", _construct_bool)
_Loader.add_constructor("tag:yaml.org,2002:str", _construct_text)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_number)


def read(text: str, is_text: Callable[[str], bool] | None = None) -> Any:
    """Return the data in a YAML text: dictionaries with string keys, lists, strings, numbers, booleans and None.

    Args:
        is_text: whether what stands at a place, such as "data.path", is to be text: a number is then what is written.

    Raises:
        ValueError: not YAML; one line with the line number.
    """
    if len(text) > LARGEST_FILE:
        raise ValueError(f"{len(text):,} characters are too many for a configuration")
    try:
        return copy.deepcopy(_parsed(text, is_text))
    except RecursionError:
        raise ValueError("nested too deeply") from None


@functools.lru_cache(maxsize=16)
def _parsed(text: str, is_text: Callable[[str], bool] | None) -> Any:
    """Return what `read` returns, made once: every run of a sweep reads the same file."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if is_text:
            _take_as_written(node, "", is_text)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{where}{error.problem or 'not YAML'}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def _take_as_written(node: yaml.Node, place: str, is_text: Callable[[str], bool]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _take_as_written(value, f"{place}.{key.value}" if place else str(key.value), is_text)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _take_as_written(value, place, is_text)
    elif not node.tag.endswith(":null") and is_text(place):
        node.tag = "tag:yaml.org,2002:str"


def read_text(text: str, null: bool = False) -> str | None:
    """Return what a value says that is to be text: what is written, number or word, and what is in quotes without them.

    Args:
        null: whether null, and no text at all, are None.

    Raises:
        ValueError: not YAML, or YAML reads something else than what is written.
    """
    value = read(text)  # which says what is wrong
    node = yaml.compose(text, _Loader)
    if isinstance(node, yaml.ScalarNode) and isinstance(value, str) and (node.style or text.startswith("!")):
        return value
    if value is None and null:
        return None
    if isinstance(node, yaml.ScalarNode) and value is not None and node.value == text:
        return text
    raise ValueError(f"to YAML this is {json.dumps(value, ensure_ascii=False)}")


def quoted(text: str) -> str:
    """Return a text in quotes, with which `read` gives just that text, even where white space is made one space."""
    return re.sub(r"(?<= ) |[^\S ]", lambda space: f"\\u{ord(space[0]):04x}", json.dumps(text, ensure_ascii=False))


def ends_in_comment(text: str) -> bool:
    """Return whether `read` leaves out the end of a text that it can read, from a # on."""
    tokens = (token for token in yaml.scan(text, _Loader) if token.start_mark.index < token.end_mark.index)
    return "#" in text[max((token.end_mark.index for token in tokens), default=0) :]


def read_file(path: Path, pipes: bool = False, is_text: Callable[[str], bool] | None = None) -> Any:
    """Return the data in a YAML file; `pipes` as in `files.read`, `is_text` as in `read`.

    Raises:
        ValueError: not YAML, or not UTF-8; a UserError, which names the file, if it is too large or no plain file.
        OSError: it cannot be read.
    """
    text = files.read(path, 4 * LARGEST_FILE, pipes).decode("utf-8")
    try:
        return read(text, is_text)
    except ValueError as error:
        if any(problem in str(error) for problem in OF_UNQUOTED_TEXT):
            raise ValueError(f"{error}; if that is a part of a text, put the text in quotes") from None
        raise


class _Dumper(yaml.SafeDumper):
    """Writes a number plain where `read` takes it for one, so that 1e-08 needs no tag."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True  # `read` takes none


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:float", repr(value))


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    # Quote what YAML 1.1, which other programs read, would take for something else.
    plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", value) and value.lower() not in _WORDS
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else '"')


_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
_Dumper.add_representer(float, _represent_float)
_Dumper.add_representer(str, _represent_text)


def write(data: Any) -> str:
    """Return data as YAML that `read` turns into the same data."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text
