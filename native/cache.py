"""Where files live that are worth keeping between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where downloads live: ``INFER_OS_CACHE``, else ``~/.cache/infer-os``."""
    named = os.environ.get("INFER_OS_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "infer-os"
