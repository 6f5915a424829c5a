"""What a connection takes: long heads, bytes around a body, several requests at once, HTTP/1.0."""

from __future__ import annotations

import errno
import json
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from http_server import Service, eventually, read_all, running, sent_while_read

from infer_os.serve import client_bodies, connection, server
from infer_os.serve.connection import MOST_HEAD, MOST_WAITING
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


HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
LOST = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n"


def statuses(data: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+) ", data)]


@pytest.mark.parametrize(
    ("sent", "statuses_then"),
    [
        ((b"",), [408]), ((b"\r\n",), [408]), ((b"GET / HT",), [408]),
        ((HEALTH[:-2],), [408]), ((request()[:-3],), [408]),
        ((HEALTH,), [200]), ((HEALTH + b"\r\n",), [200]), ((HEALTH + b"GET / HT",), [200]),
        ((HEALTH, b"\r\n"), [200, 408]), ((HEALTH, b"GET / HT"), [200, 408]),
        ((HEALTH, request()[:-3]), [200, 408]),
        # an answer that did not need the body, which never comes
        ((LOST,), [404]), ((LOST + b"{",), [404]), ((LOST, b"{"), [404, 408]),
        # and one that comes, byte by byte, on and on
        ((LOST, *[b"{"] * 50), [404, 408]),
    ],
)  # fmt: skip
def test_a_connection_that_falls_silent_is_closed(
    monkeypatch: pytest.MonkeyPatch, sent: tuple[bytes, ...], statuses_then: list[int]
) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.5)
    monkeypatch.setattr(client_bodies, "BODY_S", 0.5)
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 0.5)
    with running(ScriptedEngine(lambda prompt: "yes")) as service, service.connect() as link:
        link.settimeout(20)
        got = b""
        for i, data in enumerate(sent):
            try:
                link.sendall(data)
            except OSError:  # closed already, as it should
                break
            if i == 0 and len(sent) > 1:
                got = link.recv(1 << 16)
            elif len(sent) > 2:
                time.sleep(0.1)
        assert statuses(got + read_all(link)) == statuses_then


@pytest.mark.parametrize("rubbish", [b"rubbish\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])
def test_rubbish_behind_requests_that_are_answered(rubbish: bytes) -> None:
    engine = ScriptedEngine(lambda prompt: "yes")
    with running(engine) as service, service.connect() as link:
        engine.gate.clear()
        # the third one is cut off by it
        link.sendall(request() + request() + rubbish)
        eventually(lambda: len(engine.submitted) == 1, "it is not taken")
        link.sendall(b"more of it")
        engine.gate.set()
        got = read_all(link)
    assert statuses(got) == [200, 200, 400]
    assert got.count(b'"text":"yes"') == 2


def test_rubbish_inside_a_body_that_waits_behind_another(service: Service) -> None:
    cut = _CHUNKED.replace(b"Connection: close\r\n", b"") + b"5\r\nabcdeX"
    assert statuses(service.raw(request() + cut + HEALTH)) == [200, 400]


def test_requests_that_wait_are_counted(service: Service) -> None:
    engine: ScriptedEngine = service.engine
    engine.gate.clear()
    with service.connect() as link:
        link.sendall(request())
        eventually(lambda: len(engine.submitted) == 1, "it is not taken")
        link.sendall(HEALTH * 2000)
        engine.gate.set()
        assert statuses(read_all(link)) == [200] * (1 + MOST_WAITING) + [429]


@pytest.mark.parametrize("is_last", [True, False])
def test_a_client_that_reads_nothing(monkeypatch: pytest.MonkeyPatch, is_last: bool) -> None:
    """More than systems keep for it waits, and perhaps another answer behind that."""
    monkeypatch.setattr(connection, "STALL_S", 0.5)
    monkeypatch.setattr(connection, "MOST_CONNECTIONS", 1)
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 0.5)
    with running(ScriptedEngine(lambda prompt: "yes")) as service, unreading(service) as link:
        link.sendall(tokenizing(3 << 20) + (b"" if is_last else HEALTH))
        eventually(lambda: service.get("/health").status == 200, "it keeps its place")
        # what its system had taken is there, and no more
        assert len(read_all(link)) < 9 << 20


def test_a_client_that_reads_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALL_S", 1.0)
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 0.1)
    with running(ScriptedEngine(lambda prompt: "yes")) as service, unreading(service) as link:
        link.sendall(tokenizing(3 << 20))
        n_bytes = n_pauses = 0
        while data := link.recv(4 << 20):
            n_bytes += len(data)
            if n_bytes >> 20 > n_pauses:
                n_pauses += 1
                time.sleep(0.2)
        assert n_bytes > 9 << 20


