"""Everything that is drawn: answers to stdout; notes, bars and statistics to stderr.

Colours and bars appear only on a terminal. rich is imported when there is something to draw.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol


class Progress(Protocol):
    """Takes what is done and what there is in all."""

    def __call__(self, done: int, total: int) -> None:
        """Show it."""
        ...


def answer(text: str, end: str = "\n") -> None:
    """Print to stdout at once; on a terminal, without characters that would steer it."""
    if sys.stdout.isatty():
        text = "".join(c if c in "\n\t" or c.isprintable() else printable(c) for c in text)
    data = (text + end).encode("utf-8", "replace")
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def answer_json(value: object) -> None:
    """Print one JSON object to stdout; NaN and infinity, which JSON lacks, as null."""
    # straight to stdout: a terminal must get the JSON as it is
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
    sys.stdout.buffer.write(text.encode("utf-8", "replace") + b"\n")
    sys.stdout.buffer.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def note(text: str) -> None:
    """Print a line to stderr."""
    print(text, file=sys.stderr, flush=True)


def notes(texts: Iterable[str]) -> None:
    """Print what the user should know of a run."""
    for text in texts:
        note(f"note: {text}")


def fail(text: str) -> None:
    """Print an error as one line to stderr."""
    note("error: " + printable(text.replace("\n", " ")))


def printable(text: str) -> str:
    """Text that cannot steer a terminal: control characters are spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size(n_bytes: float) -> str:
    """A number of bytes for people: 14.7 MB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.1f} {unit}"
    return f"{n_bytes:.0f} B"


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1, stderr: bool = False
) -> None:
    """Draw a table; the first ``left`` columns are text, the others numbers."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    stream = sys.stderr if stderr else sys.stdout
    # a pipe has no width: the table may take what it needs
    console = Console(file=stream, width=None if stream.isatty() else 500, highlight=False)
    drawn = Table(box=SIMPLE, show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        if i < left:
            drawn.add_column(Text(column), overflow="fold")
        else:  # a number that is broken over two lines cannot be read
            drawn.add_column(Text(column), justify="right", no_wrap=True)
    for row in rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    console.print(drawn)


@contextmanager
def progress_bar(label: str) -> Iterator[Progress | None]:
    """A bar over bytes on stderr; nothing where stderr is no terminal."""
    with progress_steps() as steps:
        yield steps(label)


@contextmanager
def progress_steps() -> Iterator[Callable[[str], Progress | None]]:
    """Bars for steps one after the other: call with a step's name, get where its progress goes."""
    if not sys.stderr.isatty():
        yield lambda label: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:

        def step(label: str) -> Progress:
            task = bars.add_task(label, total=None)

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
    """A bar over records with their rates on stderr; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rates]}"),
               TextColumn("ETA"), TimeRemainingColumn())  # fmt: skip
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=total, rates="")

        def report(records: int, tokens: int, seconds: float) -> None:
            per_s = 1 / seconds if seconds else 0.0
            rates = f"{records * per_s:.1f} records/s  {tokens * per_s:.0f} tokens/s"
            bars.update(task, completed=records, rates=rates)

        yield report


def answer_lines() -> Callable[[bytes], None]:
    """Where lines of bytes go to stdout, each at once."""

    def write(line: bytes) -> None:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()

    return write


def stdin_stream() -> Any:
    """stdin as a binary stream; an empty one if it is closed."""
    import io

    return io.BytesIO() if sys.stdin is None else sys.stdin.buffer


def note_json(value: object) -> None:
    """Print one JSON object to stderr, where stdout holds records."""
    note(json.dumps(_finite(value), ensure_ascii=False, allow_nan=False))


def stdin_is_terminal() -> bool:
    """Whether a person may be typing."""
    return sys.stdin is not None and sys.stdin.isatty()


def read_stdin() -> bytes:
    """All of stdin; nothing if it is closed."""
    return b"" if sys.stdin is None else sys.stdin.buffer.read()


def read_lines(prompt: str) -> Iterator[str | None]:
    """Lines that a person types, with editing and history; None for Ctrl-C.

    Where stdin is no terminal, or no terminal is left to show the prompt on: its lines.
    """
    # the prompt goes to stderr, so that stdout can be redirected
    shown = next((stream for stream in (sys.stderr, sys.stdout) if stream.isatty()), None)
    if not stdin_is_terminal() or shown is None:
        for line in sys.stdin.buffer if sys.stdin is not None else ():
            yield line.decode("utf-8", "replace").rstrip("\n")
        return
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import InMemoryHistory
    from prompt_toolkit.output.vt100 import Vt100_Output

    output = Vt100_Output.from_pty(shown, term=os.environ.get("TERM"))
    # asking the terminal for the cursor's place would keep it raw after Enter until it answers,
    # and a Ctrl-C in that time would be lost
    output.enable_cpr = False
    session: PromptSession[Any] = PromptSession(history=InMemoryHistory(), output=output)
    while True:
        try:
            yield session.prompt(prompt)
        except KeyboardInterrupt:
            yield None
        except EOFError:
            return
