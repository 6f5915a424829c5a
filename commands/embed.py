"""``infer-os embed``."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..runtime.settings import EngineSettings
from ..sizes import size_text
from ..terminal import console
from . import loading, options, recording
from .groups import grouped

if TYPE_CHECKING:
    from ..runtime.scoring.embedder import Embedder

_Texts = Annotated[
    Path,
    typer.Option(
        "-i", "--input", metavar="FILE",
        help="Texts: .jsonl, .csv, .parquet, or .txt with a text a line; - is stdin.",
    ),
]  # fmt: skip
_Vectors = Annotated[
    Path,
    typer.Option(
        "-o", "--output", metavar="FILE",
        help="Vectors: .jsonl, .csv or .parquet; - is stdout, as JSON lines.",
    ),
]  # fmt: skip
_Pooling = Annotated[
    str,
    typer.Option(
        "--pooling", metavar="mean|last", help="The mean of a text's tokens, or its last token."
    ),
]


@grouped("draft", "draft_max")
def embed(
    *,
    model: options.Model,
    input: _Texts = recording.STREAM,
    output: _Vectors = recording.STREAM,
    pooling: _Pooling = "mean",
    resume: options.Resume = False,
    force: options.Replace = False,
    settings: EngineSettings,
    as_json: options.Statistics = False,
) -> None:
    """Make a vector of length 1 of each text, from the model's last layer.

    A line of input is {"id": 1, "text": "..."}.

    Example: infer-os embed model.gguf -i texts.jsonl -o vectors.jsonl
    """  # fmt: skip
    from ..runtime.batch.journal import Journal
    from ..runtime.batch.stopping import Stop
    from ..runtime.scoring.embedder import EMBEDDINGS, EmbedParser

    recording.check_places(input, output, resume=resume, force=force)
    settings = recording.with_tables(settings, input, output)
    with ExitStack() as stack:
        stop = stack.enter_context(Stop())
        journal = None
        if output != recording.STREAM:  # locked before a pipe is waited for
            journal = stack.enter_context(
                Journal(output, resume=resume, replace=force, form=EMBEDDINGS)
            )
        values, total = recording.open_input(input, stop, "text")
        if journal is not None and journal.is_complete:
            console.note(recording.completeness(output, total))
            return
        embedder = stack.enter_context(closing(loading.load_embedder(model, settings, pooling)))
        records = recording.parsed(values, EmbedParser(), journal)
        with recording.saying_how_to_go_on(journal):
            run = recording.reading_ahead(embedder.run, stop)
            recording.write_results(embedder, run, records, journal, ordered=False, total=total)
        if journal is not None and journal.done:
            console.note(recording.resumed(journal, embedder.statistics.records))
        _show_statistics(embedder, as_json=as_json)
    if embedder.statistics.failed:
        raise typer.Exit(1)


def _show_statistics(embedder: Embedder, *, as_json: bool) -> None:
    from ..native.residency import peak_rss_bytes

    now = embedder.statistics
    if as_json:
        console.note_json({
            "records": now.records, "failed": now.failed, "tokens": now.completion_tokens,
            "seconds": now.seconds,
            "memory": {
                "peak_rss_bytes": peak_rss_bytes(), "planned_bytes": embedder.planned_bytes,
            },
        })  # fmt: skip
        return
    console.note(
        f"[{now.records} records, {now.failed} failed | {now.completion_tokens} tokens in "
        f"{now.seconds:.1f} s | peak RSS {size_text(peak_rss_bytes())} of "
        f"{size_text(embedder.planned_bytes)} planned]"
    )
