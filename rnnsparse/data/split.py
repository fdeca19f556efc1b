"""A stretch of tokens, with exact counts of the text that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnnsparse.data.tokenizer import Chunk, Tokenizer

BLOCK = 1 << 20


@dataclass(frozen=True)
class Split:
    """Tokens [symbols], usually mapped from disk, and the size of their text.

    `characters` and `bytes` count the original text; `unknown_bytes` is the share of `bytes` that became the
    unknown id. `chunks`, if known, reads the original text again, as UTF-8; a chunk may end inside a character.
    """

    tokens: NDArray[Any]
    characters: int
    bytes: int
    unknown_bytes: int = 0
    chunks: Callable[[], Iterator[Chunk]] | None = field(default=None, repr=False, compare=False)

    def unknown_symbols(self, tokenizer: Tokenizer) -> int:
        """Return how many tokens stand for characters that the tokenizer does not know."""
        if not self.unknown_bytes:
            return 0
        blocks = (self.tokens[start : start + BLOCK] for start in range(0, len(self.tokens), BLOCK))
        return sum(int(np.count_nonzero(block == tokenizer.unknown_id)) for block in blocks)

    def head(self, symbols: int, tokenizer: Tokenizer) -> Split:
        """Return the first `symbols` tokens with their own counts.

        The bytes behind unknown ids are no longer known one by one: each counts as the mean of this split's.
        """
        if symbols >= len(self.tokens):
            return self
        tokens = self.tokens[:symbols]
        counts = count_symbols(tokens, tokenizer.vocab_size)
        unknown_bytes = 0
        if tokenizer.unknown_id is not None and self.unknown_bytes:
            of_all = count_symbols(self.tokens, tokenizer.vocab_size)[tokenizer.unknown_id]
            unknown_bytes = round(self.unknown_bytes * int(counts[tokenizer.unknown_id]) / int(of_all))
        return Split(
            tokens=tokens,
            characters=int(counts @ tokenizer.starts_character),
            bytes=int(counts @ tokenizer.byte_lengths) + unknown_bytes,
            unknown_bytes=unknown_bytes,
        )


def count_symbols(tokens: NDArray[Any], vocab_size: int) -> NDArray[np.int64]:
    """Return how often each id occurs [vocab_size].

    Block by block, because `bincount` makes 8 bytes of each symbol first.
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(tokens), BLOCK):
        counts += np.bincount(tokens[start : start + BLOCK], minlength=vocab_size)
    return counts
