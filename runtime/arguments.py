"""Check what a program passes to the Python API, before anything is computed.

Goes in: arguments of any type. Comes out: the same, or an error that says which one is wrong and
what was expected.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .errors import PromptError, SettingsError
from .interface import chosen_adapter
from .settings import NO_ADAPTER

_Record = TypeVar("_Record")


def record_or(value: object, default: _Record, name: str) -> _Record:
    """A settings record, or the default for None.

    Raises:
        SettingsError: it is something else.
    """
    if value is None:
        return default
    kind = type(default)
    if not isinstance(value, kind):
        raise SettingsError(f"{_shown(value)}: expected {kind.__name__}(...), or None", name)
    return value


def text_named(value: object, name: str) -> str:
    """A text that is a setting.

    Raises:
        SettingsError: it is something else.
    """
    if not isinstance(value, str):
        raise SettingsError(f"{_shown(value)}: expected a text", name)
    return value


def prompt_text(value: object, what: str = "prompt") -> str:
    """A text for a model.

    Raises:
        PromptError: it is something else.
    """
    if not isinstance(value, str):
        raise PromptError(f"{what} {_shown(value)}: expected a text")
    return value


def path_text(value: object, name: str) -> str:
    """A path or a name as a text.

    Raises:
        SettingsError: it is something else, or has a zero byte, which no path can have.
    """
    if isinstance(value, (str, bytes, os.PathLike)) and "\0" not in (text := os.fsdecode(value)):
        return text
    raise SettingsError(f"{_shown(value)}: expected a text or a path", name)


def file_path(value: object, name: str) -> Path:
    """A path of a file.

    Raises:
        SettingsError: it is something else.
    """
    return Path(path_text(value, name))


def many(value: Any, name: str) -> Iterable[Any]:
    """Several prompts or records. A single one would be iterated by its letters or keys.

    Raises:
        PromptError: it is a single one, or not iterable.
    """
    if isinstance(value, (str, bytes, Mapping)):
        raise PromptError(f"{name} {_shown(value)}: this is only one; put it in a list")
    if not isinstance(value, Iterable):
        raise PromptError(f"{name} {_shown(value)}: expected a list, or another iterable")
    return value


def adapter_or_first(value: object, loaded: Sequence[str]) -> str:
    """The adapter to write with: the first for None, "" (no adapter) for ``off``.

    Raises:
        SettingsError: none of that name is loaded.
    """
    name = None if value is None else text_named(value, "adapter")
    return chosen_adapter("" if name == NO_ADAPTER else name, loaded)


def _shown(value: object) -> str:
    return reprlib.repr(value)
