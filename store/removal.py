"""Take a model out of the cache: its conversions, and what was downloaded for them."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from ..cache import cache_folder
from ..convert.errors import SourceError
from ..convert.output_locks import locked
from ..convert.source import HubSource, ReadySource, read_hub_name
from ..models.catalog import find_model
from .adapter_removal import headers_of, remove_converted, remove_downloads
from .resolve import near
from .shelves import LOCK, READY, Shelf, disk_bytes, remove_files, shelves, tidy


@dataclass(frozen=True, slots=True)
class CachedFile:
    """A conversion in the cache."""

    type: str
    path: Path
    n_bytes: int


@dataclass(frozen=True, slots=True)
class CachedModel:
    """What the cache holds of a model; ``downloads`` are its checkpoint's files, ``parts``
    what interrupted conversions left to continue from."""

    title: str
    shelf: Path
    files: tuple[CachedFile, ...]
    parts: tuple[Path, ...]
    downloads: Path | None

    @property
    def is_ready(self) -> bool:
        """Whether its files came from the hub as they are."""
        return self.shelf.parent.name == READY

    @property
    def unfinished(self) -> int:
        """Bytes on the disk apart from the conversions."""
        fetched = self.downloads.rglob("*") if self.downloads else ()
        return sum(disk_bytes(path) for path in (*self.parts, *fetched))

    @property
    def n_bytes(self) -> int:
        """Everything."""
        return sum(file.n_bytes for file in self.files) + self.unfinished


def cached_models() -> list[CachedModel]:
    """Everything in the cache, by model."""
    found: dict[Path, list[Shelf]] = {}
    for shelf in shelves():
        found.setdefault(shelf.folder, []).append(shelf)
    models = [_cached(folder, group[0].title, group) for folder, group in found.items()]
    known = {model.downloads for model in models}
    for downloads in sorted((cache_folder() / "checkpoints").glob("*--*")):
        if downloads not in known:
            # kept by convert --keep-source, or left by a conversion to elsewhere
            place = cache_folder() / "models" / "hub" / downloads.name
            title = downloads.name.replace("--", "/", 1)
            models.append(CachedModel(title, place, (), (), downloads))
    return [model for model in models if model.files or model.n_bytes]


def _cached(folder: Path, title: str, group: list[Shelf]) -> CachedModel:
    files, parts = [], []
    for shelf in group:
        for path in sorted((shelf.folder / shelf.state).iterdir()):
            if path.suffix == ".gguf" and not path.name.startswith("."):
                kind = shelf.type_of(path)
                files.append(CachedFile(kind, path, disk_bytes(path)))
            else:
                parts.append(path)
    downloads = cache_folder() / "checkpoints" / folder.name
    is_hub = isinstance(group[0].source, HubSource)
    there = downloads if is_hub and downloads.is_dir() else None
    return CachedModel(title, folder, tuple(files), tuple(parts), there)


def find_cached(text: str) -> CachedModel:
    """The cached model with this name.

    Raises:
        SourceError: it is not there; names similar ones.
    """
    known = find_model(text)
    folder = str(Path(text).expanduser().resolve())
    ready = _ready(text)
    name = (ready.repository if ready else text).lower()
    wanted = {name, known.id.lower() if known else ""}
    for model in cached_models():
        if ready and not model.is_ready:
            continue
        if model.title.lower() in wanted or model.title == folder:
            return model
    raise SourceError(
        f"{text}: not in the cache {cache_folder()}; infer-os models lists what is{near(text)}"
    )


def _ready(text: str) -> ReadySource | None:
    """The ready file that a text names, if it does."""
    named = read_hub_name(text)
    return named if isinstance(named, ReadySource) else None


def remove_model(text: str, kind: str = "") -> tuple[str, int]:
    """Remove a model from the cache, or only its conversion to one type, or its file ``NAME:TYPE``.

    Adapters that belong to it alone go with it.

    Returns its full name and the bytes freed.

    Raises:
        SourceError: nothing of it is in the cache.
        OutputError: a process is using or converting it; nothing is removed.
    """
    model = find_cached(text)
    ready = _ready(text)
    kind = kind or (ready.wanted if ready else "")
    files = [
        f.path for f in model.files if kind.lower() in ("", f.type.lower(), f.path.name.lower())
    ]
    if kind and not files:
        there = ", ".join(file.type for file in model.files) or "nothing"
        raise SourceError(f"{model.title}: {kind} is not in the cache; there is {there}")
    headers = headers_of(files)
    with ExitStack() as stack:
        if model.shelf.is_dir():
            busy = f"{model.title}: another process converts it; try again later"
            stack.enter_context(locked(model.shelf / LOCK, busy))
        if kind or model.downloads is None:
            freed = remove_files(files if kind else [*files, *model.parts])
        else:
            for lock in model.downloads.glob("*/.lock"):
                busy = f"{model.title}: another process downloads it; try again later"
                stack.enter_context(locked(lock, busy))
            freed = remove_files([*files, *model.parts, *_contents(model.downloads)])
            _remove_folders(model.downloads)
        if model.shelf.is_dir():
            tidy(model.shelf)
    left = cached_models()
    freed += remove_converted(headers, [file.path for other in left for file in other.files])
    if all(other.title != model.title for other in left):
        freed += remove_downloads(model.title)
    return model.title, freed


def _contents(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def _remove_folders(folder: Path) -> None:
    """Remove a folder of empty folders, and its parent if that is then empty."""
    for path in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        path.rmdir()
    folder.rmdir()
    with suppress(OSError):
        folder.parent.rmdir()
