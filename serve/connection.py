"""A client's connection, within bounds that uvicorn leaves open.

A connection that is not being answered has a timer: a head that does not arrive in time ends it.
So do more connections than there are places. A client that reads nothing of its answer is cut off.
What is no HTTP gets an error as every other one, behind the answers to what came before it. Bodies
are the concern of :mod:`.client_bodies`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from .errors import ENDING, ApiError
from .event_stream import STALL_S
from .head_rules import checked_target

#: Seconds until a request's head must be there.
HEAD_S = 20.0
#: Connections at once. A process may usually open 1024 files.
MOST_CONNECTIONS = 800
#: Requests of a connection that may wait behind the one that is being answered.
MOST_WAITING = 32
#: Bytes of a head.
MOST_HEAD = 64 << 10
#: Bytes and seconds for which a client that sends before it listens is heard out: if its data were
#: left unread, its system would throw the answer away.
_PASSED, _PASSING_S = 64 << 20, 5.0
#: Bytes that may stand around each byte of a body that comes in chunks.
_AROUND_CHUNKS = 8
_HEAD = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
_NO_HTTP = f"this is no HTTP request, or its head is longer than {MOST_HEAD >> 10} kB"


class BoundedConnection(HttpToolsProtocol):
    """One connection. uvicorn makes it."""

    _head_timer: asyncio.TimerHandle | None = None
    #: Runs while there is something that the client does not read.
    _stall_timer: asyncio.TimerHandle | None = None
    #: Bytes that are still passed over; None while what comes is read.
    _to_pass: int | None = None
    #: What is said once everything before it is answered.
    _refusal: ApiError | None = None
    #: Bytes of the latest request, and those of them that are its body.
    _n_bytes = _n_body = 0
    #: The request that was begun last; others may wait behind it.
    _begun: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See :class:`asyncio.Protocol`."""
        super().connection_made(_Gathered(transport, self.loop, self._watch_reading))  # type: ignore[arg-type]
        if len(self.connections) > MOST_CONNECTIONS:
            self._refuse(ApiError(f"{MOST_CONNECTIONS} connections are open already", 503))
        else:
            self._expect_head()

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        if self._to_pass is not None:
            self._to_pass -= len(data)
            if self._to_pass < 0:
                self.transport.close()
            return
        self._n_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            fault = error.__context__
            self._refuse_next(fault if isinstance(fault, ApiError) else ApiError(_NO_HTTP))
            return
        # what is no body: the head, what stands around chunks, and what may come behind them
        if self._n_bytes - self._n_body > MOST_HEAD + _AROUND_CHUNKS * self._n_body:
            self._refuse_next(ApiError(_NO_HTTP))
        elif self._running is not None:
            self._end_head_timer()
        else:
            self._expect_head()

    def _parse(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as upgrade:
                # It may be ignored (RFC 9110, 7.8), but the parser takes what follows for another
                # protocol: so it gets the head again, without that line.
                rest = rest[upgrade.args[0] :]
                head = self._head_without_upgrade()
                self.parser = httptools.HttpRequestParser(self)
                self.parser.feed_data(head)

    def _head_without_upgrade(self) -> bytes:
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([b"%b %b HTTP/%b" % (method, self.url, version), *lines, b"", b""])

    def connection_lost(self, exc: Exception | None) -> None:
        """See :class:`asyncio.Protocol`."""
        self._end_head_timer()
        self._end_stall_timer()
        self.pipeline.clear()
        super().connection_lost(exc)
        self._drop()

    def on_headers_complete(self) -> None:
        """Called by the parser, as are the next two: a head is there."""
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MOST_HEAD:
            raise ApiError(_NO_HTTP)
        # blanks after a value do not belong to it (RFC 9112, 5.1), but the parser keeps them
        self.headers[:] = [(name, value.rstrip(b" \t")) for name, value in self.headers]
        method, version = self.parser.get_method(), self.parser.get_http_version()
        self.url = checked_target(method, self.url, version, self.headers)
        if self.parser.should_upgrade():  # it comes again
            return
        super().on_headers_complete()
        if self.expect_100_continue:
            # whether a body follows an answer that came first is the client's choice
            self.cycle.keep_alive = False
        if len(self.pipeline) > MOST_WAITING:
            raise ApiError(f"{MOST_WAITING} requests of this connection wait already", 429)

    def on_body(self, body: bytes) -> None:
        """A part of a body is there."""
        self._n_body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is there."""
        if self.parser.should_upgrade():
            return
        self._n_bytes, self._n_body = 0, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer was written; called by whoever wrote it."""
        # now, and not when the answers that others get at this moment are written too
        self.transport.flush()  # type: ignore[attr-defined]
        super().on_response_complete()
        if self._refusal is not None and self._running is None:
            self._unset_keepalive_if_required()
            self._refuse(self._refusal, listens=False)

    def shutdown(self) -> None:
        """Take no more requests: those that are there to the end get their answers."""
        running = self._running
        if running is None:
            self.transport.close()
        elif running.more_body:
            self._refuse(ENDING)
        else:
            self._drop_half_read()
            last = self.pipeline[0][0] if self.pipeline else running
            last.keep_alive = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._begun = cycle
        super()._start_asgi_task(cycle, app)

    @property
    def _running(self) -> RequestResponseCycle | None:
        """The request that is being answered."""
        begun = self._begun
        return None if begun is None or begun.response_complete else begun

    def _drop(self) -> None:
        """Whoever writes an answer hears that nobody waits for it, and writes no more."""
        if (running := self._running) is not None:
            running.disconnected = True
            running.message_event.set()

    def _drop_half_read(self) -> None:
        """Forget the request that came last, if its body is not complete."""
        if self.pipeline and self.pipeline[0][0].more_body:
            self.pipeline.popleft()

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self._too_slow)

    def _end_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        self._refuse(ApiError(f"no request came within {HEAD_S:.0f} seconds", 408))

    def _refuse_next(self, error: ApiError) -> None:
        """Answer what came to its end, then say why nothing more is read."""
        self._drop_half_read()
        if (running := self._running) is not None and not running.more_body:
            self._refusal, self._to_pass = error, _PASSED
        else:
            self._refuse(error, listens=False)

    def _refuse(self, error: ApiError, *, listens: bool = True) -> None:
        """Say why, and close; later where the client may not listen before it has sent more."""
        if self.transport.is_closing():
            return
        if (running := self._running) is None or not running.response_started:
            body = json.dumps(error.as_json()).encode()
            self.transport.write(STATUS_LINE[error.status] + _HEAD % len(body) + body)
        self._drop()
        if listens:
            self.transport.close()
            return
        self._end_head_timer()
        self._to_pass = _PASSED
        self.transport.write_eof()
        self.loop.call_later(_PASSING_S, self.transport.close)

    def pause_writing(self) -> None:
        """See :class:`asyncio.Protocol`."""
        super().pause_writing()
        self._watch_reading()

    def resume_writing(self) -> None:
        """See :class:`asyncio.Protocol`."""
        super().resume_writing()
        self._end_stall_timer()
        if self.transport.is_closing():
            self._watch_reading()

    def _watch_reading(self) -> None:
        """Cut the client off if it reads nothing for too long of what waits for it."""
        n_waiting = self.transport.get_write_buffer_size()
        if n_waiting and self._stall_timer is None:
            self._stall_timer = self.loop.call_later(STALL_S, self._look_again, n_waiting)

    def _look_again(self, n_waited: int) -> None:
        self._stall_timer = None
        if self.transport.get_write_buffer_size() < n_waited:
            self._watch_reading()
        else:
            self.transport.abort()

    def _end_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None


class _Gathered:
    """A transport that sends what is written in one go as one packet.

    uvicorn writes an answer's head, body and end one by one, each of which would be a call of the
    system and a packet.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        closing: Callable[[], None],
    ) -> None:
        """``closing`` is called when it closes as soon as all is sent."""
        self._transport, self._loop, self._closing = transport, loop, closing
        self._written: list[bytes] = []

    def write(self, data: bytes) -> None:
        """See :class:`asyncio.Transport`."""
        if not self._written:
            self._loop.call_soon(self.flush)
        self._written.append(data)

    def flush(self) -> None:
        """Send what was written."""
        data, self._written = b"".join(self._written), []
        if data:
            self._transport.write(data)

    def close(self) -> None:
        """See :class:`asyncio.Transport`."""
        self.flush()
        self._transport.close()
        self._closing()

    def write_eof(self) -> None:
        """See :class:`asyncio.Transport`."""
        self.flush()
        with suppress(OSError):  # the client is gone, of which the loop has yet to hear
            self._transport.write_eof()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
