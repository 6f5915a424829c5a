"""One generation at a time: other threads wait; the same thread, which would wait forever, fails.

:class:`Turns` is the rule, :class:`Stream` an iterator that keeps a turn from its first item to its
end. An engine has one cache, so two generations cannot be interleaved on it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from infer_os.native.owner import Owner

from .errors import ModelBusy, ModelClosed

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class _Holder:
    """What is running, the thread that began it, and how another thread ends it."""

    what: str
    thread: int
    stop: Callable[[], None]


class Turns:
    """Decides who may use an engine now. For any number of threads."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._holder: _Holder | None = None
        self._closed = False

    @contextmanager
    def hold(self, what: str, stop: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Be the only one inside; wait while another thread is.

        Args:
            what: name of the operation, for messages.
            stop: ends it early; called by :meth:`close` in another thread.

        Raises:
            ModelBusy: this thread is already inside, so waiting would never end.
            ModelClosed: the model is closed.
        """
        me = threading.get_ident()
        holder = _Holder(what, me, stop)
        with self._condition:
            while self._holder is not None and not self._closed:
                if self._holder.thread == me:
                    raise ModelBusy(
                        f"{what}: this thread has {_a(self._holder.what)} of the same model under "
                        "way; exhaust or close it first, or load the model twice"
                    )
                self._condition.wait()
            if self._closed:
                raise ModelClosed(f"{what}: the model is closed")
            self._holder = holder
        try:
            yield
        finally:
            with self._condition:
                self._holder = None
                self._condition.notify_all()

    def close(self) -> bool:
        """Admit nobody from now on, and end what is running; False if already closed.

        What another thread computes ends at its next item.
        """
        with self._condition:
            first, self._closed = not self._closed, True
            self._condition.notify_all()
        while True:
            with self._condition:
                holder = self._holder
            if holder is None:
                return first
            holder.stop()
            with self._condition:
                if self._holder is holder and holder.thread == threading.get_ident():
                    raise ModelBusy(f"close: this thread has {_a(holder.what)} under way")
                while self._holder is holder:
                    self._condition.wait()


def _a(what: str) -> str:
    return f"{'an' if what[0] in 'aeiou' else 'a'} {what}"


class Stream(Owner, Generic[Item]):
    """Items as they come, within one turn; may be closed early or passed to another thread.

    The turn begins when the first item is requested. A dropped stream is closed.
    """

    def __init__(self, turns: Turns, what: str, items: Generator[Item, None, None]) -> None:
        # neither refers to the stream itself, so that a dropped stream is freed at once
        me = weakref.ref(self)

        def stop() -> None:
            stream = me()
            if stream is not None:
                stream.close()

        self._lock = threading.RLock()
        self._items = _in_turn(turns, what, stop, items)

    def __iter__(self) -> Stream[Item]:
        return self

    def __next__(self) -> Item:
        with self._lock:
            return next(self._items)

    def close(self) -> None:
        """End it, after waiting for what another thread is computing."""
        with self._lock:
            self._items.close()


def _in_turn(
    turns: Turns, what: str, stop: Callable[[], None], items: Generator[Item, None, None]
) -> Generator[Item, None, None]:
    with turns.hold(what, stop):
        yield from items
