"""Read records: JSON, CSV, Parquet, or plain lines, each value with its number.

The file's extension says which: ``.jsonl .ndjson .json`` (an object per line, or a list of them),
``.csv``, ``.parquet``, ``.txt``; a pipe is JSON, or plain lines if it begins otherwise.
"""

from __future__ import annotations

import csv
import io
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from infer_os.sizes import read_number, read_whole

from ..errors import SettingsError
from .lines import LARGEST, MOST_PASSED, Input, JsonError, parse_json
from .records import NUMBERS, BadRecord
from .stopping import Stop, stoppable

#: A number, a JSON value and what the number counts (lines by default), or what cannot be read.
Value = tuple[int, Any] | tuple[int, Any, str] | BadRecord

_JSON = (".jsonl", ".ndjson", ".json")
#: Rows of a Parquet file that are in memory at once.
_ROWS = 256
#: What begins a list of objects, and not a line of text in brackets.
_LIST = re.compile(rb"\[\s*[{\]]")
_STDIN = "standard input"


def read_values(path: Path, stop: Stop | None = None, *, plain: str = "prompt") -> Iterator[Value]:
    """The values of a file. The file is opened at once, and read on demand.

    Args:
        path: a file, or a pipe with a name.
        stop: ends reads that wait: they raise ReadingStopped.
        plain: what a plain line is of its record.

    Raises:
        SettingsError: it cannot be read, or its extension is unknown.
    """
    ending = path.suffix.lower()
    if ending == ".parquet":
        return _parquet_values(path)
    if ending not in (*_JSON, ".csv", ".txt"):
        raise SettingsError(
            f"{path}: expected a name that ends in .jsonl, .json, .csv, .parquet or .txt"
        )
    handle = stoppable(_open(path), stop)
    if ending == ".csv":
        return _csv_values(Input(handle, str(path)), path)
    found = Input(handle, str(path))
    return _json_values(found) if ending in _JSON else _plain_values(found, plain)


def read_pipe(
    stream: BinaryIO, stop: Stop | None = None, *, plain: str = "prompt"
) -> Iterator[Value]:
    """The values of a pipe; the arguments are those of :func:`read_values`."""
    found = Input(stoppable(stream, stop), _STDIN)
    is_json = found.start.startswith(b"{") or _LIST.match(found.start)
    return _json_values(found) if is_json else _plain_values(found, plain)


def count_records(path: Path) -> int | None:
    """How many records a file has, for a progress bar; None if unknown."""
    ending = path.suffix.lower()
    if ending == ".parquet":
        return int(_parquet_file(path).metadata.num_rows)
    # a table's field may contain line ends; anything but a plain file can be read only once
    if ending == ".csv" or not stat.S_ISREG(path.stat().st_mode):
        return None
    with _open(path) as handle:
        found = Input(handle, str(path))
        if ending in _JSON and _spans_lines(found):
            return None
        return sum(1 for _, line in found.lines() if line is None or line.strip())


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None


def _spans_lines(found: Input) -> bool:
    """Whether values are not one per line: a list, or objects that span lines."""
    first = found.start.partition(b"\n")[0].rstrip()
    return first == b"{" or _LIST.match(found.start) is not None


def _json_values(found: Input) -> Iterator[Value]:
    if _spans_lines(found):
        yield from _object_values(found)
        return
    for number, line in found.lines():
        if line is None:
            yield _too_long(number)
        elif line.strip():
            try:
                # without this, JSON lines in some other encoding are guessed at
                text = line.decode("utf-8-sig")
                del line  # a long one is not held twice
                yield number, parse_json(text)
            except UnicodeDecodeError:
                yield BadRecord(number, f"line {number}: is not UTF-8 text")
            except JsonError as error:
                yield BadRecord(number, f"line {number}: not JSON: {error}")


def _object_values(found: Input) -> Iterator[Value]:
    number = 0
    try:
        for value in found.objects():
            number += 1
            yield number, value, "record"
    except JsonError as error:
        number += 1
        yield BadRecord(number, f"record {number}: not JSON: {error}; the rest was not read")


def _too_long(number: int) -> BadRecord:
    reason = f"longer than {LARGEST >> 20} MB: no context holds so much"
    return BadRecord(number, f"line {number}: {reason}")


def _plain_values(found: Input, plain: str) -> Iterator[Value]:
    """A text per line; the line's number is its id."""
    for number, line in found.lines():
        if line is None:
            yield _too_long(number)
            continue
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if text.strip():
            yield number, {"id": number, plain: text}


