"""Load the model of a command."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

from .. import console
from ..model_store import ModelWish, Reporter, model_file

if TYPE_CHECKING:
    from ..runtime.engine import Engine
    from ..runtime.settings import EngineSettings


def load_engine(model: str | ModelWish, settings: EngineSettings) -> tuple[Engine, float]:
    """Load what the user calls a model, converted into the cache first if need be.

    Its warnings go to stderr. Returns the engine and the seconds that loading took.
    """
    wish = ModelWish(model) if isinstance(model, str) else model
    path = model_file(wish, settings, Reporter(console.note, console.progress_bar))
    from ..runtime.engine import LlamaEngine

    started = time.perf_counter()
    with console.progress_bar("prefetching") if settings.prefetch else nullcontext() as warmed:
        engine = LlamaEngine(path, settings, warmed=warmed)
    console.notes(engine.info.notes)
    return engine, time.perf_counter() - started
