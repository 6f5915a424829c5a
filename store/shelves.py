"""The cache of models as folders: where each model's conversions lie, and what is there. ::

    {cache}/models/hub/{owner}--{name}/{revision}/{name}-{type}.gguf
    {cache}/models/folders/{name}-{hash of its path}/{hash of its files}/{name}-{type}.gguf
    {cache}/models/ready/{owner}--{name}/{revision}/{file's name on the hub}

A folder counts as a different one when the name, size or time of one of its files changes.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..cache import cache_folder
from ..convert.errors import OutputError, SourceError
from ..convert.source import SMALL_FILES, HubSource, ReadySource
from ..locks import try_unused
from ..models.catalog import find_model

#: The type of a model that is not yet cached: the default of ``convert``, and the fastest on a CPU.
DEFAULT_TYPE = "q4_0"
#: Held by whoever changes a model's place.
LOCK = ".lock"
#: In a conversion's name, between its type and what says which adapters were added.
LORA_MARK = "+lora-"
#: The folder of files that came from the hub as they are.
READY = "ready"
#: Says where a converted folder was.
ORIGIN = "source.txt"
_HASHED = 16  # hexadecimal digits
# what people write into the names of GGUF files: Q4_K_M, IQ3_XXS, UD-Q4_K_XL, F16
_QUANTIZATION = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|BF16|FP?16|FP?32))$",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Shelf:
    """One model's place in the cache; ``state`` is a revision, or the hash of a folder."""

    source: HubSource | ReadySource | Path
    folder: Path
    state: str

    @property
    def title(self) -> str:
        """The model's name in messages: its hub id, or its folder."""
        return str(self.source) if isinstance(self.source, Path) else self.source.repository

    @property
    def name(self) -> str:
        """The model's name in the names of its files."""
        return self.source.name

    def file(self, kind: str, lora: str = "") -> Path:
        """The path of its conversion to a type, made or not; ``lora`` is a digest of adapters."""
        mark = f"{LORA_MARK}{lora}" if lora else ""
        return self.folder / self.state / f"{self.name}-{kind.lower()}{mark}.gguf"

    def types(self) -> list[str]:
        """The types that are cached without adapters, the default one first, then the largest."""
        places = (self.folder / self.state).glob("*.gguf")
        files = [p for p in places if not p.name.startswith(".") and LORA_MARK not in p.stem]
        kinds = {self.type_of(path): path.stat().st_size for path in files}
        return sorted(kinds, key=lambda kind: (kind != DEFAULT_TYPE, -kinds[kind]))

    def type_of(self, path: Path) -> str:
        """The type of a file of the cache, from its name."""
        if isinstance(self.source, ReadySource):
            return quantization_of(path.stem)
        return path.stem.removeprefix(f"{self.name}-")

    def usual_type(self) -> str:
        """The type to take where none is named: the first that is cached, else the default."""
        return next(iter(self.types()), DEFAULT_TYPE)


def quantization_of(base: str) -> str:
    """The quantization that a ready file's name ends with, without suffix; else its name."""
    found = _QUANTIZATION.search(base)
    return found[1] if found else base.rpartition("/")[2]


def shelf_of(source: HubSource | ReadySource | Path) -> Shelf:
    """Where the conversions of a model are kept; a folder must exist, since its files count."""
    models = cache_folder() / "models"
    if not isinstance(source, Path):
        # the hub allows no "--" in a name, nor a revision of "." or ".."
        kind = READY if isinstance(source, ReadySource) else "hub"
        folder = models / kind / source.repository.replace("/", "--")
        return Shelf(source, folder, source.revision.replace("/", "--"))
    source = source.resolve()
    digest = hashlib.sha256(str(source).encode("utf-8", "surrogateescape")).hexdigest()
    folder = models / "folders" / f"{source.name}-{digest[:_HASHED]}"
    return Shelf(source, folder, _state_of(source))


def shelves() -> Iterator[Shelf]:
    """Everything that the cache holds, hub models first; one shelf per state of a folder."""
    models = cache_folder() / "models"
    for folder in sorted(models.glob("hub/*--*")):
        for state in states(folder):
            # an id has one slash; what follows may contain dashes
            repository = folder.name.replace("--", "/", 1)
            yield Shelf(HubSource(repository, state, find_model(repository)), folder, state)
    for folder in sorted(models.glob(f"{READY}/*--*")):
        for state in states(folder):
            repository = folder.name.replace("--", "/", 1)
            yield Shelf(ReadySource(repository, "", state), folder, state)
    for folder in sorted(models.glob("folders/*")):
        try:
            origin = Path((folder / ORIGIN).read_text("utf-8", "surrogateescape"))
        except OSError:
            continue
        for state in states(folder):
            yield Shelf(origin, folder, state)


def titles() -> list[str]:
    """What the models of the cache are called, those that are only downloaded included."""
    downloads = sorted((cache_folder() / "checkpoints").glob("*--*"))
    fetched = (folder.name.replace("--", "/", 1) for folder in downloads)
    return list(dict.fromkeys((*(shelf.title for shelf in shelves()), *fetched)))


def states(folder: Path) -> list[str]:
    """The revisions of a hub model, or the hashes of a folder, that are in the cache."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def _state_of(folder: Path) -> str:
    """A hash of the names, sizes and times of the files that a conversion may read."""
    facts = []
    try:
        for path in sorted(folder.iterdir()):
            weights = path.suffix in (".safetensors", ".bin", ".pt", ".json", ".jinja")
            if (weights or path.name in SMALL_FILES) and path.is_file():
                status = path.stat()
                facts.append(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}")
    except OSError as error:
        raise SourceError(f"{folder}: cannot be read: {error.strerror}") from error
    text = "\n".join(facts).encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).hexdigest()[:_HASHED]


def tidy(folder: Path) -> None:
    """Remove what is empty in a model's place; the caller holds its lock."""
    for state in states(folder):
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


def disk_bytes(path: Path) -> int:
    """Bytes that a file takes on disk, fewer than its size while it is being filled."""
    try:
        status = path.stat()
    except OSError:
        return 0
    return min(status.st_size, status.st_blocks * 512) if path.is_file() else 0


def remove_files(paths: list[Path]) -> int:
    """Remove files of the cache, all or none; returns the bytes they took.

    Raises:
        OutputError: a process uses one of them, or one cannot be removed.
    """
    with _unused([path for path in paths if path.suffix == ".gguf"]):
        freed = 0
        for path in paths:
            n_bytes = disk_bytes(path)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(f"{path}: cannot be removed: {error.strerror}") from error
            freed += n_bytes
    return freed


@contextmanager
def _unused(paths: list[Path]) -> Iterator[None]:
    """Hold files so that no engine takes them: an engine holds a shared lock on its file."""
    with ExitStack() as stack:
        for path in paths:
            try:
                handle = try_unused(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise OutputError(f"{path}: cannot be opened: {error.strerror}") from error
            if handle is None:
                raise OutputError(f"{path}: a process uses it; end that first, nothing was removed")
            stack.callback(os.close, handle)
        yield
