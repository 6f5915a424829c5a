"""``--grammar``, ``--json-schema`` and ``--regex``: what a text must follow, typed or from a file.

In: the options' values. Out: the fields of the sampling settings, checked before any model is
loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import names_something

#: Most bytes read from a file: more than any grammar may have.
_MOST_BYTES = 4_000_000


def constraint_texts(values: Mapping[str, str | None]) -> dict[str, Any]:
    """The setting that an option makes, by its name; None is an option that was left out.

    Raises:
        SettingsError: more than one was given, a file cannot be read, or its text cannot be used.
    """
    given = {kind: value for kind, value in values.items() if value is not None}
    if not given:
        return {}
    from ..native.errors import GrammarError
    from ..native.grammar import compiled
    from ..runtime.errors import SettingsError

    if len(given) > 1:
        options = " and ".join(map(_option, given))
        raise SettingsError(f"{options}: give one of them")
    texts = {}
    for kind, value in given.items():
        where, text = _option(kind), value
        if not value:
            raise SettingsError(f"{where}: is empty")
        if not _is_text(kind, value):
            if kind == "json_schema" and (what := _other_json(value)):
                raise SettingsError(f"{where} {value}: {what}; a schema is a JSON object")
            where, text = value, file_text(Path(value))
            if not text.strip():
                raise SettingsError(f"{where}: is empty")
        try:
            compiled(kind, text)
        except GrammarError as error:
            raise SettingsError(f"{where}: {error}") from None
        texts[kind] = text
    return texts


def _option(kind: str) -> str:
    return f"--{kind.replace('_', '-')}"


def _is_text(kind: str, value: str) -> bool:
    """Whether the value is the text itself rather than a file's name."""
    if kind == "json_schema":
        return value.lstrip().startswith("{") or value.strip() in ("true", "false")
    return kind == "regex" or "::=" in value


def _other_json(value: str) -> str:
    """What JSON a text is that is no object, and names no file; empty for none."""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return ""
    if names_something(value):
        return ""
    kinds = {list: "a list", str: "a text", type(None): "null"}
    return f"this is {kinds.get(type(found), 'a number')}"


def file_text(file: Path) -> str:
    """The text of a file that an option names.

    Raises:
        SettingsError: it cannot be read, is too large, or is not UTF-8.
    """
    from ..runtime.errors import SettingsError

    try:
        with file.open("rb") as opened:
            data = opened.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SettingsError(f"{file}: cannot be read: {reason}") from None
    if len(data) > _MOST_BYTES:
        raise SettingsError(f"{file}: has more than {_MOST_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SettingsError(f"{file}: is not UTF-8 text") from None
