"""A client's connection, within bounds that uvicorn leaves open.

A head that does not arrive in time, or more connections than there are places, ends a connection;
what is no HTTP gets an error as every other one. Bodies are the concern of :mod:`.client_bodies`.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

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


class BoundedConnection(H11Protocol):
    """One connection. uvicorn makes it."""

    _head_timer: asyncio.TimerHandle | None = None
    #: Bytes that are still passed over; None while the client is served.
    _to_pass: int | None = None

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
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._expect_head()
        else:
            self._end_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """See :class:`asyncio.Protocol`."""
        self._end_timer()
        super().connection_lost(exc)

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
        body = json.dumps(error.as_json()).encode()
        head: list[tuple[str, Any]] = [
            ("content-type", "application/json"), ("content-length", str(len(body))),
            ("connection", "close"),
        ]  # fmt: skip
        try:
            for event in (
                h11.Response(status_code=error.status, headers=head), h11.Data(data=body),
                h11.EndOfMessage(),
            ):  # fmt: skip
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # an answer is on its way, or was
            pass
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
