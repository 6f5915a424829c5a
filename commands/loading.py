"""Load the model of a command."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from .. import console

if TYPE_CHECKING:
    from ..runtime.batch.engine import BatchEngine
    from ..runtime.batch.settings import BatchSettings
    from ..runtime.engine import Engine
    from ..runtime.settings import EngineSettings


def load_engine(path: Path, settings: EngineSettings) -> tuple[Engine, float]:
    """Load a GGUF file; its warnings go to stderr. Returns the engine and the seconds it took."""
    from ..runtime.engine import LlamaEngine

    check_model(path)
    started = time.perf_counter()
    with console.progress_bar("prefetching") if settings.prefetch else nullcontext() as warmed:
        engine = LlamaEngine(path, settings, warmed=warmed)
    console.notes(engine.info.notes)
    return engine, time.perf_counter() - started


def load_batch_engine(path: Path, settings: EngineSettings, batch: BatchSettings) -> BatchEngine:
    """Load a GGUF file for many prompts at once; its warnings go to stderr."""
    from ..runtime.batch.engine import BatchEngine

    check_model(path)
    with console.progress_bar("prefetching") if settings.prefetch else nullcontext() as warmed:
        engine = BatchEngine(path, settings, batch, warmed=warmed)
    console.notes(engine.notes)
    return engine


def check_model(path: Path) -> None:
    """See that a GGUF file is meant.

    Raises:
        SettingsError: it is something that must be converted first.
    """
    from ..models.catalog import find_model
    from ..runtime.errors import SettingsError

    if path.is_dir():
        raise SettingsError(
            f"{path}: a folder; convert it first: infer-os convert {path} -o model.gguf"
        )
    if not path.exists() and find_model(str(path)):
        raise SettingsError(
            f"{path}: no such file; convert the model of that name first: infer-os convert {path}"
        )
