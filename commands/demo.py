"""``infer-os demo``."""

from __future__ import annotations

from pathlib import Path

from . import options


def demo(
    threads: options.Threads = 0,
    as_json: options.Json = False,
) -> None:
    """Convert the bundled model to Q8_0 and Q4_0, write a text with each, compare the two."""
    import tempfile

    from ..demo import run_demo
    from ..runtime.settings import EngineSettings

    EngineSettings(threads=threads)  # before the first conversion

    with tempfile.TemporaryDirectory(prefix="infer-os-demo-") as folder:
        run_demo(Path(folder), threads, as_json=as_json)
