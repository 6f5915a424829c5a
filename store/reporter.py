"""Where the store reports what it does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reporter:
    """Lines, and a bar of bytes done and in all."""

    note: Callable[[str], None]
    bar: Callable[[str], AbstractContextManager[Callable[[int, int], None] | None]]
