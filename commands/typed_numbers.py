"""Numbers and sizes of options: what is typed is read strictly, by :mod:`infer_os.sizes`.

The command framework reads numbers with Python's ``int`` and ``float``, which also take ``1_000``.
"""

from __future__ import annotations

from contextlib import suppress

import typer

from ..runtime.settings import MOST_BYTES
from ..sizes import read_number, read_size, read_whole


def whole(typed: str | int) -> int:
    """The ``parser`` of an option that is a whole number; a default comes as it is."""
    if not isinstance(typed, str):
        return typed
    try:
        return read_whole(typed)
    except ValueError:
        raise typer.BadParameter("expected a whole number") from None


def number(typed: str | float) -> float:
    """The ``parser`` of an option that is a number, likewise."""
    if not isinstance(typed, str):
        return typed
    try:
        return read_number(typed)
    except ValueError:
        raise typer.BadParameter("expected a number") from None


def size_option(option: str, size: str) -> int:
    """Bytes of a size such as 12G; 0 for none.

    Raises:
        SettingsError: it is not a size.
    """
    if not size:
        return 0
    n_bytes = read_size(size)
    if n_bytes is None or n_bytes > MOST_BYTES:
        from ..runtime.errors import SettingsError

        raise SettingsError(f"{option} {size}: expected a size such as 600M, 12GB or 12GiB")
    return n_bytes


def parallel_option(parallel: str) -> int:
    """The number of sequences of ``--parallel``; 0 for auto.

    Raises:
        SettingsError: it is neither.
    """
    if parallel == "auto":
        return 0
    with suppress(ValueError):
        if (n := read_whole(parallel)) > 0:
            return n
    from ..runtime.errors import SettingsError

    raise SettingsError(f"--parallel {parallel}: expected a number, or auto")


def count_option(field: str, count: int | None) -> int:
    """The number of an option that may be left out: 0 then, which no one can ask for otherwise.

    Raises:
        SettingsError: 0 was given.
    """
    if count == 0:
        from ..runtime.errors import SettingsError

        raise SettingsError("0: expected a larger number; leave it out for the default", field)
    return count or 0
