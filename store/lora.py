"""LoRA adapters by their names: a folder or a hub id, and perhaps a scale behind a colon.

Goes in: the texts of ``--lora``. Comes out: local folders, fetched once from the hub into
``{cache}/adapters/{owner}--{name}/{revision}``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..cache import cache_folder
from ..convert.adapter_config import ADAPTER_CONFIG
from ..convert.adapters import ADAPTER_WEIGHTS, open_adapter, parts_of
from ..convert.errors import FileFormatError, SourceError, UnsupportedError
from ..convert.hub import download, list_repository
from ..convert.output_locks import locked_in_turn, make_folder
from ..convert.plain_file import check_plain
from ..convert.source import AdapterSource, HubSource, read_hub_name
from ..errors import shortened
from ..files import names_something
from ..models.network import Network
from ..sizes import read_number, size_text
from .reporter import Reporter

_LARGEST_SCALE = 1e3
_LONGEST_SHOWN = 200
#: Held by whoever downloads an adapter into its folder.
LOCK = ".lock"


def find_adapter(text: str, option: str = "--lora") -> tuple[HubSource | Path, float]:
    """What a text of ``--lora``, or of ``--adapter`` behind its name, means; and its scale.

    Raises:
        SourceError: neither a folder nor a hub id.
        UnsupportedError: a scale that cannot be one.
    """
    if not text:
        raise SourceError(f"{option} is empty; give an adapter's folder or its hub id")
    if _is_there_as(text, option):
        return Path(text), 1.0
    name, colon, number = text.rpartition(":")
    if not colon:
        name, number = text, "1"
    try:
        scale = read_number(number)
    except ValueError:
        raise UnsupportedError(
            f"{option} {_shown(text)}: the scale {_shown(number)!r} is not a number such as 0.5"
        ) from None
    if not 0 < abs(scale) <= _LARGEST_SCALE:
        raise UnsupportedError(
            f"{option} {_shown(text)}: the scale {_shown(number)!r}: expected up to "
            f"{_LARGEST_SCALE:g}, and not 0"
        )
    if _is_there_as(name, option):
        return Path(name), scale
    named = read_hub_name(name)
    if not isinstance(named, HubSource):
        raise SourceError(
            f"{option} {_shown(text)}: no such folder, and not a hub id such as OWNER/NAME"
        )
    return HubSource(named.repository, named.revision or "main"), scale


def _is_there_as(text: str, option: str) -> bool:
    """Whether a text names a folder or a file.

    Raises:
        SourceError: it cannot be read, or may have no end.
    """
    try:
        if not names_something(text):
            return False
        check_plain(Path(text))
    except OSError as error:
        raise SourceError(f"{option} {text}: cannot be opened: {error.strerror}") from error
    except FileFormatError as error:
        raise SourceError(f"{option} {error}") from error
    return True


def _shown(text: str) -> str:
    return shortened(text, _LONGEST_SHOWN)


def fetch_adapters(texts: Sequence[str], report: Reporter) -> tuple[AdapterSource, ...]:
    """The folders of ``--lora``'s adapters, downloaded first if need be.

    Raises:
        SourceError, UnsupportedError: as :func:`find_adapter`, or the hub has no such adapter.
        DownloadError: the network failed; the next call continues.
    """
    return tuple(fetch_adapter(text, "--lora", report) for text in texts)


def fetch_adapter(text: str, option: str, report: Reporter) -> AdapterSource:
    """An adapter's folder or file, likewise."""
    source, scale = find_adapter(text, option)
    folder = source if isinstance(source, Path) else _fetch(source, option, report)
    return AdapterSource(folder, scale, text, option)


def absolute_words(text: str) -> str:
    """A text of ``--lora`` or ``--adapter`` that means the same in any folder."""
    with suppress(OSError):  # closed to the user; whoever opens it says so
        if names_something(text):
            return str(Path(text).absolute())
        head, colon, scale = text.rpartition(":")
        if colon and names_something(head):
            return f"{Path(head).absolute()}:{scale}"
    name, equals, rest = text.partition("=")
    return f"{name}={absolute_words(rest)}" if equals else text


def check_adapters(texts: Sequence[str], network: Network) -> None:
    """See that adapters fit a model, as far as they are on this machine.

    Raises:
        SourceError: no adapter, or one of another model.
        FileFormatError: a file that is malformed.
        UnsupportedError: an adapter that does more than LoRA, or a scale that cannot be one.
    """
    parts = parts_of(network)
    for text in texts:
        source, scale = find_adapter(text)
        folder = source if isinstance(source, Path) else _place(source)
        if isinstance(source, Path) or _is_there(folder):
            given = AdapterSource(folder, scale, text, "--lora")
            with open_adapter(given, parts, network.prefixes):
                pass


def are_local(texts: Sequence[str]) -> bool:
    """Whether no adapter is still to be downloaded."""
    sources = (find_adapter(text)[0] for text in texts)
    return all(isinstance(source, Path) or _is_there(_place(source)) for source in sources)


def _place(source: HubSource) -> Path:
    home = cache_folder() / "adapters" / source.repository.replace("/", "--")
    return home / source.revision.replace("/", "--")


def _is_there(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ADAPTER_WEIGHTS)


def _fetch(source: HubSource, option: str, report: Reporter) -> Path:
    folder = _place(source)
    if _is_there(folder):
        return folder

    def tell_wait() -> None:
        report.note(f"{source.repository}: another process downloads it; waiting")

    repository = list_repository(source)
    weights = next((name for name in ADAPTER_WEIGHTS if name in repository.files), None)
    if ADAPTER_CONFIG not in repository.files or weights is None:
        raise SourceError(
            f"{option} {source.repository}: not a LoRA adapter: it has no {ADAPTER_CONFIG} with "
            f"{' or '.join(ADAPTER_WEIGHTS)}"
        )
    # the weights last: they say that everything is there
    files = [repository.files[name] for name in (ADAPTER_CONFIG, weights)]
    total, done = sum(file.size for file in files), 0
    with locked_in_turn(folder / LOCK, tell_wait):
        if _is_there(folder):
            return folder
        make_folder(folder)
        report.note(f"{source.repository}: downloading the adapter, {size_text(total)}")
        with report.bar(source.name) as progress:

            def count(n_bytes: int) -> None:
                nonlocal done
                done += n_bytes
                if progress:
                    progress(done, total)

            for file in files:
                download(repository, file, folder / file.name, count)
    return folder


def downloads_for(model: str) -> list[Path]:
    """The folders of downloaded adapters that say that they were trained on a model, by hub id."""
    found = []
    for path in sorted((cache_folder() / "adapters").glob(f"*--*/*/{ADAPTER_CONFIG}")):
        try:
            base = json.loads(path.read_bytes())["base_model_name_or_path"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(base, str) and base.lower() == model.lower():
            found.append(path.parent)
    return found
