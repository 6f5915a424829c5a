"""Lock a file against other processes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import OutputError


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[int]:
    """The handle of a file, made if need be, that no other process has locked.

    Raises:
        OutputError: ``refusal``, where another process has it; or it cannot be made.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # the one who had it may have renamed or removed it since it was opened
            same = os.path.samestat(os.fstat(handle), os.stat(path))
        except OSError as error:
            raise OutputError(refusal) from error
        if not same:
            raise OutputError(refusal)
        yield handle
    finally:
        os.close(handle)


@contextmanager
def locked_in_turn(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Lock a file, made if need be with its folder; while another process has it, wait.

    The holder may remove both: who waited then makes them afresh.

    Args:
        path: the file.
        on_wait: called before the wait, if there is one.

    Raises:
        OutputError: the file cannot be made.
    """
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue  # the folder went in between
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(handle, fcntl.LOCK_EX)
            if _is_still(path, handle):
                yield
                return
        finally:
            os.close(handle)


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
