"""What ``batch`` and ``score`` share: records in, a line for each out, and a run that goes on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import typer

from ..runtime.settings import EngineSettings, Extra
from ..terminal import console

if TYPE_CHECKING:
    from ..runtime.batch.feeding import Held, Source
    from ..runtime.batch.journal import Journal, Line, LineForm
    from ..runtime.batch.order import Sampled
    from ..runtime.batch.records import BadRecord, ValueParser
    from ..runtime.batch.stopping import Stop

#: stdin, or stdout.
STREAM = Path("-")

Asked = TypeVar("Asked", bound="Sampled")
Item = TypeVar("Item", bound="Held")
Told = TypeVar("Told", bound="Line")
#: Samples that an earlier run has answered.
Done = frozenset[tuple["str | int", int]]


class Statistics(Protocol):
    """What an engine has done so far."""

    @property
    def records(self) -> int:
        """Records that were finished."""
        ...

    @property
    def failed(self) -> int:
        """Records that got an error."""
        ...

    @property
    def completion_tokens(self) -> int:
        """Tokens that were drawn, or scored."""
        ...

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        ...


class Answering(Protocol):
    """An engine that gives records their results."""

    @property
    def statistics(self) -> Statistics:
        """Of the run."""
        ...

    def take_notes(self) -> tuple[str, ...]:
        """What a user should know, and has not seen yet."""
        ...


class Reading(Answering, Protocol):
    """An engine that answers texts as they are read, and is closed at the end."""

    def run(self, records: Any, done: Any) -> Generator[Any, None, None]:
        """Results of records, but for those that are done."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


def check_places(input: Path, output: Path, *, resume: bool, force: bool) -> None:
    """See that an output may be written, before anything is loaded.

    Raises:
        SettingsError: it may not, or an option has no effect.
    """
    from ..runtime.batch.journal import check_results

    if output != STREAM:
        check_results(output, resume=resume, force=force, source=input)
    elif resume or force:
        option = "--resume" if resume else "--force"
        raise settings_error(f"{option} has no effect without an --output file")


def with_tables(settings: EngineSettings, *files: Path) -> EngineSettings:
    """The settings, with what reading or writing such files adds to the plan.

    Raises:
        SettingsError: a file is Parquet, and pyarrow is not installed.
    """
    tables = [path for path in files if path.suffix.lower() == ".parquet"]
    if not tables:
        return settings
    from ..runtime.batch.reading import parquet_module

    parquet_module(tables[0])  # the plan counts the pages that it has mapped
    return replace(settings, extras=settings.extras | {Extra.PARQUET})


def settings_error(text: str) -> Exception:
    """A user's error, of a module that is imported when one is needed."""
    from ..runtime.errors import SettingsError

    return SettingsError(text)


def open_input(path: Path, stop: Stop, plain: str) -> tuple[Iterator[Any], int | None]:
    """The values of an input, and how many there are if that is known.

    Args:
        path: a file, or stdin.
        stop: ends reads that wait.
        plain: what a plain line is of its record.

    Raises:
        SettingsError: it cannot be read.
    """
    from ..runtime.batch.reading import count_records, read_pipe, read_values

    if path == STREAM:
        if console.stdin_is_terminal():
            raise settings_error("no records: give --input FILE, or pipe them in")
        return read_pipe(console.stdin_stream(), stop, plain=plain), None
    return read_values(path, stop, plain=plain), count_records(path)


def completeness(output: Path, total: int | None) -> str:
    """The note about a table that an earlier run finished.

    Raises:
        SettingsError: there are records that it cannot have answered.
    """
    from ..runtime.batch.journal import table_rows

    rows = table_rows(output)
    if rows is not None and total is not None and total > rows:
        raise settings_error(
            f"{output}: has {rows} answers and is finished, but the input has {total} records; a "
            "table cannot be continued: give another --output, or --force"
        )
    answers = "" if rows is None else f" with {rows} answers"
    return f"note: {output}: already complete{answers}; nothing is computed, whatever the options"


def resumed(journal: Journal, n_records: int) -> str:
    """The note about answers of an earlier run, perhaps made with other options."""
    kept = f"{len(journal.done)} answers of an earlier run are kept as they are"
    if n_records:
        return f"note: {journal.path}: {kept}, whatever the options were"
    return (
        f"note: {journal.path}: already complete; {kept} and nothing was computed, whatever the "
        "options; --force answers everything again"
    )


