"""Files as the operating system has them: whole or not there, durable, named in errors.

Knows nothing of what a file holds. Every ``OSError`` that leaves this module names its file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def named(path: Path | int) -> Iterator[None]:
    """While inside, an ``OSError`` without a file name gets that of this path or open handle.

    A failure on an open handle (a full disk, a quota, a broken device) does not say which file.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = _name_of(path) if isinstance(path, int) else str(path)
        raise


def _name_of(handle: int) -> str | None:
    try:
        return os.readlink(f"/proc/self/fd/{handle}")
    except OSError:
        return None


@contextmanager
def new_file(
    path: Path, *, part: Path | None = None, mode: int = 0o666, replace: bool = True
) -> Iterator[BinaryIO]:
    """A file that gets its name when the block succeeds: synced, renamed, its folder synced.

    An earlier file stays until then, and for good if the block fails.

    Args:
        path: the file to make.
        part: the sibling that grows until then, overwritten if it exists; the caller ensures that
            nobody else writes it. Without it, a unique name.
        mode: the permissions, less the user's mask.
        replace: False leaves what has the name by then, so that of many that make it at once the
            first one's stays.

    Raises:
        OSError: it cannot be written; names the file.
    """
    new = part if part is not None else path.with_name(f".{os.urandom(8).hex()}.part")
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (os.O_EXCL if part is None else os.O_TRUNC)
    try:
        with named(path):
            try:
                handle = os.open(new, flags, mode)
            except OSError as error:
                error.filename = str(path)
                raise
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if replace:
                take_name(new, path)
            else:
                with suppress(FileExistsError):
                    os.link(new, path)
                sync_folder(path.parent)
    finally:
        new.unlink(missing_ok=True)


def write_file(path: Path, data: bytes, *, mode: int = 0o666, replace: bool = True) -> None:
    """Write a small file as :func:`new_file` does.

    Raises:
        OSError: it cannot be written; names the file.
    """
    with new_file(path, mode=mode, replace=replace) as file:
        file.write(data)


def take_name(part: Path, path: Path) -> None:
    """Give a complete and synced sibling the name of the file that it is to be, durably.

    Raises:
        OSError: it cannot be renamed.
    """
    os.replace(part, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with named(folder):
            os.fsync(handle)
    finally:
        os.close(handle)
