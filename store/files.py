"""The models of this machine: whatever a user calls a model, made a file once and found again.

Goes in: a GGUF file, a checkpoint folder, a name of the catalog or a hub id. Comes out: the GGUF
file to load. What is no file yet is converted into the cache::

    {cache}/models/hub/{owner}--{name}/{revision}/{name}-{type}.gguf
    {cache}/models/folders/{name}-{hash of its path}/{hash of its files}/{name}-{type}.gguf

A model that is there is used without asking the hub, so that it starts at once and offline; the
commit is in the file's metadata. A folder counts as another one when the name, size or time of one
of its files changes. One process converts at a time; the others wait and take what it made.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..convert.errors import OutputError, SourceError, UnreachableError
from ..convert.locks import locked_in_turn, make_folder
from ..convert.source import HubSource, cache_folder, is_hub_id
from ..files import write_file
from ..models.catalog import find_model, near_names

if TYPE_CHECKING:
    from ..runtime.settings import EngineSettings, Extra

#: What a name becomes if nothing of it is in the cache: what ``convert`` makes, and what computes
#: fastest on a CPU.
DEFAULT_TYPE = "q4_0"
LOCK = ".lock"
#: Tells of a converted folder where it was.
ORIGIN = "source.txt"
_HASHED = 16  # hexadecimal digits


@dataclass(frozen=True, slots=True)
class ModelWish:
    """What the user calls a model. An empty ``type`` takes what is in the cache, else the default.

    Raises:
        UnsupportedError: no such type.
    """

    text: str
    type: str = ""

    def __post_init__(self) -> None:
        if self.type:
            from ..convert.types import recipe_named

            recipe_named(self.type)

    @property
    def name(self) -> str:
        """The last part: a file's name, or a repository without its owner."""
        return Path(self.text).name or Path(self.text).resolve().name


@dataclass(frozen=True, slots=True)
class Reporter:
    """Where the store tells what it does: lines, and a bar of bytes done and in all."""

    note: Callable[[str], None]
    bar: Callable[[str], AbstractContextManager[Callable[[int, int], None] | None]]


@dataclass(frozen=True, slots=True)
class Shelf:
    """The place of one model in the cache; ``state`` is a revision, or the hash of a folder."""

    source: HubSource | Path
    folder: Path
    state: str

    @property
    def title(self) -> str:
        """What messages call the model: its hub id, or its folder."""
        return self.source.repository if isinstance(self.source, HubSource) else str(self.source)

    @property
    def name(self) -> str:
        """What its files are called."""
        return self.source.name

    def file(self, kind: str) -> Path:
        """Where its conversion to a type is, or will be."""
        return self.folder / self.state / f"{self.name}-{kind.lower()}.gguf"

    def types(self) -> list[str]:
        """The types that are there, the default one first, then the largest."""
        files = [p for p in (self.folder / self.state).glob("*.gguf") if not p.name.startswith(".")]
        kinds = {type_of(path, self.name): path.stat().st_size for path in files}
        return sorted(kinds, key=lambda kind: (kind != DEFAULT_TYPE, -kinds[kind]))


def model_file(wish: ModelWish, settings: EngineSettings | None, report: Reporter) -> Path:
    """The GGUF file of what the user calls a model, converted first if need be.

    Args:
        wish: a file, a folder, a name of the catalog or a hub id; and the type.
        settings: how it will be loaded: what cannot fit then is not downloaded. None if it is not
            to be loaded here and now.
        report: is told what happens; silent for a file.

    Raises:
        SourceError: no such model (names near ones), or nothing in the cache and no network.
        SettingsError: a type for what is a file already.
        MemoryShortage: it would not fit into memory.
        ConvertError, ConfigError: it cannot be converted. After a DownloadError and
            KeyboardInterrupt, the next call continues.
    """
    source = find_model_source(wish.text)
    if isinstance(source, Path) and not source.is_dir():
        _check_file(source, wish)
        return source
    shelf = shelf_of(source)
    kind = wish.type or next(iter(shelf.types()), DEFAULT_TYPE)
    path = shelf.file(kind)
    damage = _damage(path)
    if path.exists() and damage is None:
        asked = "" if isinstance(source, Path) else "; the hub was not asked"
        report.note(f"{shelf.title}: {kind.lower()} from the cache{asked}")
        return path
    if damage is not None:
        report.note(f"note: {damage}; it is converted again")
    try:
        _convert(shelf, kind, settings, report)
    except UnreachableError as error:
        others = [other for other in shelf.types() if shelf.file(other) != path]
        there = f" (but {', '.join(f'--type {other}' for other in others)} is)" if others else ""
        raise SourceError(f"{error}; {kind} of it is not in the cache{there}") from error
    except SourceError as error:
        if (
            isinstance(source, Path)
            or source.model is not None
            or "no such model" not in str(error)
        ):
            raise
        raise SourceError(f"{error}{near_names(source.repository)}") from None
    return path