def parsed(
    values: Iterator[Any], parser: ValueParser[Asked], journal: Journal | None
) -> Iterator[Asked | BadRecord]:
    """The records that are to be answered."""
    from ..runtime.batch.records import BadRecord

    done = journal.done if journal else set()
    for value in values:
        record = value if isinstance(value, BadRecord) else parser.parse(*value)
        # answered by an earlier run; the parser must still see it, for its id
        if (None, record.line) not in done:
            yield record


@contextmanager
def saying_how_to_go_on(journal: Journal | None) -> Iterator[None]:
    """Where a run is interrupted, say what continues it."""
    from ..native.errors import Interrupted

    try:
        yield
    except (Interrupted, KeyboardInterrupt, SystemExit) as end:
        if journal is not None:
            console.note(f"interrupted; --resume continues {journal.path}")
        if isinstance(end, SystemExit):
            raise
        raise typer.Exit(130) from None


def reading_ahead(
    run: Callable[[Source[Item], Done], Generator[Told, None, None]], stop: Stop
) -> Callable[[Iterator[Item], Done], Generator[Told, None, None]]:
    """An engine's ``run``, over records that a thread reads; ``stop`` ends a read that waits."""

    def start(records: Iterator[Item], done: Done) -> Generator[Told, None, None]:
        from ..runtime.batch.feeding import ReadAhead

        with ReadAhead(records, stop) as reader, closing(run(reader, done)) as running:
            yield from running

    return start


def write_results(
    engine: Answering,
    run: Callable[[Iterator[Asked | BadRecord], Done], Generator[Told, None, None]],
    records: Iterator[Asked | BadRecord],
    journal: Journal | None,
    *,
    ordered: bool,
    total: int | None,
) -> None:
    """Run an engine over records and write each result as it comes, under a bar.

    Args:
        engine: says how far it is, and what a user should know.
        run: its results of records, but for samples that are done.
        records: as they come.
        journal: where results go; None for stdout.
        ordered: in the order of the records.
        total: how many records there are, for the bar.
    """
    from ..runtime.batch.journal import line_of
    from ..runtime.batch.order import InputOrder

    done = frozenset(
        (identity, index)
        for identity, index in (journal.done if journal else ())
        if identity is not None
    )
    if total is not None and journal is not None:
        total = max(0, total - len(journal.done))
    order = InputOrder[Told]() if ordered else None
    if order is not None:
        records = order.watch(records, done)
    write: Callable[[Told], None]
    if journal is not None:
        write = journal.write
    else:
        to_stdout = console.answer_lines()
        write = lambda result: to_stdout(line_of(result))  # noqa: E731
    with console.batch_bar(total) as bar, closing(run(records, done)) as running:
        results: Iterator[Told] = order.arrange(running) if order is not None else running
        for result in results:
            console.notes(engine.take_notes())
            write(result)
            if bar is not None:
                now = engine.statistics
                bar(now.records, now.completion_tokens, now.seconds)
    console.notes(engine.take_notes())
    if journal is not None:
        journal.finish()


@dataclass(frozen=True, slots=True)
class Places:
    """Where records come from and results go, and what becomes of results that are there."""

    input: Path
    output: Path
    resume: bool
    force: bool


def answer_texts(
    places: Places,
    load: Callable[[], Reading],
    parser: ValueParser[Any],
    form: LineForm,
    show: Callable[[Any], None],
    *,
    ordered: bool = False,
    reads_ahead: bool = True,
) -> None:
    """A whole command that gives each text of a file its result.

    Args:
        places: checked, see :func:`check_places`.
        load: makes the engine, once it is known that there is something to do.
        parser: of the input's values.
        form: of the output's lines.
        show: tells the engine's statistics at the end.
        ordered: results in the order of the records.
        reads_ahead: a thread reads while the engine computes; else the engine reads all first.

    Raises:
        typer.Exit: with 1, if a record failed.
    """
    from ..runtime.batch.journal import Journal
    from ..runtime.batch.stopping import Stop

    with ExitStack() as stack:
        stop = stack.enter_context(Stop())
        journal = None
        if places.output != STREAM:  # locked before a pipe is waited for
            journal = stack.enter_context(
                Journal(places.output, resume=places.resume, replace=places.force, form=form)
            )
        values, total = open_input(places.input, stop, "text")
        if journal is not None and journal.is_complete:
            console.note(completeness(places.output, total))
            return
        engine = stack.enter_context(closing(load()))
        records = parsed(values, parser, journal)
        with saying_how_to_go_on(journal):
            run = reading_ahead(engine.run, stop) if reads_ahead else engine.run
            write_results(engine, run, records, journal, ordered=ordered, total=total)
        if journal is not None and journal.done:
            console.note(resumed(journal, engine.statistics.records))
        show(engine)
    if engine.statistics.failed:
        raise typer.Exit(1)
