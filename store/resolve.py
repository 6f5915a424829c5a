"""What a user calls a model: a GGUF file, a checkpoint folder, a name of the catalog or a hub id.

Comes out: the path, or the model on the hub that is meant. Nothing is downloaded or made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..convert.errors import SourceError
from ..convert.source import HubSource, is_hub_id
from ..models.catalog import find_model, near_names
from .shelves import DEFAULT_TYPE, shelf_of, shelves

if TYPE_CHECKING:
    from ..runtime.settings import Extra


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