class _Rows:
    """The lines of a table as csv reads them; ``quotes`` counts those of the row so far."""

    def __init__(self, lines: io.TextIOWrapper) -> None:
        self._lines = lines
        self.number = 0
        self.begin_row()

    def begin_row(self) -> None:
        """The next line begins a row, as far as one can tell."""
        self.first, self.size, self.quotes = self.number + 1, 0, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._take(LARGEST + 1)
        if not line:
            raise StopIteration
        if self.size > LARGEST:
            self._pass_line(line)
            raise _RowTooLong
        return line

    def _take(self, size: int) -> str:
        line = self._lines.readline(size)
        self.size += len(line)
        self.quotes += line.count('"')
        self.number += line.endswith(("\n", "\r"))
        return line

    def _pass_line(self, line: str) -> None:
        while line and not line.endswith(("\n", "\r")) and self.size < MOST_PASSED:
            line = self._take(LARGEST)

    def pass_row(self) -> bool:
        """Skip to where the quotes are paired: lines inside a field are not rows.

        Returns:
            Whether rows may follow; none do if too much was skipped.
        """
        while self.quotes % 2 and self.size < MOST_PASSED and (line := self._take(LARGEST)):
            self._pass_line(line)
        return self.size < MOST_PASSED

    @property
    def place(self) -> str:
        """The lines of the row."""
        last = max(self.number, self.first)
        return f"line {last}" if self.first == last else f"lines {self.first} to {last}"


class _RowTooLong(Exception):
    """A row without a closing quote, or a prompt that no context holds."""


def _csv_values(found: Input, path: Path) -> Iterator[Value]:
    """A record per row; the first names the columns. A row's number is the line it ends in."""
    csv.field_size_limit(LARGEST)
    with io.TextIOWrapper(io.BufferedReader(_Raw(found)), "utf-8", "replace", newline="") as text:
        lines = _Rows(text)
        rows = csv.reader(lines, strict=True)
        try:
            columns = next(rows, [])
        except (csv.Error, _RowTooLong) as error:
            raise SettingsError(f"{path}: line 1: not CSV: {_row_fault(error)}") from None
        if twice := [name for name in columns if name and columns.count(name) > 1]:
            raise SettingsError(f"{path}: line 1: two columns have the name {twice[0]!r}")
        while True:
            lines.begin_row()
            try:
                row = next(rows)
            except StopIteration:
                return
            except (csv.Error, _RowTooLong) as error:
                goes_on = lines.pass_row()
                reason = f"{lines.place}: not CSV: {_row_fault(error)}"
                yield BadRecord(max(lines.number, lines.first), reason)
                if not goes_on:
                    return
                rows = csv.reader(lines, strict=True)  # the old one is inside a field
                continue
            if row:
                yield _csv_value(max(lines.number, lines.first), row, columns)


def _row_fault(error: Exception) -> str:
    if isinstance(error, _RowTooLong):
        return f"a row of more than {LARGEST >> 20} MB; is a quote missing?"
    return "a quote is missing at its end" if "end of data" in str(error) else str(error)


class _Raw(io.RawIOBase):
    """An input as a raw stream."""

    def __init__(self, found: Input) -> None:
        self._found = found

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._found.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _csv_value(number: int, row: list[str], columns: list[str]) -> Value:
    if len(row) != len(columns):
        reason = f"{len(row)} fields under {len(columns)} columns"
        return BadRecord(number, f"line {number}: {reason}")
    value = {key: item for key, item in zip(columns, row, strict=True) if item != ""}
    try:
        return number, {key: _typed(key, item) for key, item in value.items()}
    except JsonError as error:
        return BadRecord(number, f"line {number}: {error}")


def _typed(key: str, text: str) -> Any:
    """A CSV field as its column's type, or unchanged if that is impossible.

    Raises:
        JsonError: messages that are not JSON.
    """
    try:
        if key in NUMBERS:
            number = text.strip()
            return read_number(number) if float in NUMBERS[key] else read_whole(number)
    except ValueError:
        return text
    if key not in ("stop", "messages") or not text.lstrip().startswith("["):
        return text
    try:
        return parse_json(text)
    except JsonError as error:
        if key == "messages" or "deep" in str(error):
            raise JsonError(f'"{key}" is not JSON: {error}') from None
        return text  # a stop string may begin with a bracket


def _parquet_values(path: Path) -> Iterator[Value]:
    """A record per row; a row's number is its line."""
    file = _parquet_file(path)
    number = 0
    for batch in file.iter_batches(_ROWS, use_threads=False):
        for row in batch.to_pylist():
            number += 1
            yield number, {key: item for key, item in row.items() if item is not None}, "row"


def _parquet_file(path: Path) -> Any:
    _open(path).close()
    parquet = parquet_module(path)
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: not a Parquet file: {error}") from None


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
