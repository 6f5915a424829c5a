"""``infer-os embed``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..runtime.settings import EngineSettings
from ..sizes import size_text
from ..store.wish import ModelWish
from ..terminal import console
from . import loading, options, recording
from .groups import grouped

if TYPE_CHECKING:
    from ..runtime.scoring.embedder import Embedder

_Texts = Annotated[
    Path,
    typer.Option(
        "-i", "--input", metavar="FILE",
        help="Texts: .jsonl, .csv, .parquet, or .txt with one text per line; - is stdin.",
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
        "--pooling", metavar="mean|last", help="Average over a text's tokens, or take its last one."
    ),
]


@grouped("adapter", "draft", "draft_max")
def embed(
    *,
    model: ModelWish,
    input: _Texts = recording.STREAM,
    output: _Vectors = recording.STREAM,
    pooling: _Pooling = "mean",
    resume: options.Resume = False,
    force: options.Replace = False,
    settings: EngineSettings,
    as_json: options.Statistics = False,
) -> None:
    """Turn each text into a vector (an embedding), taken from the model's last layer.

    Vectors have length 1. An input line is {"id": 1, "text": "..."}.

    Example: infer-os embed model.gguf -i texts.jsonl -o vectors.jsonl
    """  # fmt: skip
    from ..runtime.scoring.embedder import EMBEDDINGS, EmbedParser

    recording.check_places(input, output, resume=resume, force=force)
    settings = recording.with_tables(settings, input, output)
    recording.answer_texts(
        recording.Places(input, output, resume, force),
        lambda: loading.load_embedder(model, settings, pooling),
        EmbedParser(), EMBEDDINGS, partial(_show_statistics, as_json=as_json),
    )  # fmt: skip


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
