"""``infer-os batch``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..models.styles import TEMPLATE
from ..runtime.batch.settings import BatchSettings
from ..runtime.settings import EngineSettings, Extra, SamplingSettings, StopSettings
from ..sizes import size_text
from ..terminal import console
from . import loading, options
from .groups import grouped

if TYPE_CHECKING:
    from ..runtime.batch.batch_engine import BatchEngine
    from ..runtime.batch.journal import Journal
    from ..runtime.batch.ray_backend import RayBatch
    from ..runtime.batch.records import BadRecord, Record, Result
    from ..runtime.batch.running import BatchStatistics
    from ..runtime.batch.stopping import Stop

_STREAM = Path("-")


@grouped()
def batch(
    *,
    model: options.Model,
    input: options.Records = _STREAM,
    output: options.Answers = _STREAM,
    resume: options.Resume = False,
    force: options.Replace = False,
    ordered: options.Ordered = False,
    batch_settings: BatchSettings,
    ray: options.Ray = "",
    sampling: SamplingSettings,
    stops: StopSettings,
    settings: EngineSettings,
    as_json: options.Statistics = False,
) -> None:
    """Answer many prompts at once, each with one line of output.

    An input line is {"id": 1, "prompt": "..."} or {"id": 1, "messages": [...]}. It may also set
    n (samples), max_tokens, stop, and any option below that says how tokens are drawn, such as
    top_k for --top-k.

    Example: infer-os batch model.gguf -i prompts.jsonl -o answers.jsonl --resume
    """  # fmt: skip
    from ..native.errors import Interrupted
    from ..runtime.batch.journal import Journal, check_results
    from ..runtime.batch.stopping import Stop

    if output == _STREAM:
        if resume or force:
            option = "--resume" if resume else "--force"
            raise _settings_error(f"{option} has no effect without an --output file")
    else:
        check_results(output, resume=resume, force=force, source=input)
    settings = _with_extras(settings, batch_settings, (input, output))
    with ExitStack() as stack:
        stop = stack.enter_context(Stop())
        journal = None
        if output != _STREAM:  # locked before a pipe is waited for
            journal = stack.enter_context(Journal(output, resume=resume, replace=force))
        values, total = _open_input(input, stop)
        if journal is not None and journal.is_complete:
            console.note(_completeness(output, total))
            return
        engine: BatchEngine | RayBatch
        if ray:
            engine = loading.join_cluster(ray, model, settings, batch_settings, (sampling, stops))
        else:
            engine = loading.load_batch_engine(model, settings, batch_settings)
        stack.enter_context(closing(engine))
        kinds: set[bool] = set()
        records = _parsed(values, sampling, stops, journal, kinds)
        if total is not None and journal is not None:
            total = max(0, total - len(journal.done))
        try:
            with console.batch_bar(total) as bar:
                _run(engine, records, stop, journal, ordered=ordered, bar=bar)
        except (Interrupted, KeyboardInterrupt, SystemExit) as end:
            if journal is not None:
                console.note(f"interrupted; --resume continues {output}")
            if isinstance(end, SystemExit):
                raise
            raise typer.Exit(130) from None
        console.notes(_without_effect(batch_settings, kinds))
        if journal is not None and journal.done:
            console.note(_resumed(journal, engine.statistics.records))
        _show(engine, as_json=as_json)
    if engine.statistics.failed:
        raise typer.Exit(1)


def _with_extras(
    settings: EngineSettings, batch: BatchSettings, files: tuple[Path, Path]
) -> EngineSettings:
    """The settings, with what else the run does, which its plan counts."""
    extras = set(settings.extras)
    if ".parquet" in [path.suffix.lower() for path in files]:
        extras.add(Extra.PARQUET)
    if batch.style in ("", TEMPLATE):  # for conversations, which may come
        extras.add(Extra.TEMPLATE)
    return replace(settings, extras=frozenset(extras))


def _settings_error(text: str) -> Exception:
    from ..runtime.errors import SettingsError

    return SettingsError(text)


def _open_input(path: Path, stop: Stop) -> tuple[Iterator[Any], int | None]:
    from ..runtime.batch.reading import count_records, read_pipe, read_values

    if path == _STREAM:
        if console.stdin_is_terminal():
            raise _settings_error("no records: give --input FILE, or pipe them in")
        return read_pipe(console.stdin_stream(), stop), None
    return read_values(path, stop), count_records(path)


def _completeness(output: Path, total: int | None) -> str:
    """The note about a table that an earlier run finished.

    Raises:
        SettingsError: there are records that it cannot have answered.
    """
    from ..runtime.batch.journal import table_rows

    rows = table_rows(output)
    if rows is not None and total is not None and total > rows:
        raise _settings_error(
            f"{output}: has {rows} answers and is finished, but the input has {total} records; a "
            "table cannot be continued: give another --output, or --force"
        )
    answers = "" if rows is None else f" with {rows} answers"
    return f"note: {output}: already complete{answers}; nothing is computed, whatever the options"


def _resumed(journal: Journal, n_records: int) -> str:
    """The note about answers of an earlier run, perhaps made with other options."""
    kept = f"{len(journal.done)} answers of an earlier run are kept as they are"
    if n_records:
        return f"note: {journal.path}: {kept}, whatever the options were"
    return (
        f"note: {journal.path}: already complete; {kept} and nothing was computed, whatever the "
        "options; --force answers everything again"
    )


def _parsed(
    values: Iterator[Any],
    sampling: SamplingSettings,
    stops: StopSettings,
    journal: Journal | None,
    kinds: set[bool],
) -> Iterator[Record | BadRecord]:
    """The records to answer. ``kinds`` collects whether they are conversations."""
    from ..runtime.batch.records import BadRecord, RecordParser

    parser = RecordParser(sampling, stops)
    done = journal.done if journal else set()
    for value in values:
        record = value if isinstance(value, BadRecord) else parser.parse(*value)
        if not isinstance(record, BadRecord):
            kinds.add(bool(record.messages))
        # answered by an earlier run; the parser must still see it, for its id
        if (None, record.line) not in done:
            yield record


def _without_effect(batch: BatchSettings, kinds: set[bool]) -> list[str]:
    """Notes on options for a kind of record that did not occur."""
    notes = []
    if kinds == {False}:
        given = {"--system": batch.system, "--style": batch.style}
        notes += [f"{name} had no effect: no record has messages" for name in given if given[name]]
    if kinds == {True} and batch.prefix:
        notes.append("--prefix had no effect: every record has messages")
    return notes


def _run(
    engine: BatchEngine | RayBatch,
    records: Iterator[Record | BadRecord],
    stop: Stop,
    journal: Journal | None,
    *,
    ordered: bool,
    bar: console.BatchProgress | None,
) -> None:
    from ..runtime.batch.batch_engine import BatchEngine
    from ..runtime.batch.feeding import ReadAhead
    from ..runtime.batch.journal import line_of
    from ..runtime.batch.order import InputOrder

    done = frozenset(
        (identity, index)
        for identity, index in (journal.done if journal else ())
        if identity is not None
    )
    order = InputOrder() if ordered else None
    if order is not None:
        records = order.watch(records, done)
    write: Callable[[Result], None]
    if journal is not None:
        write = journal.write
    else:
        to_stdout = console.answer_lines()
        write = lambda result: to_stdout(line_of(result))  # noqa: E731
    with ExitStack() as stack:
        if isinstance(engine, BatchEngine):
            reader = stack.enter_context(ReadAhead(records, stop))
            running = engine.run(reader, done)
        else:  # all is read before anything runs
            running = engine.run(records, done)
        stack.enter_context(closing(running))
        for result in order.arrange(running) if order is not None else running:
            console.notes(engine.take_notes())
            write(result)
            if bar is not None:
                now = engine.statistics
                bar(now.records, now.completion_tokens, now.seconds)
    if journal is not None:
        journal.finish()


def _show(engine: BatchEngine | RayBatch, *, as_json: bool) -> None:
    from ..runtime.batch.batch_engine import BatchEngine

    if isinstance(engine, BatchEngine):
        _show_statistics(engine, engine.statistics, as_json=as_json)
    else:
        _show_cluster(engine, engine.statistics, as_json=as_json)


def _show_statistics(engine: BatchEngine, now: BatchStatistics, *, as_json: bool) -> None:
    from ..native.residency import peak_rss_bytes

    drafted, accepted = engine.guesses.counts if engine.guesses is not None else (0, 0)
    if as_json:
        console.note_json({
            "records": now.records, "failed": now.failed, "prompt_tokens": now.prompt_tokens,
            "shared_tokens": now.counts.shared, "completion_tokens": now.completion_tokens,
            "seconds": now.seconds, "tokens_per_s": now.tokens_per_s, "parallel": engine.n_seq,
            "rows": asdict(now.counts),
            "speculative": {"drafted": drafted, "accepted": accepted},
            "curve": [asdict(point) for point in engine.curve],
            "memory": {"peak_rss_bytes": peak_rss_bytes(), "planned_bytes": engine.planned_bytes},
        })  # fmt: skip
        return
    guessed = f", {accepted} of {drafted} guesses right" if engine.guesses is not None else ""
    console.note(
        f"[{now.records} records, {now.failed} failed | {engine.n_seq} at once | prompts "
        f"{now.prompt_tokens} tokens, {now.counts.shared} of them shared | "
        f"{now.completion_tokens} tokens at {now.tokens_per_s:.1f}/s{guessed} | "
        f"{now.seconds:.1f} s | peak RSS {size_text(peak_rss_bytes())} of "
        f"{size_text(engine.planned_bytes)} planned]"
    )


def _show_cluster(cluster: RayBatch, now: BatchStatistics, *, as_json: bool) -> None:
    if as_json:
        console.note_json({
            "records": now.records, "failed": now.failed, "prompt_tokens": now.prompt_tokens,
            "shared_tokens": now.counts.shared, "completion_tokens": now.completion_tokens,
            "seconds": now.seconds, "tokens_per_s": now.tokens_per_s,
            "nodes": [
                {"node": n.node, "parallel": n.parallel, "memory": {
                    "peak_rss_bytes": n.peak_rss_bytes, "planned_bytes": n.planned_bytes,
                }}
                for n in cluster.nodes.values()
            ],
        })  # fmt: skip
        return
    parallel = "+".join(str(node.parallel) for node in cluster.nodes.values())
    console.note(
        f"[{now.records} records, {now.failed} failed | {len(cluster.nodes)} of "
        f"{cluster.n_nodes} nodes, {parallel or 0} at once | prompts {now.prompt_tokens} tokens, "
        f"{now.counts.shared} of them shared | {now.completion_tokens} tokens at "
        f"{now.tokens_per_s:.1f}/s | {now.seconds:.1f} s]"
    )
