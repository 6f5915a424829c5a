"""Read the bodies of requests, and notice clients that go away, all within bounds.

A body is read no further than it may be long, and waited for no longer than it may take.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from .body import read_object
from .errors import ApiError

Done = TypeVar("Done")

#: Bytes of a body, for a context of any length and for each token of it.
_LEAST, _PER_TOKEN = 4 << 20, 16
#: Bytes of a body that are passed over, so that a client that sends before it listens gets to know
#: what was wrong.
_PASSED = 64 << 20
#: Seconds until a body must be there.
BODY_S = 30.0


def body_limit(n_ctx: int) -> int:
    """Bytes that a body may have: many times what a context holds."""
    return max(_LEAST, _PER_TOKEN * n_ctx)


#: Bytes of a body that is read as JSON, and its prompts cut into tokens, in a millisecond or so.
_SHORT = 8 << 10


@dataclass(frozen=True, slots=True)
class ReadBody:
    """A request's body: its object, when it began to be read, and whether it was short."""

    value: dict[str, Any]
    began: float
    is_short: bool


async def read_json(request: Request, limit: int) -> ReadBody:
    """The object that a request's body is.

    Raises:
        As :func:`read_body`; ApiError as well where it is none.
    """
    began = time.monotonic()
    data = await read_body(request, limit)
    if len(data) <= _SHORT:
        return ReadBody(read_object(data), began, True)
    return ReadBody(await asyncio.to_thread(read_object, data), began, False)


async def read_body(request: Request, limit: int) -> bytes:
    """A request's body.

    Raises:
        ApiError: it is too long (413), or too slow (408).
        ClientDisconnect: the client is gone.
    """
    too_long = ApiError(
        f"the body has more than {limit} bytes: no context here holds so much", 413,
        code="body_too_long",
    )  # fmt: skip
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 18 or int(length) > _PASSED):
        raise too_long
    data, n_bytes = bytearray(), 0
    with _cancelled_after(
        BODY_S, ApiError(f"the body did not arrive within {BODY_S:.0f} seconds", 408)
    ):
        async for piece in request.stream():
            n_bytes += len(piece)
            if n_bytes > max(limit, _PASSED):
                raise too_long
            if n_bytes <= limit:
                data += piece
    if n_bytes > limit:
        raise too_long
    return bytes(data)


async def while_connected(request: Request, work: Coroutine[Any, Any, Done]) -> Done:
    """Do something for a client whose body was read, as long as it is there.

    Raises:
        ClientDisconnect: the client is gone; the work was cancelled.
    """
    with _Cancelling(ClientDisconnect()) as cancelling:
        watcher = asyncio.create_task(_disconnection(request))
        watcher.add_done_callback(cancelling.cancel)
        try:
            return await work
        finally:
            watcher.remove_done_callback(cancelling.cancel)
            watcher.cancel()


async def _disconnection(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@contextmanager
def _cancelled_after(seconds: float, failure: Exception) -> Iterator[None]:
    """Raise a failure where this takes longer."""
    with _Cancelling(failure) as cancelling:
        timer = asyncio.get_running_loop().call_later(seconds, cancelling.cancel)
        try:
            yield
        finally:
            timer.cancel()


class _Cancelling:
    """While inside, the task can be cancelled, which raises a failure at the end.

    Whoever may call :meth:`cancel` is kept from it at the end: it must come from the event loop
    while the task waits.
    """

    def __init__(self, failure: Exception) -> None:
        self._failure, self._is_cancelled = failure, False
        self._task = asyncio.current_task()

    def cancel(self, *_: object) -> None:
        """Break off what the task waits for."""
        self._is_cancelled = True
        if self._task is not None:
            self._task.cancel()

    def __enter__(self) -> _Cancelling:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._is_cancelled and kind is asyncio.CancelledError:
            raise self._failure
