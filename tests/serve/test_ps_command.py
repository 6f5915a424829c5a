"""``infer-os ps``: what a server holds, and servers that are none."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from http_server import running
from in_process import Cli, runner

from infer_os.serve.models import Offer
from infer_os.serve.scripted_engine import ScriptedEngine


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Cli:
    monkeypatch.delenv("INFER_OS_API_KEY", raising=False)
    return runner(monkeypatch, capfdbinary)


def test_a_server(cli: Cli) -> None:
    with running(ScriptedEngine(lambda prompt: "abc")) as service:
        service.complete("Hi")
        done = cli("ps", "--server", service.url)
        assert done.code == 0
        words = " ".join(done.out.split())
        assert "model fake (Fake, fake.gguf)" in words
        assert "2 of prompts, 0 of them shared; 4 written" in words
        status = json.loads(cli("ps", "--server", f"{service.url}/", "--json").out)
        assert status["model"] == "fake"


def test_a_server_with_a_key(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(ScriptedEngine(lambda prompt: "abc"), api_key="sesame") as service:
        done = cli("ps", "--server", service.url)
        assert done.code == 1
        assert "Authorization: Bearer" in done.error
        monkeypatch.setenv("INFER_OS_API_KEY", "sesame")
        assert cli("ps", "--server", service.url).code == 0


@pytest.mark.parametrize("url", ["", "nonsense", "https://127.0.0.1:1", "http://:80", "http://a:b"])
def test_what_is_no_address(cli: Cli, url: str) -> None:
    assert "expected an address" in cli("ps", "--server", url).user_error


@contextmanager
def answering(data: bytes) -> Iterator[str]:
    """An address where one request is answered with these bytes."""
    with socket.create_server(("127.0.0.1", 0)) as door:

        def answer() -> None:
            link, _ = door.accept()
            with link:
                link.recv(1 << 16)
                link.sendall(data)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{door.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    "data",
    [b"", b"rubbish", b"HTTP/1.1 200 OK\r\n\r\n<html>", b"HTTP/1.1 200 OK\r\n\r\n[1]",
     b"HTTP/1.1 200 OK\r\n\r\n{}", b"HTTP/1.1 200 OK\r\n\r\n\xff"],
)  # fmt: skip
def test_what_is_no_server_of_ours(cli: Cli, data: bytes) -> None:
    with answering(data) as url:
        done = cli("ps", "--server", url)
    assert done.code == 1
    assert url in done.error


def test_where_nobody_answers(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    done = cli("ps", "--server", f"http://127.0.0.1:{port}")
    assert done.code == 1
    assert "no server answers" in done.error and "infer-os serve MODEL starts one" in done.error


def test_a_server_of_several_models(cli: Cli) -> None:
    def never(memory: int | None) -> Any:
        raise AssertionError("nobody asked for it")

    engine = ScriptedEngine(lambda prompt: "abc")
    with running(engine, more=[Offer(("small",), never)]) as service:
        done = cli("ps", "--server", service.url)
        assert done.out.splitlines()[-1].split() == ["also", "small", "not", "loaded"]
