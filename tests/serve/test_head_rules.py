"""Heads that RFC 9112 has refused, and those that look odd and are taken."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from http_server import Service, running

from infer_os.serve.scripted_engine import ScriptedEngine

BODY = b'{"prompt": "Hi"}'
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with running(ScriptedEngine(lambda prompt: "yes")) as running_service:
        yield running_service


def get(target: bytes, *lines: bytes, version: bytes = b"HTTP/1.1", verb: bytes = b"GET") -> bytes:
    """A request without a body, behind which the connection is closed."""
    head = (b"%b %b %b" % (verb, target, version), *lines, b"Connection: close", b"", b"")
    return b"\r\n".join(head)


def post(*lines: bytes, body: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    return get(b"/v1/completions", HOST, *lines, version=version, verb=b"POST") + body


HOST = b"Host: localhost"
LENGTH = b"Content-Length: %d" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked"


def answers(service: Service, data: bytes) -> list[int]:
    """The statuses of what comes back."""
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+) ", service.raw(data))]


@pytest.mark.parametrize(
    ("status", "data"),
    [
        # 3.2: one Host line, which names a host
        (400, get(b"/health")),
        (400, get(b"/health", HOST, HOST)),
        (400, get(b"/health", HOST, b"host: evil.example")),
        (400, get(b"/health", b"Host: localhost evil.example")),
        (400, get(b"/health", b"Host: evil.example/localhost")),
        # 3.2.2: the target may name the host, which must be the same
        (400, get(b"http://evil.example/health", HOST)),
        (400, get(b"http://user@localhost/health", HOST)),
        (400, get(b"ftp://localhost/health", HOST)),
        (400, get(b"*", HOST)),
        (400, get(b"health", HOST)),
        # 2.3: versions
        (505, get(b"/health", HOST, version=b"HTTP/2.0")),
        (505, b"GET /health\r\n\r\n"),
        (400, get(b"/health", HOST, version=b"HTTP/1.2")),
        # 5.1 and 5.2: spaces around names, folded lines, line ends
        (400, get(b"/health", b"Host : localhost")),
        (400, get(b"/health", b" Host: localhost")),
        (400, get(b"/health", HOST, b"a: b", b" c")),
        (400, get(b"/health", HOST, b"a: b\0c")),
        (400, get(b"/health", HOST, b"a: b\rc")),
        (400, get(b"/health", HOST).replace(b"\r\n", b"\n")),
        # 6.1 to 6.3: where a body ends
        (400, post(LENGTH, CHUNKED, body=CHUNKS)),
        (400, post(CHUNKED, LENGTH, body=CHUNKS)),
        (400, post(LENGTH, b"Content-Length: 3", body=BODY)),
        (400, post(LENGTH, LENGTH, body=BODY)),
        (400, post(b"Content-Length: +16", body=BODY)),
        (400, post(b"Content-Length: 16, 16", body=BODY)),
        (400, post(b"Content-Length: 0x10", body=BODY)),
        (400, post(b"Content-Length: 99999999999999999999999", body=BODY)),
        (400, post(b"Transfer-Encoding: chunked, identity", body=CHUNKS)),
        (501, post(b"Transfer-Encoding: xchunked", body=CHUNKS)),
        (501, post(b"Transfer-Encoding: gzip, chunked", body=CHUNKS)),
        (501, post(b"Transfer-Encoding: identity", CHUNKED, body=CHUNKS)),
        (400, post(CHUNKED, body=CHUNKS, version=b"HTTP/1.0")),
        # 7.1: chunks
        *((400, post(CHUNKED, body=CHUNKS.replace(b"10\r\n", size, 1)))
          for size in (b"0x10\r\n", b"+10\r\n", b"-10\r\n", b"10 \r\n", b" 10\r\n", b"\r\n",
                       b"g\r\n", b"10\n", b"10000000000000010\r\n", b"f\r\n", b"11\r\n")),
        # RFC 9110, 9.3.6: this is no proxy
        (501, get(b"localhost:80", HOST, verb=b"CONNECT") + get(b"/health", HOST)),
    ],
)  # fmt: skip
def test_what_is_refused(service: Service, status: int, data: bytes) -> None:
    # what follows is no request any more
    assert answers(service, data + get(b"/health", HOST)) == [status]


@pytest.mark.parametrize(
    ("status", "data"),
    [
        (200, get(b"/health", b"hOST: LocalHost:8080")),
        (200, get(b"/health", b"Host:\tlocalhost  ")),
        (200, get(b"/health", HOST, b"a:")),
        (200, get(b"/health?a=b", b"Host: [::1]:8080")),
        (200, b"\r\n" + get(b"/health", HOST)),
        (200, get(b"/health", HOST, version=b"HTTP/1.0")),
        (200, get(b"http://localhost/health?x", HOST)),
        (200, get(b"HTTP://LOCALHOST:80/health", b"Host: localhost:80")),
        (200, get(b"http://localhost", HOST)),
        (404, get(b"//localhost/health", HOST)),
        (405, get(b"/health", HOST, b"Content-Length: 0", verb=b"POST")),
        (405, get(b"/health", HOST, verb=b"OPTIONS")),
        (404, get(b"*", HOST, verb=b"OPTIONS")),
        (405, get(b"/health", HOST, verb=b"TRACE")),
        (200, post(LENGTH, body=BODY)),
        (200, post(b"Transfer-Encoding: Chunked ", body=CHUNKS)),
        (200, post(CHUNKED, body=CHUNKS.replace(b"10\r\n", b"00010;a=b;c=\"d\"\r\n", 1))),
        (200, post(CHUNKED, body=CHUNKS.replace(b"0\r\n\r\n", b"0\r\ntrailer: x\r\n\r\n"))),
    ],
)  # fmt: skip
def test_what_is_taken(service: Service, status: int, data: bytes) -> None:
    assert answers(service, data) == [status]


def test_a_head_is_answered_with_a_head(service: Service) -> None:
    got = service.raw(get(b"/health", HOST, verb=b"HEAD"))
    head, _, body = got.partition(b"\r\n\r\n")
    assert (b"content-length: 15" in head, body) == (True, b"")


def test_a_client_that_asks_before_it_sends_a_body(service: Service) -> None:
    expect = b"Expect: 100-continue"
    assert answers(service, post(LENGTH, expect, body=BODY)) == [100, 200]
    # one that was answered at once may send the body or not: nothing is read behind the answer
    head = b"\r\n".join([b"POST /nowhere HTTP/1.1", HOST, expect, LENGTH, b"", b""])
    assert answers(service, head + get(b"/health", HOST)) == [404]


@pytest.mark.parametrize("token", [b"h2c", b"websocket", b"TLS/1.0"])
def test_another_protocol_is_not_taken_up(service: Service, token: bytes) -> None:
    """RFC 9110, 7.8: a server may ignore it, and answers as usual."""
    head = (HOST, LENGTH, b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: " + token,
            b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA", b"", BODY)  # fmt: skip
    asked = b"\r\n".join([b"POST /v1/completions HTTP/1.1", *head])
    assert answers(service, asked * 2 + get(b"/health", HOST)) == [200, 200, 200]
    # in whatever pieces it arrives
    with service.connect() as link:
        for at in range(len(asked)):
            link.sendall(asked[at : at + 1])
        assert link.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
