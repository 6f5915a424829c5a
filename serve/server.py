"""Bind an address, serve until a signal comes, and end in order.

In go models, of which the first is loaded, and settings. Once a signal comes, no more requests are
taken; those under way are answered to their end, if that comes within :data:`DRAIN_S` seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

import uvicorn

from ..runtime.errors import SettingsError
from .app import make_app
from .connection import BoundedConnection
from .errors import EngineDied
from .models import Bounds, Models, Offer, Served
from .pushed_engine import PushedEngine
from .settings import ServeSettings

#: Seconds that answers may take to end, after a signal.
DRAIN_S = 25
#: Seconds until a connection is closed over which nothing comes behind an answer.
KEEP_ALIVE_S = 5
#: Seconds for which the event loop may keep Python from an engine whose step is done: less than a
#: step of a small model takes. Python's own 5 ms are several of those.
_SWITCH_S = 0.0005
_NO_BOUND = 1 << 62
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def bind(settings: ServeSettings) -> socket.socket:
    """Take an address, before anything is loaded; nobody is answered there yet.

    Raises:
        SettingsError: it cannot be had.
    """
    host = settings.host.strip("[]")
    try:
        found = socket.getaddrinfo(host, settings.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "no name"
        raise SettingsError(f"{settings.host}: {said}", "host") from None
    family, kind, protocol, _, address = found[0]
    door = socket.socket(family, kind, protocol)
    try:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(address)
    except OSError as error:
        door.close()
        raise SettingsError(
            f"{settings.port}: {settings.host} cannot be used: {error.strerror}", "port"
        ) from None
    return door


def address_of(door: socket.socket) -> str:
    """Where a bound server is found, as a URL."""
    host, port = door.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class HttpServer:
    """A server at an address that it has; :meth:`run` serves, and :meth:`stop` ends it."""

    def __init__(
        self, offers: Sequence[Offer], first: tuple[PushedEngine, Served], settings: ServeSettings,
        door: socket.socket, ready: Callable[[str], None], memory: int = _NO_BOUND,
    ) -> None:  # fmt: skip
        """Keep what is needed.

        Args:
            offers: the models.
            first: the first one, which is loaded; nobody else uses its engine from here on.
            settings: who is let in.
            door: a bound socket.
            ready: called with the address when requests are answered.
            memory: bytes that all models together may take.
        """
        self._offers, self._first, self._settings = offers, first, settings
        self._bounds = Bounds(memory, settings.queue, settings.idle)
        self._door, self._ready = door, ready
        self._uvicorn: _Uvicorn | None = None

    def run(self) -> None:
        """Serve until a signal comes, :meth:`stop` is called, or the engine fails.

        Afterwards the engine is closed, and a signal is raised for whoever handled it before.

        Raises:
            EngineDied: the engine failed.
        """
        usual_s = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_S)
        try:
            with self._door:
                failure = asyncio.run(self._serve())
        finally:
            sys.setswitchinterval(usual_s)
        if failure is not None:
            raise failure
        if self._uvicorn is not None and self._uvicorn.signal is not None:
            signal.raise_signal(self._uvicorn.signal)

    def stop(self) -> None:
        """End as if a signal had come; for any thread."""
        if self._uvicorn is not None:
            self._uvicorn.should_exit = True

    async def _serve(self) -> EngineDied | None:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        models = Models(self._offers, self._bounds, lambda error: self.stop())
        models.add(models.entries[0], *self._first)
        try:
            config = uvicorn.Config(
                make_app(models, self._settings), http=BoundedConnection, ws="none",
                lifespan="off", log_config=None, access_log=False, server_header=False,
                proxy_headers=False, timeout_graceful_shutdown=DRAIN_S,
                timeout_keep_alive=KEEP_ALIVE_S,
            )  # fmt: skip
            self._uvicorn = _Uvicorn(config, lambda: self._ready(address_of(self._door)))
            await self._uvicorn.serve([self._door])
        finally:
            await models.close()
        return models.failure


class _Uvicorn(uvicorn.Server):
    """uvicorn's server, which says when it is ready, and keeps the signal that ended it."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready
        self.signal: signal.Signals | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See :class:`uvicorn.Server`."""
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """While inside, the first signal ends the server in order, and a second one at once."""

        def take(number: int, frame: FrameType | None) -> None:
            self.force_exit = self.should_exit
            self.should_exit = True
            if self.signal is None:
                self.signal = signal.Signals(number)

        before = {}
        try:
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    before[number] = signal.signal(number, take)
        except ValueError:  # signals belong to the main thread
            pass
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
