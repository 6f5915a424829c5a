"""The normalizer of a tokenizer.json, as our files state it.

Goes in: its JSON. Comes out: the name of a Unicode normal form, or the steps as a JSON list, or an
error that names the step that cannot be expressed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from infer_os.native.normalizers import MOST_STEPS, Step, is_form, read_step, read_steps

from .errors import UnsupportedError


def read_normalizer(path: Path, normalizer: Any) -> tuple[str, str]:
    """The name of a single normal form, else the steps; both "" if there are none.

    Raises:
        UnsupportedError: a step cannot be expressed.
    """
    steps = flat_steps(path, normalizer)
    if len(steps) == 1 and is_form(steps[0]):
        return str(steps[0]["type"]), ""
    return "", steps_text(path, steps)


def flat_steps(path: Path, normalizer: Any, depth: int = 0) -> list[Any]:
    """The steps of a Sequence, nested ones included, or the single step; none for null.

    Raises:
        UnsupportedError: a Sequence without a list, or too many steps.
    """
    if normalizer is None:
        return []
    if not isinstance(normalizer, dict) or normalizer.get("type") != "Sequence":
        return [normalizer]
    inner = normalizer.get("normalizers")
    if not isinstance(inner, list) or depth > MOST_STEPS:
        raise UnsupportedError(f"{path}: the normalizer 'Sequence' without a list of normalizers")
    steps = [step for entry in inner for step in flat_steps(path, entry, depth + 1)]
    if len(steps) > MOST_STEPS:
        raise UnsupportedError(f"{path}: a normalizer of more than {MOST_STEPS} steps")
    return steps


def steps_text(path: Path, steps: list[Any]) -> str:
    """Steps as our files hold them; "" if there are none.

    Raises:
        UnsupportedError: one cannot be expressed.
    """
    for step in steps:
        try:
            read_step(step)
        except ValueError as error:
            raise UnsupportedError(f"{path}: {error}") from error
    return json.dumps(steps, ensure_ascii=False) if steps else ""


def text_steps(text: str) -> tuple[Step, ...]:
    """The steps that :func:`steps_text` wrote."""
    return read_steps(text) if text else ()
