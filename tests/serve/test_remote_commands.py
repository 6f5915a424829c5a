"""``generate`` and ``run`` with ``--server``: what is sent, what comes back, what is refused."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from http_server import eventually, running
from in_process import Cli, runner

from infer_os.serve.scripted_engine import ScriptedEngine


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Cli:
    monkeypatch.delenv("INFER_OS_API_KEY", raising=False)
    return runner(monkeypatch, capfdbinary)


def test_generate(cli: Cli) -> None:
    with running(ScriptedEngine(lambda prompt: "abcdefgh")) as service:
        done = cli("generate", "fake", "-p", "Hi", "--server", service.url)
        assert (done.code, done.out) == (0, "abcdefgh\n")
        assert f"from {service.url}, after 2 of the prompt" in done.err
        short = cli("generate", "fake", "-p", "Hi", "-n", "3", "--server", service.url)
        assert short.out == "abc\n"
        assert "3 tokens from" in short.err
        assert "-n raises that" in short.err
        stopped = cli("generate", "fake", "-p", "Hi", "--stop", "ef", "--server", service.url)
        assert stopped.out == "abcd\n"


def test_run(cli: Cli) -> None:
    with running(ScriptedEngine(lambda prompt: "abc")) as service:
        done = cli("run", "fake", "Hi", "--server", service.url, "--system", "Be brief.")
        assert (done.code, done.out) == (0, "abc\n")


@contextmanager
def answering(*blocks: str, status: str = "200 OK") -> Iterator[tuple[str, list[bytes]]]:
    """An address where one request is answered with these events, and that request."""
    got: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as door:

        def answer() -> None:
            link, _ = door.accept()
            with link:
                data = b""
                while b"\r\n\r\n" not in data:
                    data += link.recv(1 << 16)
                head, _, body = data.partition(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                while len(body) < length:
                    body += link.recv(1 << 16)
                got.extend((head, body))
                text = "".join(f"{block}\n\n" for block in blocks)
                link.sendall(f"HTTP/1.1 {status}\r\n\r\n{text}".encode())

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{door.getsockname()[1]}", got
        thread.join()


DONE = "data: [DONE]"


def piece(**choice: object) -> str:
    return f"data: {json.dumps({'choices': [{'finish_reason': None, **choice}]})}"


def test_only_what_was_given_is_sent(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFER_OS_API_KEY", "sesame")
    with answering(DONE) as (url, got):
        words = ("--temperature", "0", "--seed", "-1", "--stop", "x", "--regex", "a+")
        assert cli("generate", "m", "-p", "Hi", *words, "--server", url).code == 0
    assert b"POST /v1/completions " in got[0]
    assert b"authorization: Bearer sesame" in got[0]
    assert json.loads(got[1]) == {
        "model": "m", "prompt": "Hi", "temperature": 0, "seed": -1, "stop": ["x"], "regex": "a+",
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


def test_the_messages_of_run(cli: Cli) -> None:
    with answering(piece(delta={"content": "é"}), ": still here", DONE) as (url, got):
        done = cli("run", "m", "--system", "Be brief.", "--server", url, stdin="Gruß".encode())
        assert done.out == "é\n"
    assert b"POST /v1/chat/completions " in got[0]
    assert json.loads(got[1])["messages"] == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Gruß"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [("generate", "--kv", "q8_0"), ("generate", "--json"), ("generate", "--no-native"),
     ("generate", "--type", "q8_0"), ("run", "--use-8bit"), ("run", "--interactive"),
     ("run", "--session", "s"), ("run", "--style", "plain"), ("run", "--memory", "1G")],
)  # fmt: skip
def test_options_that_a_server_cannot_follow(cli: Cli, words: tuple[str, ...]) -> None:
    command, option, *rest = words
    done = cli(command, "m", "-p", "Hi", option, *rest, "--server", "http://127.0.0.1:1")
    assert f"{option}: a server cannot follow that" in done.user_error


def test_what_the_server_refuses(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(ScriptedEngine(lambda prompt: "abc"), api_key="sesame") as service:
        ask = ("-p", "Hi", "--server", service.url)
        assert cli("generate", "fake", *ask).code == 1
        assert "Authorization: Bearer" in cli("generate", "fake", *ask).error
        monkeypatch.setenv("INFER_OS_API_KEY", "sesame")
        assert "this server has fake" in cli("generate", "other", *ask).user_error
        long = cli("generate", "fake", "-p", "x" * 300, "--server", service.url)
        assert "the context holds 256" in long.user_error


@pytest.mark.parametrize(
    "blocks",
    [(), (piece(text="a"),), ("data: {",), ("data: []", DONE), ("data: {}", DONE),
     (piece(text=1), DONE), ('data: {"choices": [1]}', DONE),
     ('data: {"error": {"message": "it broke"}}',), ('data: {"error": 1}',)],
)  # fmt: skip
def test_answers_that_break_off_or_are_none(cli: Cli, blocks: tuple[str, ...]) -> None:
    with answering(*blocks) as (url, _):
        done = cli("generate", "m", "-p", "Hi", "--server", url)
    assert done.code == 1
    *_, line = done.err.splitlines()
    assert line.startswith(f"error: {url}: ")
    assert "Traceback" not in done.err
    assert done.out in ("", "a\n")


def test_a_prompt_that_is_no_text(cli: Cli) -> None:
    done = cli("generate", "m", "--server", "http://127.0.0.1:1", stdin=b"ab\xff")
    assert "not UTF-8 text at byte 2" in done.user_error


@pytest.mark.parametrize("words", [("generate", "fake", "-p", "Hi"), ("chat", "fake")])
def test_ctrl_c_stops_the_server_too(words: tuple[str, ...]) -> None:
    engine = ScriptedEngine(lambda prompt: "a" * 5000)
    engine.gate.clear()
    with running(engine) as service:
        command = [sys.executable, "-m", "infer_os.entry", *words]
        process = subprocess.Popen(
            [*command, "--server", service.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            stdin=subprocess.PIPE if words[0] == "chat" else subprocess.DEVNULL,
            env={**os.environ, "INFER_OS_API_KEY": ""},
        )  # fmt: skip
        if process.stdin is not None:
            process.stdin.write(b"Hi\n")
            process.stdin.flush()
        try:
            eventually(lambda: service.get("/status").json["running"] == 1, "it did not ask")
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 130
        assert b"Traceback" not in said
        eventually(lambda: service.get("/status").json["running"] == 0, "it went on")


def chatted(prompt: bytes) -> str:
    """Tells how it was asked, so that a test sees the conversation."""
    return f"<{prompt.decode().count('assistant: ')}:{prompt.decode().splitlines()[-1][6:]}>"


def test_a_chat_goes_on(cli: Cli) -> None:
    with running(ScriptedEngine(chatted, n_ctx=300)) as service:
        typed = b"one\ntwo\n/undo\nthree\n/retry\n/stats\n/reset\nfour\n/nothing\n/quit\nfive\n"
        done = cli("chat", "fake", "--server", service.url, stdin=typed)
    assert done.code == 0
    assert done.out.splitlines() == ["<0:one>", "<1:two>", "<1:three>", "<1:three>", "<0:four>"]
    assert f"fake on {service.url}: Fake, 300 tokens of context" in done.err
    assert "Forgotten: two" in done.err
    assert "/nothing: no such command" in done.err
    assert "10 tokens, after " in done.err


def test_the_messages_and_options_of_a_chat(cli: Cli) -> None:
    engine = ScriptedEngine(lambda prompt: prompt.decode())
    with running(engine) as service:
        ask = ("chat", "fake", "--server", service.url, "--system", "Be brief.", "-n", "40")
        done = cli(*ask, stdin=b"Hi\n/system none\nHo\n")
    first = "system: Be brief.\nuser: Hi\n"
    second = f"user: Hi\nassistant: {first}user: Ho"
    assert done.out == f"{first}\n{second[:40]}\n"
    assert "There is no system prompt." in done.err
    assert "cut at its limit" in done.err


def test_a_chat_that_a_server_refuses_goes_on(cli: Cli) -> None:
    with running(ScriptedEngine(chatted, n_ctx=60)) as service:
        long = b"x" * 80
        done = cli("chat", "fake", "--server", service.url, stdin=b"one\n" + long + b"\ntwo\n")
        assert done.out.splitlines() == ["<0:one>", "<1:two>"]
        assert "error: " in done.err and "the context holds 60" in done.err
        other = cli("chat", "other", "--server", service.url, stdin=b"one\n")
        assert "this server has fake" in other.err and other.out == ""
    gone = cli("chat", "fake", "--server", service.url, stdin=b"one\n")
    assert gone.code == 1 and "no server answers" in gone.error
    done = cli("chat", "fake", "--kv", "q8_0", "--server", service.url, stdin=b"")
    assert "--kv: a server cannot follow that" in done.user_error
