"""The output of a batch: a line per result, so that a killed run can be resumed.

A line is written with one system call as soon as its result is there, so that a killed process
loses nothing that was finished; every few seconds and at the end the file is synced to disk, so
that a power cut loses no more than these. What a kill or a full disk leaves half-written at the end
is cut off on ``resume``; any other line that is not an answer is an error, and nothing is deleted.
CSV and Parquet are written at the end, from a journal next to them. What a line holds is said by a
:class:`LineForm`.
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from infer_os.files import new_file
from infer_os.json_text import finite
from infer_os.locks import try_lock
from infer_os.native.owner import Owner

from ..errors import ResultsUnwritten, SettingsError
from .reading import parquet_module

#: Seconds between two syncs.
SYNC_S = 5.0
_LINES = (".jsonl", ".ndjson", ".json")
_TABLES = (".csv", ".parquet")
#: Bytes of a line; one of the largest context, with log-probabilities, has less.
_LARGEST_ANSWER = 256 << 20


class Line(Protocol):
    """What a journal writes: a :class:`~.records.Result`, or a result of another command."""

    @property
    def id(self) -> str | int | None:
        """Its record's."""
        ...

    @property
    def line(self) -> int:
        """The number of its record."""
        ...

    @property
    def error(self) -> str | None:
        """What went wrong with the record."""
        ...

    @property
    def index(self) -> int | None:
        """The sample's number, where a record has several."""
        ...

    def as_json(self) -> dict[str, Any]:
        """The line; "id" comes first."""
        ...


class LineForm(NamedTuple):
    """The lines of a command: the ``keys`` that all have, and ``more`` that some have.

    ``source`` is what writes them, in the words of an error. ``types`` are the columns of a Parquet
    file as pyarrow spells them; "json" is a text.
    """

    source: str
    keys: tuple[str, ...]
    more: tuple[str, ...]
    types: dict[str, str]


#: Of :class:`~.records.Result`.
ANSWERS = LineForm(
    "batch", ("id", "text", "tokens", "finish_reason", "error"),
    ("index", "line", "logprobs", "prompt_logprobs"),
    {
        "text": "string", "tokens": "list<int32>", "finish_reason": "string", "error": "string",
        "index": "int64", "line": "int64", "logprobs": "json",
        "prompt_logprobs": "json",
    },
)  # fmt: skip

#: A sample that was answered, (id, index), or a line that is not a record, (None, line).
DoneKey = tuple[str | int | None, int]


def line_of(result: Line) -> bytes:
    """A result as a JSON line; NaN and infinity, which JSON lacks, as null."""
    value = finite(result.as_json())
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # a lone surrogate in an id
        return json.dumps(value, allow_nan=False).encode() + b"\n"


def key_of(result: Line) -> DoneKey:
    """The key of a result when a run is resumed."""
    return (None, result.line) if result.error is not None else (result.id, result.index or 0)


def check_results(path: Path, *, resume: bool, force: bool, source: Path | None = None) -> None:
    """Check that an output can be written; nothing is created. ``source`` is the input's file.

    Raises:
        SettingsError: it exists, is the input, or has an unusable name or folder.
    """
    ending = path.suffix.lower()
    if ending not in (*_LINES, *_TABLES):
        raise SettingsError(f"{path}: expected a name that ends in .jsonl, .csv or .parquet")
    if ending == ".parquet":
        parquet_module(path)
    if resume and force:
        raise SettingsError("--resume and --force: give one of them")
    if not path.parent.is_dir():
        raise SettingsError(f"{path}: the folder {path.parent} does not exist")
    for written in (path, journal_path(path)):
        if source is not None and source.exists() and written.exists() and (
            written.samefile(source)
        ):  # fmt: skip
            raise SettingsError(f"{written}: is also the input; give another --output")
    if resume or force:
        return
    for existing in (path, journal_path(path)):
        if existing.exists():
            raise _exists(existing)


def _exists(path: Path) -> SettingsError:
    return SettingsError(f"{path}: already exists; --resume continues it, --force replaces it")


def journal_path(path: Path) -> Path:
    """Where the lines go: the output itself, or a file next to a table."""
    return path if path.suffix.lower() in _LINES else path.with_name(f"{path.name}.partial.jsonl")


