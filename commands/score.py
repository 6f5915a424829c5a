"""``infer-os score``."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from ..runtime.scoring.settings import ScoringSettings
from ..runtime.settings import EngineSettings
from ..sizes import size_text
from ..store.wish import ModelWish
from ..terminal import console
from . import loading, options, recording, scoring_options
from .groups import grouped

if TYPE_CHECKING:
    from ..runtime.scoring.scorer import Scorer


@grouped("draft", "draft_max")
def score(
    *,
    model: options.Model,
    lora: options.Lora = None,
    input: scoring_options.ScoreRecords = recording.STREAM,
    output: scoring_options.Scores = recording.STREAM,
    resume: options.Resume = False,
    force: options.Replace = False,
    ordered: options.Ordered = False,
    scoring: ScoringSettings,
    settings: EngineSettings,
    as_json: options.Statistics = False,
) -> None:
    """Tell how likely the model finds texts; a line of log-probabilities for each.

    A line of input is {"id": 1, "context": "...", "continuation": "..."}, of which the continuation
    is scored, or {"id": 1, "text": "..."}. Contexts that records have in common are computed once.

    Example: infer-os score model.gguf -i records.jsonl -o scores.jsonl --resume
    """  # fmt: skip
    from ..runtime.batch.journal import Journal
    from ..runtime.batch.stopping import Stop
    from ..runtime.scoring.score_records import SCORES, ScoreParser

    wish = ModelWish(model, loras=tuple(lora or ()))
    recording.check_places(input, output, resume=resume, force=force)
    settings = recording.with_tables(settings, input, output)
    with ExitStack() as stack:
        stop = stack.enter_context(Stop())
        journal = None
        if output != recording.STREAM:  # locked before a pipe is waited for
            journal = stack.enter_context(
                Journal(output, resume=resume, replace=force, form=SCORES)
            )
        values, total = recording.open_input(input, stop, "text")
        if journal is not None and journal.is_complete:
            console.note(recording.completeness(output, total))
            return
        scorer = stack.enter_context(closing(loading.load_scorer(wish, settings, scoring)))
        records = recording.parsed(values, ScoreParser(), journal)
        with recording.saying_how_to_go_on(journal):
            run = recording.reading_ahead(scorer.run, stop)
            recording.write_results(scorer, run, records, journal, ordered=ordered, total=total)
        if journal is not None and journal.done:
            console.note(recording.resumed(journal, scorer.statistics.records))
        _show_statistics(scorer, as_json=as_json)
    if scorer.statistics.failed:
        raise typer.Exit(1)


def _show_statistics(scorer: Scorer, *, as_json: bool) -> None:
    from ..native.residency import peak_rss_bytes

    now = scorer.statistics
    if as_json:
        console.note_json({
            "records": now.records, "failed": now.failed, "tokens": now.prompt_tokens,
            "shared_tokens": now.counts.shared, "scored_tokens": now.completion_tokens,
            "seconds": now.seconds, "tokens_per_s": now.tokens_per_s, "parallel": scorer.n_seq,
            "rows": asdict(now.counts),
            "memory": {"peak_rss_bytes": peak_rss_bytes(), "planned_bytes": scorer.planned_bytes},
        })  # fmt: skip
        return
    console.note(
        f"[{now.records} records, {now.failed} failed | {scorer.n_seq} at once | "
        f"{now.prompt_tokens} tokens, {now.counts.shared} of them shared, at "
        f"{now.tokens_per_s:.0f}/s | {now.completion_tokens} scored | {now.seconds:.1f} s | "
        f"peak RSS {size_text(peak_rss_bytes())} of {size_text(scorer.planned_bytes)} "
        "planned]"
    )
