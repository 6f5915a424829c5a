"""Files as the operating system has them: whole or not there, durable, named in errors, locked.

Knows nothing of what a file holds. Every ``OSError`` that leaves this module names its file.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def named(path: Path | int) -> Iterator[None]:
    """While inside, an ``OSError`` that names no file is of this path or open handle.

    What fails on an open handle (a full disk, a quota, a broken device) does not say on which.
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
def new_file(path: Path, *, part: Path | None = None, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file that takes its name when the block succeeds: synced, renamed, its folder synced.

    What had the name before stays until then, and for good if the block fails.

    Args:
        path: the file to make.
        part: the sibling that grows until then, overwritten if it is there; the caller sees to it
            that nobody else writes it. Without one, a name that nobody else has.
        mode: the permissions, less the user's mask.

    Raises:
        OSError: it cannot be written; names the file.
    """
    new = part if part is not None else path.with_name(f".{secrets.token_hex(8)}.part")
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
            os.replace(new, path)
            sync_folder(path.parent)
    finally:
        new.unlink(missing_ok=True)


def write_file(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write a small file as :func:`new_file` does.

    Raises:
        OSError: it cannot be written; names the file.
    """
    with new_file(path, mode=mode) as file:
        file.write(data)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with named(folder):
            os.fsync(handle)
    finally:
        os.close(handle)


def open_lock(path: Path) -> int:
    """The handle of a file to lock, made if need be."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def is_there_still(path: Path, handle: int) -> bool:
    """Whether a name is still that of an open file: who had it locked may have removed it."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def try_lock(path: Path) -> int | None:
    """The handle of a file, made if need be, that this process alone has locked.

    Closing it unlocks. None where somebody else has the lock, in this process or another, or
    had it and removed or renamed the file meanwhile.

    Raises:
        OSError: the file cannot be made or locked; names it.
    """
    handle = open_lock(path)
    try:
        if lock_handle(handle) and is_there_still(path, handle):
            return handle
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def lock_handle(handle: int, *, shared: bool = False) -> bool:
    """Lock an open file until it is closed; whether it was free.

    ``shared`` admits others that share, and keeps out who wants it alone.

    Raises:
        OSError: it cannot be locked, as on some network file systems; names the file.
    """
    try:
        with named(handle):
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_in_turn(path: Path, handle: int) -> bool:
    """Wait for the lock of an open file; False if the file lost its name meanwhile.

    Raises:
        OSError: it cannot be locked; names the file.
    """
    with named(path):
        fcntl.flock(handle, fcntl.LOCK_EX)
    return is_there_still(path, handle)
