"""A session file's name, which one process writes.

Its lock is in the cache folder, under a hash of the name, so that it survives the file's
replacement.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import RLock

from infer_os.locks import try_lock

from ..errors import SessionError

_Stamp = tuple[int, int, int, int]
#: The places that this process writes, by their locks; written to by one thread at a time.
_HELD: dict[Path, SessionPlace] = {}
_ONE_THREAD = RLock()


class SessionPlace:
    """A session file's name, locked against other processes until it is closed.

    ``part`` is the sibling in which a new file grows: always the same, so that what a killed
    process left is overwritten.
    """

    def __init__(self, path: Path, cache_folder: Path) -> None:
        """Take the name.

        Raises:
            SessionError: another process has it, or the lock cannot be made.
        """
        self.path = path
        name = _lock_name(path)
        self.part = path.with_name(f".{name}.part")
        self.lock = cache_folder / "sessions" / name
        try:
            self.lock.parent.mkdir(parents=True, exist_ok=True)
            handle = try_lock(self.lock)
        except OSError as error:
            raise SessionError(
                f"{error.filename or self.lock}: {error.strerror}; sessions are locked there: "
                "INFER_OS_CACHE names another place"
            ) from error
        if handle is None:
            raise SessionError(f"{path}: another chat uses this session; end it, or name another")
        self._handle = handle
        self._seen = _stamp(path)
        _HELD[self.lock] = self

    def try_writing(self) -> None:
        """Check that a file can be made here, before anything is said that would be lost.

        Raises:
            SessionError: it cannot.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        try:
            os.close(os.open(self.part, flags, 0o600))
            self.part.unlink()
        except OSError as error:
            raise SessionError(f"{self.path}: cannot be written: {error.strerror}") from error

    def is_changed(self) -> bool:
        """Whether another program replaced or wrote the file; one that is gone is not changed."""
        now = _stamp(self.path)
        return now is not None and now != self._seen

    def saw(self) -> None:
        """Remember the file's present state as the known one."""
        self._seen = _stamp(self.path)

    def close(self) -> None:
        """Release the name."""
        if self._handle < 0:
            return
        _HELD.pop(self.lock, None)
        with suppress(OSError):  # whoever opened it meanwhile will see that it lost its name
            self.lock.unlink()
        os.close(self._handle)
        self._handle = -1


@contextmanager
def place_of(path: Path, cache_folder: Path) -> Iterator[SessionPlace]:
    """The place of a file: the one that this process holds, or one for the moment.

    Raises:
        SessionError: another process has it.
    """
    with _ONE_THREAD:
        held = _HELD.get(cache_folder / "sessions" / _lock_name(path))
        place = held or SessionPlace(path, cache_folder)
        try:
            yield place
        finally:
            if held is None:
                place.close()


def _lock_name(path: Path) -> str:
    whole = os.path.join(os.path.realpath(path.parent), path.name)
    return hashlib.blake2b(os.fsencode(whole), digest_size=16).hexdigest()


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
