"""Numbers, sizes and counts as people write and read them: ``600M`` is 600 million bytes.

One convention for options and output, the SI's: k, M, G and T are powers of 1000, as on disks, so
that a printed size given back as an option means the same. Powers of 1024 have an i (IEC 80000-13):
``12GiB`` is 12 · 1024³. JSON has bytes.
"""

from __future__ import annotations

import math
import re

_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*(?:([KMGT])(i?))?B?", re.IGNORECASE | re.ASCII)
_WHOLE = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
#: From this many bytes on: the unit in bytes, its name, and digits behind the point.
_UNITS = (
    (10**10, 10**9, "GB", 1), (10**9, 10**9, "GB", 2), (10**6, 10**6, "MB", 1),
    (10**3, 10**3, "kB", 1), (1, 1, "B", 0),
)  # fmt: skip


def read_whole(text: str) -> int:
    """A whole number, as every program understands it.

    Python's ``int`` also takes ``1_000``, spaces around it and the digits of all scripts.

    Raises:
        ValueError: it is not one.
    """
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"{text[:60]!r} is not a whole number")
    return int(text)


def read_number(text: str) -> float:
    """A number, likewise; a finite one.

    Raises:
        ValueError: it is not one, such as ``nan``.
    """
    value = float(text) if _NUMBER.fullmatch(text) else math.inf
    if not math.isfinite(value):
        raise ValueError(f"{text[:60]!r} is not a number")
    return value


def read_size(text: str) -> int | None:
    """Bytes, at least one; None if it is not a size."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        return None
    unit = 1024 if found[3] else 1000
    # rounded, so that 94.4 MB does not lose a byte to how floats are stored
    return round(float(found[1]) * unit ** _POWERS[(found[2] or "").upper()]) or None


def size_text(n_bytes: float, *, up: bool = False) -> str:
    """Bytes for people: 14.7 MB, 7.58 GB, 24.1 GB. ``up`` rounds up, to what fits as an option."""
    _, scale, unit, digits = next((u for u in _UNITS if n_bytes >= u[0]), _UNITS[-1])
    value = n_bytes / scale
    if up:
        value = math.ceil(value * 10**digits) / 10**digits
    return f"{value:.{digits}f} {unit}"


def count_text(n: int) -> str:
    """How many parameters, for people, in three digits: 124 M, 6.05 B, 20.6 B."""
    value, unit = (n / 1e9, "B") if n >= 1e9 else (n / 1e6, "M")
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
