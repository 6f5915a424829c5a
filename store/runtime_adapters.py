"""Adapters that are loaded with a model: from the words of ``--adapter`` to files.

Goes in: ``[NAME=]DIR|ID|FILE[:SCALE]``, and the model's file. Comes out: files in
``{cache}/adapters/converted``, each written once for a layout of weights and named by a hash of all
that decides its content.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..cache import cache_folder
from ..convert.output_locks import make_folder
from ..convert.source import AdapterSource, HubSource
from ..files import names_something
from ..native.gguf_file import GgufHeader, read_gguf_header
from ..runtime.errors import SettingsError
from ..runtime.settings import AdapterFile, check_adapter_name
from .lora import fetch_adapter, find_adapter
from .reporter import Reporter

_OPTION = "--adapter"


def adapter_files(texts: Sequence[str], model: Path, report: Reporter) -> tuple[AdapterFile, ...]:
    """The files of adapters, made first if need be.

    Args:
        texts: as the user names them.
        model: the GGUF file that they are for.
        report: receives progress and notes.

    Raises:
        SettingsError: a name that cannot be one.
        SourceError: no adapter, or one of another model.
        UnsupportedError: an adapter that cannot be added while the model runs.
        GgufError: a GGUF file that is no adapter of this model.
        DownloadError: the network failed; the next call continues.
    """
    header = read_gguf_header(model)
    return tuple(_adapter_file(name, words, header, report) for name, words in named(texts))


def named(texts: Sequence[str]) -> list[tuple[str, str]]:
    """The names of adapters, and the words for each; before anything is fetched or made.

    Raises:
        SettingsError: a name that cannot be one, or is that of two.
        SourceError: no adapter.
        UnsupportedError: a scale that cannot be one.
    """
    from ..convert.adapters import check_folder

    found: dict[str, str] = {}
    for text in texts:
        name, words = _split(text)
        source, scale = find_adapter(words, _OPTION)
        name = name or _usual_name(source)
        check_adapter_name(name)
        if name in found:
            raise SettingsError(f"{name!r} is the name of two; write NAME= in front", "adapter")
        if isinstance(source, Path) and source.is_dir():
            check_folder(AdapterSource(source, scale, words, _OPTION))
        found[name] = words
    return list(found.items())


def _adapter_file(name: str, words: str, model: GgufHeader, report: Reporter) -> AdapterFile:
    from ..convert.adapter_file import adapter_digest, is_sound, write_adapter

    source = fetch_adapter(words, _OPTION, report)
    folder = cache_folder() / "adapters" / "converted"
    path = folder / f"{adapter_digest(source, model)}.gguf"
    if not is_sound(path):
        make_folder(folder)
        write_adapter(source, model, path)
    return AdapterFile(name, path, source.scale, path.stat().st_size)


def _split(text: str) -> tuple[str, str]:
    """The name of an adapter, "" where none is given, and the rest."""
    with suppress(OSError):  # find_adapter says what cannot be read
        if names_something(text):
            return "", text
    name, equals, rest = text.partition("=")
    return (name, rest) if equals else ("", text)


def _usual_name(source: HubSource | Path) -> str:
    """That of a file, a folder or a repository."""
    if isinstance(source, Path):
        return source.stem if source.is_file() else source.resolve().name
    return source.name
