"""What a user calls a model: a GGUF file, a checkpoint folder, a name of the catalog or a hub id.

Comes out: the path, or the model on the hub that is meant. Nothing is downloaded or made. Every
command, and the Python API, reads a model's name here. What exists under that name wins; then comes
the catalog; then the hub: ``OWNER/NAME``, ``OWNER/NAME@REVISION``, and ``OWNER/NAME:WANTED`` for a
ready GGUF file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ..convert.errors import SourceError, UnknownModel, UnsupportedError
from ..convert.plain_file import check_plain
from ..convert.source import HubSource, ReadySource, is_revision, read_hub_name
from ..models.catalog import find_model, near_names
from .shelves import shelf_of, titles

if TYPE_CHECKING:
    from ..runtime.settings import Extra


def first_work(text: str, kind: str = "", loras: Sequence[str] = ()) -> frozenset[Extra]:
    """What a process does before it can load a model: nothing if its file is there.

    ``loras`` are adapters that are added to it.

    Raises:
        SourceError: no such model.
    """
    from ..runtime.settings import Extra

    source = find_source(text)
    if isinstance(source, Path) and not source.is_dir():
        return frozenset()
    shelf = shelf_of(source)
    if isinstance(source, ReadySource):
        from .ready_files import cached_ready

        return frozenset() if cached_ready(source) else frozenset((Extra.DOWNLOAD,))
    kind = kind or shelf.usual_type()
    lora = _cached_digest(loras)
    if lora is not None and shelf.file(kind, lora).exists():
        return frozenset()
    return frozenset((Extra.CONVERSION if isinstance(source, Path) else Extra.DOWNLOAD,))


def _cached_digest(loras: Sequence[str]) -> str | None:
    """The digest of adapters; None if one is still to be downloaded."""
    if not loras:
        return ""
    from ..convert.adapters import adapters_digest
    from .lora import are_local, fetch_adapters
    from .reporter import Reporter

    if not are_local(loras):
        return None
    silent = Reporter(lambda text: None, lambda label: nullcontext())
    return adapters_digest(fetch_adapters(loras, silent))


def find_source(
    text: str, revision: str | None = None, *, checkpoint: bool = False
) -> HubSource | ReadySource | Path:
    """What a user's words name: a file or a folder that exists, else a model on the hub.

    Args:
        text: MODEL, as it was typed.
        revision: a branch, a tag or a commit, where the command has ``--revision``; it overrides
            the catalog's.
        checkpoint: for SOURCE of ``convert``, which has ``--revision`` and takes no GGUF file.

    Raises:
        SourceError: neither; names similar ones.
        UnsupportedError: a revision of what is here, or one that cannot be one; a ready file as
            SOURCE.
    """
    nothing = "no such folder" if checkpoint else "no such file or folder"
    if not text:
        what, file = ("SOURCE", "") if checkpoint else ("MODEL", "a GGUF file, ")
        raise SourceError(f"{what} is empty; give {file}a folder, a catalog name or a hub id")
    path = Path(text)
    try:
        exists = path.exists()
        if exists:
            check_plain(path)
    except OSError as error:
        raise SourceError(f"{text}: cannot be opened: {error.strerror}") from error
    if exists:
        if revision is not None:
            raise UnsupportedError(f"--revision {revision}: {text} is a local folder; drop it")
        return path
    named = read_hub_name(text)
    if isinstance(named, ReadySource):
        if checkpoint:
            raise UnsupportedError(
                f"{text}: a ready GGUF file is used as it is; infer-os run {text} runs it"
            )
        return named
    given = named.revision if named else ""
    if given:
        if revision is not None:
            raise UnsupportedError(f"--revision {revision}: {text} names one; drop one of them")
        revision, text = given, text.partition("@")[0]
    known = find_model(text)
    if known is None and (named is None or path.suffix.lower() == ".gguf"):
        advice = near(text)
        # a path has characters that no name has
        if not any(mark in text for mark in "/.~"):
            nothing += ", and no name in the catalog; hub ids look like EleutherAI/gpt-j-6B"
            advice = advice or "; infer-os models lists the names"
        raise SourceError(f"{text}: {nothing}{advice}")
    if revision is not None:
        if not is_revision(revision):
            raise UnsupportedError(f"--revision {revision!r}: expected a branch, a tag or a commit")
    elif known is None and path.parent.is_dir() and not shelf_of(HubSource(text)).types():
        # EleutherAI/... beside a folder EleutherAI is rather a slip than a wish for the network
        remedy = "add --revision main or " if checkpoint else ""
        raise SourceError(
            f"{text}: {nothing}, though {path.parent} is a folder; for the model of that name on "
            f"the hub, {remedy}start from another folder{near(text)}"
        )
    if known is None:
        return HubSource(text, revision or "main")
    return HubSource(known.id, revision or known.revision, known)


def find_checkpoint(text: str, revision: str | None = None) -> HubSource | Path:
    """What SOURCE of ``convert`` names: :func:`find_source` without ready files.

    Raises:
        As :func:`find_source`.
    """
    source = find_source(text, revision, checkpoint=True)
    assert not isinstance(source, ReadySource)
    return source


def near(text: str) -> str:
    """ "; did you mean ...?" with names of the catalog or the cache, or nothing."""
    return "" if find_model(text) else near_names(text, titles())


@contextmanager
def naming_near() -> Iterator[None]:
    """While inside, an error of a model that the hub does not have names those spelled nearly so.

    Raises:
        UnknownModel: as inside, and its message says more.
    """
    try:
        yield
    except UnknownModel as error:
        raise UnknownModel(f"{error}{near(error.repository)}", error.repository) from error
