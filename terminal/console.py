"""Everything that is drawn: answers to stdout; notes, bars and statistics to stderr.

Colours and bars appear only on a terminal. rich is imported when there is something to draw.

Untrusted text (names, checkpoints, headers, model output) passes here and cannot control the
terminal: control characters are spelled out, in an answer only if stdout is a terminal. A failure
of stdout or stdin raises :class:`_StreamError`; one of stderr is ignored, since there is nowhere to
report it.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import stat
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol, TextIO, cast

from ..errors import Error
from ..json_text import finite
from .folding import fitting_columns, folded_table
from .harmless import escaped, harmless, printable

if TYPE_CHECKING:
    from .wrapping import WordWrap


class Progress(Protocol):
    """Takes the work done so far and the total."""

    def __call__(self, done: int, total: int) -> None:
        """Show it."""
        ...


class _StreamError(Error):
    """A standard stream that cannot be read or written."""

    exit_code = 1


@contextmanager
def _stream(name: str) -> Iterator[None]:
    """Report failures inside as this stream's. A closed pipe is left to the command framework."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _StreamError(f"standard {name}: {error.strerror}") from error


def answer(text: str, end: str = "\n", wrap: WordWrap | None = None) -> None:
    """Print to stdout at once; on a terminal, without characters that would control it.

    ``wrap`` breaks the text between words, see :func:`word_wrap`.
    """
    if sys.stdout.isatty():
        text = harmless(text)
    if wrap is not None:
        text = wrap.push(text)
    _put((text + end).encode("utf-8", "replace"))


def _put(data: bytes) -> None:
    with _stream("output"):
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def word_wrap() -> WordWrap | None:
    """What breaks text between words as it is written to stdout; None if stdout is not a
    terminal with a movable cursor."""
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        return None
    from .wrapping import WordWrap

    def columns() -> int:
        # not $COLUMNS, which is as old as the shell's last prompt
        try:
            return os.get_terminal_size(sys.stdout.fileno()).columns or 80
        except OSError:
            return 80

    return WordWrap(columns)


def answer_json(value: object) -> None:
    """Print one JSON object to stdout; NaN and infinity, which JSON lacks, as null."""
    _put(_json(value).encode("utf-8", "replace") + b"\n")


def _json(value: object) -> str:
    """One line; what would control a terminal is escaped, which leaves the JSON value the same."""
    text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False)
    return escaped(text)


def note(text: str) -> None:
    """Print a line to stderr, on a terminal broken between words."""
    text = harmless(text)
    if sys.stderr.isatty():
        width = max(shutil.get_terminal_size().columns, 12)
        text = "\n".join(_broken(line, width) for line in text.split("\n"))
    _tell(text)


def _tell(text: str) -> None:
    """Write a line to stderr. If that fails, there is nowhere to say so."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def let_go_of_streams() -> None:
    """Drop what stdout and stderr did not take, of which an error has told.

    Python tries once more when it exits, and where that fails it ends with a code of its own, 120.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            continue  # the command framework's
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def _broken(line: str, width: int) -> str:
    """Split a line into lines of at most ``width``, unless a word is longer."""
    from .wrapping import folded

    return "\n".join(folded(line, width))


def notes(texts: Iterable[str]) -> None:
    """Print what the user should know about a run."""
    for text in texts:
        note("note: " + printable(text.replace("\n", " ")))


def fail(text: str) -> None:
    """Print an error as one line to stderr."""
    note("error: " + printable(text.replace("\n", " ")))


def is_wide(columns: int) -> bool:
    """Whether stdout is at least ``columns`` wide; a pipe always is."""
    import shutil

    return not sys.stdout.isatty() or shutil.get_terminal_size().columns >= columns


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1, stderr: bool = False
) -> None:
    """Draw a table; the first ``left`` columns are text, the others numbers.

    On a terminal that is too narrow, each row's last columns go on a separate line.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    stream = sys.stderr if stderr else sys.stdout
    if stream.isatty():
        width = shutil.get_terminal_size().columns
        n_kept = fitting_columns(columns, rows, left, width)
        if n_kept < len(columns):
            lines = folded_table(columns, rows, left, n_kept, width)
            (note if stderr else answer)("\n".join(lines))
            return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # a pipe has no width: the table may take what it needs
    console = Console(
        file=_quiet_stderr() if stderr else stream, width=None if stream.isatty() else 500,
        highlight=False,
    )  # fmt: skip
    drawn = Table(box=SIMPLE, show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        if i < left:
            drawn.add_column(Text(printable(column)), overflow="fold")
        else:  # a number broken across two lines cannot be read
            drawn.add_column(Text(printable(column)), justify="right", no_wrap=True)
    for row in rows:
        drawn.add_row(*map(Text, row))
    with _stream("output"):
        console.print(drawn)
        stream.flush() if not stderr else None


class _Quiet:
    """A stream whose failures are ignored: stderr, for a library that draws on it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _quiet_stderr() -> TextIO:
    return cast("TextIO", _Quiet(sys.stderr))


