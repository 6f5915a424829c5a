"""The root of every error that Infer-OS raises on purpose.

    Error
    ├── RuntimeFailure  settings, prompts, memory: ``infer_os.runtime.errors``
    ├── ConvertError    what cannot be found, downloaded or converted: ``infer_os.convert.errors``
    ├── ConfigError     a ``config.json`` that cannot be used: ``infer_os.models.network``
    └── NativeError     what the door to C refuses: ``infer_os.native.errors``

Errors of the operating system get the name of their file here. It imports no other room, and every
room may import it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Error(Exception):
    """Anything that Infer-OS refuses, or that fails at run time. The message is one line."""


def shortened(text: str, most: int) -> str:
    """A text for an error: of a longer one, so many characters."""
    return text if len(text) <= most else f"{text[:most]}..."


@contextmanager
def named(path: Path | int) -> Iterator[None]:
    """While inside, an ``OSError`` without a file name gets that of this path or open handle.

    A failure on an open handle (a full disk, a quota, a broken device) does not say which file.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = _name_of(path) if isinstance(path, int) else str(path)
        raise


def _name_of(handle: int) -> str | None:
    try:
        return os.readlink(f"/proc/self/fd/{handle}")
    except OSError:
        return None
