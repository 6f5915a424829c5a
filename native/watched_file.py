"""Watch a file that is in use: say when it was cut, overwritten or could not be read.

Weights and checkpoints are mapped: changes by another program show at once, and reading a
part that was cut off would end the process with SIGBUS. A watch turns that into zeros
(native/src/mapping_guard.cpp) and a complaint, so that the reader can reject the result.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path

from .library import load_library
from .owner import Owner


class WatchedFile(Owner):
    """A file whose content must not change while it is in use. Make it before mapping the file.

    A context manager. Replacing or removing the file changes nothing: what is mapped stays.
    """

    def __init__(self, path: Path) -> None:
        """Start watching.

        Raises:
            OSError: the file cannot be opened, or is a pipe or a device.
        """
        self.path = path
        # a pipe that nobody writes would be waited for
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self._before = os.fstat(self._file)
        if not stat.S_ISREG(self._before.st_mode) and not stat.S_ISDIR(self._before.st_mode):
            os.close(self._file)
            raise OSError(errno.EINVAL, "not a plain file", str(path))
        library = load_library()
        # without /proc, or with hundreds of files at once, only size and time are watched
        self._watch: int = library.inferos_guard_watch(self._file)
        self._damaged = (
            library.inferos_guard_damaged(self._watch).contents
            if self._watch >= 0
            else ctypes.c_int32(0)
        )

    def complaint(self) -> str:
        """What has happened to the file since the start; empty: nothing. Costs a microsecond."""
        if self._file < 0:
            return ""
        now, before = os.fstat(self._file), self._before
        if now.st_size != before.st_size:
            what = "was cut short" if now.st_size < before.st_size else "has grown"
            return (
                f"{self.path}: {what} while it was in use, from {before.st_size} bytes to "
                f"{now.st_size}"
            )
        if now.st_mtime_ns != before.st_mtime_ns:
            return f"{self.path}: was written to while it was in use"
        if self._damaged.value:
            return f"{self.path}: a part of it could not be read; see the disk's messages (dmesg)"
        return ""

    def is_at(self, path: Path) -> bool:
        """Whether a path leads to this file, or to nothing."""
        try:
            return os.path.samestat(self._before, path.stat())
        except OSError:
            return True

    def close(self) -> None:
        """Stop watching."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._damaged = ctypes.c_int32(0)
            if self._watch >= 0:
                load_library().inferos_guard_release(self._watch)