def paragraph(text: str, name: str = "", indent: int = 0) -> None:
    """Print text to stderr, on a terminal with lines broken between words.

    ``name`` stands in front of the first line, ``indent`` blanks in front of the others.
    """
    width = shutil.get_terminal_size().columns if sys.stderr.isatty() else sys.maxsize
    lines = textwrap.wrap(printable(text), max(width - indent, 12), break_on_hyphens=False)
    note(name.ljust(indent) + f"\n{' ' * indent}".join(lines))


def answer_paragraph(text: str) -> None:
    """Print text to stdout, on a terminal with lines broken between words."""
    if sys.stdout.isatty():
        width = max(shutil.get_terminal_size().columns, 12)
        text = "\n".join(textwrap.wrap(text, width, break_on_hyphens=False))
    answer(text)


def definitions(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and what they stand for to stderr, in two columns as wide as the terminal."""
    rows = list(rows)
    indent = max(len(name) for name, _ in rows) + 2
    for name, text in rows:
        paragraph(text, name, indent)


@contextmanager
def progress_bar(label: str) -> Iterator[Progress | None]:
    """A bar over bytes on stderr; None if stderr is not a terminal."""
    with progress_steps() as steps:
        yield steps(label)


@contextmanager
def progress_steps() -> Iterator[Callable[[str], Progress | None]]:
    """Bars for successive steps: called with a step's name, returns its progress callback."""
    if not sys.stderr.isatty():
        yield lambda label: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Bars(*columns, console=Console(file=_quiet_stderr()), transient=True) as bars:

        def step(label: str) -> Progress:
            task = bars.add_task(printable(label), total=None)

            def report(done: int, total: int) -> None:
                bars.update(task, completed=done, total=total)

            return report

        yield step


class BatchProgress(Protocol):
    """Takes finished records, tokens, and the tokens per second."""

    def __call__(self, records: int, tokens: int, seconds: float) -> None:
        """Show it."""
        ...


@contextmanager
def batch_bar(total: int | None) -> Iterator[BatchProgress | None]:
    """A bar over records with their rates on stderr; None if stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rates]}"),
               TextColumn("ETA"), TimeRemainingColumn())  # fmt: skip
    with Bars(*columns, console=Console(file=_quiet_stderr()), transient=True) as bars:
        task = bars.add_task("", total=total, rates="")

        def report(records: int, tokens: int, seconds: float) -> None:
            per_s = 1 / seconds if seconds else 0.0
            rates = f"{records * per_s:.1f} records/s  {tokens * per_s:.0f} tokens/s"
            bars.update(task, completed=records, rates=rates)

        yield report


def answer_lines() -> Callable[[bytes], None]:
    """A function that writes lines of bytes to stdout, each at once."""

    def write(line: bytes) -> None:
        if sys.stdout.isatty():
            line = escaped(line.decode("utf-8", "replace")).encode()
        _put(line)

    return write


def stdin_stream() -> Any:
    """stdin as a binary stream; an empty one if it is closed.

    Who reads it in another thread would report a stream that is open for writing only as no file's.
    """
    import io

    if sys.stdin is None:
        return io.BytesIO()
    try:
        descriptor = sys.stdin.fileno()
    except (OSError, ValueError):  # no file's, as in tests
        return sys.stdin.buffer
    with _stream("input"):
        os.read(descriptor, 0)
    return sys.stdin.buffer


def note_json(value: object) -> None:
    """Print one JSON object to stderr, where stdout holds records."""
    # straight to stderr: a broken line is not JSON
    _tell(_json(value))


def stdin_is_terminal() -> bool:
    """Whether a person may be typing."""
    return sys.stdin is not None and sys.stdin.isatty()


def stdin_is_piped() -> bool:
    """Whether stdin is a pipe, a socket or a file, rather than a terminal or /dev/null."""
    if sys.stdin is None:
        return False
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISREG(mode)


def wait_for_stdin(seconds: float) -> bool:
    """Wait until stdin has something to read, or ends; False if the time is up."""
    if sys.stdin is None:
        return True
    try:
        return bool(select.select([sys.stdin.fileno()], [], [], seconds)[0])
    except (OSError, ValueError):
        return True  # closed, or not a file: reading will tell


def read_stdin() -> bytes:
    """All of stdin; nothing if it is closed."""
    with _stream("input"):
        return b"" if sys.stdin is None else sys.stdin.buffer.read()


def read_line() -> bytes:
    """A line of stdin with its line end; nothing at the end, or if stdin is closed."""
    with _stream("input"):
        return b"" if sys.stdin is None else sys.stdin.buffer.readline()


def prompt_stream() -> TextIO | None:
    """Where a prompt is visible: stderr, so that stdout can be redirected, else stdout."""
    return next((stream for stream in (sys.stderr, sys.stdout) if stream.isatty()), None)
