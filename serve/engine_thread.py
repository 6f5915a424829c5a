"""The one thread that an engine belongs to, and how the event loop talks with it.

In go commands: a record to submit, one to cancel. Out come the engine's events, through the
:class:`~.outbox.Outbox`, and in the event loop each finds the :class:`Answer` that waits for it.
What is not said to happen in the engine's own thread happens in the event loop's, so that nothing
needs a lock.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, TypeVar

from infer_os.native.errors import NotFinite
from infer_os.native.interrupt import decoding_aborted

from ..runtime.batch.records import Record, Result
from ..runtime.errors import PromptError, SettingsError
from ..runtime.plan.memory_plan import MemoryShortage
from .errors import ApiError, EngineDied
from .outbox import Outbox
from .pushed_engine import Event, PushedEngine

Made = TypeVar("Made")

#: What the thread is asked to do; None to end.
_Command: TypeAlias = Callable[[], None] | None
#: What comes for the record of that id: an event, and whether it is urgent; or why there is none.
_Arrival: TypeAlias = tuple[str | int, Event | Exception, bool]


class Answer:
    """What comes of the records of one request, in the event loop's thread."""

    def __init__(self, thread: EngineThread, records: dict[str | int, int]) -> None:
        self._thread = thread
        #: Samples that are still to come, of each record.
        self.missing = records
        self._arrived: list[Event] = []
        self._failure: Exception | None = None
        self._reader: asyncio.Future[None] | None = None
        #: Since when it waits, by the loop's clock, and one timer for all the times that it does.
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is anything to come."""
        return bool(self.missing or self._arrived or self._failure)

    async def take(self, patience: float) -> list[Event]:
        """The events that there are, in order, once there are any; none after so many seconds.

        Raises:
            ApiError: a record that could not be begun, or an engine that failed.
        """
        if not self._arrived and self._failure is None:
            loop = asyncio.get_running_loop()
            self._reader, self._since = loop.create_future(), loop.time()
            if self._timer is None:
                self._timer = loop.call_later(patience, self._look, patience)
            try:
                await self._reader
            finally:
                self._reader = None
        arrived, self._arrived = self._arrived, []
        if not arrived and self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return arrived

    def put(self, event: Event) -> None:
        """Add an event, of which whoever waits hears with :meth:`wake`."""
        self._arrived.append(event)

    def fail(self, failure: Exception) -> None:
        """Nothing good comes after what there is."""
        self._failure = self._failure or failure
        self.wake()

    def wake(self) -> None:
        """Let whoever waits for events take those that there are."""
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _look(self, patience: float) -> None:
        """Wake whoever waits for so long; look again when that may be."""
        loop, self._timer = asyncio.get_running_loop(), None
        waited = loop.time() - self._since
        if self._reader is None:
            pass  # the next one to wait sets a timer
        elif waited >= patience:
            self.wake()
        else:
            self._timer = loop.call_later(patience - waited, self._look, patience)

    def cancel(self) -> None:
        """Nobody waits any more: what is unfinished is not computed on."""
        self._thread.forget(self)
        if self._timer is not None:
            self._timer.cancel()


class EngineThread:
    """Owns an engine: starts its thread at once, and closes it at the end."""

    def __init__(
        self, engine: PushedEngine, n_waiting: int, died: Callable[[EngineDied], None]
    ) -> None:
        """Start; called in the event loop.

        Args:
            engine: nobody else uses it from here on, but for what is for any thread.
            n_waiting: how many samples may wait besides those that are computed.
            died: called in the event loop if the engine fails.
        """
        self.engine = engine
        self._limit = engine.n_seq + n_waiting
        self._died = died
        self._loop = asyncio.get_running_loop()
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._outbox: Outbox[_Arrival] = Outbox(self._deliver, self._flush)
        self._answers: dict[str | int, Answer] = {}
        #: Those that have something which was not urgent.
        self._late: set[Answer] = set()
        #: Records of which nothing has come yet; the engine's thread's own.
        self._silent: set[str | int] = set()
        #: What :meth:`ask` waits for.
        self._asked: set[asyncio.Future[Any]] = set()
        self._outstanding = 0
        self.failure: EngineDied | None = None
        self._is_closing = False
        #: When the last sample ended, by the monotonic clock.
        self.idle_since = time.monotonic()
        #: Seconds that a sample took of late, to tell those who come too early.
        self._pace = 0.0
        self._last_end = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def n_outstanding(self) -> int:
        """Samples that run and wait."""
        return self._outstanding

    @property
    def n_running(self) -> int:
        """Samples that are computed now, as far as there is room for them."""
        return min(self._outstanding, self.engine.n_seq)

    @property
    def n_waiting(self) -> int:
        """Samples that wait for room."""
        return self._outstanding - self.n_running

    def check_room(self, n_samples: int) -> None:
        """See that so many samples may come, before anything is made of them.

        Raises:
            ApiError: never (400), not now (429), or the engine has failed (503).
        """
        if self.failure is not None:
            raise ApiError(str(self.failure), 503)
        if n_samples > self._limit:
            raise ApiError(
                f"{n_samples} texts at once are more than the {self._limit} that may run and wait "
                "here; ask for fewer",
                param="n", code="too_many_texts",
            )  # fmt: skip
        if self._outstanding + n_samples > self._limit:
            raise ApiError(
                f"{self._outstanding} texts run and wait already, of at most {self._limit}; try "
                "again later",
                429, code="queue_full", retry_after=self._retry_after(n_samples),
            )  # fmt: skip

    def _retry_after(self, n_samples: int) -> int:
        excess = self._outstanding + n_samples - self._limit
        return min(60, max(1, round(excess * self._pace)))

    def submit(self, jobs: list[tuple[Record, tuple[int, ...]]], *, streams: bool) -> Answer:
        """Compute records, whose prompts are tokens already.

        Without ``streams`` only the first piece of each record comes, and the results.

        Raises:
            ApiError: as :meth:`check_room`.
        """
        self.check_room(sum(record.n for record, _ in jobs))
        answer = Answer(self, {record.id: record.n for record, _ in jobs})
        for record, prompt in jobs:
            self._answers[record.id] = answer
            self._outstanding += record.n
            self._commands.put(partial(self._begin, record, prompt, streams=streams))
        return answer

    async def ask(self, work: Callable[[], Made]) -> Made:
        """Do something in the engine's thread, between two steps; it counts as a text that waits.

        Raises:
            ApiError: as :meth:`check_room`, or the engine has failed (500).
            PromptError, MemoryShortage, SettingsError, NotFinite: ``work`` did.
        """
        self.check_room(1)
        future: asyncio.Future[Made] = self._loop.create_future()
        self._asked.add(future)
        self._outstanding += 1
        self._commands.put(partial(self._do, work, future))
        try:
            return await future
        finally:
            self._asked.discard(future)
            self._outstanding = max(0, self._outstanding - 1)
            self.idle_since = time.monotonic()

    def forget(self, answer: Answer) -> None:
        """Cancel what is unfinished of an answer."""
        for identity in list(answer.missing):
            self._ended(answer, identity, answer.missing[identity])
            self._commands.put(partial(self._cancel, identity))

    def _ended(self, answer: Answer, identity: str | int, n: int) -> None:
        """So many samples of a record are no longer to come."""
        answer.missing[identity] -= n
        self._outstanding -= n
        self.idle_since = time.monotonic()
        if not answer.missing[identity]:
            del answer.missing[identity], self._answers[identity]

    def _deliver(self, arrivals: list[_Arrival]) -> None:
        """Hand events to those who wait for them; what was cancelled meanwhile has nobody."""
        for identity, arrival, is_urgent in arrivals:
            answer = self._answers.get(identity)
            if answer is None:
                continue
            if isinstance(arrival, Result) and arrival.error is not None:
                arrival = ApiError(arrival.error, 503 if arrival.lacks_memory else 400)
            if isinstance(arrival, Exception):
                # it stands for all samples of its record
                self._ended(answer, identity, answer.missing[identity])
                answer.fail(arrival)
                continue
            if isinstance(arrival, Result):
                self._ended(answer, identity, 1)
                self._note_pace()
            answer.put(arrival)
            if is_urgent:
                answer.wake()
            else:
                self._late.add(answer)

    def _flush(self) -> None:
        """Have everything sent that was delivered."""
        late, self._late = self._late, set()
        for answer in late:
            answer.wake()

    def _note_pace(self) -> None:
        now = time.monotonic()
        self._pace = 0.9 * self._pace + 0.1 * (now - self._last_end)
        self._last_end = now

    def _fail(self, error: EngineDied) -> None:
        self._outbox.deliver_all()
        self.failure = error
        waiting = {id(answer): answer for answer in self._answers.values()}
        self._answers.clear()
        self._outstanding = 0
        for answer in waiting.values():
            answer.missing.clear()
            answer.fail(ApiError(str(error), 500, code="engine_failed"))
        for future in self._asked:
            _settle(future, ApiError(str(error), 500, code="engine_failed"))
        self._died(error)

    async def end(self) -> None:
        """End the thread and close the engine, which has nothing to do."""
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join)
        self._outbox.close()

    async def close(self) -> None:
        """End the thread and close the engine; a step that is under way is broken off."""
        self._is_closing = True
        self._commands.put(None)
        with decoding_aborted():
            await asyncio.to_thread(self._thread.join)
        self._outbox.close()

    # ---- in the engine's own thread

    def _begin(self, record: Record, prompt: tuple[int, ...], *, streams: bool) -> None:
        self._silent.add(record.id)
        try:
            self.engine.submit(record, prompt, streams=streams)
        except Exception as error:
            self._silent.discard(record.id)
            self._outbox.put([(record.id, ApiError(str(error)), True)], urgent=True)

    def _do(self, work: Callable[[], Made], future: asyncio.Future[Made]) -> None:
        found: Made | Exception
        try:
            found = work()
        except (PromptError, MemoryShortage, SettingsError, NotFinite) as error:
            found = error
        try:
            self._loop.call_soon_threadsafe(_settle, future, found)
        except RuntimeError:  # the loop is closed: nobody is left
            pass

    def _cancel(self, identity: str | int) -> None:
        self._silent.discard(identity)
        self.engine.cancel(identity)

    def _send(self, events: list[Event]) -> None:
        """The first word of a record and the end of a sample are urgent."""
        arrivals: list[_Arrival] = []
        some_urgent = False
        for event in events:
            if event.id is None:
                continue
            is_urgent = isinstance(event, Result) or event.id in self._silent
            if is_urgent:
                some_urgent = True
                self._silent.discard(event.id)
            arrivals.append((event.id, event, is_urgent))
        self._outbox.put(arrivals, urgent=some_urgent)

    def _run(self) -> None:
        engine = self.engine
        try:
            is_busy = False
            while True:
                for command in self._waiting_commands(block=not is_busy):
                    if command is None:
                        return
                    command()
                # the event loop works while a step is computed; in between it would take Python
                # from this thread, once for each call that lets go of it
                is_busy = engine.step(self._outbox.announce)
                if events := engine.take():
                    self._send(events)
                if not is_busy:
                    self._outbox.announce()
        except Exception as error:
            if self._is_closing:  # it was broken off
                return
            died = EngineDied(f"the engine failed: {error}")
            try:
                self._loop.call_soon_threadsafe(self._fail, died)
            except RuntimeError:
                pass
        finally:
            engine.close()

    def _waiting_commands(self, *, block: bool) -> list[_Command]:
        """All that wait; with ``block`` at least one."""
        found = [self._commands.get()] if block else []
        while not self._commands.empty():  # nobody else takes any
            found.append(self._commands.get())
        return found


def _settle(future: asyncio.Future[Any], found: Any) -> None:
    """Give whoever still waits what was found, or raise it there."""
    if future.done():
        return
    if isinstance(found, Exception):
        future.set_exception(found)
    else:
        future.set_result(found)
