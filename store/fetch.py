"""From whatever a user calls a model to the GGUF file to load, converted once into the cache.

A cached model is used without asking the hub, so that it starts at once and offline; the commit
is in the file's metadata. One process converts at a time; the others wait and use the result.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..cache import cache_folder
from ..convert.errors import OutputError, SourceError, UnreachableError
from ..convert.output_locks import locked_in_turn, make_folder
from ..convert.source import AdapterSource, HubSource, ReadySource
from ..files import write_file
from ..sizes import size_text
from .reporter import Reporter
from .resolve import find_source, naming_near
from .shelves import LOCK, ORIGIN, Shelf, remove_files, shelf_of, states, tidy
from .wish import ModelWish

if TYPE_CHECKING:
    from ..runtime.settings import EngineSettings


def model_file(wish: ModelWish, settings: EngineSettings | None, report: Reporter) -> Path:
    """The GGUF file of what the user calls a model, converted first if need be.

    Args:
        wish: a file, a folder, a name of the catalog or a hub id; and the type.
        settings: how it will be loaded; what would not fit is not downloaded. None if it is not
            loaded here and now.
        report: receives progress and notes; silent for a file.

    Raises:
        SourceError: no such model (names near ones), or nothing in the cache and no network.
        SettingsError: a type for what is already a file.
        MemoryShortage: it would not fit in memory.
        ConvertError, ConfigError: it cannot be converted. After a DownloadError and
            KeyboardInterrupt, the next call continues.
    """
    source = find_source(wish.text)
    if isinstance(source, Path) and not source.is_dir():
        _check_file(source, wish)
        return source
    if isinstance(source, ReadySource):
        from .ready_fetch import ready_file

        _check_ready(source, wish)
        return ready_file(source, settings, report)
    shelf = shelf_of(source)
    kind = wish.type or shelf.usual_type()
    adapters, lora = _adapters(wish, report)
    path = shelf.file(kind, lora)
    damage = _damage(path)
    if path.exists() and damage is None:
        asked = "" if isinstance(source, Path) else "; the hub was not asked"
        report.note(f"{shelf.title}: {kind.lower()} from the cache{asked}")
        return path
    if damage is not None:
        report.note(f"note: {damage}; it is converted again")
    try:
        with naming_near():
            _convert(source, _Target(path, kind, adapters), settings, report)
    except UnreachableError as error:
        others = [other for other in shelf.types() if shelf.file(other) != path]
        there = f" (but {', '.join(f'--type {other}' for other in others)} is)" if others else ""
        raise SourceError(f"{error}; {kind} of it is not in the cache{there}") from error
    return path


def cached_file(wish: ModelWish) -> Path:
    """The GGUF file of what the user calls a model, if it is there. Nothing is made or downloaded.

    Raises:
        SourceError: no such model, or nothing of it, or not of that type, is in the cache.
        SettingsError: a type for what is already a file.
    """
    source = find_source(wish.text)
    if isinstance(source, Path) and not source.is_dir():
        _check_file(source, wish)
        return source
    if isinstance(source, ReadySource):
        from .ready_files import cached_ready

        _check_ready(source, wish)
        ready = cached_ready(source)
        if ready is None:
            raise SourceError(
                f"{source.text}: it is not in the cache; infer-os pull {source.text} puts it there"
            )
        return ready
    shelf = shelf_of(source)
    types = shelf.types()
    kind = wish.type.lower() or next(iter(types), "")
    if kind not in types:
        if isinstance(source, Path):
            from ..convert.checkpoint import read_config

            read_config(source)  # what cannot be converted cannot be put there
        what = f"{kind} of it is" if kind else "it is"
        there = f" (but {', '.join(f'--type {other}' for other in types)} is)" if types else ""
        asked = f" --type {kind}" if kind else ""
        raise SourceError(
            f"{shelf.title}: {what} not in the cache{there}; infer-os pull {wish.text}{asked} "
            "puts it there"
        )
    return shelf.file(kind)


@dataclass(frozen=True, slots=True)
class _Target:
    """A conversion to make: its file, its type, and what is added to the weights."""

    path: Path
    type: str
    adapters: tuple[AdapterSource, ...]


def _adapters(wish: ModelWish, report: Reporter) -> tuple[tuple[AdapterSource, ...], str]:
    """The adapters that are asked for, on this machine, and their digest."""
    if not wish.loras:
        return (), ""
    from ..convert.adapters import adapters_digest
    from .lora import fetch_adapters

    found = fetch_adapters(wish.loras, report)
    return found, adapters_digest(found)


def _check_file(path: Path, wish: ModelWish) -> None:
    wish.refuse_loras(str(path))
    if wish.type:
        from ..runtime.errors import SettingsError

        raise SettingsError(
            f"{path}: a GGUF file keeps its type and cannot be opened as {wish.type}; leave the "
            "type out"
        )


def _check_ready(source: ReadySource, wish: ModelWish) -> None:
    wish.refuse_loras(source.text)
    if wish.type:
        from ..runtime.errors import SettingsError

        raise SettingsError(
            f"{source.text}: a ready file keeps its type and cannot be opened as {wish.type}; name "
            "another file behind the colon"
        )


def _damage(path: Path) -> str | None:
    """What is wrong with a file of the cache; None if it is sound or missing."""
    from ..native.errors import GgufError
    from ..native.gguf_file import read_gguf_header

    if not path.exists():
        return None
    try:
        read_gguf_header(path)
    except GgufError as error:
        return str(error)
    return None


def _convert(
    source: HubSource | Path, target: _Target, settings: EngineSettings | None, report: Reporter
) -> None:
    """Convert into the cache, unless another process has done so in the meantime."""
    from .planning import check_conversion

    shelf, path, kind = shelf_of(source), target.path, target.type
    hub = isinstance(source, HubSource)
    if isinstance(source, HubSource):
        from ..convert.hub_checkpoint import find_repository

        find_repository(source, cache_folder())  # before anything is said or made
    if settings is not None and not _is_offline_and_unknown(source):
        check_conversion(shelf.title, kind, settings)

    def tell_wait() -> None:
        report.note(f"{shelf.title}: another process converts it; waiting")

    with locked_in_turn(shelf.folder / LOCK, tell_wait):
        try:
            if path.exists() and _damage(path) is None:
                return
            verb = "downloading and converting" if hub else "converting"
            report.note(f"{shelf.title}: {verb} to {kind.lower()}, once, into {path.parent}")
            _run_conversion(source, shelf, target, report)
        except (KeyboardInterrupt, SystemExit):
            if hub:
                report.note("interrupted; the same command continues where it stopped")
            raise
        finally:
            tidy(shelf.folder)


def _is_offline_and_unknown(source: HubSource | Path) -> bool:
    """Whether even the model's config can only come from the disk."""
    if isinstance(source, Path) or source.model is not None:
        return False
    from ..convert.hub import is_offline

    return is_offline()


