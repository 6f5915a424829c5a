"""What a connection takes: long heads, bytes around a body, several requests at once, HTTP/1.0."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest
from http_server import Service, eventually, read_all, running, sent_while_read

from infer_os.serve.connection import MOST_HEAD
from infer_os.serve.scripted_engine import ScriptedEngine

_POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
_CHUNKED = _POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def service() -> Iterator[Service]:
    with running(ScriptedEngine(lambda prompt: "yes")) as running_service:
        yield running_service


def request(**fields: object) -> bytes:
    data = json.dumps({"prompt": "Hi", **fields}).encode()
    return _POST + b"Content-Length: %d\r\n\r\n%b" % (len(data), data)


@pytest.mark.parametrize(("n", "status"), [(MOST_HEAD - 100, 200), (MOST_HEAD + 1, 400)])
def test_how_long_a_head_may_be(service: Service, n: int, status: int) -> None:
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\na: %b\r\n\r\n"
    assert service.raw(head % (b"b" * n)).startswith(b"HTTP/1.1 %d " % status)


def test_chunks_of_single_bytes(service: Service) -> None:
    data = json.dumps({"prompt": "x" * 200, "pad": None, "user": "y" * 20_000}).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in data)
    assert len(chunks) > MOST_HEAD
    with service.connect() as link:
        link.sendall(_CHUNKED + chunks)
        time.sleep(0.2)  # it is looked at before its end is there
        link.sendall(b"0\r\n\r\n")
        assert read_all(link).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("line", [b"a: b\r\n", b"a" * 64])
def test_what_follows_a_body_and_never_ends(service: Service, line: bytes) -> None:
    """Trailers are kept by the parser, however many there are."""
    got = sent_while_read(service, _CHUNKED + b"2\r\n{}\r\n0\r\n" + line * 20_000)
    assert got.startswith(b"HTTP/1.1 400 ")
    assert service.complete().status == 200


def test_answers_to_requests_sent_at_once_come_in_order(service: Service) -> None:
    with service.connect() as link:
        link.sendall(request(max_tokens=1) + request(max_tokens=2))
        link.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        texts = read_all(link).split(b"HTTP/1.1 200 OK")[1:]
    assert [b'"text":"y"' in texts[0], b'"text":"ye"' in texts[1]] == [True, True]
    assert texts[2].endswith(b'{"status":"ok"}')


def test_old_clients_get_whole_answers_alone(service: Service) -> None:
    for stream, said in ((False, b" 200 "), (True, b" 400 ")):
        old = request(stream=stream).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
        got = service.raw(old)
        assert said in got.partition(b"\r\n")[0]
        assert b"chunked" not in got


class Slow(ScriptedEngine):
    """Writes for longer than anybody waits."""

    def step(self, begins: Callable[[], None]) -> bool:
        time.sleep(0.002)
        return super().step(begins)


def test_a_client_that_goes_away_with_two_requests_leaves_nothing_behind() -> None:
    engine = Slow(lambda prompt: "x" * 100_000, n_ctx=200_000)
    with running(engine) as service:
        with service.connect() as link:
            link.sendall(request(stream=True, max_tokens=-1) * 2)
            assert b'"text":"x' in link.recv(1 << 16)
        eventually(lambda: len(engine.cancelled) == 1, "it writes on")
        assert len(engine.submitted) == 1
