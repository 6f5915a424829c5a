"""Server-sent events: an answer that arrives in pieces.

https://html.spec.whatwg.org/multipage/server-sent-events.html, as OpenAI uses it: each event is one
line of JSON, the last one ``[DONE]``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .client_bodies import while_connected
from .errors import ApiError

#: Seconds that a client may take to read what was sent, before it counts as gone.
STALL_S = 60.0
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


def json_bytes(value: Any) -> bytes:
    """JSON on one line, in UTF-8; half of a pair of surrogates is written as an escape."""
    try:
        return _PLAIN.encode(value).encode()
    except UnicodeEncodeError:
        return _ESCAPED.encode(value).encode()


_PLAIN = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_ESCAPED = json.JSONEncoder(separators=(",", ":"))


class EventStream(Response):
    """Sends what a generator yields; the generator is closed when the client goes away.

    It yields lists of values, each of which is sent as one piece. A None among the values is sent
    as a comment, which shows that the connection is alive. ``ended`` is called at the end, which
    may come before the generator has begun, so that nothing of its own would clean up.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        request: Request,
        values: AsyncGenerator[list[Any], None],
        ended: Callable[[], None],
    ) -> None:
        super().__init__(None, headers=_HEADERS)
        self.raw_headers = [(k, v) for k, v in self.raw_headers if k != b"content-length"]
        self._request, self._values, self._ended = request, values, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything.

        Raises:
            ApiError: the generator did, before there was anything to send.
        """
        try:
            async with aclosing(self._values):
                await while_connected(self._request, self._send_all(send))
        except ClientDisconnect:
            return
        finally:
            self._ended()

    async def _send_all(self, send: Send) -> None:
        head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        is_begun = False
        with _Patience() as patience:
            last = _DONE
            try:
                async for values in self._values:
                    patience.begin()
                    if not is_begun:  # in one packet with what it is for
                        is_begun = True
                        await send(head)
                    await _put(send, b"".join(map(_event, values)))
                    patience.end()
            except ApiError as error:
                if not is_begun:
                    raise
                last = _event(error.as_json())
            patience.begin()
            if not is_begun:
                await send(head)
            await _put(send, last)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


_DONE = b"data: [DONE]\n\n"


def _event(value: Any) -> bytes:
    return b": still here\n\n" if value is None else b"data: %b\n\n" % json_bytes(value)


async def _put(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


class _Patience:
    """While inside, a client that does not read for too long counts as gone.

    One timer looks after a whole stream: one for each event would take as long as to send it.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._since: float | None = None
        self._is_over = False
        self._timer = self._loop.call_later(STALL_S, self._look)

    def begin(self) -> None:
        """Something is being sent."""
        self._since = self._loop.time()

    def end(self) -> None:
        """It was sent."""
        self._since = None

    def _look(self) -> None:
        now = self._loop.time()
        waited = 0.0 if self._since is None else now - self._since
        if waited >= STALL_S and self._task is not None:
            self._is_over = True
            self._task.cancel()
        else:
            self._timer = self._loop.call_later(STALL_S - waited, self._look)

    def __enter__(self) -> _Patience:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._timer.cancel()
        if self._is_over and kind is asyncio.CancelledError:
            raise ClientDisconnect