class Journal(Owner):
    """The lines of a run. ``done`` are the samples that it holds from an earlier run."""

    def __init__(
        self,
        path: Path,
        *,
        resume: bool,
        replace: bool = True,
        form: LineForm = ANSWERS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open it, and lock it against a second run.

        Args:
            path: the output.
            resume: keep what is there.
            replace: without ``resume``, whether a file that holds something may be replaced.
            form: what its lines hold.
            clock: seconds.

        Raises:
            SettingsError: another run writes it, or it holds what no batch has written, or what
                may not be replaced.
        """  # fmt: skip
        self.path = path
        self._lines = journal_path(path)
        self._form, self._clock = form, clock
        self._synced = clock()
        self.done: set[DoneKey] = set()
        #: Whether an earlier run has completed the table.
        self.is_complete = resume and path != self._lines and path.exists() and (
            not self._lines.exists()
        )  # fmt: skip
        self._handle = -1
        if self.is_complete:
            return
        self._is_new = not self._lines.exists()
        self._size = 0
        self._has_begun = False
        #: Whether the last answer lacks its line end.
        self._lacks_end = False
        try:
            handle = try_lock(self._lines)
        except OSError as error:
            raise SettingsError(f"{self._lines}: cannot be written: {error.strerror}") from None
        if handle is None:
            raise SettingsError(f"{self._lines}: another run is writing it")
        self._handle = handle
        try:
            if resume:
                self._size = self._recover()
                self._begin()
            elif not replace and os.fstat(self._handle).st_size:
                raise _exists(self._lines)  # made since the options were checked
        except BaseException:
            os.close(self._handle)
            raise

    def _recover(self) -> int:
        """Read the lines; returns how many bytes of them to keep."""
        size = 0  # up to the last answer
        half = 0  # the number of a following line that a kill may have left
        with os.fdopen(os.dup(self._handle), "rb") as handle:
            for number, line in enumerate(_bounded(handle), 1):
                if not line.strip():  # from an editor, or where files were joined
                    continue
                try:
                    key = None if half else _done_key(line, self._form)
                except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                    key = None
                if key is None and not (_is_half_a_line(line) and (not half or _is_zeros(line))):
                    # answers may follow: nothing is cut
                    raise self._no_answer(half or number)
                if key is None:
                    half = half or number
                else:
                    self.done.add(key)
                    size = handle.tell()
                    self._lacks_end = not line.endswith(b"\n")
        return size

    def _no_answer(self, number: int) -> SettingsError:
        return SettingsError(
            f"{self._lines}: line {number} is not an answer of a {self._form.source}; remove it, "
            "or give another --output"
        )

    def write(self, result: Line) -> None:
        """Append a result.

        Raises:
            ResultsUnwritten: the disk is full, or fails otherwise; no half line stays.
        """
        data = memoryview(line_of(result))
        try:
            self._begin()
            written = 0
            while written < len(data):
                written += os.write(self._handle, data[written:])
            self._size += len(data)
            if self._clock() - self._synced >= SYNC_S:
                self.sync()
        except OSError as error:
            raise self._failure(self._lines, error) from None

    def _begin(self) -> None:
        """Cut off what is not kept. A new run may fail before it has an answer."""
        if not self._has_begun:
            os.ftruncate(self._handle, self._size)
            os.lseek(self._handle, self._size, os.SEEK_SET)
            if self._lacks_end:
                self._size += os.write(self._handle, b"\n")
            self._has_begun = True

    def sync(self) -> None:
        """Sync everything to the disk."""
        os.fsync(self._handle)
        self._synced = self._clock()

    def finish(self) -> None:
        """The run is over: sync, and write the table if one was requested.

        Raises:
            ResultsUnwritten: the disk is full, or fails otherwise; the journal stays.
        """
        if self.is_complete:
            return
        target = self.path
        try:
            self._begin()
            self.sync()
            if target == self._lines:
                return
            # the journal is locked, so nobody else makes the part
            with new_file(target, part=target.with_name(f".{target.name}.tmp")) as handle:
                write = _write_csv if target.suffix.lower() == ".csv" else _write_parquet
                write(self._read_lines(), handle, target, self._form)
            self._lines.unlink()
        except OSError as error:
            raise self._failure(target, error) from None

    def _failure(self, path: Path, error: OSError) -> ResultsUnwritten:
        try:
            os.ftruncate(self._handle, self._size)
        except OSError:  # a device
            pass
        return ResultsUnwritten(f"{path}: {error.strerror}; --resume continues with what is there")

    def _read_lines(self) -> Iterator[dict[str, Any]]:
        with self._lines.open("rb") as handle:
            for line in handle:
                if line.strip():
                    yield json.loads(line)

    def close(self) -> None:
        """Close the file, which unlocks it; an empty one is removed."""
        if self._handle >= 0:
            if self._is_new and self._size == 0:
                self._lines.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = -1


def _bounded(handle: BinaryIO) -> Iterator[bytes]:
    """Lines; one longer than any answer comes in pieces."""
    while line := handle.readline(_LARGEST_ANSWER):
        yield line


def _is_zeros(line: bytes) -> bool:
    return not line.strip(b"\0\n")


def _is_half_a_line(line: bytes) -> bool:
    """Whether a kill or a power cut may have left it: the start of a line, or zeros."""
    start = b'{"id": '
    is_begun = line.startswith(start) or start.startswith(line)
    return _is_zeros(line) or (not line.endswith(b"\n") and is_begun and not _is_whole(line))


def _is_whole(line: bytes) -> bool:
    """Whether it is JSON, which the start of an object never is."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _done_key(line: bytes, form: LineForm) -> DoneKey:
    value = json.loads(line)
    if not isinstance(value, dict) or not all(key in value for key in form.keys):
        raise ValueError("not a line of ours")
    if value["error"] is not None:
        return None, int(value["line"])
    identity = value["id"]
    if isinstance(identity, bool) or not isinstance(identity, (str, int)):
        raise ValueError("not an id of ours")
    return identity, int(value.get("index", 0))


def table_rows(path: Path) -> int | None:
    """Number of answers in a finished table; None if that cannot be read."""
    try:
        if path.suffix.lower() == ".parquet":
            return int(parquet_module(path).ParquetFile(path).metadata.num_rows)
        csv.field_size_limit(_LARGEST_ANSWER)
        with path.open(encoding="utf-8", errors="replace", newline="") as handle:
            return sum(1 for row in csv.reader(handle) if row) - 1
    except (OSError, ValueError, csv.Error):
        return None


def _columns(
    rows: Iterator[dict[str, Any]], form: LineForm
) -> tuple[list[str], list[dict[str, Any]]]:
    kept = list(rows)
    return [*form.keys, *(key for key in form.more if any(key in row for row in kept))], kept


def _write_csv(
    rows: Iterator[dict[str, Any]], handle: BinaryIO, target: Path, form: LineForm
) -> None:
    columns, kept = _columns(rows, form)
    text = io.TextIOWrapper(handle, "utf-8", "replace", newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    for row in kept:
        cells = (row.get(key) for key in columns)
        writer.writerow([json.dumps(c) if isinstance(c, (list, dict)) else c for c in cells])
    text.flush()
    text.detach()


def _write_parquet(
    rows: Iterator[dict[str, Any]], handle: BinaryIO, target: Path, form: LineForm
) -> None:
    parquet = parquet_module(target)
    import pyarrow

    columns, kept = _columns(rows, form)
    # a column has one type: ids become texts unless all are 64-bit numbers
    ids = [row["id"] for row in kept if row["id"] is not None]
    if not all(isinstance(i, int) and -(1 << 63) <= i < 1 << 63 for i in ids):
        kept = [{**row, "id": row["id"] if row["id"] is None else str(row["id"])} for row in kept]
    data: dict[str, list[Any]] = {key: [row.get(key) for row in kept] for key in columns}
    types = {"list<int32>": pyarrow.list_(pyarrow.int32()), "json": pyarrow.string()}
    arrays = {}
    for key, items in data.items():
        name = form.types.get(key)
        if name == "json":
            items = [item if item is None else json.dumps(item) for item in items]
        kind = None if name is None else types.get(name) or pyarrow.type_for_alias(name)
        arrays[key] = pyarrow.array(items, kind)
    parquet.write_table(pyarrow.table(arrays), handle)
