"""Clients that put a server under load, and take next to no processor time themselves.

In go a port and the bodies of requests to /v1/completions; out comes an :class:`Answer` for each.
All clients share one thread and plain sockets: while the clock runs, what arrives is only kept,
together with its time, and is read as HTTP, events and JSON afterwards. On a machine of few cores
a client that parses each event as it comes would take a good part of the time that it measures.
Whoever is sent away (429) asks again after the seconds of Retry-After; an answer's times count from
the request that was taken. Where a server closes a connection behind an answer, the next request
opens another.
"""

from __future__ import annotations

import contextlib
import json
import random
import selectors
import socket
import time
from dataclasses import dataclass, field
from typing import Any

_END_OF_CHUNKS = b"\r\n0\r\n\r\n"


@dataclass
class Answer:
    """A text, its tokens, the seconds to its first event and to its end, and how often it ended."""

    text: str
    n_tokens: int
    n_events: int
    n_ends: int
    first_s: float
    seconds: float


@dataclass
class _Exchange:
    """A request on its way, and what has come of it. ``gone`` is when its client goes away."""

    number: int
    started: float
    gone: float | None
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    tail: bytes = b""
    #: Bytes of the head and of the body that it tells; None while that is not known.
    n_expected: int | None = None
    n_bytes: int = 0

    def take(self, data: bytes) -> bool:
        """Keep what arrived; whether the answer is complete."""
        if not self.pieces:
            head, _, _ = data.partition(b"\r\n\r\n")
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            if length:
                self.n_expected = len(head) + 4 + int(length)
        self.pieces.append((time.perf_counter(), data))
        self.n_bytes += len(data)
        if self.n_expected is not None:
            return self.n_bytes >= self.n_expected
        self.tail = (self.tail + data)[-len(_END_OF_CHUNKS) :]
        return self.tail == _END_OF_CHUNKS

    @property
    def retry_after(self) -> float | None:
        """Seconds after which to ask again, where there was no room."""
        data = self.pieces[0][1]
        if not data.startswith(b"HTTP/1.1 429 "):
            return None
        return float(data.lower().partition(b"retry-after:")[2].partition(b"\r\n")[0])


class Clients:
    """``n`` clients of a server on this machine, each with a connection that it keeps."""

    def __init__(self, port: int, n: int) -> None:
        self._port, self._n = port, n
        #: Requests that were sent away, and those of them that wait to be sent again.
        self.n_sent_away = 0
        #: Connections that the server had closed when the next request came, and new ones took.
        self.n_reopened = 0
        self._again: list[tuple[float, int]] = []

    def ask(
        self, bodies: list[dict[str, Any]], drops: list[float | None] | None = None
    ) -> tuple[float, list[Answer | None]]:
        """Seconds for all requests, each client with one at a time, and the answers in order.

        ``drops`` says after how many seconds the client of a request goes away, whose answer is
        None then.
        """
        requests = [_request(body) for body in bodies]
        moments = drops or [None] * len(bodies)
        line = iter(range(len(bodies)))
        found: list[_Exchange | None] = [None] * len(bodies)
        with selectors.DefaultSelector() as selector:
            began = time.perf_counter()
            for _ in range(self._n):
                self._next(selector, None, line, requests, moments)
            while selector.get_map() or self._again:
                for key, _ in selector.select(0.001 if drops or self._again else None):
                    door, exchange = key.fileobj, key.data
                    assert isinstance(door, socket.socket)
                    data = _received(door)
                    if not data and not exchange.pieces:
                        selector.unregister(door)
                        door.close()
                        self.n_reopened += 1
                        again = iter((exchange.number,))
                        self._next(selector, None, again, requests, moments)
                        continue
                    assert data, f"request {exchange.number} was cut off"
                    if exchange.take(data):
                        selector.unregister(door)
                        if (pause := exchange.retry_after) is not None:
                            self.n_sent_away += 1
                            self._again.append((time.perf_counter() + pause, exchange.number))
                            door.close()
                            continue
                        found[exchange.number] = exchange
                        self._next(selector, door, line, requests, moments)
                now = time.perf_counter()
                for due in [one for one in self._again if one[0] <= now]:
                    self._again.remove(due)
                    self._next(selector, None, iter(due[1:]), requests, moments)
                for key in list(selector.get_map().values()) if drops else ():
                    if key.data.gone is not None and key.data.gone < now:
                        selector.unregister(key.fileobj)
                        key.fileobj.close()  # type: ignore[union-attr]
                        self._next(selector, None, line, requests, moments)
            seconds = time.perf_counter() - began
        lost = [i for i, moment in enumerate(moments) if moment is None and found[i] is None]
        assert not lost, f"no answer to {lost}"
        return seconds, [_read(exchange) if exchange else None for exchange in found]

    def _next(
        self, selector: selectors.BaseSelector, door: socket.socket | None, line: Any,
        requests: list[bytes], moments: list[float | None],
    ) -> None:  # fmt: skip
        """A client begins its next request, or is done."""
        number = next(line, None)
        if number is None:
            if door is not None:
                door.close()
            return
        if door is None:
            door = socket.create_connection(("127.0.0.1", self._port))
            door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        now, moment = time.perf_counter(), moments[number]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            door.sendall(requests[number])  # or its end is read next
        gone = None if moment is None else now + moment
        selector.register(door, selectors.EVENT_READ, _Exchange(number, now, gone))


def _received(door: socket.socket) -> bytes:
    """What has come; nothing where the server closed the connection."""
    try:
        return door.recv(1 << 20)
    except ConnectionResetError:
        return b""


def random_drops(n: int, share: float, longest: float, chance: random.Random) -> list[float | None]:
    """Seconds after which a share of clients goes away, ``longest`` at most."""
    return [longest * chance.random() if chance.random() < share else None for _ in range(n)]


def _request(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    return (
        b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)
    )


def _read(exchange: _Exchange) -> Answer:
    """What came of a request."""
    head, _, body = b"".join(data for _, data in exchange.pieces).partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise SystemExit(f"{head!r}: {body!r}")
    ended = exchange.pieces[-1][0] - exchange.started
    if exchange.n_expected is not None:
        value = json.loads(body)
        n_tokens = value["usage"]["completion_tokens"]
        return Answer(value["choices"][0]["text"], n_tokens, 1, 1, ended, ended)
    answer = Answer("", 0, 0, 0, _first_event(exchange), ended)
    n_texts = 0
    for line in _unchunked(body).split(b"\n"):
        data = line.strip().removeprefix(b"data: ")
        if data == b"[DONE]":
            answer.n_ends += 1
        elif data.startswith(b"{"):
            value = json.loads(data)
            usage = value.get("usage")
            answer.n_tokens = usage["completion_tokens"] if usage else answer.n_tokens
            for choice in value["choices"]:
                answer.text += choice["text"]
                n_texts += bool(choice["text"])
    answer.n_events = n_texts
    answer.n_tokens = answer.n_tokens or n_texts  # of a server that tells no usage
    return answer


def _first_event(exchange: _Exchange) -> float:
    """Seconds until a text began; events may be cut anywhere, but the first is whole with both."""
    for at, data in exchange.pieces:
        if b"data: {" in data:
            return at - exchange.started
    raise SystemExit(f"no event in the answer to {exchange.number}")


def _unchunked(body: bytes) -> bytes:
    found = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        n = int(size, 16)
        found.append(rest[:n])
        body = rest[n + 2 :]
    return b"".join(found)
