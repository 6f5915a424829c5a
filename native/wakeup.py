"""Wake another thread that waits for a file, without giving it Python at once.

Python releases its lock for every system call, and a thread that wakes another one often has to
wait until that one has done its work. This call keeps the lock: the other thread begins when the
caller releases it anyway.
"""

from __future__ import annotations

import ctypes
import os

from .owner import Owner

_write = ctypes.PYFUNCTYPE(ctypes.c_ssize_t, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t)(
    ("write", ctypes.PyDLL(None))
)


class Wakeup(Owner):
    """A pipe: one thread calls :meth:`wake`, another waits for :meth:`fileno` to be readable."""

    def __init__(self) -> None:
        """Open it."""
        self._reads, self._writes = os.pipe()
        os.set_blocking(self._reads, False)
        os.set_blocking(self._writes, False)

    def fileno(self) -> int:
        """What is readable once :meth:`wake` was called, until :meth:`clear`."""
        return self._reads

    def wake(self) -> None:
        """Make it readable; for any thread, before it is closed."""
        _write(self._writes, b"\0", 1)  # a full pipe is readable too

    def clear(self) -> None:
        """Empty the pipe, so that it is no longer readable; for the thread that was woken."""
        os.read(self._reads, 1 << 20)  # more than a pipe holds

    def close(self) -> None:
        """Close the pipe, once nobody wakes or waits any more."""
        if self._reads >= 0:
            os.close(self._reads)
            os.close(self._writes)
        self._reads = self._writes = -1
