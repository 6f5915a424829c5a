"""Load the model of a command."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from .. import console

if TYPE_CHECKING:
    from ..runtime.engine import Engine
    from ..runtime.settings import EngineSettings


def load_engine(path: Path, settings: EngineSettings) -> tuple[Engine, float]:
    """Load a GGUF file; its warnings go to stderr. Returns the engine and the seconds it took."""
    from ..convert.source import cache_folder
    from ..models.catalog import find_model
    from ..runtime.errors import SettingsError
    from ..runtime.open import open_engine

    if path.is_dir():
        raise SettingsError(
            f"{path}: a folder; convert it first: infer-os convert {path} -o model.gguf"
        )
    if not path.exists() and find_model(str(path)):
        raise SettingsError(
            f"{path}: no such file; convert the model of that name first: infer-os convert {path}"
        )
    started = time.perf_counter()
    with console.progress_bar("prefetching") if settings.prefetch else nullcontext() as warmed:
        engine = open_engine(path, settings, warmed=warmed, cache=cache_folder())
    console.notes(engine.info.notes)
    return engine, time.perf_counter() - started
