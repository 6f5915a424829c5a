"""Where files worth keeping between runs live."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import Error


def cache_folder() -> Path:
    """Where downloads live: ``INFER_OS_CACHE``, else ``~/.cache/infer-os``.

    Raises:
        Error: there is no such home folder.
    """
    named = os.environ.get("INFER_OS_CACHE")
    try:
        return Path(named).expanduser() if named else Path.home() / ".cache" / "infer-os"
    except RuntimeError as error:
        where = f"INFER_OS_CACHE={named}" if named else "the cache"
        raise Error(
            f"{where}: there is no such home folder; let INFER_OS_CACHE name a folder"
        ) from error
