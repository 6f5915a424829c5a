"""From what a user calls a model to an engine that runs it.

Goes in: a wish, settings, and where to report progress. Comes out: a loaded engine. The command
line, the Python API and the nodes of a cluster load through here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .fetch import model_file
from .reporter import Reporter
from .resolve import first_work
from .wish import ModelWish

if TYPE_CHECKING:
    from ..runtime.batch.batch_engine import BatchEngine
    from ..runtime.batch.settings import BatchSettings
    from ..runtime.engine import LlamaEngine
    from ..runtime.scoring.embedder import Embedder
    from ..runtime.scoring.scorer import Scorer
    from ..runtime.scoring.settings import ScoringSettings
    from ..runtime.settings import EngineSettings, Extra

_logger = logging.getLogger("infer_os")


def find_files(
    wish: ModelWish, settings: EngineSettings, report: Reporter
) -> tuple[Path, EngineSettings]:
    """The file of a model, and the settings with those of its draft and its adapters.

    All of them are converted first if need be.

    Raises:
        As :func:`~infer_os.store.fetch.model_file` and
        :func:`~infer_os.store.runtime_adapters.adapter_files`.
    """
    if wish.adapters:
        from .runtime_adapters import adapter_files, named

        named(wish.adapters)  # what is wrong with them is said before a model is fetched
    work = first_work(wish.text, wish.type, wish.loras)
    path = model_file(wish, settings, report)
    draft, more = draft_file(settings, wish, path, report)
    if wish.adapters:
        settings = replace(settings, adapters=adapter_files(wish.adapters, path, report))
    return path, replace(settings, draft=draft, extras=settings.extras | work | more)


def open_file(path: Path, settings: EngineSettings, report: Reporter) -> LlamaEngine:
    """Load a GGUF file for one sequence; both arguments are as :func:`find_files` gives them.

    Raises:
        As :func:`~infer_os.runtime.open.open_engine`.
    """
    from ..cache import cache_folder
    from ..runtime.open import open_engine

    with _prefetching(settings, report) as warmed:
        return open_engine(path, settings, warmed=warmed, cache=cache_folder())


def _prefetching(
    settings: EngineSettings, report: Reporter
) -> AbstractContextManager[Callable[[int, int], None] | None]:
    """A bar while a model's file is read ahead, if the settings ask for that."""
    return report.bar("prefetching") if settings.prefetch else nullcontext()


def open_batch(
    wish: ModelWish, settings: EngineSettings, batch: BatchSettings, report: Reporter
) -> BatchEngine:
    """Load a model for many sequences, converted into the cache first if need be.

    Raises:
        As :func:`~infer_os.store.fetch.model_file`, and BatchEngine.
    """
    path, settings = find_files(wish, settings, report)
    from ..runtime.batch.batch_engine import BatchEngine

    with _prefetching(settings, report) as warmed:
        return BatchEngine(path, settings, batch, warmed=warmed)


def open_scorer(
    wish: ModelWish, settings: EngineSettings, scoring: ScoringSettings, report: Reporter
) -> Scorer:
    """Load a model that scores texts, converted into the cache first if need be.

    Raises:
        As :func:`~infer_os.store.fetch.model_file`, and Scorer.
    """
    path, settings = find_files(wish, settings, report)
    from ..runtime.scoring.scorer import Scorer

    with _prefetching(settings, report) as warmed:
        return Scorer(path, settings, scoring, warmed=warmed)


def open_embedder(
    wish: ModelWish, settings: EngineSettings, pooling: str, report: Reporter
) -> Embedder:
    """Load a model that makes vectors of texts, converted into the cache first if need be.

    Raises:
        As :func:`~infer_os.store.fetch.model_file`, and Embedder.
    """
    path, settings = find_files(wish, settings, report)
    from ..runtime.scoring.embedder import Embedder

    with _prefetching(settings, report) as warmed:
        return Embedder(path, settings, pooling, warmed=warmed)


