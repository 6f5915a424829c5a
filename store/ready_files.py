"""Ready GGUF files of a repository: which there are, which one is meant, what its header says.

Goes in: a :class:`~..convert.source.ReadySource`. Comes out: the model's files with their sizes and
hashes, and the checked header, of which only the first bytes are fetched. Models in several parts
(``-00001-of-00003.gguf``) count as one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..cache import cache_folder
from ..convert.errors import SourceError
from ..convert.hub import HubFile, Repository, is_offline, read_start
from ..convert.hub_checkpoint import find_repository
from ..convert.source import HubSource, ReadySource
from ..models.graphs import graph_named
from ..native.errors import GgufError
from ..native.gguf_file import GgufHeader, read_remote_header
from ..native.gguf_split import whole_header
from ..native.graph_check import check_graph
from ..sizes import size_text
from .shelves import quantization_of, shelf_of

#: As ``wanted``: the finest that fits into memory.
AUTO = "auto"
_NAME = re.compile(r"[\w+][\w.+-]*(/[\w+][\w.+-]*)*\.gguf", re.ASCII | re.IGNORECASE)
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_MOST_SHOWN = 12
#: A written file's own key, so that what infer-os converted is known again.
_OWN_KEY = "inferos.version"


@dataclass(frozen=True, slots=True)
class ReadyModel:
    """A model's file, or its parts in order. ``base`` is its name without part and suffix."""

    repository: Repository
    base: str
    files: tuple[HubFile, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def quantization(self) -> str:
        """The quantization that the name states, or the name."""
        return quantization_of(self.base)

    @property
    def file_name(self) -> str:
        """The name of its file in the cache: that on the hub, without parts and folders."""
        return f"{self.base.replace('/', '--')}.gguf"


def find_ready(source: ReadySource) -> ReadyModel:
    """The model on the hub that is meant; for ``auto`` see :func:`ready_models`.

    Raises:
        SourceError: no such repository, no such file, or several that fit; names what there is.
    """
    repository = find_repository(HubSource(source.repository, source.revision), cache_folder())
    found = _matching(source.wanted, _models(repository))
    if len(found) == 1:
        return _complete(found[0])
    if found:
        names = ", ".join(f"{model.base}.gguf" for model in found[:_MOST_SHOWN])
        raise SourceError(
            f"{source.repository}: {source.wanted} is the quantization of several files; write one "
            f"behind the colon: {names}"
        )
    raise SourceError(
        f"{source.repository}: it has no GGUF file {source.wanted}; {_there_is(repository)}"
    )


def ready_models(source: ReadySource) -> list[ReadyModel]:
    """Every complete model of the repository, the largest first.

    Raises:
        SourceError: no such repository, or none in it.
    """
    repository = find_repository(HubSource(source.repository, source.revision), cache_folder())
    found = [model for model in _models(repository) if not _gap(model)]
    if not found:
        raise SourceError(f"{source.repository}: {_there_is(repository)}")
    return sorted(found, key=lambda model: -model.n_bytes)


def cached_ready(source: ReadySource) -> Path | None:
    """The file in the cache that is meant; the largest, where several are."""
    shelf = shelf_of(source)
    files = sorted((shelf.folder / shelf.state).glob("*.gguf"), key=lambda p: -p.stat().st_size)
    there = [path for path in files if not path.name.startswith(".")]
    if source.wanted.lower() == AUTO:
        return next(iter(there), None)
    names = {path.stem.replace("--", "/"): path for path in there}
    found = matching(source.wanted, names)
    return names[found[0]] if found else None


def remote_header(model: ReadyModel) -> GgufHeader:
    """The header of a model that is on the hub, checked as a local file's; the parts' as one.

    Raises:
        SourceError: offline, or not a model that can be used.
        GgufError: a header that llama.cpp must not see.
        DownloadError: the hub does not answer.
    """
    if is_offline():
        raise SourceError(
            f"{model.repository.id}: HF_HUB_OFFLINE is set, and {model.base}.gguf is on the hub; "
            "unset it"
        )

    def read(file: HubFile) -> GgufHeader:
        name = Path(f"{model.repository.id}:{file.name}")
        return read_remote_header(name, lambda n: read_start(model.repository, file, n), file.size)

    header = whole_header([read(file) for file in model.files])
    check_ready(header)
    return header


def check_ready(header: GgufHeader) -> None:
    """Refuse what is a GGUF file but no model that can be run.

    Raises:
        GgufError: it is, or a header that llama.cpp must not see.
    """
    kind = header.metadata.get("general.type", "model")
    if kind != "model":
        raise GgufError(f"{header.path}: holds no model, but is of the type {kind!r}")
    if not header.tensors:
        raise GgufError(f"{header.path}: holds no weights, only a vocabulary")
    if "split.count" in header.metadata and header.metadata["split.count"] != 1:
        raise GgufError(f"{header.path}: one part of several; name the model without its part")
    check_graph(header)


def foreign_note(header: GgufHeader) -> str:
    """What of a file infer-os does not vouch for, in one line; "" for a file of its own."""
    if _OWN_KEY in header.metadata:
        return ""
    name, graph = header.path.name, header.architecture
    model = header.metadata.get("tokenizer.ggml.model", "none")
    split = header.metadata.get("tokenizer.ggml.pre", "none")
    tokenizer = f"its tokenizer ({model}, split {split})"
    if not graph_named(graph).is_own:
        return (
            f"{name}: its graph {graph} and {tokenizer} are not ones that infer-os converts to: "
            "llama.cpp computes it as it is, and only the header was checked"
        )
    return (
        f"{name}: written by another program: {tokenizer} is taken as it is, and may give other "
        "tokens than the original's"
    )


def _models(repository: Repository) -> list[ReadyModel]:
    """The repository's models, by name; parts that are missing are left out of ``files``."""
    groups: dict[str, list[HubFile]] = {}
    for name, file in sorted(repository.files.items()):
        if _NAME.fullmatch(name):
            groups.setdefault(_base(name), []).append(file)
    return [ReadyModel(repository, base, tuple(files)) for base, files in groups.items()]


def _base(name: str) -> str:
    return _PART.sub("", name[: -len(".gguf")])


def _matching(wanted: str, models: Iterable[ReadyModel]) -> list[ReadyModel]:
    by_base = {model.base: model for model in models}
    return [by_base[base] for base in matching(wanted, by_base)]


def matching(wanted: str, bases: Iterable[str]) -> list[str]:
    """The names that are meant: the very one, else those in folders, else by quantization."""
    bases = list(bases)
    stem = _base(wanted) if wanted.lower().endswith(".gguf") else wanted
    tests: tuple[Callable[[str], bool], ...] = (
        lambda base: base == stem,
        lambda base: base.rpartition("/")[2] == stem,
        lambda base: quantization_of(base).lower() == wanted.lower(),
    )
    return next((found for test in tests if (found := [b for b in bases if test(b)])), [])


def _complete(model: ReadyModel) -> ReadyModel:
    gap = _gap(model)
    if gap:
        raise SourceError(f"{model.repository.id}: {gap}; choose another file")
    unproved = next((f for f in model.files if not (f.sha256 or f.blob)), None)
    if unproved is not None:
        raise SourceError(f"{model.repository.id}: the hub gives no hash of {unproved.name}")
    return model


def _gap(model: ReadyModel) -> str:
    """What a model in parts lacks; "" for nothing."""
    found = [_PART.search(file.name[: -len(".gguf")]) for file in model.files]
    parts = [(int(part[1]), int(part[2])) for part in found if part]
    if not parts:
        return "" if len(model.files) == 1 else f"{model.base}.gguf is there twice"
    count = parts[0][1]
    missing = sorted(set(range(1, count + 1)) - {at for at, _ in parts})
    if missing:
        return (
            f"{model.base} has {len(set(parts))} of its {count} parts on the hub; part "
            f"{missing[0]} is missing"
        )
    return "" if len(model.files) == count else f"{model.base} has parts of several models"


def _there_is(repository: Repository) -> str:
    models = _models(repository)
    if not models:
        return "no GGUF files there"
    shown = [f"{model.quantization} ({size_text(model.n_bytes)})" for model in models[:_MOST_SHOWN]]
    more = f" and {len(models) - len(shown)} more" if len(models) > len(shown) else ""
    return f"there are {', '.join(shown)}{more}"
