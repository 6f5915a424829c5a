"""Take adapters out of the cache that belong to a model which went.

Goes in: the headers of the model's files, read before they were removed. What goes are files made
for a loaded model that fit no other cached one, and downloads that name the model as their base.
A process that has loaded what is removed goes on; one that is about to fails with one line, and its
next call makes it again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from ..cache import cache_folder
from ..files import remove_abandoned
from ..locks import try_lock
from ..native.errors import GgufError
from ..native.gguf_file import GgufHeader, read_gguf_header
from ..native.lora_adapter import check_adapter
from .lora import LOCK, downloads_for
from .shelves import disk_bytes


def headers_of(paths: Iterable[Path]) -> list[GgufHeader]:
    """The headers of files, less those that are damaged or gone."""
    found = []
    for path in paths:
        with suppress(GgufError, OSError):
            found.append(read_gguf_header(path))
    return found


def remove_converted(removed: Sequence[GgufHeader], kept: Iterable[Path]) -> int:
    """Remove files of adapters for removed models; returns the bytes they took.

    Args:
        removed: the models.
        kept: files of models that are still there, whose adapters stay.
    """
    folder = cache_folder() / "adapters" / "converted"
    freed = remove_abandoned(folder)
    fitting = [a for a in headers_of(sorted(folder.glob("*.gguf"))) if _fits_one(a, removed)]
    if fitting:
        left = headers_of(kept)
        for adapter in fitting:
            if not _fits_one(adapter, left):
                freed += _remove_file(adapter.path)
    return freed


def remove_downloads(model: str) -> int:
    """Remove downloads of adapters for a model, by its full name; returns the bytes they took.

    One that another process downloads right now stays.
    """
    freed = 0
    for folder in downloads_for(model):
        with suppress(OSError):
            handle = try_lock(folder / LOCK)
            if handle is None:
                continue
            try:
                # the weights first, which say that all is there; the lock last
                for path in sorted(folder.iterdir(), reverse=True):
                    freed += _remove_file(path)
            finally:
                os.close(handle)
        _remove_empty(folder)
    return freed


def _fits_one(adapter: GgufHeader, models: Iterable[GgufHeader]) -> bool:
    for model in models:
        with suppress(GgufError):
            check_adapter(adapter, model)
            return True
    return False


def _remove_file(path: Path) -> int:
    n_bytes = disk_bytes(path)
    try:
        path.unlink()
    except OSError:
        return 0
    return n_bytes


def _remove_empty(folder: Path) -> None:
    """Remove a folder of the cache and those around it, as far as they are empty."""
    with suppress(OSError):
        while folder != cache_folder():
            folder.rmdir()
            folder = folder.parent
