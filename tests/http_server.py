"""A server on a free port of this machine, in a thread of the tests' own process."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infer_os.runtime.settings import SamplingSettings, StopSettings
from infer_os.serve.generation_request import Defaults
from infer_os.serve.models import Offer, Served
from infer_os.serve.pushed_engine import PushedEngine
from infer_os.serve.scripted_engine import ScriptedEngine
from infer_os.serve.server import HttpServer, bind
from infer_os.serve.settings import ServeSettings

SAMPLING = SamplingSettings()
STOPS = StopSettings()


@dataclass
class Reply:
    """An answer: status, headers in small letters, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body's value."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error that it is."""
        assert self.status >= 400, self.body
        assert list(self.json) == ["error"]
        error = self.json["error"]
        assert list(error) == ["message", "type", "param", "code"]
        assert "\n" not in error["message"]
        return dict(error)

    @property
    def events(self) -> list[Any]:
        """The values of a stream, which ended as it should."""
        blocks = self.body.decode().split("\n\n")
        assert blocks.pop() == ""
        lines = [block for block in blocks if not block.startswith(":")]
        assert all(line.startswith("data: ") for line in lines)
        assert lines.pop() == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines]


@dataclass
class Service:
    """A server that runs, and requests to it."""

    host: str
    port: int
    engine: Any
    server: HttpServer

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Reply:
        """One request; a body that is no bytes is sent as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        link = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            link.request(method, path, data, headers or {})
            got = link.getresponse()
            found = {name.lower(): value for name, value in got.getheaders()}
            return Reply(got.status, found, got.read())
        finally:
            link.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, body: Any = None, **fields: Any) -> Reply:
        return self.ask("POST", path, fields if body is None else body)

    def complete(self, prompt: Any = "Hi", **fields: Any) -> Reply:
        return self.post("/v1/completions", prompt=prompt, **fields)

    def chat(self, text: str = "Hi", **fields: Any) -> Reply:
        messages = [{"role": "user", "content": text}]
        return self.post("/v1/chat/completions", **{"messages": messages, **fields})

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection((self.host, self.port), timeout=60)

    def raw(self, data: bytes) -> bytes:
        """What comes back for these bytes, until the server closes."""
        with self.connect() as link:
            try:
                link.sendall(data)
                return read_all(link)
            except (BrokenPipeError, ConnectionResetError):
                return b""


def read_all(link: socket.socket) -> bytes:
    """Everything until the other side closes."""
    found = b""
    while data := link.recv(1 << 16):
        found += data
    return found


def sent_while_read(service: Service, data: bytes) -> bytes:
    """What comes back for bytes that the server may not want to the end."""
    with service.connect() as link:

        def send() -> None:
            try:
                link.sendall(data)
            except OSError:
                pass

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        try:
            return read_all(link)
        except ConnectionResetError:
            return b""
        finally:
            sender.join(60)


@contextmanager
def running(
    engine: PushedEngine,
    *,
    names: tuple[str, ...] = ("fake",),
    sampling: SamplingSettings = SAMPLING,
    stops: StopSettings = STOPS,
    more: Sequence[Offer] = (),
    memory: int = 1 << 40,
    **settings: Any,
) -> Iterator[Service]:
    """A server that answers while inside, and has ended in order afterwards.

    ``more`` are models besides the one of the engine.
    """
    chosen = ServeSettings(port=0, **settings)
    door = bind(chosen)
    served = Served(Path("fake.gguf"), "Fake", Defaults(names, engine.n_vocab, sampling, stops))
    is_ready = threading.Event()
    offers = [Offer(names, lambda memory: (engine, served)), *more]
    server = HttpServer(
        offers, (engine, served), chosen, door, lambda address: is_ready.set(), memory
    )
    host, port = door.getsockname()[:2]
    failures: list[BaseException] = []

    def run() -> None:
        try:
            server.run()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert is_ready.wait(30)
        yield Service(host, port, engine, server)
    finally:
        if isinstance(engine, ScriptedEngine):
            engine.gate.set()
        server.stop()
        thread.join(60)
        assert not thread.is_alive()
    if failures:
        raise failures[0]


def eventually(holds: Callable[[], bool], what: str) -> None:
    """Wait until something holds, which is sure to."""
    for _ in range(600):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError(what)
