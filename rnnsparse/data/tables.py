"""Tables with a column of text: parquet, JSON lines and CSV, row by row.

Rows are put one after the other, each ending with "\\n": a row that has one at its end gets no second. Rows without a
value are left out. Memory has a few rows at a time, whatever the size of the table.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import IO, Any

from rnnsparse.data.packing import SUFFIXES, damaged, packing_errors
from rnnsparse.data.tokenizer import Chunk
from rnnsparse.errors import UserError

FORMATS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv"}
CHUNK_ROWS = 100
ENDS = "parquet, .jsonl, .json or .csv, the last three packed by gzip, xz, bzip2 or zstd too"


def table_format(name: PurePath) -> str | None:
    """Return which table a file is by its name, "x.jsonl.gz" too; None if it is none."""
    if name.suffix.lower() in SUFFIXES:
        name = name.with_suffix("")
    return FORMATS.get(name.suffix.lower())


def joined(values: Iterable[Any], column: str, label: str) -> Iterator[bytes]:
    """Yield the text of rows, some at a time.

    Raises:
        UserError: a value is no text.
    """
    rows: list[str] = []
    for number, value in enumerate(values, start=1):
        if value is not None and not isinstance(value, str):
            raise UserError(
                f"{label}: row {number}: column {column!r} holds {type(value).__name__}, not text; set data.column"
            )
        if value is not None:
            rows.append(value if value.endswith("\n") else f"{value}\n")
        if len(rows) == CHUNK_ROWS:
            yield _utf8(rows, label)
            rows = []
    yield _utf8(rows, label)


def rows_in(chunks: Iterator[Chunk], kind: str, column: str, label: str) -> Iterator[bytes]:
    """Yield the text in a column of JSON lines or CSV, given as unpacked chunks.

    Raises:
        UserError: it is no such table, or has no such column.
    """
    stream: IO[bytes] = io.BufferedReader(_Stream(chunks))
    values = _json_lines(stream, column, label) if kind == "jsonl" else _csv(stream, column, label)
    return joined(values, column, label)


def parquet_rows(file: Path, sha256: str, column: str, label: str) -> Iterator[bytes]:
    """Yield the text in a column of a parquet file.

    Raises:
        UserError: it is damaged or another one than it was, or has no such column.
    """
    import pyarrow.parquet

    with packing_errors("parquet", label):
        table = pyarrow.parquet.ParquetFile(file)
        if column not in table.schema_arrow.names:
            raise _no_column(label, column, table.schema_arrow.names)
        batches = table.iter_batches(batch_size=CHUNK_ROWS, columns=[column])
        yield from joined((value for batch in batches for value in batch.column(0).to_pylist()), column, label)
        with file.open("rb") as stored:
            if hashlib.file_digest(stored, "sha256").hexdigest() != sha256:
                raise UserError(f"{label}: changed while it was read; run again when it is complete")


class _Stream(io.RawIOBase):
    """What comes in chunks, as a file."""

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self._chunks, self._rest = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def _json_lines(stream: IO[bytes], column: str, label: str) -> Iterator[Any]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{label}: line {number}: is no JSON ({error}); give JSON lines, one object on each"
            ) from None
        if not isinstance(row, dict):
            raise UserError(f"{label}: line {number}: is no JSON object; give JSON lines, one object on each")
        if column not in row:
            raise _no_column(f"{label}: line {number}", column, list(row))
        yield row[column]


def _csv(stream: IO[bytes], column: str, label: str) -> Iterator[str | None]:
    csv.field_size_limit(sys.maxsize)  # a text may be long
    reader = csv.reader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), strict=True)
    try:
        names = next(reader, [])
        if column not in names:
            raise _no_column(label, column, names)
        place = names.index(column)
        for row in reader:
            if row and len(row) != len(names):
                raise UserError(
                    f"{label}: line {reader.line_num}: has {len(row)} columns, and the first line {len(names)}; mend it"
                )
            if row:
                yield row[place] or None  # nothing between two commas is no value
    except UnicodeDecodeError as error:
        raise UserError(f"{label}: not UTF-8 text ({error.reason}); convert it first") from None
    except csv.Error as error:
        raise damaged("csv", f"{label}: line {reader.line_num}", error) from None


def _utf8(rows: list[str], label: str) -> bytes:
    try:
        return "".join(rows).encode()
    except UnicodeEncodeError as error:
        bad = error.object[error.start]
        raise UserError(f"{label}: holds {bad!r}, which is not a Unicode character; mend it") from None


def _no_column(label: str, column: str, names: list[str]) -> UserError:
    return UserError(
        f"{label}: no column {column!r}, only {', '.join(map(str, names))}; set data.column to one of them"
        if names
        else f"{label}: is empty; leave it out"
    )
