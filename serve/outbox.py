"""Events on their way from the engine's thread to the event loop, as few journeys as possible.

In go events, in the engine's thread; out they come in the event loop's. To wake the loop and to
send text takes time that the engine then lacks, most of all where a step takes a millisecond. So
what is urgent is handed over at once, and everything else at moments so far apart that the loop
takes a small share of a processor for it: a model whose steps are slow sends each token by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from infer_os.native.wakeup import Wakeup

Item = TypeVar("Item")

#: The share of a processor that the event loop may take to send text while there is more to come.
_SHARE = 0.04
#: Most seconds between two moments: fast enough to read along.
_MOST_S = 0.1


class Outbox(Generic[Item]):
    """What is put in, in one thread, is delivered in the thread of an event loop."""

    def __init__(self, deliver: Callable[[list[Item]], None], flush: Callable[[], None]) -> None:
        """Begin empty; called in the event loop.

        Args:
            deliver: takes items in order, as often as something is urgent.
            flush: what was delivered is to be sent now, urgent or not.
        """
        self._deliver, self._flush = deliver, flush
        self._loop = asyncio.get_running_loop()
        # the engine's thread goes on to its step, and the loop works beside it
        self._wakeup = Wakeup()
        self._loop.add_reader(self._wakeup.fileno(), self._awake)
        self._items: deque[Item] = deque()
        #: Whether that of which the loop was told is urgent, each time that it was.
        self._told: deque[bool] = deque()
        #: Whether something urgent was put in that the loop does not know of.
        self._is_urgent = False
        #: Whether the loop knows that there is something; set in one thread, cleared in the other.
        self._is_awaited = False
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._used_s = time.thread_time()

    def put(self, items: list[Item], *, urgent: bool) -> None:
        """Put items in; for the engine's thread, which announces them when it can."""
        self._items.extend(items)
        self._is_urgent |= urgent

    def announce(self) -> None:
        """Tell the loop of what was put in, unless it knows already; for the engine's thread."""
        if self._is_urgent or (self._items and not self._is_awaited):
            urgent, self._is_urgent, self._is_awaited = self._is_urgent, False, True
            self._told.append(urgent)
            self._wakeup.wake()

    def close(self) -> None:
        """Deliver nothing more, once the engine's thread has ended; called in the event loop."""
        self._loop.remove_reader(self._wakeup.fileno())
        self._wakeup.close()
        if self._timer is not None:
            self._timer.cancel()

    def _awake(self) -> None:
        self._wakeup.clear()
        urgent = False
        while self._told:
            urgent |= self._told.popleft()
        self._take(urgent)

    def _take(self, urgent: bool) -> None:
        now = time.monotonic()
        if urgent:
            self.deliver_all()
        if self._timer is not None:
            return
        if now < self._due:
            self._timer = self._loop.call_later(self._due - now, self._send)
        else:
            self._send()

    def _send(self) -> None:
        """Deliver and flush; the next moment depends on what the loop used since the last one."""
        self._timer = None
        # first, so that what is put in from now on is announced
        self._is_awaited = False
        self.deliver_all()
        self._flush()
        used_s = time.thread_time()
        pause = min(_MOST_S, (used_s - self._used_s) / _SHARE)
        self._used_s, self._due = used_s, time.monotonic() + pause

    def deliver_all(self) -> None:
        """Deliver what there is, without waiting for its moment."""
        items: list[Item] = []
        while self._items:
            items.append(self._items.popleft())
        self._deliver(items)
