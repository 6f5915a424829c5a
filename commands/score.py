"""``infer-os score``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from ..runtime.scoring.settings import ScoringSettings
from ..runtime.settings import EngineSettings
from ..sizes import size_text
from ..store.wish import ModelWish
from ..terminal import console
from . import loading, options, recording, scoring_options
from .clusters import cluster_json, cluster_words
from .groups import grouped

if TYPE_CHECKING:
    from ..runtime.scoring.ray_scoring import RayScores
    from ..runtime.scoring.scorer import Scorer


@grouped("adapter", "draft", "draft_max")
def score(
    *,
    model: ModelWish,
    input: scoring_options.ScoreRecords = recording.STREAM,
    output: scoring_options.Scores = recording.STREAM,
    resume: options.Resume = False,
    force: options.Replace = False,
    ordered: options.Ordered = False,
    scoring: ScoringSettings,
    ray: options.Ray = "",
    settings: EngineSettings,
    as_json: options.Statistics = False,
) -> None:
    """Compute how likely texts are: one line of log-probabilities for each.

    An input line is {"id": 1, "context": "...", "continuation": "..."}, of which only the
    continuation is scored, or {"id": 1, "text": "..."}. A context that several lines share is
    computed once.

    Example: infer-os score model.gguf -i records.jsonl -o scores.jsonl --resume
    """  # fmt: skip
    from ..runtime.scoring.score_records import SCORES, ScoreParser

    recording.check_places(input, output, resume=resume, force=force)
    settings = recording.with_tables(settings, input, output)
    load: Callable[[], Scorer | RayScores] = (
        partial(loading.join_scoring_cluster, ray, model, settings, scoring)
        if ray
        else partial(loading.load_scorer, model, settings, scoring)
    )
    recording.answer_texts(
        recording.Places(input, output, resume, force), load, ScoreParser(), SCORES,
        partial(_show_statistics, as_json=as_json), ordered=ordered, reads_ahead=not ray,
    )  # fmt: skip


def _show_statistics(scorer: Scorer | RayScores, *, as_json: bool) -> None:
    from ..native.residency import peak_rss_bytes
    from ..runtime.scoring.scorer import Scorer

    if not isinstance(scorer, Scorer):
        _show_cluster(scorer, as_json=as_json)
        return
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


def _show_cluster(cluster: RayScores, *, as_json: bool) -> None:
    now = cluster.statistics
    if as_json:
        console.note_json({
            "records": now.records, "failed": now.failed, "tokens": now.prompt_tokens,
            "shared_tokens": now.counts.shared, "scored_tokens": now.completion_tokens,
            "seconds": now.seconds, "nodes": cluster_json(cluster),
        })  # fmt: skip
        return
    console.note(
        f"[{now.records} records, {now.failed} failed | {cluster_words(cluster)} | "
        f"{now.prompt_tokens} tokens, {now.counts.shared} of them shared | "
        f"{now.completion_tokens} scored | {now.seconds:.1f} s]"
    )
