from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rnnsparse import yaml12


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        ("-2.5e+1", -25.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("+7", 7),
        ("0123", 123),
        ("-0", 0),
        ("1e999", math.inf),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("# only a comment", None),
    ],
)
def test_numbers_booleans_and_null_are_read_as_yaml_1_2_does(text: str, value: Any) -> None:
    found = yaml12.read(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "word",
    [
        "yes",
        "no",
        "on",
        "off",
        "y",
        "n",
        "1_000",
        "12:30",
        "2001-01-01",
        "0x10",
        "0o17",
        "1e",
        "e5",
        "nan",
        ".nan",
        "=",
    ],
)
def test_what_only_yaml_1_1_takes_for_something_else_is_a_word(word: str) -> None:
    assert yaml12.read(word) == word


@pytest.mark.parametrize(
    ("text", "value"),
    [('"5"', "5"), ("'true'", "true"), ("!!str 5", "5"), ("!!float 1", 1.0), ("!!float '1e-08'", 1e-8)],
)
def test_quotes_and_core_tags_decide_what_a_value_is(text: str, value: Any) -> None:
    assert yaml12.read(text) == value


def test_keys_are_words_whatever_they_look_like() -> None:
    assert yaml12.read("{0: a, null: b, true: c, 1e3: d}") == {"0": "a", "null": "b", "true": "c", "1e3": "d"}


def test_a_merge_key_is_a_word_and_merges_nothing() -> None:
    assert yaml12.read("<<: {a: 1}") == {"<<": {"a": 1}}


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: key 'a' appears twice"),
        ("{a: {b: 1, b: 2}}", "line 1, column 12: key 'b' appears twice"),
        (BOMB, r"line 2, column 8: aliases \(\*name\) are not supported"),
        ("&a [*a]", "aliases"),
        ("? [a, b]\n: 1", "a key must be a word"),
        ("a: [1", "line 1, column 6"),
        ("a: 1\n\tb: 2", "line 2, column 1"),
        ("a: 'open", "line 1"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        ("--- 1\n--- 2", "line 2"),
        ("@", "line 1, column 1"),
        ("a: \x00", "special characters are not allowed"),
        ("a: \x07", "special characters are not allowed"),
        (r'"a\0b"', "NUL and lone surrogates are no text"),
        (r'"\ud800"', "NUL and lone surrogates are no text"),
        ("[" * 50_000, "nested too deeply"),
        ("a: " + "{a: " * 20_000, "nested too deeply"),
        ("9" * 5000, "limit"),
        ("x" * 1_000_001, "1,000,001 characters are too many for a configuration"),
        ("!!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("!!python/name:os.system", "could not determine a constructor"),
        ("!!timestamp 2001-01-01", "could not determine a constructor"),
        ("!!timestamp x", "could not determine a constructor"),
        ("!!binary aGk=", "could not determine a constructor"),
        ("!!set {a}", "could not determine a constructor"),
        ("!!omap [a: 1]", "could not determine a constructor"),
        ("!mine 5", "could not determine a constructor"),
        ("!!bool maybe", "line 1, column 1: 'maybe' is not true or false"),
        ("!!int five", "five"),
        ("!!float five", "five"),
        ("!!map five", "."),
    ],
)
def test_what_is_not_plain_data_is_refused_in_one_line(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        yaml12.read(text)
    assert "\n" not in str(error.value)


@given(
    st.text(st.characters(exclude_categories=[]), max_size=30) | st.text("!&*[]{}:-?|>'\"% \n\t#,a1.e~", max_size=30)
)
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):  # and nothing else
        yaml12.read(text)


# What a configuration can hold: text without NUL, lone surrogates and the like.
WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20) | st.sampled_from(
    [
        "no",
        "Null",
        "1e5",
        "0x1F",
        "12:30",
        "a: b",
        "- a",
        "# a",
        " a ",
        "a\nb",
        "a\tb",
        "\x85",
        "\u2028",
        "é" * 150,
        "~",
        "=",
    ]
)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
DATA = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=10,
)


@given(DATA)
def test_what_is_written_is_read_as_the_same_data(data: Any) -> None:
    text = yaml12.write(data)
    found = yaml12.read(text)
    assert found == data
    assert repr(found) == repr(data)  # 1 == 1.0 == True
    assert "!!" not in text or "!!" in repr(data)


def test_the_same_object_twice_is_written_twice() -> None:
    shared = [0.5]
    assert yaml12.read(yaml12.write({"a": shared, "b": shared})) == {"a": [0.5], "b": [0.5]}


def test_readers_of_yaml_1_1_see_the_same_words() -> None:
    words = ["no", "on", "1_000", "12:30", "2001-01-01", "null", "0x10", "plain"]
    assert yaml.safe_load(yaml12.write(words)) == words
