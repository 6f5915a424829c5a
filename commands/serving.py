"""The options of a server: where it listens and whom it lets in, and how many texts it computes."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from ..files import names_something
from ..runtime.batch.settings import BatchSettings
from ..serve.settings import ServeSettings
from ..sizes import read_number
from ..store.wish import ModelWish
from . import options, server_options
from .typed_numbers import parallel_option

#: The environment's variable for a server's key.
API_KEY_VARIABLE = "INFER_OS_API_KEY"


@dataclass(frozen=True, slots=True)
class Seats:
    """How many texts a server computes at once, and how it frames conversations."""

    batch: BatchSettings


def seats(
    parallel: options.Parallel = "auto",
    system: options.BatchSystem = "",
    style: options.Style = "",
) -> Seats:
    """The seats that these options make."""
    return Seats(BatchSettings(parallel_option(parallel), system=system, style=style))


def door(
    host: server_options.Host = "127.0.0.1",
    port: server_options.Port = 8080,
    queue: server_options.Queue = 256,
    api_key_file: server_options.ApiKeyFile = None,
    cors: server_options.Cors = None,
    idle: server_options.Idle = "",
) -> ServeSettings:
    """The settings that these options make."""
    key = api_key(api_key_file)
    return ServeSettings(host, port, queue, key, tuple(cors or ()), idle_seconds(idle))


_UNITS = {"s": 1, "m": 60, "h": 3600}


def idle_seconds(text: str) -> float:
    """Seconds of a time such as 10m; 0 for an empty text.

    Raises:
        SettingsError: it is no such time.
    """
    from ..runtime.errors import SettingsError

    if not text:
        return 0.0
    number, unit = text[:-1], text[-1].lower()
    try:
        seconds = read_number(number) * _UNITS[unit]
    except (ValueError, KeyError):
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise SettingsError(f"--idle {text}: expected a time such as 90s, 10m or 2h")
    return seconds


#: A model, and the names that requests may call it.
Named = tuple[tuple[str, ...], ModelWish]


def named_models(model: ModelWish, others: list[str] | None) -> list[Named]:
    """All models of a server, each with the names that requests may call it.

    Raises:
        SettingsError: two have the same name.
    """
    from ..runtime.errors import SettingsError

    found = [(_names(model), model)]
    for text in others or ():
        name, equals, rest = text.partition("=")
        if equals and rest and "/" not in name and not names_something(text):
            found.append(((name,), ModelWish(rest, model.type)))
        else:
            wish = ModelWish(text, model.type)
            found.append((_names(wish), wish))
    taken: set[str] = set()
    for names, wish in found:
        if same := [name for name in names if name in taken]:
            raise SettingsError(
                f"--models {wish.text}: another model is called {same[0]!r}; give this one "
                f"another name: --models NAME={wish.text}"
            )
        taken.update(names)
    return found


def _names(model: ModelWish) -> tuple[str, ...]:
    return tuple(dict.fromkeys((model.name.removesuffix(".gguf"), model.name, model.text)))


def api_key(file: Path | None) -> str:
    """The key in a file, else that of the environment; empty for none.

    Raises:
        SettingsError: the file holds something else.
    """
    from ..runtime.errors import SettingsError
    from ..runtime.prompt import read_file

    if file is None:
        return os.environ.get(API_KEY_VARIABLE, "")
    try:
        key = read_file(file).decode().strip()
    except UnicodeDecodeError:
        raise SettingsError(f"--api-key-file {file}: is no UTF-8 text") from None
    if not key or len(key.split()) > 1:
        raise SettingsError(f"--api-key-file {file}: expected a key alone, on one line")
    return key
