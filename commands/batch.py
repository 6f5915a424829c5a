"""``infer-os batch``."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..models.styles import TEMPLATE
from ..runtime.batch.settings import BatchSettings
from ..runtime.settings import EngineSettings, Extra, SamplingSettings, StopSettings
from ..sizes import size_text
from ..store.wish import ModelWish
from ..terminal import console
from . import loading, options, recording
from .beaming import check_search
from .clusters import cluster_json, cluster_words
from .groups import grouped
from .prompt_cache import PromptCache, with_prompt_cache

if TYPE_CHECKING:
    from ..runtime.batch.batch_engine import BatchEngine
    from ..runtime.batch.ray_backend import RayBatch
    from ..runtime.batch.records import BadRecord, Record, Result
    from ..runtime.batch.running import BatchStatistics


@grouped()
def batch(
    *,
    model: ModelWish,
    input: options.Records = recording.STREAM,
    output: options.Answers = recording.STREAM,
    resume: options.Resume = False,
    force: options.Replace = False,
    ordered: options.Ordered = False,
    batch_settings: BatchSettings,
    prompt_cache: PromptCache = None,
    ray: options.Ray = "",
    stops: StopSettings,
    sampling: SamplingSettings,
    settings: EngineSettings,
    as_json: options.Statistics = False,
) -> None:
    """Answer many prompts at once, each with one line of output.

    An input line is {"id": 1, "prompt": "..."} or {"id": 1, "messages": [...]}. It may also set
    n (samples), max_tokens, stop, and any option below that says how tokens are drawn, such as
    top_k for --top-k.

    Example: infer-os batch model.gguf -i prompts.jsonl -o answers.jsonl --resume
    """  # fmt: skip
    from ..runtime.batch.journal import Journal
    from ..runtime.batch.records import RecordParser
    from ..runtime.batch.stopping import Stop

    recording.check_places(input, output, resume=resume, force=force)
    settings = recording.with_tables(settings, input, output)
    if batch_settings.style in ("", TEMPLATE):  # for conversations; what comes is not known yet
        settings = replace(settings, extras=settings.extras | {Extra.TEMPLATE})
    _check_together(prompt_cache, batch_settings, ray)
    settings = with_prompt_cache(settings, prompt_cache)
    with ExitStack() as stack:
        stop = stack.enter_context(Stop())
        journal = None
        if output != recording.STREAM:  # locked before a pipe is waited for
            journal = stack.enter_context(Journal(output, resume=resume, replace=force))
        values, total = recording.open_input(input, stop, "prompt")
        if journal is not None and journal.is_complete:
            console.note(recording.completeness(output, total))
            return
        engine: BatchEngine | RayBatch
        run: Callable[..., Generator[Result, None, None]]
        if ray:  # all is read before anything runs
            engine = loading.join_cluster(ray, model, settings, batch_settings, (sampling, stops))
            run = engine.run
        else:
            engine = loading.load_batch_engine(model, settings, batch_settings, prompt_cache)
            run = recording.reading_ahead(engine.run, stop)
        stack.enter_context(closing(engine))
        kinds: set[bool] = set()
        if batch_settings.is_search:
            check_search(sampling, stops)
        parser = RecordParser(sampling, stops, tells=bool(batch_settings.logprobs))
        records = recording.parsed(values, parser, journal)
        with recording.saying_how_to_go_on(journal):
            recording.write_results(
                engine, run, _watched(records, kinds), journal, ordered=ordered, total=total
            )
        console.notes(_without_effect(batch_settings, kinds))
        if journal is not None and journal.done:
            console.note(recording.resumed(journal, engine.statistics.records))
        _show(engine, as_json=as_json)
    if engine.statistics.failed:
        raise typer.Exit(1)


def _check_together(path: Path | None, batch: BatchSettings, ray: str) -> None:
    """Refuse options that do not go together."""
    if ray and batch.is_search:
        raise recording.settings_error("--ray and --beams: a beam search runs here; drop one")
    others = {"--beams": batch.is_search, "--ray": bool(ray)}
    for name in others:
        if path is not None and others[name]:
            raise recording.settings_error(f"--prompt-cache and {name}: give one of them")


def _watched(
    records: Iterator[Record | BadRecord], kinds: set[bool]
) -> Iterator[Record | BadRecord]:
    """The same records. ``kinds`` grows: whether they are conversations."""
    from ..runtime.batch.records import BadRecord

    for record in records:
        if not isinstance(record, BadRecord):
            kinds.add(bool(record.messages))
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
            "nodes": cluster_json(cluster),
        })  # fmt: skip
        return
    console.note(
        f"[{now.records} records, {now.failed} failed | {cluster_words(cluster)} | "
        f"prompts {now.prompt_tokens} tokens, {now.counts.shared} of them shared | "
        f"{now.completion_tokens} tokens at {now.tokens_per_s:.1f}/s | {now.seconds:.1f} s]"
    )
