"""Locks of files among processes and threads: flock(2), held until the handle is closed.

Who holds a lock alone may remove or rename its file; who waited for it then sees that the name is
another file's or nobody's. Python takes up a wait again that a signal interrupts. Where a file
system has no locks, the ``OSError`` says so; all of them name their file.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import named

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def try_lock(path: Path) -> int | None:
    """The handle of a file, made if need be, that this process alone has locked.

    None where somebody else has the lock, in this process or another, or had it and removed or
    renamed the file meanwhile.

    Raises:
        OSError: the file cannot be made or locked, as in a folder that cannot be written.
    """
    return _kept_if(_open(path), lambda handle: lock_handle(handle) and has_name(path, handle))


def wait_for_lock(path: Path, on_wait: Callable[[], None]) -> int | None:
    """As :func:`try_lock`, but waits for whoever has the lock; ``on_wait`` is called before.

    None where the file lost its name meanwhile: the next attempt may make another.

    Raises:
        OSError: the file cannot be made or locked.
    """
    handle = try_lock(path)
    if handle is not None:
        return handle

    def wait(waiting: int) -> bool:
        on_wait()
        return lock_handle(waiting, wait=True) and has_name(path, waiting)

    return _kept_if(_open(path), wait)


@contextmanager
def in_use(path: Path) -> Iterator[None]:
    """Share the lock of a file that is there, by which :func:`try_unused` sees that it is used.

    Raises:
        OSError: it cannot be opened. A file system without locks only goes without the sign.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            lock_handle(handle, shared=True)
        yield
    finally:
        os.close(handle)


def try_unused(path: Path) -> int | None:
    """The handle of a file that is there, locked if nobody uses it; None if somebody does.

    Raises:
        FileNotFoundError: it is not there.
        OSError: it cannot be opened or locked.
    """
    return _kept_if(os.open(path, os.O_RDONLY | os.O_CLOEXEC), lock_handle)


def lock_handle(handle: int, *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file; whether it was free, which with ``wait`` it is in the end.

    ``shared`` admits others that share, and keeps out who wants it alone.

    Raises:
        OSError: it cannot be locked.
    """
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        with named(handle):
            fcntl.flock(handle, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            error.strerror = f"its file system has no locks ({error.strerror})"
        raise
    return True


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _kept_if(handle: int, is_ours: Callable[[int], bool]) -> int | None:
    """The handle, or None once it is closed."""
    try:
        if is_ours(handle):
            return handle
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def has_name(path: Path, handle: int) -> bool:
    """Whether a name is still that of an open file: who had it locked may have removed it."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
