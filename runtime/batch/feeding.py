"""Where a batch's records come from: an iterable, or a thread that reads ahead.

Goes in: an iterable of records. Comes out: one at a time, when the batch has room, so that nothing
waits for a record while there is something to compute. :class:`ReadAhead` reads in a thread of its
own, which is what slow pipes need; :class:`Pulled` asks an iterable in the caller's thread. What
waits between the reader and the batch is bounded in number and in bytes: it is a part of
:data:`~..plan.use.BATCH_BYTES`.
"""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from infer_os.native.owner import Owner

from ..errors import RuntimeFailure
from .stopping import ReadingStopped, Stop

#: What the reader may be ahead of the batch: no further record is read from here on.
MOST_RECORDS, MOST_BYTES = 64, 256_000
#: Signals that are the main thread's, which would not wake up if they came to the reader.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Held(Protocol):
    """A record, or what cannot be one."""

    @property
    def n_bytes(self) -> int:
        """About what it holds: its texts."""
        ...


Read = TypeVar("Read", bound=Held)
_Given = TypeVar("_Given", bound=Held, covariant=True)


class Source(Protocol[_Given]):
    """Gives a batch its records."""

    @property
    def is_over(self) -> bool:
        """Whether no more come: there was none left when the last one was asked for."""
        ...

    def take(self, *, wait: bool) -> _Given | None:
        """The next record; None if there is none.

        Args:
            wait: if none is there yet, wait for one, or for the end.
        """
        ...


class Pulled(Generic[Read]):
    """The records of an iterable, which is asked in the thread of the batch, and may wait there."""

    def __init__(self, records: Iterable[Read]) -> None:
        self._records = iter(records)
        self.is_over = False

    def take(self, *, wait: bool) -> Read | None:
        """See :meth:`Source.take`; it always waits."""
        if self.is_over:
            return None
        record = next(self._records, None)
        self.is_over = record is None
        return record


class ReadAhead(Owner, Generic[Read]):
    """Records that a thread reads ahead, a few at most. A context manager.

    :meth:`take` and :meth:`close` are for one thread, the batch's. Closing stops a read that waits
    (see :class:`~.stopping.Stop`) and ends the thread; it never keeps a process from its end.
    """

    def __init__(self, records: Iterable[Read], stop: Stop | None = None) -> None:
        """Begin to read.

        Args:
            records: are iterated over in the other thread alone.
            stop: is set to end a read of theirs that waits; without one, closing waits for the
                record that is being read.

        Raises:
            RuntimeFailure: no thread can be started.
        """
        self._records, self._stop = records, stop
        self._changed = threading.Condition()
        self._read: deque[Read] = deque()
        self._n_bytes = 0
        self._is_closed = self._is_at_end = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="batch-reader", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise RuntimeFailure(
                f"the input needs a thread of its own: {error} (ulimit -u, or a container's?)"
            ) from None

    # ---- in the batch's thread

    @property
    def is_over(self) -> bool:
        """See :attr:`Source.is_over`."""
        with self._changed:
            return self._is_at_end and not self._read and self._failure is None

    def take(self, *, wait: bool) -> Read | None:
        """See :meth:`Source.take`.

        Raises:
            Whatever reading raised, once the caller waits: when what was read before is answered.
        """
        with self._changed:
            while wait and not self._read and not self._is_at_end:
                self._changed.wait()
            if self._read:
                record = self._read.popleft()
                self._n_bytes -= record.n_bytes
                self._changed.notify_all()
                return record
            if wait and self._failure is not None:
                raise self._failure
            return None

    def close(self) -> None:
        """Stop reading, and wait until the thread has ended."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._stop is not None:
            self._stop.set()
        self._thread.join()

    # ---- in the reader's thread

    def _work(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        failure: BaseException | None = None
        try:
            records = iter(self._records)
            while self._has_room() and (record := next(records, None)) is not None:
                self._put(record)
                del record  # while the next one is read, it is the batch's alone
        except ReadingStopped:
            pass
        except BaseException as error:
            failure = error
        with self._changed:
            self._failure, self._is_at_end = failure, True
            self._changed.notify_all()

    def _has_room(self) -> bool:
        """Wait for room; False when nothing more is wanted."""
        with self._changed:
            while not self._is_closed and (
                len(self._read) >= MOST_RECORDS or self._n_bytes >= MOST_BYTES
            ):
                self._changed.wait()
            return not self._is_closed

    def _put(self, record: Read) -> None:
        with self._changed:
            self._read.append(record)
            self._n_bytes += record.n_bytes
            self._changed.notify_all()
