"""Read records: JSON lines, CSV, Parquet, or plain lines, each value with its line number.

The name's ending says which: ``.jsonl .ndjson .json``, ``.csv``, ``.parquet``, ``.txt``; stdin is
JSON lines, or plain lines if the first one is no JSON object.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import SettingsError
from .records import BadRecord

#: A value as JSON gives it, or a line that cannot be read.
Value = tuple[int, Any] | BadRecord

_JSON = (".jsonl", ".ndjson", ".json")
_INTEGERS = ("max_tokens", "top_k", "seed", "n")
_FLOATS = ("temperature", "top_p", "min_p")
_LISTS = ("stop", "messages")
#: Rows of a Parquet file that are in memory at once.
_ROWS = 256


def read_values(path: Path) -> Iterator[Value]:
    """The values of a file. The file is opened at once, and read as they are asked for.

    Raises:
        SettingsError: it cannot be read, or its name does not say how.
    """
    ending = path.suffix.lower()
    if ending == ".parquet":
        return _parquet_values(path)
    if ending not in (*_JSON, ".csv", ".txt"):
        raise SettingsError(f"{path}: expected a name that ends in .jsonl, .csv, .parquet or .txt")
    handle = _open(path)
    if ending == ".csv":
        return _csv_values(handle, path)
    return _json_values(handle) if ending in _JSON else _plain_values(handle)


def read_stream(stream: BinaryIO) -> Iterator[Value]:
    """The values of a pipe."""
    first = next((line for line in stream if line.strip()), b"")
    lines = itertools.chain((first,) if first else (), stream)
    return _json_values(lines) if first.lstrip().startswith(b"{") else _plain_values(lines)


def count_records(path: Path) -> int | None:
    """How many records a file has, for a progress bar; None if that is not known."""
    if path.suffix.lower() == ".parquet":
        return int(_parquet_file(path).metadata.num_rows)
    if path.suffix.lower() == ".csv":  # a field may hold line ends
        return None
    with _open(path) as handle:
        return sum(1 for line in handle if line.strip())


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None


def _json_values(lines: Iterable[bytes]) -> Iterator[Value]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            # without this, JSON lines in some other encoding are guessed at
            yield number, json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            yield BadRecord(number, f"line {number}: is no UTF-8 text")
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", None) or str(error)
            yield BadRecord(number, f"line {number}: no JSON: {reason}")


def _plain_values(lines: Iterable[bytes]) -> Iterator[Value]:
    """A prompt a line; the line's number is its id."""
    for number, line in enumerate(lines, 1):
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if text.strip():
            yield number, {"id": number, "prompt": text}


def _csv_values(handle: BinaryIO, path: Path) -> Iterator[Value]:
    """A record a row; the first names the columns. A row's number is the line that it ends in."""
    with io.TextIOWrapper(handle, "utf-8-sig", "replace", newline="") as text:
        rows = csv.reader(text, strict=True)
        try:
            columns = next(rows, [])
        except csv.Error as error:
            raise SettingsError(f"{path}: line 1: no CSV: {error}") from None
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadRecord(rows.line_num, f"line {rows.line_num}: no CSV: {error}")
                continue
            if not row:
                continue
            number = rows.line_num
            if len(row) != len(columns):
                reason = f"{len(row)} fields under {len(columns)} columns"
                yield BadRecord(number, f"line {number}: {reason}")
                continue
            value = {key: item for key, item in zip(columns, row, strict=True) if item != ""}
            yield number, {key: _typed(key, item) for key, item in value.items()}


def _typed(key: str, text: str) -> Any:
    """A field of a CSV as the type that its column has; as it is where it cannot be that."""
    try:
        if key in _INTEGERS:
            return int(text)
        if key in _FLOATS:
            return float(text)
        if key in _LISTS and text.lstrip().startswith("["):
            return json.loads(text)
    except ValueError:
        pass
    return text


def _parquet_values(path: Path) -> Iterator[Value]:
    """A record a row; a row's number is its line."""
    file = _parquet_file(path)
    number = 0
    for batch in file.iter_batches(_ROWS):
        for row in batch.to_pylist():
            number += 1
            yield number, {key: item for key, item in row.items() if item is not None}


def _parquet_file(path: Path) -> Any:
    _open(path).close()
    parquet = parquet_module(path)
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: no Parquet file: {error}") from None


def parquet_module(path: Path) -> Any:
    """pyarrow.parquet.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise SettingsError(
            f"{path}: Parquet needs pyarrow: pip install 'infer-os[parquet]'"
        ) from None
    return pyarrow.parquet