def batch_in_place(
    engine: LlamaEngine, settings: EngineSettings, batch: BatchSettings
) -> BatchEngine:
    """A batch on the weights that an engine has loaded, in the memory that they may use."""
    from ..runtime.batch.batch_engine import BatchEngine

    alone = _alone(engine, settings)
    return BatchEngine(engine.info.path, alone, batch, model=engine.model)


def scorer_in_place(
    engine: LlamaEngine, settings: EngineSettings, scoring: ScoringSettings
) -> Scorer:
    """What scores texts, likewise."""
    from ..runtime.scoring.scorer import Scorer

    alone = replace(_alone(engine, settings), draft="none")
    return Scorer(engine.info.path, alone, scoring, model=engine.model)


def embedder_in_place(engine: LlamaEngine, settings: EngineSettings, pooling: str) -> Embedder:
    """What makes vectors of texts, likewise."""
    from ..runtime.scoring.embedder import Embedder

    alone = replace(_alone(engine, settings), draft="none")
    return Embedder(engine.info.path, alone, pooling, model=engine.model)


def _alone(engine: LlamaEngine, settings: EngineSettings) -> EngineSettings:
    """Settings for a context that takes the place of an engine's, which is freed."""
    from ..runtime.plan.machine import read_memory

    engine.release()
    plan = engine.info.plan
    assert plan is not None
    # pages of a mapped file count as available; copies and locked pages do not
    private = 0 if settings.load == "mmap" else plan.weights.n_bytes
    limit = (settings.memory or read_memory().usable + private) - plan.draft
    return replace(settings, memory=max(1, limit), prefetch=False)


def open_on_node(wish: ModelWish, settings: EngineSettings, batch: BatchSettings) -> BatchEngine:
    """:func:`open_batch` on a node of a cluster, where events only go to a log.

    ``settings.memory`` is what the node's worker may take, Ray's own libraries included.
    """
    return open_batch(wish, _on_node(settings), batch, _log())


def open_scorer_on_node(
    wish: ModelWish, settings: EngineSettings, scoring: ScoringSettings
) -> Scorer:
    """:func:`open_scorer` likewise."""
    return open_scorer(wish, _on_node(settings), scoring, _log())


def _on_node(settings: EngineSettings) -> EngineSettings:
    """The settings without what Ray's own libraries take of the memory."""
    from ..runtime.batch.ray_backend import overhead_bytes

    if not settings.memory:
        return settings
    return replace(settings, memory=max(1, settings.memory - overhead_bytes()))


def _log() -> Reporter:
    return Reporter(_logger.info, lambda label: nullcontext())


def draft_file(
    settings: EngineSettings, wish: ModelWish, model: Path, report: Reporter
) -> tuple[str, frozenset[Extra]]:
    """``--draft`` as the engine takes it: ``none``, ``lookup``, or the file of a draft model.

    Also returns what making that file did.

    ``auto`` is the model's partner in the catalog; if it has none, or it is neither cached nor
    downloadable, a note says so and only prompt lookup is used.

    Raises:
        SourceError: a named draft cannot be found.
    """
    from ..convert.errors import ConvertError
    from ..models.catalog import find_model, model_of
    from ..native.graph_check import read_model_header

    draft = settings.draft
    if draft in ("none", "lookup"):
        return draft, frozenset()
    alone = replace(settings, draft="none")
    if draft != "auto":
        work = first_work(draft)
        return str(model_file(ModelWish(draft), alone, report)), work
    known = find_model(wish.text) or model_of(read_model_header(model).metadata)
    if known is None or known.draft is None:
        report.note("note: --draft auto: no draft is known for this model; lookup is used")
        return "lookup", frozenset()
    try:
        work = first_work(known.draft)
        return str(model_file(ModelWish(known.draft), alone, report)), work
    except ConvertError as error:
        report.note(f"note: --draft auto: {error}; lookup is used")
        return "lookup", frozenset()
