"""Byte and character tokenizers: text to ids and back, and the `tokenizer.json` of the `tokenizers` library.

A symbol is one byte or one Unicode code point, without merges, so corpora are encoded by numpy look-up, some
hundred times faster than by a general tokenizer. The library owns the file format, and its encode and decode
agree with ours.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from rnnsparse import files
from rnnsparse.errors import UserError

if TYPE_CHECKING:
    import tokenizers

Chunk = bytes | memoryview  # of UTF-8

UNKNOWN = "<unk>"
CODE_POINTS = 0x110000
NAMED_IN_ERRORS = 5
LARGEST_FILE = 1 << 26  # bytes of a tokenizer.json; every Unicode character takes 30 MB


@dataclass(frozen=True)
class Tokenizer:
    """A fixed vocabulary of bytes (`Tokenizer.byte()`) or characters (`Tokenizer.char(...)`).

    `symbols[i]` holds the UTF-8 bytes of id i; for "char", id 0 stands for every character outside the
    vocabulary.
    """

    kind: Literal["byte", "char"]
    symbols: tuple[bytes, ...]

    @classmethod
    def byte(cls) -> Tokenizer:
        """The 256 byte values, each its own id: no text is ever unknown."""
        return cls("byte", tuple(bytes([value]) for value in range(256)))

    @classmethod
    def char(cls, characters: Iterable[str]) -> Tokenizer:
        """The distinct `characters` (a string will do) in code point order from id 1; id 0 is unknown."""
        return cls("char", (UNKNOWN.encode(), *(character.encode() for character in sorted(set(characters)))))

    @property
    def vocab_size(self) -> int:
        return len(self.symbols)

    @property
    def unknown_id(self) -> int | None:
        return 0 if self.kind == "char" else None

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The smallest unsigned integer type that holds every id."""
        return np.min_scalar_type(self.vocab_size - 1)

    @cached_property
    def byte_lengths(self) -> NDArray[np.int64]:
        """UTF-8 bytes of each symbol [vocab_size]; 0 for unknown, whose text is not known from its id."""
        lengths = np.array([len(symbol) for symbol in self.symbols], dtype=np.int64)
        if self.unknown_id is not None:
            lengths[self.unknown_id] = 0
        return lengths

    @cached_property
    def starts_character(self) -> NDArray[np.bool_]:
        """Whether a symbol begins a character [vocab_size]: all but the UTF-8 continuation bytes do."""
        return np.array([symbol[0] & 0xC0 != 0x80 for symbol in self.symbols])

    @cached_property
    def _id_of_code_point(self) -> NDArray[Any]:
        table = np.zeros(CODE_POINTS, dtype=self.dtype)
        for identity, symbol in enumerate(self.symbols[1:], start=1):
            table[ord(symbol.decode())] = identity
        return table

    def encode(self, text: str) -> NDArray[Any]:
        """Return the ids of `text`; a character that has none raises a UserError that names it."""
        try:
            utf8 = text.encode()
        except UnicodeEncodeError as error:
            reason = f"the text holds {text[error.start]!r}, which is not a Unicode character"
            raise UserError(f"{reason}; give the text as UTF-8") from None
        ids = np.array(self.encode_utf8(utf8))
        if self.unknown_id is not None and (unknown := ids == self.unknown_id).any():
            found = [repr(chr(code)) for code in dict.fromkeys(code_points(utf8)[unknown].tolist())]
            more = f" and {len(found) - NAMED_IN_ERRORS} more" if len(found) > NAMED_IN_ERRORS else ""
            raise UserError(
                f"the text holds characters that the training text did not: "
                f"{', '.join(found[:NAMED_IN_ERRORS])}{more}; leave them out, "
                "or train with data.tokenizer=byte, which knows every character"
            )
        return ids

    def encode_utf8(self, chunk: Chunk) -> NDArray[Any]:
        """Return the ids of UTF-8 that ends with a whole character; unknown ones become `unknown_id`.

        The result of the byte tokenizer is a read-only view of the chunk.
        """
        if self.kind == "byte":
            return np.frombuffer(chunk, dtype=np.uint8)
        return self._id_of_code_point[code_points(chunk)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; what is not UTF-8 becomes U+FFFD, the unknown id becomes "<unk>"."""
        return b"".join([self.symbols[identity] for identity in ids]).decode(errors="replace")

    def stream_decoder(self) -> StreamDecoder:
        """Return a decoder that takes ids one by one, for printing while sampling."""
        return StreamDecoder(self)

    def to_json(self) -> str:
        """Return what `tokenizers.Tokenizer.from_str` reads."""
        return self._to_library().to_str()

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Inverse of `to_json`; any other tokenizer raises a UserError."""
        import tokenizers

        try:
            library = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"not a tokenizer ({error}); restore the file from its checkpoint") from None
        foreign = "not a tokenizer of rnnsparse; use the tokenizer.json that came with the model"
        vocabulary = library.get_vocab()
        # Before it is written again: the library counts up to the largest number, which may be billions.
        if sorted(vocabulary.values()) != list(range(len(vocabulary))):
            raise UserError(foreign)
        characters = vocabulary.keys() - {UNKNOWN}
        if vocabulary == _byte_vocabulary():
            tokenizer = cls.byte()
        elif all(len(character) == 1 for character in characters):
            tokenizer = cls.char(characters)
        else:
            raise UserError(foreign)
        # Both strings come from this version of the library, so equal tokenizers are equal strings.
        if tokenizer.to_json() != library.to_str():
            raise UserError(foreign)
        return tokenizer

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json`."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read what `save` wrote; a missing, damaged or foreign file raises a UserError."""
        try:
            return cls.from_json(files.read(Path(path), LARGEST_FILE).decode())
        except OSError as error:
            reason = f"cannot be read ({error.strerror}); every checkpoint must have it"
            raise UserError(f"{path}: {reason}") from None
        except UnicodeDecodeError:
            reason = "not a tokenizer (not UTF-8); restore the file from its checkpoint"
            raise UserError(f"{path}: {reason}") from None
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    def _to_library(self) -> tokenizers.Tokenizer:
        from tokenizers import Tokenizer as Library
        from tokenizers import decoders, models, pre_tokenizers

        # Byte-pair encoding without a merge leaves a text in single symbols.
        if self.kind == "byte":
            library = Library(models.BPE(vocab=_byte_vocabulary(), merges=[]))
            library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            library.decoder = decoders.ByteLevel()
        else:
            vocabulary = {symbol.decode(): identity for identity, symbol in enumerate(self.symbols)}
            library = Library(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
            library.decoder = decoders.Fuse()
        return library


class StreamDecoder:
    """Turns ids into text one by one; an unfinished character is held back, so that all output is valid."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._symbols = tokenizer.symbols
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, identity: int) -> str:
        """Return the text that this id completes, often none."""
        return self._utf8.decode(self._symbols[identity])


def code_points(utf8: Chunk) -> NDArray[np.uint32]:
    """Return the code points of valid UTF-8 as an array, one number per character."""
    return np.frombuffer(str(utf8, "utf-8").encode("utf-32-le"), dtype="<u4")


def _byte_vocabulary() -> dict[str, int]:
    """The character that stands for each byte in the library's byte-level steps (as in GPT-2), by byte value.

    Printable bytes of Latin-1 stand for themselves; the others, in order, are the code points from 256 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [value for value in range(256) if value not in printable]
    return {chr(value if value in printable else 256 + others.index(value)): value for value in range(256)}
