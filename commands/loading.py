"""Load the model of a command."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..cache import cache_folder
from ..files import names_something
from ..store.wish import ModelWish
from ..terminal import console

if TYPE_CHECKING:
    from ..runtime.batch.batch_engine import BatchEngine
    from ..runtime.batch.ray_backend import RayBatch
    from ..runtime.batch.settings import BatchSettings
    from ..runtime.interface import Engine
    from ..runtime.scoring.embedder import Embedder
    from ..runtime.scoring.ray_scoring import RayScores
    from ..runtime.scoring.scorer import Scorer
    from ..runtime.scoring.settings import ScoringSettings
    from ..runtime.settings import EngineSettings, SamplingSettings, StopSettings
    from ..store.reporter import Reporter


def load_engine(model: str | ModelWish, settings: EngineSettings) -> tuple[Engine, float]:
    """Load what the user calls a model, converting it into the cache first if need be.

    Its warnings go to stderr. Returns the engine and the seconds that loading took.
    """
    from ..store.opening import find_files, open_file

    report = reporter()
    path, settings = find_files(_wish(model), settings, report)
    started = time.perf_counter()
    engine = open_file(path, settings, report)
    console.notes(engine.info.notes)
    return engine, time.perf_counter() - started


def fetch(model: ModelWish) -> Path:
    """The file of what the user calls a model, converted into the cache first if need be."""
    from ..store.fetch import model_file

    return model_file(model, None, reporter())


def load_batch_engine(
    model: str | ModelWish,
    settings: EngineSettings,
    batch: BatchSettings,
    prompt_cache: Path | None = None,
) -> BatchEngine:
    """Load what the user calls a model for many prompts at once; its warnings go to stderr.

    ``prompt_cache`` is the file of what prompts begin with.
    """
    from ..store.opening import open_batch

    engine = open_batch(_wish(model), settings, batch, reporter())
    if prompt_cache is not None:
        engine.keep_prompt(prompt_cache, cache_folder())
    console.notes(engine.take_notes())
    return engine


def load_scorer(model: ModelWish, settings: EngineSettings, scoring: ScoringSettings) -> Scorer:
    """Load what the user calls a model to score texts; its warnings go to stderr."""
    from ..store.opening import open_scorer

    scorer = open_scorer(model, settings, scoring, reporter())
    console.notes(scorer.take_notes())
    return scorer


def load_embedder(model: str | ModelWish, settings: EngineSettings, pooling: str) -> Embedder:
    """Load what the user calls a model to make vectors; its warnings go to stderr."""
    from ..store.opening import open_embedder

    embedder = open_embedder(_wish(model), settings, pooling, reporter())
    console.notes(embedder.take_notes())
    return embedder


def join_cluster(
    address: str,
    model: ModelWish,
    settings: EngineSettings,
    batch: BatchSettings,
    answers: tuple[SamplingSettings, StopSettings],
) -> RayBatch:
    """A cluster, each node of which loads what the user calls a model from its own files.

    A path is one on this machine, if that file or folder exists here.
    """
    from ..runtime.batch.ray_backend import RayBatch
    from ..store.opening import open_on_node

    opener = partial(open_on_node, *_everywhere(model, settings), batch)
    return RayBatch(address, opener, *answers)


def join_scoring_cluster(
    address: str, model: ModelWish, settings: EngineSettings, scoring: ScoringSettings
) -> RayScores:
    """A cluster that scores, likewise."""
    from ..runtime.scoring.ray_scoring import RayScores
    from ..store.opening import open_scorer_on_node

    opener = partial(open_scorer_on_node, *_everywhere(model, settings), scoring)
    return RayScores(address, opener)


def _everywhere(model: ModelWish, settings: EngineSettings) -> tuple[ModelWish, EngineSettings]:
    """What means the same in any folder: workers have their own."""
    from ..store.lora import absolute_words

    wish = replace(
        model,
        text=_absolute(model.text),
        loras=tuple(map(absolute_words, model.loras)),
        adapters=tuple(map(absolute_words, model.adapters)),
    )
    is_name = settings.draft in ("none", "lookup", "auto")
    return wish, settings if is_name else replace(settings, draft=_absolute(settings.draft))


def _absolute(text: str) -> str:
    return str(Path(text).absolute()) if names_something(text) else text


def _wish(model: str | ModelWish) -> ModelWish:
    return ModelWish(model) if isinstance(model, str) else model


def reporter() -> Reporter:
    """Where the store reports to a person: notes and bars on stderr."""
    from ..store.reporter import Reporter

    return Reporter(console.note, console.progress_bar)
