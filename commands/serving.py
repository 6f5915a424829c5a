"""The options of a server: where it listens and whom it lets in, and how many texts it computes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..runtime.batch.settings import BatchSettings
from ..serve.settings import ServeSettings
from . import options, server_options

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
    return Seats(BatchSettings(options.parallel_option(parallel), system=system, style=style))


def door(
    host: server_options.Host = "127.0.0.1",
    port: server_options.Port = 8080,
    queue: server_options.Queue = 256,
    api_key_file: server_options.ApiKeyFile = None,
    cors: server_options.Cors = None,
) -> ServeSettings:
    """The settings that these options make."""
    return ServeSettings(host, port, queue, api_key(api_key_file), tuple(cors or ()))


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
