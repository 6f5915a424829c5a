"""Files as the operating system has them: whole or not there, durable, named in errors.

Knows nothing of what a file holds. Every ``OSError`` that leaves this module names its file. What
has a random name, ``.infer-os-0123456789abcdef.part`` or ``.work``, is locked while its process
lives; what is not locked was left by one that was killed, and goes when the next one begins there.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import named
from .locks import has_name, lock_handle

_PART, _WORK = "part", "work"
_ATTEMPTS = 20


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
    new = part
    try:
        with named(path):
            try:
                if part is not None:
                    handle = os.open(part, _FLAGS | os.O_TRUNC, mode)
                else:
                    remove_abandoned(path.parent)
                    new, handle = _held(path, _PART, lambda p: os.open(p, _FLAGS | os.O_EXCL, mode))
            except OSError as error:
                error.filename = str(path)
                raise
            assert new is not None
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if replace:  # while it is locked: nobody removes it
                    take_name(new, path)
                else:
                    with suppress(FileExistsError):
                        os.link(new, path)
                    sync_folder(path.parent)
    finally:
        if new is not None:
            new.unlink(missing_ok=True)


@contextmanager
def working_folder(path: Path) -> Iterator[Path]:
    """A folder next to ``path`` that goes at the end, with all that is in it.

    Raises:
        OSError: it cannot be made; names ``path``.
    """

    def make(folder: Path) -> int:
        folder.mkdir(0o700)
        return os.open(folder, _FOLDER)

    remove_abandoned(path.parent)
    try:
        folder, handle = _held(path, _WORK, make)
    except OSError as error:
        error.filename = str(path)
        raise
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def remove_abandoned(folder: Path) -> int:
    """Remove what killed processes of this user left in a folder; returns the bytes on the disk.

    What has a lock stays, and so does all on a file system without locks.
    """
    freed = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for path in [folder / entry.name for entry in entries if _RANDOM.fullmatch(entry.name)]:
            with suppress(OSError):
                freed += _remove_if_abandoned(path)
    return freed


_RANDOM = re.compile(rf"\.infer-os-[0-9a-f]{{16}}\.({_PART}|{_WORK})")
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def _held(path: Path, kind: str, make: Callable[[Path], int]) -> tuple[Path, int]:
    """A random name for ``path``, and the handle of what is made there, locked if that can be."""
    for _ in range(_ATTEMPTS):
        new = path.with_name(f".infer-os-{os.urandom(8).hex()}.{kind}")
        try:
            handle = make(new)
        except FileNotFoundError:
            if path.parent.is_dir() and kind == _WORK:
                continue  # removed before it was opened
            raise
        try:
            ours = lock_handle(handle) and has_name(new, handle)
        except OSError:  # without locks nobody removes it
            ours = True
        if ours:
            return new, handle
        os.close(handle)  # removed by who looked for what is abandoned, before it was locked
    raise FileNotFoundError(2, os.strerror(2), str(path))


def _remove_if_abandoned(path: Path) -> int:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if os.fstat(handle).st_uid != os.geteuid() or not lock_handle(handle):
            return 0
        inside = [path, *path.rglob("*")]
        freed = sum(found.lstat().st_blocks * 512 for found in inside)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        return freed
    finally:
        os.close(handle)


def write_file(path: Path, data: bytes, *, mode: int = 0o666, replace: bool = True) -> None:
    """Write a small file as :func:`new_file` does.

    Raises:
        OSError: it cannot be written; names the file.
    """
    with new_file(path, mode=mode, replace=replace) as file:
        file.write(data)


def append(path: Path, data: bytes) -> None:
    """Add to the end of a file, made if need be: all, or nothing if that fails.

    Raises:
        OSError: it cannot be written; names the file.
    """
    was_there = os.path.lexists(path)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        with suppress(OSError):  # a file system without locks
            lock_handle(handle, wait=True)
        before = os.fstat(handle).st_size
        left = memoryview(data)
        try:
            with named(path):
                while left:
                    left = left[os.write(handle, left) :]
        except BaseException:
            with suppress(OSError):  # a device has no size
                os.ftruncate(handle, before)
                if not was_there and not before:
                    path.unlink()
            raise
    finally:
        os.close(handle)


def take_name(part: Path, path: Path) -> None:
    """Give a complete and synced sibling the name of the file that it is to be, durably.

    Raises:
        OSError: it cannot be renamed.
    """
    os.replace(part, path)
    sync_folder(path.parent)


def names_something(text: str) -> bool:
    """Whether there is a file, or anything else, of that name; a text may be no path at all.

    Raises:
        OSError: that cannot be said, as of a folder that is closed to the user.
    """
    try:
        os.stat(text)
    except ValueError:  # a zero byte, or half a character
        return False
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            return False
        raise
    return True


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with named(folder):
            os.fsync(handle)
    finally:
        os.close(handle)
