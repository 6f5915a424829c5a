"""JSON as others write it and as we write it: why a text is not JSON, and what JSON can hold."""

from __future__ import annotations

import json
import math
from typing import Any


def json_fault(error: Exception) -> str:
    """Why a text is not JSON, in the user's terms.

    Args:
        error: what :mod:`json` raised, or a ``ValueError`` of our own hooks.
    """
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        # some of its messages end where a place is expected: "string starting at"
        return f"{error.msg.removesuffix(' at')} at {line}character {error.colno}"
    # Python's own limit on digits; its message is advice to programmers
    too_long = type(error) is ValueError and "digits" in str(error)
    return "a number has thousands of digits" if too_long else str(error)


def finite(value: Any) -> Any:
    """A value for a JSON text: NaN and infinity, which JSON lacks, become null; tuples, lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value
