"""Sizes as people write them: ``600M``, ``12G``, in powers of 1024."""

from __future__ import annotations

import re

from .errors import SettingsError

_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(option: str, text: str) -> int:
    """Bytes; ``option`` is named in the error.

    Raises:
        SettingsError: no size.
    """
    found = _SIZE.fullmatch(text.strip())
    n_bytes = int(float(found[1]) * 1024 ** _POWERS[found[2].upper()]) if found else 0
    if n_bytes < 1:
        raise SettingsError(f"{option} {text}: expected a size such as 600M or 12G")
    return n_bytes
