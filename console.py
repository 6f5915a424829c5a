"""Everything that is drawn: answers to stdout; notes, bars and statistics to stderr.

Colours and bars appear only on a terminal. rich is imported when there is something to draw.
"""

from __future__ import annotations

import json
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
    """Print to stdout at once."""
    data = (text + end).encode("utf-8", "replace")
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def answer_json(value: object) -> None:
    """Print one JSON object to stdout."""
    answer(json.dumps(value, ensure_ascii=False))


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
    # a pipe has no width: let the table take what it needs
    console = Console(file=stream, width=None if stream.isatty() else 160, highlight=False)
    drawn = Table(box=SIMPLE, show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        drawn.add_column(Text(column), justify="left" if i < left else "right", overflow="fold")
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


def stdin_is_terminal() -> bool:
    """Whether a person may be typing."""
    return sys.stdin.isatty()


def read_lines(prompt: str) -> Iterator[str | None]:
    """Lines that a person types, with editing and history; None for Ctrl-C on an empty line.

    Where stdin is no terminal: its lines.
    """
    if not sys.stdin.isatty():
        for line in sys.stdin.buffer:
            yield line.decode("utf-8", "replace").rstrip("\n")
        return
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import InMemoryHistory

    # the prompt goes to stderr, so that stdout can be redirected
    session: PromptSession[Any] = PromptSession(history=InMemoryHistory(), output=_stderr_output())
    while True:
        try:
            yield session.prompt(prompt)
        except KeyboardInterrupt:
            yield None
        except EOFError:
            return


def _stderr_output() -> Any:
    import os

    from prompt_toolkit.output.vt100 import Vt100_Output

    # asking the terminal for the cursor's place would keep it raw after Enter until it answers,
    # and a Ctrl-C in that time would be lost
    output = Vt100_Output.from_pty(sys.stderr, term=os.environ.get("TERM"))
    output.enable_cpr = False
    return output
