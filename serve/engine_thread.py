"""The one thread that an engine belongs to, and how the event loop talks with it.

In go commands: a record to submit, one to cancel. Out come the engine's events, handed to the event
loop once per step, where each finds the :class:`Answer` that waits for it. Everything but
:meth:`EngineThread._run` happens in the event loop's thread, so that nothing needs a lock.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from infer_os.native.interrupt import decoding_aborted

from ..runtime.batch.records import Record, Result
from .errors import ApiError, EngineDied
from .pushed_engine import Event, PushedEngine

#: What the thread is asked to do; None to end.
_Command: TypeAlias = Callable[[], None] | None
#: What an answer gets: an event, or why there will be none.
_Arrival: TypeAlias = Event | Exception


class Answer:
    """What comes of the records of one request, in the event loop's thread."""

    def __init__(self, thread: EngineThread, records: dict[str | int, int]) -> None:
        self._thread = thread
        #: Samples that are still to come, of each record.
        self.missing = records
        self._arrived: asyncio.Queue[_Arrival] = asyncio.Queue()

    @property
    def is_open(self) -> bool:
        """Whether there is anything to come."""
        return bool(self.missing) or not self._arrived.empty()

    async def next(self, patience: float) -> Event | None:
        """The next event; None if there is none for so many seconds.

        Raises:
            ApiError: a record that could not be begun, or an engine that failed.
        """
        try:
            arrival = self._arrived.get_nowait()
        except asyncio.QueueEmpty:
            try:
                arrival = await asyncio.wait_for(self._arrived.get(), patience)
            except asyncio.TimeoutError:
                return None
        if isinstance(arrival, Exception):
            raise arrival
        return arrival

    def put(self, arrival: _Arrival) -> None:
        """Hand over an event."""
        self._arrived.put_nowait(arrival)

    def cancel(self) -> None:
        """Nobody waits any more: what is unfinished is not computed on."""
        self._thread.forget(self)


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
        self._answers: dict[str | int, Answer] = {}
        self._outstanding = 0
        self.failure: EngineDied | None = None
        self._is_closing = False
        #: Seconds that a sample took of late, to tell those who come too early.
        self._pace = 0.0
        self._last_end = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

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

    def submit(self, jobs: list[tuple[Record, tuple[int, ...]]]) -> Answer:
        """Compute records, whose prompts are tokens already.

        Raises:
            ApiError: as :meth:`check_room`.
        """
        self.check_room(sum(record.n for record, _ in jobs))
        answer = Answer(self, {record.id: record.n for record, _ in jobs})
        for record, prompt in jobs:
            self._answers[record.id] = answer
            self._outstanding += record.n
            self._commands.put(partial(self._begin, record, prompt))
        return answer

    def forget(self, answer: Answer) -> None:
        """Cancel what is unfinished of an answer."""
        for identity in list(answer.missing):
            self._ended(answer, identity, answer.missing[identity])
            self._commands.put(partial(self.engine.cancel, identity))

    def _ended(self, answer: Answer, identity: str | int, n: int) -> None:
        """So many samples of a record are no longer to come."""
        answer.missing[identity] -= n
        self._outstanding -= n
        if not answer.missing[identity]:
            del answer.missing[identity], self._answers[identity]

    def _deliver(self, arrivals: list[tuple[str | int, _Arrival]]) -> None:
        """Hand events to those who wait for them; what was cancelled meanwhile has nobody."""
        for identity, arrival in arrivals:
            answer = self._answers.get(identity)
            if answer is None:
                continue
            if isinstance(arrival, Result) and arrival.error is not None:
                arrival = ApiError(arrival.error, 503 if arrival.lacks_memory else 400)
            if isinstance(arrival, Exception):
                # it stands for all samples of its record
                self._ended(answer, identity, answer.missing[identity])
            elif isinstance(arrival, Result):
                self._ended(answer, identity, 1)
                self._note_pace()
            answer.put(arrival)

    def _note_pace(self) -> None:
        now = time.monotonic()
        self._pace = 0.9 * self._pace + 0.1 * (now - self._last_end)
        self._last_end = now

    def _fail(self, error: EngineDied) -> None:
        self.failure = error
        waiting = {id(answer): answer for answer in self._answers.values()}
        self._answers.clear()
        self._outstanding = 0
        for answer in waiting.values():
            answer.missing.clear()
            answer.put(ApiError(str(error), 500, code="engine_failed"))
        self._died(error)

    async def close(self) -> None:
        """End the thread and close the engine; a step that is under way is broken off."""
        self._is_closing = True
        self._commands.put(None)
        with decoding_aborted():
            await asyncio.to_thread(self._thread.join)

    # ---- in the engine's own thread

    def _begin(self, record: Record, prompt: tuple[int, ...]) -> None:
        try:
            self.engine.submit(record, prompt)
        except Exception as error:
            self._send([(record.id, ApiError(str(error)))])

    def _send(self, arrivals: list[tuple[str | int, _Arrival]]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._deliver, arrivals)
        except RuntimeError:  # the loop is closed: nobody is left
            pass

    def _run(self) -> None:
        engine = self.engine
        try:
            is_busy = False
            while True:
                for command in self._waiting_commands(block=not is_busy):
                    if command is None:
                        return
                    command()
                is_busy = engine.step()
                if events := engine.take():
                    self._send([(e.id, e) for e in events if e.id is not None])
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
        while True:
            try:
                found.append(self._commands.get_nowait())
            except queue.Empty:
                return found
