"""The bits of every character and of every line of a text, as files whose sums are the total that `evaluate` tells.

    per character   {"text", "bits", "offset"}                  a row for each character of the text, in its order
    per line        {"line", "offset", "characters", "bits"}    a row for each line; "\\n" ends it and belongs to it

`offset` is that of the first byte in the UTF-8 of the text that is measured. With the byte tokenizer a character costs
what its bytes cost. The first symbol of a text is never scored: the first character has the bits of its other bytes, or
null (nothing in CSV) if there are none, and is not among the characters of its line. A character outside the
vocabulary is shown as it is, and costs what <unk> costs with naming it.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from rnnsparse import files
from rnnsparse.data.split import Split
from rnnsparse.data.tokenizer import Tokenizer, code_points
from rnnsparse.errors import RunFailed, UserError

FORMATS = (".jsonl", ".csv")
STRETCH_BYTES = 1 << 16  # of text in memory at once
NUMBER = np.dtype(np.float64)
CHANGED = "the text changed while it was measured; run again when it is complete"

Row = dict[str, Any]


def require_writable(path: Path, key: str) -> None:
    """Make sure, before a text is measured, that its code lengths can be written to `path`.

    Raises:
        UserError: the name says no format, there is something at `path`, or no folder to write to.
    """
    if path.suffix not in FORMATS:
        raise UserError(
            f"{key}: {path}: the end of the name says the format, and is neither .jsonl nor .csv; give it one of these"
        )
    files.require_new(path, key)


class Recorder:
    """The code length of every symbol, on disk, as lanes that are read side by side come to them in no order.

    They lie in a file in `folder` that nobody sees and that goes when the context ends.

    Raises:
        RunFailed: the disk is full, or the folder read-only; so does every method.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with self._errors():
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (the context is that of the recorder)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *raised: object) -> None:
        with contextlib.suppress(OSError):  # a full disk, told before
            self._file.close()

    def record(self, position: int, nats: NDArray[np.float64]) -> None:
        """Keep those of consecutive symbols, of which the first is number `position` of the text."""
        with self._errors():
            self._file.seek(position * NUMBER.itemsize)
            self._file.write(nats.astype(NUMBER).tobytes())

    def nats(self, start: int, count: int) -> NDArray[np.float64]:
        """Return those of `count` symbols from number `start` on; 0 for the first symbol of a text."""
        with self._errors():
            self._file.seek(start * NUMBER.itemsize)
            return np.frombuffer(self._file.read(count * NUMBER.itemsize), dtype=NUMBER)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise RunFailed(
                f"{self._folder}: code lengths cannot be kept there ({reason}); write them elsewhere"
            ) from error


def write_characters(path: Path, split: Split, tokenizer: Tokenizer, recorded: Recorder) -> None:
    """Write the bits of every character to a new file.

    Raises:
        UserError: there is something at `path`, or the text has changed.
        RunFailed: it cannot be written.
    """
    _write(path, ("text", "bits", "offset"), _rows_of_characters(_stretches(split, tokenizer, recorded)))


def write_lines(path: Path, split: Split, tokenizer: Tokenizer, recorded: Recorder) -> None:
    """Write the bits of every line to a new file. Raises as `write_characters`."""
    _write(path, ("line", "offset", "characters", "bits"), _rows_of_lines(_stretches(split, tokenizer, recorded)))


@dataclass(frozen=True)
class _Stretch:
    """Some characters of a text, the offset of each, and its bits: not a number where nothing was scored."""

    text: str
    offsets: NDArray[np.int64]
    bits: NDArray[np.float64]


def _stretches(split: Split, tokenizer: Tokenizer, recorded: Recorder) -> Iterator[_Stretch]:
    assert split.chunks is not None, "the text of a corpus can be read again"
    utf8 = codecs.getincrementaldecoder("utf-8")()
    offset = symbol = 0
    for chunk in split.chunks():
        for start in range(0, len(chunk), STRETCH_BYTES):
            text = utf8.decode(chunk[start : start + STRETCH_BYTES])
            if not text:  # less than one character
                continue
            sizes = _utf8_sizes(code_points(text.encode()))
            ends = sizes.cumsum()
            symbols = ends if tokenizer.kind == "byte" else np.arange(1, len(text) + 1)
            if symbol + symbols[-1] > len(split.tokens):
                raise UserError(CHANGED)
            nats = recorded.nats(symbol, int(symbols[-1]))
            bits = np.add.reduceat(nats, np.concatenate([[0], symbols[:-1]])) / math.log(2)
            if symbol == 0 and symbols[0] == 1:
                bits[0] = math.nan
            yield _Stretch(text, offset + ends - sizes, bits)
            offset += int(ends[-1])
            symbol += int(symbols[-1])
    if symbol < len(split.tokens):
        raise UserError(CHANGED)


def _utf8_sizes(codes: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return how many bytes each code point has."""
    return 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)


def _rows_of_characters(stretches: Iterable[_Stretch]) -> Iterator[Row]:
    for stretch in stretches:
        for text, bits, offset in zip(stretch.text, stretch.bits.tolist(), stretch.offsets.tolist(), strict=True):
            yield {"text": text, "bits": None if math.isnan(bits) else bits, "offset": offset}


def _rows_of_lines(stretches: Iterable[_Stretch]) -> Iterator[Row]:
    number, first = 1, True
    line: Row | None = None
    for stretch in stretches:
        breaks = np.flatnonzero(code_points(stretch.text.encode()) == ord("\n")) + 1
        start = 0
        for stop in [*breaks.tolist(), len(stretch.text)]:
            if start == stop:
                continue
            line = line or {"line": number, "offset": int(stretch.offsets[start]), "characters": 0, "bits": 0.0}
            # As in the totals of `evaluate`, the first character does not count, though its other bytes may cost.
            line["characters"] += stop - start - first
            line["bits"] += float(np.nansum(stretch.bits[start:stop]))
            first = False
            if stretch.text[stop - 1] == "\n":
                yield line
                number, line = number + 1, None
            start = stop
    if line:
        yield line


def _write(path: Path, keys: tuple[str, ...], rows: Iterable[Row]) -> None:
    def write(file: BinaryIO) -> None:
        text = codecs.getwriter("utf-8")(file)
        put = _csv(text, keys) if path.suffix == ".csv" else _json_lines(text)
        for row in rows:
            put(row)

    files.write_new(path, write)


def _json_lines(file: codecs.StreamWriter) -> Callable[[Row], object]:
    return lambda row: file.write(json.dumps(row) + "\n")


def _csv(file: codecs.StreamWriter, keys: tuple[str, ...]) -> Callable[[Row], object]:
    # By itself csv leaves "\r" without quotes, which readers take for the end of a row.
    table = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    table.writerow(keys)
    return lambda row: table.writerow(row.values())
