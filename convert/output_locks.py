"""Lock outputs and places of the cache: refusals and failures as errors of a conversion."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from infer_os.locks import try_lock, wait_for_lock

from .errors import OutputError

#: Folders are removed when they are empty: making one may fail, though not again and again.
_ATTEMPTS = 20


@contextmanager
def locked(path: Path, refusal: str, name: Path | None = None) -> Iterator[int]:
    """The handle of a file, made if need be, that no other process has locked.

    Args:
        path: the file.
        refusal: what to say where it is locked.
        name: what to call it where it cannot be made.

    Raises:
        OutputError: ``refusal``, where another process has it; or it cannot be made.
    """
    try:
        handle = try_lock(path)
    except OSError as error:
        raise OutputError(f"{name or path}: cannot be written: {error.strerror}") from error
    if handle is None:
        raise OutputError(refusal)
    try:
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
    failures = 0
    while True:
        try:
            make_folder(path.parent)
            handle = wait_for_lock(path, on_wait)
        except FileNotFoundError as error:
            # the folder went in between; or there can never be such a file, as behind a dangling
            # link
            failures += 1
            if failures == _ATTEMPTS:
                raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
            continue
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
        if handle is None:  # its holder removed it while this process waited
            continue
        try:
            yield
            return
        finally:
            os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder of the cache, and those around it.

    Raises:
        OutputError: it cannot be made; says what would work.
    """
    for _ in range(_ATTEMPTS):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return
        except FileNotFoundError as error:
            # another process removed an empty folder in between; or it can never be made, as in
            # /proc
            last: OSError = error
        except OSError as error:
            last = error
            break
    raise OutputError(
        f"{folder}: the folder cannot be made: {last.strerror}; INFER_OS_CACHE names another place "
        "for the cache"
    ) from last
