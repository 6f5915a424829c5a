"""Load the model of a command."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .. import console
from ..model_store import ModelWish, Reporter, model_file

if TYPE_CHECKING:
    from ..runtime.batch.engine import BatchEngine
    from ..runtime.batch.settings import BatchSettings
    from ..runtime.engine import Engine
    from ..runtime.settings import EngineSettings


def load_engine(model: str | ModelWish, settings: EngineSettings) -> tuple[Engine, float]:
    """Load what the user calls a model, converted into the cache first if need be.

    Its warnings go to stderr. Returns the engine and the seconds that loading took.
    """
    wish = ModelWish(model) if isinstance(model, str) else model
    report = Reporter(console.note, console.progress_bar)
    path = model_file(wish, settings, report)
    settings = replace(settings, draft=draft_file(settings, wish, path, report))
    from ..convert.source import cache_folder
    from ..runtime.open import open_engine

    started = time.perf_counter()
    with console.progress_bar("prefetching") if settings.prefetch else nullcontext() as warmed:
        engine = open_engine(path, settings, warmed=warmed, cache=cache_folder())
    console.notes(engine.info.notes)
    return engine, time.perf_counter() - started


def load_batch_engine(
    model: str | ModelWish, settings: EngineSettings, batch: BatchSettings
) -> BatchEngine:
    """Load what the user calls a model for many prompts at once; its warnings go to stderr."""
    from ..runtime.batch.engine import BatchEngine

    wish = ModelWish(model) if isinstance(model, str) else model
    path = model_file(wish, settings, Reporter(console.note, console.progress_bar))
    with console.progress_bar("prefetching") if settings.prefetch else nullcontext() as warmed:
        engine = BatchEngine(path, settings, batch, warmed=warmed)
    console.notes(engine.notes)
    return engine


def draft_file(settings: EngineSettings, wish: ModelWish, model: Path, report: Reporter) -> str:
    """``--draft`` as the engine takes it: ``none``, ``lookup``, or the file of a draft model.

    ``auto`` is the catalog's partner of the model; where there is none, or it is neither in the
    cache nor to be had, a note says so and what the text repeats is all that is looked up.

    Raises:
        SourceError: a draft that was named is not to be found.
    """
    from ..convert.errors import ConvertError
    from ..models.catalog import find_model, model_of
    from ..native.gguf_file import read_gguf_header

    draft = settings.draft
    if draft in ("none", "lookup"):
        return draft
    alone = replace(settings, draft="none")
    if draft != "auto":
        return str(model_file(ModelWish(draft), alone, report))
    known = find_model(wish.text) or model_of(read_gguf_header(model).metadata)
    if known is None or known.draft is None:
        report.note("note: --draft auto: no draft is known for this model; lookup is used")
        return "lookup"
    try:
        return str(model_file(ModelWish(known.draft), alone, report))
    except ConvertError as error:
        report.note(f"note: --draft auto: {error}; lookup is used")
        return "lookup"
