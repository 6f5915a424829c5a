"""Reads that wait, and can be stopped: of pipes, which may give nothing for hours.

A thread that waits in ``read`` cannot be ended, and holds a lock of the stream for which Python
waits when it exits. So a pipe is asked first whether it has something, together with a second pipe
that says when to stop.
"""

from __future__ import annotations

import io
import os
import select
from typing import Any, BinaryIO, cast

from infer_os.native.owner import Owner

_BUFFER = 1 << 16


class ReadingStopped(Exception):
    """Raised by a read that was stopped."""


class Stop(Owner):
    """Says once, from any thread, that reading must stop. Close it when nobody reads any more."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self._is_set = False

    def fileno(self) -> int:
        """Of a pipe that has something to say when it is time to stop."""
        return self._read

    def set(self) -> None:
        """Stop reads that wait, and those that come."""
        if not self._is_set:
            self._is_set = True
            os.write(self._write, b"\0")

    def close(self) -> None:
        """Free the pipe."""
        if self._read >= 0:
            os.close(self._read)
            os.close(self._write)
            self._read = self._write = -1


class StoppableRaw(io.RawIOBase):
    """A stream's file, read without a buffer; the stream is neither touched nor closed."""

    def __init__(self, stream: BinaryIO, stop: Stop) -> None:
        # the stream is kept: it owns the file
        self._stream = stream
        self._number, self._stop = stream.fileno(), stop.fileno()
        self._poll = select.poll()
        self._poll.register(self._number, select.POLLIN)
        self._poll.register(self._stop, select.POLLIN)

    def readable(self) -> bool:
        """It can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what there is, once there is something; 0 at the end.

        Raises:
            ReadingStopped: it was stopped.
            OSError: as read(2) fails.
        """
        while True:
            if self._stop in dict(self._poll.poll()):
                raise ReadingStopped
            try:
                return os.readv(self._number, [buffer])
            except BlockingIOError:  # another process has taken it
                continue


def stoppable(stream: BinaryIO, stop: Stop | None) -> BinaryIO:
    """A stream as one whose reads can be stopped; one that is in memory never waits, and stays.

    Nothing may have been read of it.
    """
    if stop is None:
        return stream
    try:
        stream.fileno()
    except (OSError, AttributeError):
        return stream
    return cast("BinaryIO", io.BufferedReader(StoppableRaw(stream, stop), _BUFFER))