def _run_conversion(
    source: HubSource | Path, shelf: Shelf, target: _Target, report: Reporter
) -> None:
    from ..convert.pipeline import convert
    from ..convert.settings import ConvertSettings

    path, kind = target.path, target.type
    make_folder(path.parent)
    settings = ConvertSettings(source, path, kind, force=True, adapters=target.adapters)
    with report.bar(f"{shelf.name} to {kind.lower()}") as progress:
        made = convert(settings, progress)
    for note in made.notes:
        report.note(f"note: {note}")
    if isinstance(source, Path):
        origin = shelf.folder / ORIGIN
        try:
            write_file(origin, os.fsencode(source.resolve()))
        except OSError as error:
            raise OutputError(f"{origin}: cannot be written: {error.strerror}") from error
        _drop_older(shelf, report)


def _drop_older(shelf: Shelf, report: Reporter) -> None:
    """Remove conversions of a folder's earlier states, unless they are in use."""
    freed = 0
    for state in states(shelf.folder):
        if state == shelf.state:
            continue
        try:
            freed += remove_files(sorted((shelf.folder / state).iterdir()))
        except OutputError:
            continue
    if freed:
        report.note(
            f"note: {size_text(freed)} of conversions of an earlier state of {shelf.title} were "
            "removed"
        )