def unreading(service: Service) -> socket.socket:
    """A connection that holds little of what it does not read."""
    link = socket.socket()
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    link.settimeout(30)
    link.connect((service.host, service.port))
    return link


def tokenizing(n_bytes: int) -> bytes:
    """A request whose answer is three times as long."""
    body = json.dumps({"content": "x" * n_bytes}).encode()
    return b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body), body
    )  # fmt: skip


def test_an_answer_is_sent_when_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for the loop, which may have the answers of others to write first."""

    def keep(self: connection._Gathered, data: bytes) -> None:
        self._written.append(data)

    monkeypatch.setattr(connection._Gathered, "write", keep)
    with running(ScriptedEngine(lambda prompt: "yes")) as service, service.connect() as link:
        link.settimeout(10)
        link.sendall(request())
        assert b'"text":"yes"' in link.recv(1 << 16)
        link.sendall(request(stream=True))
        assert link.recv(1 << 16).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_a_client_that_is_gone_when_its_rubbish_is_refused(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its system says so before the loop does."""

    def gone(self: object) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr("asyncio.selector_events._SelectorSocketTransport.write_eof", gone)
    monkeypatch.setattr(connection, "_PASSING_S", 0.1)
    assert statuses(service.raw(request() + b"rubbish\r\n\r\n")) == [200, 400]
    assert statuses(service.raw(b"rubbish\r\n\r\n")) == [400]
    assert not caplog.records


def test_an_engine_gets_python_soon() -> None:
    usual_s = sys.getswitchinterval()
    with running(ScriptedEngine(lambda prompt: "yes")):
        assert sys.getswitchinterval() < 0.001 < usual_s
    assert sys.getswitchinterval() == usual_s


def test_the_end_does_not_wait_for_half_a_request() -> None:
    """What is there to its end is answered; what is not gets 503, and nobody 500."""
    engine = ScriptedEngine(lambda prompt: "yes")
    with running(engine) as service:
        engine.gate.clear()
        links = [service.connect() for _ in range(6)]
        whole, two, *halves = links
        whole.sendall(request())
        two.sendall(request() + request()[:-3])
        eventually(lambda: n_outstanding(service) == 2, "they are not taken")
        sent = (b"", b"GET / HT", request()[:-3], LOST)
        for link, data in zip(halves, sent, strict=True):
            link.sendall(data)
        assert halves[3].recv(1 << 16).startswith(b"HTTP/1.1 404 ")
        eventually(lambda: n_outstanding(service) == 2, "half a request was taken")
        service.server.stop()
        got = [statuses(read_all(link)) for link in halves]
        assert got == [[], [], [503], []]
        engine.gate.set()
        assert [statuses(read_all(link)) for link in (whole, two)] == [[200], [200]]
        for link in links:
            link.close()


def n_outstanding(service: Service) -> int:
    """Texts that run and wait."""
    status = service.get("/status").json
    return int(status["running"] + status["waiting"])


def test_answers_that_take_too_long_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "DRAIN_S", 0.5)
    engine = Slow(lambda prompt: "x" * 100_000, n_ctx=200_000)
    with running(engine) as service, service.connect() as link:
        link.sendall(request(max_tokens=-1))
        eventually(lambda: len(engine.submitted) == 1, "it is not taken")
        service.server.stop()
        got = read_all(link)
        assert statuses(got) == [503]
        assert b'"message":"the server is shutting down"' in got