def cached_file(wish: ModelWish) -> Path:
    """The GGUF file of what the user calls a model, if it is there. Nothing is made or downloaded.

    Raises:
        SourceError: no such model, or nothing of it, or not of that type, is in the cache.
        SettingsError: a type for what is a file already.
    """
    source = find_model_source(wish.text)
    if isinstance(source, Path) and not source.is_dir():
        _check_file(source, wish)
        return source
    shelf = shelf_of(source)
    types = shelf.types()
    kind = wish.type.lower() or next(iter(types), "")
    if kind not in types:
        what = f"{kind} of it is" if kind else "it is"
        there = f" (but {', '.join(f'--type {other}' for other in types)} is)" if types else ""
        asked = f" --type {kind}" if kind else ""
        raise SourceError(
            f"{shelf.title}: {what} not in the cache{there}; infer-os pull {wish.text}{asked} "
            "puts it there"
        )
    return shelf.file(kind)


def _check_file(path: Path, wish: ModelWish) -> None:
    if wish.type:
        from ..runtime.errors import SettingsError

        raise SettingsError(
            f"{path}: a GGUF file keeps its type and cannot be opened as {wish.type}; leave the "
            "type out"
        )


def first_work(text: str, kind: str = "") -> frozenset[Extra]:
    """What a process does before it can load a model: nothing if its file is there.

    Raises:
        SourceError: no such model.
    """
    from ..runtime.settings import Extra

    source = find_model_source(text)
    if isinstance(source, Path) and not source.is_dir():
        return frozenset()
    shelf = shelf_of(source)
    kind = kind or next(iter(shelf.types()), DEFAULT_TYPE)
    if shelf.file(kind).exists():
        return frozenset()
    return frozenset((Extra.CONVERSION if isinstance(source, Path) else Extra.DOWNLOAD,))


def find_model_source(text: str) -> HubSource | Path:
    """What a MODEL names: a file or a folder that exists, else a model on the hub.

    Raises:
        SourceError: neither; names those that are spelled nearly so.
    """
    if not text:
        raise SourceError("MODEL is empty; give a GGUF file, a folder, a catalog name or a hub id")
    path = Path(text)
    try:
        exists = path.exists()
    except OSError as error:
        raise SourceError(f"{text}: cannot be opened: {error.strerror}") from error
    known = find_model(text)
    if exists:
        return path.resolve() if path.is_dir() else path
    if known is not None:
        return HubSource(known.id, known.revision, known)
    names = (shelf.title for shelf in shelves())
    if not is_hub_id(text) or path.suffix.lower() == ".gguf":
        # a path has marks that no name has
        what = "no such file or folder"
        if not any(mark in text for mark in "/.~"):
            what += ", and no name in the catalog; hub ids look like EleutherAI/gpt-j-6B"
        raise SourceError(f"{text}: {what}{near_names(text, names)}")
    if path.parent.is_dir() and not shelf_of(HubSource(text)).types():
        raise SourceError(
            f"{text}: no such file or folder, though {path.parent} is a folder; for the model of "
            f"that name on the hub, start from another folder{near_names(text, names)}"
        )
    return HubSource(text)


def shelf_of(source: HubSource | Path) -> Shelf:
    """Where the conversions of a model are kept; a folder must be there, for its files to count."""
    models = cache_folder() / "models"
    if isinstance(source, HubSource):
        # the hub allows no "--" in a name, nor a revision of "." or ".."
        folder = models / "hub" / source.repository.replace("/", "--")
        return Shelf(source, folder, source.revision.replace("/", "--"))
    digest = hashlib.sha256(str(source).encode("utf-8", "surrogateescape")).hexdigest()
    folder = models / "folders" / f"{source.name}-{digest[:_HASHED]}"
    return Shelf(source, folder, _state_of(source))


def shelves() -> Iterator[Shelf]:
    """Everything that the cache holds, hub models first; of a folder one shelf per state."""
    models = cache_folder() / "models"
    for folder in sorted(models.glob("hub/*--*")):
        for state in _states(folder):
            # an id has one slash: what follows it may hold dashes of its own
            repository = folder.name.replace("--", "/", 1)
            yield Shelf(HubSource(repository, state, find_model(repository)), folder, state)
    for folder in sorted(models.glob("folders/*")):
        try:
            origin = Path((folder / ORIGIN).read_text("utf-8", "surrogateescape"))
        except OSError:
            continue
        for state in _states(folder):
            yield Shelf(origin, folder, state)


