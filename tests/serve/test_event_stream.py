"""Streams to clients that read, that do not, and that go away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.requests import Request

from infer_os.serve import event_stream
from infer_os.serve.errors import ApiError
from infer_os.serve.event_stream import EventStream


class Client:
    """Reads so many messages; ``ended`` is whether the generator was closed."""

    pause_s = 0.01

    def __init__(self, n_read: int = 1000, n_stay: int = 1000) -> None:
        self.n_read, self.n_stay = n_read, n_stay
        self.bodies: list[bytes] = []
        self.ended = self.begun = False
        self.n_endings = 0

    def end(self) -> None:
        self.n_endings += 1

    async def receive(self) -> Any:
        while len(self.bodies) < self.n_stay:
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if len(self.bodies) >= self.n_read:
            await asyncio.Event().wait()
        self.bodies.append(message.get("body", b""))
        await asyncio.sleep(0)

    async def values(self, n: int, failure: ApiError | None) -> AsyncGenerator[list[Any], None]:
        self.begun = True
        try:
            for i in range(n):
                await asyncio.sleep(self.pause_s if i == 2 else 0.01)
                yield [{"number": i}, None] if i % 2 else [{"number": i}]
            if failure is not None:
                raise failure
        finally:
            self.ended = True

    def streamed(self, n: int, failure: ApiError | None = None) -> bytes:
        scope: Any = {"type": "http"}

        async def run() -> None:
            stream = EventStream(Request(scope, self.receive), self.values(n, failure), self.end)
            await asyncio.wait_for(stream(scope, self.receive, self.send), 20)

        asyncio.run(run())
        assert self.ended is self.begun
        assert self.n_endings == 1
        return b"".join(self.bodies)


def test_all_values_and_the_end() -> None:
    assert Client().streamed(3) == (
        b'data: {"number":0}\n\ndata: {"number":1}\n\n: still here\n\ndata: {"number":2}\n\n'
        b"data: [DONE]\n\n"
    )


def test_an_error_is_the_last_event() -> None:
    got = Client().streamed(1, ApiError("no more"))
    assert got.startswith(b'data: {"number":0}\n\ndata: {"error":{"message":"no more"')
    assert got.endswith(b"}\n\n")


def test_a_client_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "STALL_S", 0.2)
    # a text that takes its time is nobody's fault
    monkeypatch.setattr(Client, "pause_s", 0.6)
    assert Client().streamed(60).count(b"data: {") == 60
    assert Client(n_read=5).streamed(60).count(b"data: {") == 4


def test_a_client_that_is_gone_before_anything_began() -> None:
    client = Client(n_stay=0)
    assert client.streamed(3) in (b"", b'data: {"number":0}\n\n')
    assert not client.begun or client.ended


def test_a_client_that_goes_away() -> None:
    assert Client(n_stay=5).streamed(100_000).count(b"data: {") < 100
