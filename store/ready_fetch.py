"""Bring a ready GGUF file from the hub into the cache, checked before llama.cpp sees it.

The header is checked by its first bytes, and the memory planned, before anything large is fetched.
Every file is compared with the hub's hash; the parts of a model become one file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..convert.errors import OutputError, SourceError, UnreachableError
from ..convert.gguf_writer import check_output
from ..convert.hub import download
from ..convert.output_locks import locked_in_turn, make_folder
from ..convert.source import ReadySource
from ..files import new_file
from ..native.errors import GgufError
from ..native.gguf_file import GgufHeader, read_gguf_header
from ..native.gguf_split import write_whole
from ..native.graph_check import read_model_header
from ..sizes import size_text
from .ready_files import ReadyModel, cached_ready, check_ready, foreign_note
from .reporter import Reporter
from .resolve import naming_near
from .shelves import LOCK, shelf_of, tidy

if TYPE_CHECKING:
    from ..runtime.settings import EngineSettings


def ready_file(source: ReadySource, settings: EngineSettings | None, report: Reporter) -> Path:
    """The local file of a ready model, downloaded first if need be.

    Args:
        source: the model.
        settings: how it will be loaded; what would not fit is not downloaded. None if it is not
            loaded here and now.
        report: receives progress and notes.

    Raises:
        SourceError: no such repository or file, or nothing in the cache and no network.
        GgufError: not a model that can be used.
        MemoryShortage: it would not fit in memory.
        OutputError: it does not fit on the disk.
        DownloadError: the network failed, or the content is wrong. After it and after
            KeyboardInterrupt, the next call continues.
    """
    path = cached_ready(source)
    if path is None:
        try:
            with naming_near():
                path = _fetch(source, settings, report)
        except UnreachableError as error:
            raise SourceError(f"{error}; it is not in the cache") from error
    else:
        report.note(f"{source.text}: {path.name} from the cache; the hub was not asked")
    note = foreign_note(read_model_header(path))
    if note:
        report.note(f"note: {note}")
    return path


def _fetch(source: ReadySource, settings: EngineSettings | None, report: Reporter) -> Path:
    from ..runtime.settings import EngineSettings
    from .planning import choose_ready

    model, header = choose_ready(source, settings or EngineSettings())
    if settings is not None:
        _check_memory(source, header, settings)
    shelf = shelf_of(source)
    target = shelf.folder / shelf.state / model.file_name

    def tell_wait() -> None:
        report.note(f"{source.text}: another process downloads it; waiting")

    with locked_in_turn(shelf.folder / LOCK, tell_wait):
        try:
            if target.exists():
                return target
            make_folder(target.parent)
            _check_room(model, target)
            report.note(
                f"{source.text}: downloading {model.base}.gguf, {size_text(model.n_bytes)}, into "
                f"{target.parent}"
            )
            with report.bar(target.name) as progress:
                _download(model, target, progress)
        except (KeyboardInterrupt, SystemExit):
            report.note("interrupted; the same command continues where it stopped")
            raise
        finally:
            tidy(shelf.folder)
    return target


def _check_memory(source: ReadySource, header: GgufHeader, settings: EngineSettings) -> None:
    from ..runtime.plan.memory_plan import MemoryShortage
    from .planning import ready_plan

    plan = ready_plan(header, settings)
    if not plan.fits:
        raise MemoryShortage(
            f"{source.text}: it needs {size_text(plan.total, up=True)}, and "
            f"{size_text(plan.limit)} may be used; {source.repository}:auto takes the finest file "
            "that fits; nothing was downloaded", plan,
        )  # fmt: skip


def _parts(model: ReadyModel, target: Path) -> list[Path]:
    """Where the files of a model are downloaded to: hidden from the cache if there are several."""
    if len(model.files) == 1:
        return [target]
    return [target.with_name(f".{at:05}.{target.name}") for at in range(1, len(model.files) + 1)]


def _check_room(model: ReadyModel, target: Path) -> None:
    """Room for what is still to come, and for the whole file if it is made of parts."""
    here = 0
    for part in _parts(model, target):
        for path in (part, part.with_name(f"{part.name}.incomplete")):
            here += path.stat().st_size if path.exists() else 0
    copies = 1 if len(model.files) == 1 else 2
    check_output(target, max(0, copies * model.n_bytes - here), force=False)


def _download(model: ReadyModel, target: Path, progress: Callable[[int, int], None] | None) -> None:
    parts = _parts(model, target)
    total = model.n_bytes * (1 if len(parts) == 1 else 2)
    done = 0

    def count(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        if progress:
            progress(done, total)

    for file, path in zip(model.files, parts, strict=True):
        if path.exists():
            count(file.size)
        else:
            download(model.repository, file, path, count)
    if len(parts) > 1:
        try:
            with new_file(target, part=target.with_name(f".{target.name}.part")) as output:
                write_whole([read_gguf_header(path) for path in parts], output, count)
        except OSError as error:
            raise OutputError(f"{target}: cannot be written: {error.strerror}") from error
        for path in parts:
            path.unlink()
    try:
        check_ready(read_gguf_header(target))
    except GgufError:
        target.unlink()  # the hub gave other first bytes than those of the file
        raise