def _states(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def type_of(path: Path, name: str) -> str:
    """The type that a file of the cache was converted to, from its name."""
    return path.stem.removeprefix(f"{name}-")


def _state_of(folder: Path) -> str:
    """A hash of the names, sizes and times of the files that a conversion may read."""
    from ..convert.hub_checkpoint import SMALL_FILES

    facts = []
    try:
        for path in sorted(folder.iterdir()):
            weights = path.suffix in (".safetensors", ".bin", ".json", ".jinja")
            if (weights or path.name in SMALL_FILES) and path.is_file():
                status = path.stat()
                facts.append(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}")
    except OSError as error:
        raise SourceError(f"{folder}: cannot be read: {error.strerror}") from error
    text = "\n".join(facts).encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).hexdigest()[:_HASHED]


def _damage(path: Path) -> str | None:
    """What is wrong with a file of the cache; None if nothing is, or if it is not there."""
    from ..native.errors import GgufError
    from ..native.gguf_file import read_gguf_header

    if not path.exists():
        return None
    try:
        read_gguf_header(path)
    except GgufError as error:
        return str(error)
    return None


def _convert(shelf: Shelf, kind: str, settings: EngineSettings | None, report: Reporter) -> None:
    """Convert into the cache, unless another process has done so meanwhile."""
    from ..planning import check_conversion

    path = shelf.file(kind)
    hub = isinstance(shelf.source, HubSource)
    if isinstance(shelf.source, HubSource):
        from ..convert.hub_checkpoint import find_repository

        find_repository(shelf.source, cache_folder())  # before anything is said or made
    if settings is not None and not _is_offline_and_unknown(shelf.source):
        check_conversion(shelf.title, kind, settings)

    def tell_wait() -> None:
        report.note(f"{shelf.title}: another process converts it; waiting")

    with locked_in_turn(shelf.folder / LOCK, tell_wait):
        try:
            if path.exists() and _damage(path) is None:
                return
            verb = "downloading and converting" if hub else "converting"
            report.note(f"{shelf.title}: {verb} to {kind.lower()}, once, into {path.parent}")
            _run_conversion(shelf, kind, report)
        except (KeyboardInterrupt, SystemExit):
            if hub:
                report.note("interrupted; the same command continues where it stopped")
            raise
        finally:
            tidy(shelf.folder)


def _is_offline_and_unknown(source: HubSource | Path) -> bool:
    """Whether even the config of a model can only come from what is on the disk."""
    if isinstance(source, Path) or source.model is not None:
        return False
    from ..convert.hub import is_offline

    return is_offline()


def _run_conversion(shelf: Shelf, kind: str, report: Reporter) -> None:
    from ..convert.pipeline import convert
    from ..convert.settings import ConvertSettings

    path = shelf.file(kind)
    make_folder(path.parent)
    settings = ConvertSettings(shelf.source, path, kind, force=True)
    with report.bar(f"{shelf.name} to {kind.lower()}") as progress:
        made = convert(settings, progress)
    for note in made.notes:
        report.note(f"note: {note}")
    if isinstance(shelf.source, Path):
        origin = shelf.folder / ORIGIN
        try:
            write_file(origin, os.fsencode(shelf.source))
        except OSError as error:
            raise OutputError(f"{origin}: cannot be written: {error.strerror}") from error
        _drop_older(shelf, report)


def _drop_older(shelf: Shelf, report: Reporter) -> None:
    """Remove the conversions of what a folder was before, unless they are in use."""
    from .removal import remove_files

    freed = 0
    for state in _states(shelf.folder):
        if state == shelf.state:
            continue
        try:
            freed += remove_files(sorted((shelf.folder / state).iterdir()))
        except OutputError:
            continue
    if freed:
        report.note(
            f"note: {freed / 1e6:.1f} MB of conversions of an earlier state of {shelf.title} were "
            "removed"
        )


def tidy(folder: Path) -> None:
    """Remove what is empty of a model's place; the caller holds its lock."""
    for state in _states(folder):
        try:
            (folder / state).rmdir()
        except OSError:
            continue
    left = {path.name for path in folder.iterdir()}
    if left <= {LOCK, ORIGIN}:
        (folder / ORIGIN).unlink(missing_ok=True)
        (folder / LOCK).unlink(missing_ok=True)
        for emptied in (folder, folder.parent, folder.parent.parent):
            try:
                emptied.rmdir()
            except OSError:
                return
