"""YAML as version 1.2 reads it: `1e-3` is a number, `no` is a word, a repeated key is an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from rnnsparse import files

LARGEST_FILE = 100_000  # characters; a configuration is a page of text, and reading takes time


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


def read(text: str) -> Any:
    """Return the data in a YAML text: dictionaries with string keys, lists, strings, numbers, booleans and None.

    Raises:
        ValueError: not YAML; one line with the line number.
    """
    if len(text) > LARGEST_FILE:
        raise ValueError(f"{len(text):,} characters are too many for a configuration")
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{where}{error.problem or 'not YAML'}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def ends_in_comment(text: str) -> bool:
    """Return whether `read` leaves out the end of a text that it can read, from a # on."""
    tokens = (token for token in yaml.scan(text, _Loader) if token.start_mark.index < token.end_mark.index)
    return "#" in text[max((token.end_mark.index for token in tokens), default=0) :]


def read_file(path: Path, pipes: bool = False) -> Any:
    """Return the data in a YAML file; `pipes` as in `files.read`.

    Raises:
        ValueError: not YAML, or not UTF-8; a UserError, which names the file, if it is too large or no plain file.
        OSError: it cannot be read.
    """
    return read(files.read(path, 4 * LARGEST_FILE, pipes).decode("utf-8"))


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
