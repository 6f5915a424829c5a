"""A client's connection, within bounds that uvicorn leaves open.

A head that does not arrive in time, or more connections than there are places, ends a connection;
what is no HTTP gets an error as every other one. Bodies are the concern of :mod:`.client_bodies`.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from .errors import ApiError

#: Seconds until a request's head must be there.
HEAD_S = 20.0
#: Connections at once. A process may usually open 1024 files.
MOST_CONNECTIONS = 800
#: Bytes of a head.
MOST_HEAD = 64 << 10
#: Bytes and seconds for which a client that sends before it listens is heard out: if its data were
#: left unread, its system would throw the answer away.
_PASSED, _PASSING_S = 64 << 20, 5.0
#: Bytes that may stand around each byte of a body that comes in chunks.
_AROUND_CHUNKS = 8
_HEAD = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"


class BoundedConnection(HttpToolsProtocol):
    """One connection. uvicorn makes it."""

    _head_timer: asyncio.TimerHandle | None = None
    #: Bytes that are still passed over; None while the client is served.
    _to_pass: int | None = None
    #: Whether the head of the latest request is complete.
    _has_head = False
    #: Bytes of the latest request, and those of them that are its body.
    _n_bytes = _n_body = 0
    #: The request that is being answered; others may wait behind it.
    _answered: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See :class:`asyncio.Protocol`."""
        super().connection_made(_Gathered(transport, self.loop))  # type: ignore[arg-type]
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
        super().data_received(data)
        if self._to_pass is not None or self.transport.is_closing():
            return
        # what is no body: the head, what stands around chunks, and what may come behind them
        if self._n_bytes - self._n_body > MOST_HEAD + _AROUND_CHUNKS * self._n_body:
            self.send_400_response("")
        elif self._has_head or self._is_answering:
            self._end_timer()
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See :class:`asyncio.Protocol`."""
        self._end_timer()
        self.pipeline.clear()
        super().connection_lost(exc)
        self._drop()

    def on_headers_complete(self) -> None:
        """Called by the parser, as are the next two: a head is there."""
        self._has_head = True
        if self._n_bytes > MOST_HEAD:  # of which a body may be a part
            n = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if n > MOST_HEAD:
                raise ValueError("the head is too long")  # the parser's error, then a 400
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of a body is there."""
        self._n_body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is there."""
        self._has_head, self._n_bytes, self._n_body = False, 0, 0
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    @property
    def _is_answering(self) -> bool:
        return self._answered is not None and not self._answered.response_complete

    def _drop(self) -> None:
        """Whoever writes an answer hears that nobody waits for it, and writes no more."""
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()

    def send_400_response(self, msg: str) -> None:
        """What is sent for bytes that are no HTTP, or for a head that is too long."""
        error = f"this is no HTTP request, or its head is longer than {MOST_HEAD >> 10} kB"
        self._refuse(ApiError(error), listens=False)

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self._too_slow)

    def _end_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        self._refuse(ApiError(f"no request came within {HEAD_S:.0f} seconds", 408))

    def _refuse(self, error: ApiError, *, listens: bool = True) -> None:
        """Say why, and close; later where the client may not listen before it has sent more."""
        if self.transport.is_closing():
            return
        answered = self._answered
        if answered is None or answered.response_complete or not answered.response_started:
            body = json.dumps(error.as_json()).encode()
            self.transport.write(STATUS_LINE[error.status] + _HEAD % len(body) + body)
        self._drop()
        if listens:
            self.transport.close()
            return
        self._end_timer()
        self._to_pass = _PASSED
        self.transport.write_eof()
        self.loop.call_later(_PASSING_S, self.transport.close)


class _Gathered:
    """A transport that sends what is written in one go as one packet.

    uvicorn writes an answer's head, body and end one by one, each of which would be a call of the
    system and a packet.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._written: list[bytes] = []

    def write(self, data: bytes) -> None:
        """See :class:`asyncio.Transport`."""
        if not self._written:
            self._loop.call_soon(self._send)
        self._written.append(data)

    def _send(self) -> None:
        data, self._written = b"".join(self._written), []
        if data:
            self._transport.write(data)

    def close(self) -> None:
        """See :class:`asyncio.Transport`."""
        self._send()
        self._transport.close()

    def write_eof(self) -> None:
        """See :class:`asyncio.Transport`."""
        self._send()
        self._transport.write_eof()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
