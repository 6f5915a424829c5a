"""``--beams``: the likeliest text instead of a drawn one."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING

import typer

from ..runtime.batch.settings import BatchSettings
from ..runtime.settings import EngineSettings, SamplingSettings, StopSettings
from ..sizes import size_text
from ..store.wish import ModelWish
from ..terminal import console
from . import loading

if TYPE_CHECKING:
    from ..runtime.batch.batch_engine import BatchEngine
    from ..runtime.batch.records import Result


def answer_by_beams(
    model: ModelWish,
    prompt: str | bytes,
    beams: int,
    sampling: SamplingSettings,
    stops: StopSettings,
    settings: EngineSettings,
    *,
    as_json: bool,
) -> None:
    """Write the likeliest continuation of a prompt, once it is found.

    Raises:
        SettingsError: an option that a search has no use for.
        PromptError: the prompt is empty or too long.
    """
    from ..native.errors import Interrupted
    from ..runtime.batch.records import Record
    from ..runtime.prompt import tokenize

    batch = BatchSettings(beams=beams)
    check_search(sampling, stops)
    with closing(loading.load_batch_engine(model, settings, batch)) as engine:
        tokens = tuple(tokenize(engine.vocab, prompt, engine.n_ctx))
        started = time.perf_counter()
        try:
            (result,) = engine.run([Record("prompt", 1, sampling, stops, tokens)])
        except (Interrupted, KeyboardInterrupt):
            raise typer.Exit(130) from None
        _show(engine, result, len(tokens), time.perf_counter() - started, as_json=as_json)


def check_search(sampling: SamplingSettings, stops: StopSettings) -> None:
    """See that a search has a use for every option.

    Raises:
        SettingsError: it has none for these, by name.
    """
    from ..runtime.batch.beam_run import drawing_settings
    from ..runtime.errors import SettingsError

    given = [f"--{name.replace('_', '-')}" for name in drawing_settings(sampling)]
    given += ["--stop"] if stops.strings else []
    if given:
        raise SettingsError(
            f"{', '.join(given)} with --beams: a beam search takes the likeliest text; drop one"
        )


def _show(
    engine: BatchEngine, result: Result, n_prompt: int, seconds: float, *, as_json: bool
) -> None:
    from ..native.residency import peak_rss_bytes
    from ..runtime.errors import PromptError

    if result.error is not None:
        raise PromptError(result.error)
    if as_json:
        console.answer_json({
            "text": result.text, "tokens": list(result.tokens),
            "finish_reason": result.finish_reason, "prompt_tokens": n_prompt,
            "completion_tokens": len(result.tokens), "seconds": seconds,
            "memory": {"peak_rss_bytes": peak_rss_bytes(), "planned_bytes": engine.planned_bytes},
        })  # fmt: skip
        return
    console.answer(result.text)
    console.note(
        f"[prompt {n_prompt} tokens | {len(result.tokens)} tokens of the likeliest text in "
        f"{seconds:.2f} s | peak RSS {size_text(peak_rss_bytes())} of "
        f"{size_text(engine.planned_bytes)} planned | {result.finish_reason}]"
    )
