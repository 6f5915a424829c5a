"""``infer-os demo``."""

from __future__ import annotations

from pathlib import Path

from . import options
from .typed_numbers import count_option


def demo(
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Convert the bundled model to Q8_0 and Q4_0, and compare them.

    Each file writes a text.
    """
    import tempfile

    from ..files import working_folder
    from ..runtime.settings import EngineSettings
    from ..terminal.demo import run_demo

    n_threads = EngineSettings(threads=count_option("threads", threads)).threads
    with working_folder(Path(tempfile.gettempdir(), "infer-os-demo")) as folder:
        run_demo(folder, n_threads, as_json=as_json)
