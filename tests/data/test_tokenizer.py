"""Tokenizers: ids, text, streams of text, and the file that the `tokenizers` library shares with us."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.errors import UserError

SAMPLE = "Añb €\r\n\t𝄞 'x' <unk>\x00\u2028"  # one to four bytes, line ends, what looks like a special token
texts = st.text(st.characters(codec="utf-8"))
kinds = pytest.mark.parametrize("tokenizer", [Tokenizer.byte(), Tokenizer.char(SAMPLE)], ids=["byte", "char"])


def library(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(tokenizer.to_json())


def test_byte_ids_are_the_byte_values() -> None:
    tokenizer = Tokenizer.byte()
    assert tokenizer.encode("é€").tolist() == [0xC3, 0xA9, 0xE2, 0x82, 0xAC]
    assert (tokenizer.vocab_size, tokenizer.unknown_id) == (256, None)


def test_char_ids_follow_the_code_points_after_the_unknown_one() -> None:
    tokenizer = Tokenizer.char("banana€")
    assert tokenizer.encode("abn€").tolist() == [1, 2, 3, 4]
    assert (tokenizer.vocab_size, tokenizer.unknown_id) == (5, 0)


@pytest.mark.parametrize(
    ("characters", "dtype"), [(255, np.uint8), (256, np.uint16), (65535, np.uint16), (65536, np.uint32)]
)
def test_ids_take_the_smallest_type_that_holds_the_vocabulary(characters: int, dtype: type) -> None:
    # From U+10000 on there are no surrogates in the way.
    tokenizer = Tokenizer.char(map(chr, range(0x10000, 0x10000 + characters)))
    last = chr(0x10000 + characters - 1)
    assert tokenizer.dtype == dtype
    assert tokenizer.decode(tokenizer.encode(last)) == last


@kinds
def test_encode_then_decode_gives_the_text_back(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(SAMPLE)) == SAMPLE
    assert tokenizer.decode(torch.from_numpy(tokenizer.encode(SAMPLE).astype(np.int64))) == SAMPLE


@given(texts)
def test_every_text_survives_the_byte_tokenizer(text: str) -> None:
    tokenizer = Tokenizer.byte()
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == text


@kinds
def test_encode_utf8_equals_encode(tokenizer: Tokenizer) -> None:
    for chunk in (SAMPLE.encode(), memoryview(SAMPLE.encode())):
        ids = tokenizer.encode_utf8(chunk)
        assert ids.dtype == tokenizer.dtype
        assert ids.tolist() == tokenizer.encode(SAMPLE).tolist()


def test_encode_names_unknown_characters_once_each_and_the_way_out() -> None:
    with pytest.raises(UserError, match=r"'é', '€'; .*data\.tokenizer=byte") as error:
        Tokenizer.char("abc").encode("aé€é")
    assert "\n" not in str(error.value)


def test_encode_names_only_the_first_few_of_many_unknown_characters() -> None:
    with pytest.raises(UserError, match="'a', 'b', 'c', 'd', 'e' and 21 more"):
        Tokenizer.char("é").encode("abcdefghijklmnopqrstuvwxyz")


@kinds
def test_half_a_surrogate_pair_is_a_user_error(tokenizer: Tokenizer) -> None:
    """That is how Python hands over command line arguments that are not UTF-8."""
    with pytest.raises(UserError, match=r"\\udc80"):
        tokenizer.encode("A\udc80")


def test_encode_utf8_turns_unknown_characters_into_the_unknown_id() -> None:
    tokenizer = Tokenizer.char("ab")
    assert tokenizer.encode_utf8("aéb€".encode()).tolist() == [1, 0, 2, 0]
    assert tokenizer.decode([1, 0]) == "a<unk>"


@kinds
def test_byte_lengths_and_character_starts_add_up_to_the_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(SAMPLE)
    assert tokenizer.byte_lengths[ids].sum() == len(SAMPLE.encode())
    assert tokenizer.starts_character[ids].sum() == len(SAMPLE)


def test_the_unknown_id_has_no_bytes_but_is_a_character() -> None:
    tokenizer = Tokenizer.char("ab")
    assert tokenizer.byte_lengths.tolist() == [0, 1, 1]
    assert tokenizer.starts_character.tolist() == [True, True, True]


@given(st.binary())
def test_a_stream_of_any_bytes_is_what_decode_returns_and_always_valid(data: bytes) -> None:
    tokenizer = Tokenizer.byte()
    decoder = tokenizer.stream_decoder()
    data += b"."  # completes or breaks the last character
    pieces = [decoder.push(identity) for identity in data]
    for piece in pieces:
        piece.encode()  # no half character
    assert "".join(pieces) == tokenizer.decode(data) == data.decode(errors="replace")


def test_a_stream_holds_a_character_back_until_its_last_byte() -> None:
    decoder = Tokenizer.byte().stream_decoder()
    assert [decoder.push(identity) for identity in "a€".encode()] == ["a", "", "", "€"]
    assert decoder.push(0xE2) == ""
    assert decoder.push(ord("a")) == "\ufffda"


def test_a_stream_of_characters_comes_at_once() -> None:
    decoder = Tokenizer.char("a€").stream_decoder()
    assert [decoder.push(2), decoder.push(0), decoder.push(1)] == ["€", "<unk>", "a"]


@given(texts)
def test_the_library_encodes_as_we_do(text: str) -> None:
    for tokenizer in (Tokenizer.byte(), Tokenizer.char(SAMPLE)):
        assert library(tokenizer).encode(text).ids == tokenizer.encode_utf8(text.encode()).tolist()


@given(st.lists(st.integers(0, 255)))
def test_the_library_decodes_as_we_do(ids: list[int]) -> None:
    assert library(Tokenizer.byte()).decode(ids) == Tokenizer.byte().decode(ids)
    tokenizer = Tokenizer.char(SAMPLE)
    ids = [identity % tokenizer.vocab_size for identity in ids]
    assert library(tokenizer).decode(ids) == tokenizer.decode(ids)


@kinds
def test_a_saved_tokenizer_loads_equal_in_both(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    assert Tokenizer.load(path) == tokenizer
    assert tokenizers.Tokenizer.from_file(str(path)).get_vocab_size() == tokenizer.vocab_size


def test_json_keeps_two_vocabularies_apart() -> None:
    assert Tokenizer.from_json(Tokenizer.char("ab").to_json()) != Tokenizer.char("ac")


def change(tokenizer: Tokenizer, **model: object) -> str:
    content = json.loads(tokenizer.to_json())
    content["model"] |= model
    return json.dumps(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"version": "1.0"}',
        Tokenizer.char("abc").to_json().encode()[:-20],
        change(Tokenizer.char("ab"), vocab={"<unk>": 0, "ab": 1}).encode(),  # a word
        change(Tokenizer.char("ab"), vocab={"<unk>": 0, "b": 1, "a": 2}).encode(),  # another order
        change(Tokenizer.char("ab"), vocab={"<unk>": 0, "a": 1, "b": 3}).encode(),  # a gap
        change(Tokenizer.char("ab"), vocab={"<unk>": 0, "a": 1, "b": 2}, fuse_unk=True).encode(),
        tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "a": 1}, "<unk>")).to_str().encode(),
    ],
    ids=["empty", "binary", "list", "no model", "cut", "word", "order", "gap", "option", "other model"],
)
def test_a_damaged_or_foreign_file_is_a_user_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer") as error:
        Tokenizer.load(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json: cannot be read"):
        Tokenizer.load(tmp_path / "tokenizer.json")
