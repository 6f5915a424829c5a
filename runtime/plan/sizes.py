"""Sizes as people write and read them: ``600M`` is 600 million bytes, ``12GiB`` is 12 · 1024³.

One convention for options and output, the SI's: k, M, G and T are powers of 1000, as on disks, so
that a printed size given back as an option means the same. Powers of 1024 have an i (IEC 80000-13):
Ki, Mi, Gi, Ti.
"""

from __future__ import annotations

import math
import re

from ..errors import SettingsError

_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*(?:([KMGT])(i?))?B?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(option: str, text: str) -> int:
    """Bytes; ``option`` is named in the error.

    Raises:
        SettingsError: no size.
    """
    found = _SIZE.fullmatch(text.strip())
    n_bytes = 0
    if found:
        unit = 1024 if found[3] else 1000
        # rounded: 94.4 MB is not a byte less because of how floats are stored
        n_bytes = round(float(found[1]) * unit ** _POWERS[(found[2] or "").upper()])
    if n_bytes < 1:
        raise SettingsError(f"{option} {text}: expected a size such as 600M, 12GB or 12GiB")
    return n_bytes


def size_text(n_bytes: int, *, up: bool = False) -> str:
    """Bytes for people, in powers of 1000; ``up`` rounds up, for what must fit when given back."""
    scale, digits, unit = (1e9, 2, "GB") if n_bytes >= 1e9 else (1e6, 1, "MB")
    value = n_bytes / scale
    if up:
        value = math.ceil(value * 10**digits) / 10**digits
    return f"{value:.{digits}f} {unit}"
