"""The server over HTTP, with scripted answers: every address, streams, limits, who may ask."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from http_server import Service, eventually, read_all, running, sent_while_read

from infer_os.runtime.batch.records import Result
from infer_os.runtime.errors import SettingsError
from infer_os.runtime.settings import SamplingSettings, StopSettings
from infer_os.serve import client_bodies, connection, generating
from infer_os.serve.scripted_engine import ScriptedEngine
from infer_os.serve.settings import ServeSettings

REPLY = "Grüße,\nworld!"


def reply(prompt: bytes) -> str:
    if prompt.startswith(b"say "):
        return prompt[4:].decode()
    return REPLY


@pytest.fixture
def service() -> Iterator[Service]:
    with running(ScriptedEngine(reply)) as running_service:
        yield running_service


def test_a_completion(service: Service) -> None:
    got = service.complete("Hi", model="fake")
    assert got.status == 200
    assert got.headers["content-type"] == "application/json"
    assert got.json["choices"] == [
        {"index": 0, "finish_reason": "stop", "text": REPLY, "logprobs": None}
    ]
    n = len(REPLY.encode()) + 1
    usage = {"prompt_tokens": 2, "completion_tokens": n, "total_tokens": n + 2}
    assert got.json["usage"] == usage
    assert got.json["object"] == "text_completion"


def test_several_prompts_and_samples_are_in_order(service: Service) -> None:
    got = service.complete(["say a", list(b"say bb"), "say ccc"], n=2, echo=True)
    texts = ["say aa", "say aa", "say bbbb", "say bbbb", "say cccccc", "say cccccc"]
    assert [choice["text"] for choice in got.json["choices"]] == texts
    assert [choice["index"] for choice in got.json["choices"]] == list(range(6))


def test_why_a_text_ends(service: Service) -> None:
    for fields, text, reason in (
        ({"max_tokens": 2}, "Gr", "length"), ({"stop": ","}, "Grüße", "stop"),
        ({"stop": ["x", "\n"]}, "Grüße,", "stop"),
    ):  # fmt: skip
        (choice,) = service.complete("Hi", **fields).json["choices"]
        assert (choice["text"], choice["finish_reason"]) == (text, reason)


def test_a_streamed_completion(service: Service) -> None:
    got = service.complete("say añb", stream=True, echo=True)
    assert got.headers["content-type"].startswith("text/event-stream")
    events = got.events
    assert "".join(e["choices"][0]["text"] for e in events) == "say añbañb"
    assert [e["choices"][0]["finish_reason"] for e in events][-2:] == [None, "stop"]
    assert len({e["id"] for e in events}) == 1
    assert "usage" not in events[0]


def test_a_stream_of_several_texts(service: Service) -> None:
    texts = {0: "", 1: "", 2: "", 3: ""}
    for event in service.complete(["say aaa", "say bbb"], n=2, stream=True).events:
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == {0: "aaa", 1: "aaa", 2: "bbb", 3: "bbb"}


def test_a_stream_has_the_log_probabilities_of_the_whole(service: Service) -> None:
    # several tokens may come together
    whole = service.complete("say añb and more of it", logprobs=2).json["choices"][0]["logprobs"]
    events = service.complete("say añb and more of it", logprobs=2, stream=True).events
    told = [event["choices"][0]["logprobs"] for event in events[:-1]]
    assert {name: [one for part in told for one in part[name]] for name in whole} == whole


def test_usage_at_the_end_of_a_stream(service: Service) -> None:
    got = service.complete("say x", stream=True, stream_options={"include_usage": True})
    *events, last = got.events
    assert {e["usage"] for e in events} == {None}
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def test_a_chat(service: Service) -> None:
    got = service.chat("Hi", max_tokens=3)
    (choice,) = got.json["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Grü"[:2] + "\ufffd",
                                 "refusal": None}  # fmt: skip
    assert choice["finish_reason"] == "length"
    assert got.json["object"] == "chat.completion"


def test_a_streamed_chat(service: Service) -> None:
    events = service.chat("Hi", stream=True).events
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {e["object"] for e in events} == {"chat.completion.chunk"}
    deltas = [e["choices"][0]["delta"] for e in events]
    assert "".join(delta.get("content", "") for delta in deltas) == REPLY
    assert deltas[-1] == {}


def test_logprobs_of_a_completion(service: Service) -> None:
    (choice,) = service.complete("say ab", logprobs=2).json["choices"]
    told = choice["logprobs"]
    assert told["tokens"] == ["a", "b", ""]
    assert told["text_offset"] == [0, 1, 2]
    assert told["top_logprobs"][0] == {
        "a": told["token_logprobs"][0],
        "b": pytest.approx(-1.386, abs=1e-3),
    }
    streamed: dict[str, list[Any]] = {key: [] for key in told}
    for event in service.complete("say ab", logprobs=2, stream=True).events:
        for key, values in (event["choices"][0]["logprobs"] or {}).items():
            streamed[key] += values
    assert streamed == told


def test_logprobs_of_an_echo(service: Service) -> None:
    (choice,) = service.complete("say ab", logprobs=1, echo=True, max_tokens=0).json["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("say ab", "length")
    told = choice["logprobs"]
    assert told["tokens"] == list("say ab")
    assert told["text_offset"] == [0, 1, 2, 3, 4, 5]
    assert (told["token_logprobs"][0], told["top_logprobs"][0]) == (None, None)
    assert told["top_logprobs"][1:] == [{c: pytest.approx(-0.693, abs=1e-3)} for c in "ay ab"]
    both = service.complete("say ab", logprobs=1, echo=True, n=2).json["choices"]
    for choice in both:
        assert choice["text"] == "say abab"
        assert choice["logprobs"]["tokens"] == [*"say abab", ""]
        assert choice["logprobs"]["text_offset"] == [*range(9)]
    silent = service.complete("say ab", echo=True, max_tokens=0).json
    assert (silent["choices"][0]["text"], silent["choices"][0]["logprobs"]) == ("say ab", None)
    assert silent["usage"]["completion_tokens"] == 0


def test_logprobs_of_a_chat(service: Service) -> None:
    (choice,) = service.chat("Hi", logprobs=True, top_logprobs=1, max_tokens=1).json["choices"]
    (entry,) = choice["logprobs"]["content"]
    top = {key: entry[key] for key in ("token", "logprob", "bytes")}
    assert top == {"token": "G", "logprob": pytest.approx(-0.693, abs=1e-3), "bytes": [71]}
    assert entry["top_logprobs"] == [top]


def test_best_of_gives_so_many(service: Service) -> None:
    got = service.complete("say a", best_of=3, n=2)
    assert [choice["text"] for choice in got.json["choices"]] == ["a", "a"]
    assert got.json["choices"][0]["logprobs"] is None
    assert got.json["usage"]["completion_tokens"] == 6


def test_models(service: Service) -> None:
    (model,) = service.get("/v1/models").json["data"]
    assert (model["id"], model["context_length"]) == ("fake", 256)
    assert service.get("/v1/models/fake").json == model
    assert service.get("/v1/models/a/b").error["code"] == "model_not_found"
    assert service.complete("Hi", model="other").status == 404


def test_tokens_and_back(service: Service) -> None:
    assert service.post("/tokenize", content="Grü").json == {"tokens": list("Grü".encode())}
    special = service.post("/tokenize", content="<|endoftext|>").json["tokens"]
    assert special == [256]
    plain = service.post("/tokenize", content="<|endoftext|>", parse_special=False)
    assert plain.json["tokens"] == list(b"<|endoftext|>")
    got = service.post("/detokenize", tokens=list("Grü".encode()))
    assert got.json == {"content": "Grü"}
    assert service.post("/detokenize", tokens=[257]).error["param"] == "tokens[0]"
    assert service.post("/detokenize", tokens=5).error["param"] == "tokens"
    assert service.post("/tokenize", content=5).error["param"] == "content"


def test_health_status_and_metrics(service: Service) -> None:
    service.complete("say a")
    assert service.get("/health").json == {"status": "ok"}
    status = service.get("/status").json
    assert (status["model"], status["context"], status["parallel"]) == ("fake", 256, 4)
    assert status["completion_tokens"] == 2
    got = service.get("/metrics")
    assert got.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = got.body.decode().splitlines()
    assert 'infer_os_requests_total{path="/v1/completions",status="200"} 1.0' in lines
    assert "infer_os_completion_tokens_total 2.0" in lines
    assert "infer_os_first_token_seconds_count 1.0" in lines
    assert "infer_os_waiting_texts 0.0" in lines


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404), ("GET", "/v1/completions", 405), ("POST", "/health", 405),
        ("GET", "/../../etc/passwd", 404), ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "//etc/passwd", 404), ("GET", "/chat.js/../app.py", 404),
        ("GET", "/%00", 404), ("GET", "/\\..\\x", 404), ("DELETE", "/v1/models", 405),
        ("GET", "/" + "a" * 5000, 404),
    ],
)  # fmt: skip
def test_addresses_that_are_not_there(
    service: Service, method: str, path: str, status: int
) -> None:
    got = service.ask(method, path)
    assert got.status == status
    assert got.error["type"] == "invalid_request_error"


def test_a_wrong_field_over_http(service: Service) -> None:
    error = service.complete("Hi", temperature="hot").error
    assert error == {
        "message": "temperature is 'hot': expected a number", "type": "invalid_request_error",
        "param": "temperature", "code": "invalid_type",
    }  # fmt: skip


def test_bodies_that_are_no_json(service: Service) -> None:
    for data in (b"", b"{", b"\xff\xff", b"[]", b'"x"', b"\x00" * 1000, b"[" * 200_000):
        got = service.ask("POST", "/v1/completions", data)
        assert (got.status, got.error["code"]) == (400, "invalid_json")


def test_text_of_any_kind(service: Service) -> None:
    for text in ("日本語 🎉", "\x00\x01", "<script>alert(1)</script>", "\u2028"):
        assert service.complete(f"say {text}").json["choices"][0]["text"] == text
    # half of a pair cannot be a prompt's bytes, and is answered all the same
    body = b'{"prompt": "say \\ud83c"}'
    got = service.ask("POST", "/v1/completions", body)
    assert (got.status, got.json["choices"][0]["text"]) == (200, "?")


# ---- limits


def test_a_prompt_beyond_the_context(service: Service) -> None:
    error = service.complete("x" * 257).error
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    assert service.complete("x" * 257).status == 413
    assert service.chat("x" * 300).status == 413
    assert service.complete("x" * 100_000).status == 413
    assert service.complete("x" * 256).status == 200


def test_an_empty_prompt(service: Service) -> None:
    assert service.complete("").error["param"] == "prompt"


def test_a_body_that_is_too_long(service: Service) -> None:
    got = service.ask("POST", "/v1/completions", b'{"prompt": "' + b"x" * (10 << 20) + b'"}')
    assert (got.status, got.error["code"]) == (413, "body_too_long")
    # one that does not say how long it is, and has no end
    with service.connect() as link:
        link.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
        try:
            for _ in range(40):
                link.sendall(chunk)
        except OSError:
            pass
    assert service.complete("say a").status == 200


def test_a_body_that_never_ends(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_bodies, "BODY_S", 0.2)
    got = service.raw(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"
    )
    assert got.startswith(b"HTTP/1.1 408 ")


def test_a_head_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.2)
    with running(ScriptedEngine(reply)) as service:
        assert b" 408 " in service.raw(b"")
        assert b" 408 " in service.raw(b"GET / HTTP/1.1\r\nHost: loc")
        # also on a connection that has been of use
        with service.connect() as link:
            link.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert link.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
            link.sendall(b"GET / HT")
            assert b" 408 " in read_all(link)


def test_a_million_headers(service: Service) -> None:
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 1_000_000
    assert sent_while_read(service, head).startswith(b"HTTP/1.1 400 ")
    assert service.get("/health").status == 200


@pytest.mark.parametrize(
    "data",
    [
        b"rubbish\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10,
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)  # fmt: skip
def test_what_is_no_http(service: Service, data: bytes) -> None:
    got = service.raw(data)
    assert got.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
    assert got.count(b"HTTP/1.") == 1
    assert service.get("/health").status == 200


def request_of(head: str, body: bytes = b"") -> bytes:
    return f"{head}\r\nHost: localhost\r\n".encode() + body


_HOSTILE: list[tuple[bytes, set[int]]] = [
    (request_of("GET /health HTTP/1.1", b"a: b\r\n" * 1_000_000), {400}),
    (request_of("GET /health HTTP/1.1", b"a: " + b"b" * 10_000_000), {400}),
    (request_of("GET /" + "../" * 1000 + "etc/passwd HTTP/1.1", b"Connection: close\r\n\r\n"),
     {404}),
    (request_of("GET /%2e%2e/%2e%2e/serve/app.py HTTP/1.1", b"Connection: close\r\n\r\n"), {404}),
    (request_of("POST /v1/completions HTTP/1.1", b"Content-Length: 9\r\n\r\n{"), {408}),
    (request_of("POST /v1/completions HTTP/1.1", b"Connection: close\r\nContent-Length: 11\r\n\r\n"
     b'{"x": "\xff"}\n'), {400}),
    (request_of("POST /v1/completions HTTP/1.1", b"Content-Length: %d\r\n\r\n" % (10 << 20)
     + b'{"prompt": "' + b"x" * ((10 << 20) - 12)), {413}),
    (request_of("POST /v1/completions HTTP/1.1", b"Content-Length: 99999999999999\r\n\r\n"), {413}),
    (request_of("POST /v1/completions HTTP/1.1", b"Transfer-Encoding: chunked\r\n\r\n"
     + (b"100000\r\n" + b" " * (1 << 20) + b"\r\n") * 5 + b"0\r\n\r\n"), {413}),
    (request_of("GET /v1/models HTTP/1.1", b"Connection: close\r\nAuthorization: Bearer \xff\xfe"
     b"\r\n\r\n"), {401}),
]  # fmt: skip


def test_hostile_clients_while_others_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_bodies, "BODY_S", 1.0)
    # a text that ends after all of them
    engine = ScriptedEngine(lambda prompt: "x" * 300, n_ctx=1000)
    with running(engine, api_key="sesame") as service:
        engine.gate.clear()
        body = json.dumps({"prompt": "Hi", "stream": True, "max_tokens": -1}).encode()
        link = service.connect()
        link.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Authorization: Bearer sesame\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        eventually(lambda: len(engine.submitted) == 1, "it is not taken")
        for data, statuses in _HOSTILE:
            keyed = data.replace(b"Host: ", b"Authorization: Bearer sesame\r\nHost: ", 1)
            got = sent_while_read(service, data if b"\xfe" in data else keyed)
            head, _, answer = got.partition(b"\r\n\r\n")
            assert int(head.split()[1]) in statuses, data[:100]
            assert answer.count(b"\n") == 0 and json.loads(answer)["error"]["message"]
            assert service.get("/health").status == 200
        engine.gate.set()
        texts = re.findall(rb'"text":"(x*)"', read_stream(link))
        assert b"".join(texts) == b"x" * 300


def test_too_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MOST_CONNECTIONS", 3)
    with running(ScriptedEngine(reply)) as service:
        links = [service.connect() for _ in range(3)]
        assert b" 503 " in service.raw(b"")
        for link in links:
            link.close()
        eventually(lambda: service.get("/health").status == 200, "no place is free again")


# ---- the queue


def test_a_full_queue_says_when_to_come_again() -> None:
    engine = ScriptedEngine(reply, n_seq=1)
    with running(engine, queue=1) as service:
        engine.gate.clear()
        links = [streaming(service) for _ in range(2)]
        eventually(lambda: texts_in(service) == (1, 1), "not both are taken")
        got = service.complete("Hi")
        assert (got.status, got.error["code"]) == (429, "queue_full")
        assert got.error["type"] == "rate_limit_error"
        assert 1 <= int(got.headers["retry-after"]) <= 60
        assert service.complete("Hi", n=3).error["code"] in ("queue_full", "too_many_texts")
        engine.gate.set()
        for link in links:
            assert b"[DONE]" in read_stream(link)
        assert service.complete("Hi").status == 200
        assert service.complete("Hi", n=3).error["code"] == "too_many_texts"


def texts_in(service: Service) -> tuple[int, int]:
    """Texts that run, and that wait."""
    status = service.get("/status").json
    return status["running"], status["waiting"]


def streaming(service: Service, **fields: Any) -> Any:
    """A connection on which an answer is streamed."""
    body = json.dumps({"prompt": "Hi", "stream": True, **fields}).encode()
    link = service.connect()
    link.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    return link


def read_stream(link: Any) -> bytes:
    with link:
        return read_all(link)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_is_cancelled(stream: bool) -> None:
    engine = ScriptedEngine(lambda prompt: "x" * 10_000, n_ctx=20_000, n_seq=1)
    with running(engine) as service:
        engine.gate.clear()
        link = streaming(service, stream=stream, max_tokens=-1)
        eventually(lambda: len(engine.submitted) == 1, "it is not taken")
        link.close()
        eventually(lambda: service.get("/status").json["running"] == 0, "it runs on")
        engine.gate.set()
        eventually(lambda: engine.cancelled == engine.submitted, "it is not cancelled")
        before = engine.figures().steps
        assert service.complete("a", max_tokens=2).status == 200
        assert engine.figures().steps - before < 10


def test_a_client_that_waits_in_line_and_goes_away() -> None:
    engine = ScriptedEngine(reply, n_seq=1)
    with running(engine) as service:
        engine.gate.clear()
        first, second = streaming(service), streaming(service)
        eventually(lambda: texts_in(service) == (1, 1), "not both are taken")
        second.close()
        eventually(lambda: service.get("/status").json["waiting"] == 0, "it still waits")
        engine.gate.set()
        assert b"[DONE]" in read_stream(first)
        eventually(lambda: engine.cancelled == engine.submitted[1:], "it is not cancelled")


def test_an_engine_that_fails_ends_the_server() -> None:
    def broken(prompt: bytes) -> str:
        return "x"

    engine = ScriptedEngine(broken)
    engine.step = failing  # type: ignore[method-assign]
    with pytest.raises(Exception, match="the engine failed: out of luck"):  # noqa: SIM117
        with running(engine) as service:
            got = service.complete("Hi")
            assert (got.status, got.error["code"]) == (500, "engine_failed")
    assert engine.is_closed


def failing(begins: Callable[[], None]) -> bool:
    raise RuntimeError("out of luck")


def test_a_record_that_the_engine_refuses() -> None:
    engine = ScriptedEngine(reply)
    submit = engine.submit

    def picky(record: Any, prompt: tuple[int, ...], *, streams: bool) -> None:
        if prompt == (66,):
            raise ValueError("no B")
        submit(record, prompt, streams=streams)

    engine.submit = picky  # type: ignore[method-assign]
    with running(engine) as service:
        assert service.complete(["A", "B"]).error["message"] == "no B"
        assert "no B" in service.complete("B", stream=True).body.decode()
        assert service.complete("A").status == 200
        eventually(lambda: service.get("/status").json["running"] == 0, "something is left")


@pytest.mark.parametrize(("lacks_memory", "status"), [(True, 503), (False, 400)])
def test_whether_memory_or_the_request_is_to_blame(lacks_memory: bool, status: int) -> None:
    engine = ScriptedEngine(reply)
    refused: list[Any] = []
    engine.submit = lambda record, prompt, streams: refused.append(  # type: ignore[method-assign]
        Result(record.id, 1, error="too much", lacks_memory=lacks_memory)
    )

    def take() -> list[Any]:
        found = refused.copy()
        refused.clear()
        return found

    engine.take = take  # type: ignore[method-assign]
    with running(engine) as service:
        got = service.complete("A")
        assert (got.status, got.error["message"]) == (status, "too much")


def test_the_end_waits_for_answers() -> None:
    engine = ScriptedEngine(reply)
    with running(engine) as service:
        engine.gate.clear()
        link = streaming(service)
        eventually(lambda: len(engine.submitted) == 1, "it is not taken")
        service.server.stop()
        eventually(lambda: not reachable(service), "it still takes requests")
        time.sleep(0.3)
        engine.gate.set()
        assert b"[DONE]" in read_stream(link)
    assert engine.is_closed


def reachable(service: Service) -> bool:
    try:
        service.connect().close()
    except OSError:
        return False
    return True


# ---- who may ask


def test_keys() -> None:
    with running(ScriptedEngine(reply), api_key="sesame") as service:
        assert service.get("/health").status == 200
        for path in ("/v1/models", "/status", "/metrics", "/nothing"):
            got = service.get(path)
            assert (got.status, got.error["type"]) == (401, "authentication_error")
            assert got.headers["www-authenticate"] == "Bearer"
        for key in ("sesam", "sesamee", "", "Sesame", "\xff", "a" * 10_000):
            got = service.get("/v1/models", Authorization=f"Bearer {key}")
            assert (got.status, got.error["code"]) == (401, "invalid_api_key")
            assert "sesame" not in got.error["message"]
        assert service.get("/v1/models", Authorization="Basic sesame").error["code"] == "no_api_key"
        assert service.get("/v1/models", Authorization="bearer sesame").status == 200


def test_other_names_and_origins(service: Service) -> None:
    assert service.get("/health", Host="evil.example").status == 403
    assert service.get("/health", Host="localhost").status == 200
    assert service.get("/health", Host="[::1]:80").status == 200
    got = service.get("/health", Origin="https://evil.example")
    assert (got.status, got.error["type"]) == (403, "permission_error")
    assert "access-control-allow-origin" not in got.headers
    assert service.get("/health", Origin=service.url).status == 200
    assert service.get("/health", Origin="null").status == 403


def test_origins_that_may_ask() -> None:
    with running(ScriptedEngine(reply), cors=("https://good.example",)) as service:
        got = service.get("/health", Origin="https://good.example")
        assert got.headers["access-control-allow-origin"] == "https://good.example"
        assert service.get("/health", Origin="https://evil.example").status == 403
        got = service.ask("OPTIONS", "/v1/completions", headers={
            "Origin": "https://good.example", "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        })  # fmt: skip
        assert got.status == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.org"])
def test_beyond_this_machine_a_key_is_needed(host: str) -> None:
    with pytest.raises(SettingsError, match="api-key-file") as caught:
        ServeSettings(host)
    assert caught.value.field == "host"
    assert ServeSettings(host, api_key="x").host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.9.1"])
def test_this_machine(host: str) -> None:
    assert ServeSettings(host).host == host


def test_what_requests_get_that_do_not_say_otherwise() -> None:
    sampling, stops = SamplingSettings(temperature=0), StopSettings(3)
    with running(ScriptedEngine(reply), sampling=sampling, stops=stops) as service:
        assert service.complete("say abcdef").json["choices"][0]["text"] == "abc"
        assert service.get("/status").json["defaults"]["temperature"] == 0


def test_a_stream_that_fails_before_it_begins_is_an_error() -> None:
    def refusing(prompt: bytes) -> str:
        raise ValueError("not today")

    with running(ScriptedEngine(refusing)) as service:
        got = service.complete(stream=True)
        assert (got.status, got.error["message"]) == (400, "not today")


def test_signs_of_life_come_again_and_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generating, "QUIET_S", 0.2)
    service.engine.gate.clear()
    body = b'{"prompt": "Hi", "stream": true}'
    with service.connect() as link:
        link.settimeout(5)
        link.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        time.sleep(0.1)
        service.engine.gate.set()  # one step, while half of the time is over
        service.engine.gate.clear()
        got = link.recv(1 << 16)
        assert b'"text":"G"' in got and b": still here" not in got
        while got.count(b": still here") < 3:
            got += link.recv(1 << 16)
        service.engine.gate.set()
        assert read_all(link).rstrip().endswith(b"0")
