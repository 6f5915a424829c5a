"""The models of a server: which are loaded, within one plan of memory, and which is asked for.

In go offers, of which the first one is what a request gets that names none. Out come loaded models,
lent to a request at a time: loaded when they are first asked for, and unloaded when nobody has used
them for a while, or when another one needs their memory. All of it happens in the event loop's
thread, but for what loads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from infer_os.errors import Error

from ..runtime.plan.memory_plan import MemoryShortage
from .engine_thread import EngineThread
from .errors import ApiError, EngineDied
from .generating import Generator
from .generation_request import Defaults
from .metrics import Metrics
from .pushed_engine import EngineFigures, PushedEngine

#: Seconds after which a model that found no memory may be asked for again.
_RETRY_S = 10


@dataclass(frozen=True, slots=True)
class Served:
    """A model that is served: its file, the name of its architecture, and what requests get."""

    path: Path
    source: str
    defaults: Defaults


class OpenModel(Protocol):
    """Loads a model; for any thread."""

    def __call__(self, memory: int | None) -> tuple[PushedEngine, Served]:
        """An engine within so many bytes; None for what there is.

        Raises:
            MemoryShortage: it does not fit.
            Error: it cannot be loaded.
        """
        ...


@dataclass(frozen=True, slots=True)
class Offer:
    """A model that can be loaded, and the names that requests may call it."""

    names: tuple[str, ...]
    open: OpenModel


@dataclass(frozen=True, slots=True)
class Bounds:
    """What all models together may take.

    ``memory`` is bytes of all that are loaded, ``queue`` texts that may wait for each besides those
    that are computed, ``idle_s`` the seconds after which a model that nobody uses is unloaded; 0
    for never.
    """

    memory: int
    queue: int
    idle_s: float = 0.0


@dataclass(slots=True)
class Loaded:
    """A model while it is loaded."""

    thread: EngineThread
    served: Served
    generator: Generator


@dataclass(slots=True, eq=False)
class Entry:
    """A model, loaded or not. ``past`` is what was done by engines that are gone."""

    offer: Offer
    loaded: Loaded | None = None
    past: EngineFigures = field(default_factory=EngineFigures)
    n_users: int = 0
    last_used: float = 0.0
    #: Known once it was loaded, and kept.
    served: Served | None = None
    n_ctx: int = 0
    n_seq: int = 0

    @property
    def name(self) -> str:
        """What it is called first."""
        return self.offer.names[0]

    @property
    def is_busy(self) -> bool:
        """Whether a request uses it, or waits for it."""
        at_work = self.loaded is not None and self.loaded.thread.n_outstanding > 0
        return bool(self.n_users) or at_work

    @property
    def idle_since(self) -> float:
        """When it was last used, by the monotonic clock."""
        since = self.loaded.thread.idle_since if self.loaded is not None else 0.0
        return max(self.last_used, since)

    @property
    def planned_bytes(self) -> int:
        """Memory that its plan foresees; 0 if it is not loaded."""
        return self.loaded.thread.engine.figures().planned_bytes if self.loaded is not None else 0

    @property
    def figures(self) -> EngineFigures:
        """What it has done since the server began, and what it holds."""
        return self.past if self.loaded is None else (
            self.past + self.loaded.thread.engine.figures()
        )  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        """What a server says of it."""
        thread = self.loaded.thread if self.loaded is not None else None
        return {
            "name": self.name, "loaded": thread is not None,
            "running": thread.n_running if thread is not None else 0,
            "waiting": thread.n_waiting if thread is not None else 0,
            "planned_bytes": self.planned_bytes,
        }  # fmt: skip


class Models:
    """All models of a server."""

    def __init__(
        self, offers: Sequence[Offer], bounds: Bounds, died: Callable[[EngineDied], None]
    ) -> None:
        """Nothing is loaded yet; called in the event loop.

        Args:
            offers: names are each of one model alone.
            bounds: see there.
            died: called if an engine fails.
        """
        self._bounds, self._died = bounds, died
        self.entries = [Entry(offer) for offer in offers]
        self.metrics = Metrics(self)
        self.failure: EngineDied | None = None
        self._loading = asyncio.Lock()
        self._sweeper = asyncio.create_task(self._sweep()) if bounds.idle_s else None

    @property
    def names(self) -> tuple[str, ...]:
        """All names that requests may use."""
        return tuple(name for entry in self.entries for name in entry.offer.names)

    @property
    def loaded(self) -> list[Loaded]:
        """Those that are loaded now."""
        return [entry.loaded for entry in self.entries if entry.loaded is not None]

    @property
    def threads(self) -> list[EngineThread]:
        """Of those that are loaded."""
        return [loaded.thread for loaded in self.loaded]

    @property
    def n_ctx(self) -> int:
        """Tokens of the largest context that was seen so far."""
        return max(entry.n_ctx for entry in self.entries)

    @property
    def figures(self) -> EngineFigures:
        """Of all models together."""
        total = EngineFigures()
        for entry in self.entries:
            total = total + entry.figures
        return total

    def find(self, name: object) -> Entry:
        """The model of that name; the first one for None, and for what is no name at all.

        Raises:
            ApiError: there is none (404).
        """
        if not isinstance(name, str):
            return self.entries[0]
        for entry in self.entries:
            if name in entry.offer.names:
                return entry
        raise ApiError(
            f"the model {name[:100]!r} is not here; this server has {', '.join(self.names)}", 404,
            param="model", code="model_not_found",
        )  # fmt: skip

    def check_room(self) -> None:
        """See that some request could be answered, before it is read.

        Raises:
            ApiError: as :meth:`~.engine_thread.EngineThread.check_room`.
        """
        if self.failure is not None:
            raise ApiError(str(self.failure), 503)
        if len(self.entries) == 1 and self.loaded:
            self.loaded[0].thread.check_room(1)

    @asynccontextmanager
    async def lent(self, name: object) -> AsyncGenerator[Loaded, None]:
        """A model, loaded if need be, which stays while inside and until its texts are written.

        Raises:
            ApiError: no model has that name (404), or it cannot be loaded (500, 503).
        """
        entry = self.find(name)
        entry.n_users += 1
        try:
            if entry.loaded is None:
                async with self._loading:
                    if entry.loaded is None:
                        await self._load(entry)
            assert entry.loaded is not None
            yield entry.loaded
        finally:
            entry.n_users -= 1
            entry.last_used = time.monotonic()

    def add(self, entry: Entry, engine: PushedEngine, served: Served) -> None:
        """Take over an engine that is loaded."""
        thread = EngineThread(engine, self._bounds.queue, self._fail)
        generator = Generator(thread, served.defaults, self.metrics)
        entry.loaded = Loaded(thread, served, generator)
        entry.served, entry.n_ctx, entry.n_seq = served, engine.n_ctx, engine.n_seq
        entry.last_used = time.monotonic()

    async def _load(self, entry: Entry) -> None:
        """Load a model, in the place of others that nobody uses if it takes that."""
        while True:
            planned = sum(other.planned_bytes for other in self.entries)
            # alone it may have what the machine has now
            memory = max(1, self._bounds.memory - planned) if planned else None
            try:
                engine, served = await asyncio.to_thread(entry.offer.open, memory)
            except MemoryShortage as error:
                never = error.plan is not None and error.plan.total > self._bounds.memory
                if never or not await self._unload_one():
                    raise self._shortage(entry, error, never=never) from None
            except Error as error:
                raise ApiError(f"{entry.name}: {error}", 500, code="model_failed") from None
            else:
                self.add(entry, engine, served)
                return

    def _shortage(self, entry: Entry, error: MemoryShortage, *, never: bool) -> ApiError:
        others = ", ".join(other.name for other in self.entries if other.loaded is not None)
        if never or not others:
            return ApiError(f"{entry.name}: {error}", 503, code="no_memory")
        return ApiError(
            f"{entry.name} does not fit beside {others}, which cannot be unloaded while it writes; "
            "try again later",
            503, code="no_memory", retry_after=_RETRY_S,
        )  # fmt: skip

    async def _unload_one(self) -> bool:
        """Unload the model that was unused for longest; whether there was one."""
        idle = [e for e in self.entries if e.loaded is not None and not e.is_busy]
        if not idle:
            return False
        await self._unload(min(idle, key=lambda entry: entry.idle_since))
        return True

    async def _unload(self, entry: Entry) -> None:
        loaded, entry.loaded = entry.loaded, None
        assert loaded is not None
        await loaded.thread.end()
        loaded.generator.close()
        done = loaded.thread.engine.figures()
        entry.past = entry.past + replace(done, planned_bytes=0)

    async def _sweep(self) -> None:
        """Unload what nobody has used for long enough."""
        while True:
            now, idle_s = time.monotonic(), self._bounds.idle_s
            waits = [idle_s]
            for entry in self.entries:
                if entry.loaded is None or entry.is_busy:
                    continue
                left = entry.idle_since + idle_s - now
                if left > 0:
                    waits.append(left)
                    continue
                async with self._loading:
                    if entry.loaded is not None and not entry.is_busy:
                        await self._unload(entry)
            await asyncio.sleep(max(0.01, min(waits)))

    def _fail(self, error: EngineDied) -> None:
        self.failure = self.failure or error
        self._died(error)

    async def close(self) -> None:
        """Unload everything; a step that is under way is broken off."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        async with self._loading:
            for entry in self.entries:
                if entry.loaded is not None:
                    await entry.loaded.thread.close()
                    entry.loaded.generator.close()
                    entry.loaded = None
