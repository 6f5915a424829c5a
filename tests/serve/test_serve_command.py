"""``infer-os serve`` as a process: when it is ready, how it ends, what it refuses to begin."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from adapter_files import random_adapter
from helpers import BUNDLED, TESTS, Converter
from in_process import Cli, runner

from infer_os.commands.serving import named_models
from infer_os.store.wish import ModelWish

COMMAND = [sys.executable, "-m", "infer_os.entry", "serve"]
FAST = ["--parallel", "2", "--context", "256", "--threads", "1"]


@pytest.fixture
def model(converted: Converter) -> Path:
    return converted(next(f for f in BUNDLED if f.name == "austen-6m"), "q8_0")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Cli:
    monkeypatch.delenv("INFER_OS_API_KEY", raising=False)
    return runner(monkeypatch, capfdbinary)


@contextmanager
def serving(model: Path, *options: str, **more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and the line that it says when it is ready."""
    process = subprocess.Popen(
        [*COMMAND, str(model), *FAST, "--port", "0", *options], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, **more},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


def connection(line: str) -> http.client.HTTPConnection:
    found = re.fullmatch(r"serving \S+ on http://(\S+):(\d+) \(.*\)\n", line)
    assert found is not None, line
    return http.client.HTTPConnection(found[1], int(found[2]), timeout=60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_when_answers_are_given(model: Path, number: signal.Signals) -> None:
    with serving(model) as (process, line):
        link = connection(line)
        body = json.dumps({"prompt": "It is", "max_tokens": 100, "stream": True, "seed": 1})
        link.request("POST", "/v1/completions", body)
        got = link.getresponse()
        first = got.readline()
        process.send_signal(number)
        rest = got.read()
        assert rest.endswith(b"data: [DONE]\n\n")
        events = [line.removeprefix(b"data: ") for line in (first + rest).split(b"\n\n")[:-2]]
        texts = [json.loads(event)["choices"][0]["text"] for event in events]
        assert len("".join(texts).split()) > 20
        out, err = process.communicate(timeout=60)
        assert process.returncode == 128 + number
        assert out == ""
        assert err.count("\n") <= 1 and "Traceback" not in err


def test_a_key_from_a_file_or_the_environment(model: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sesame\n")
    for options, more in ((["--api-key-file", str(tmp_path / "key")], {}),
                          ([], {"INFER_OS_API_KEY": "sesame"})):  # fmt: skip
        with serving(model, *options, **more) as (_, line):
            link = connection(line)
            for key, status in (("", 401), ("Bearer sesame", 200)):
                link.request("GET", "/v1/models", headers={"Authorization": key})
                got = link.getresponse()
                got.read()
                assert got.status == status


def test_the_memory_is_that_of_the_plan(model: Path) -> None:
    with serving(model) as (_, line):
        link = connection(line)
        body = json.dumps({"prompt": ["It is"] * 20, "max_tokens": 30})
        link.request("POST", "/v1/completions", body)
        link.getresponse().read()
        before = asked(link, "/status")["memory"]
        assert 0 < before["rss_bytes"] <= before["planned_bytes"]
        vector = asked(link, "/v1/embeddings", input="It is a truth " * 40)["data"][0]["embedding"]
        assert len(vector) == 256
        memory = asked(link, "/status")["memory"]
        assert before["planned_bytes"] < memory["planned_bytes"]
        assert memory["rss_bytes"] <= memory["planned_bytes"]


def asked(link: http.client.HTTPConnection, path: str, **fields: Any) -> Any:
    link.request("POST" if fields else "GET", path, json.dumps(fields) if fields else None)
    got = link.getresponse()
    value = json.loads(got.read())
    assert got.status == 200, value
    return value


def text_of(link: http.client.HTTPConnection, **fields: Any) -> str:
    value = asked(link, "/v1/completions", prompt="It is", temperature=0, max_tokens=20, **fields)
    return str(value["choices"][0]["text"])


def test_two_models_that_fit_one_after_the_other(model: Path, converted: Converter) -> None:
    draft = converted(next(f for f in BUNDLED if f.name == "austen-draft"), "f16")
    texts, planned = [], 0
    for path in (model, draft):
        with serving(path) as (_, line):
            link = connection(line)
            texts.append(text_of(link))
            planned = max(planned, asked(link, "/status")["memory"]["planned_bytes"])
    assert texts[0] != texts[1]
    options = ["--models", f"small={draft}", "--memory", str(planned + (20 << 20))]
    with serving(model, *options) as (_, line):
        assert "; 1 more when asked for)" in line
        link = connection(line)
        assert [m["id"] for m in asked(link, "/v1/models")["data"]][-1] == "small"
        for name, text, loaded in ((None, texts[0], [True, False]),
                                   ("small", texts[1], [False, True]),
                                   (None, texts[0], [True, False])):  # fmt: skip
            assert text_of(link, model=name) == text
            status = asked(link, "/status")
            assert [m["loaded"] for m in status["models"]] == loaded
            assert status["memory"]["rss_bytes"] <= status["memory"]["planned_bytes"]
    with serving(model, "--models", f"small={draft}") as (_, line):
        link = connection(line)
        assert [text_of(link, model=name) for name in (None, "small")] == texts
        assert [m["loaded"] for m in asked(link, "/status")["models"]] == [True, True]


def test_the_names_of_models() -> None:
    first, second, third = named_models(ModelWish("a/b.gguf", "q8_0"), ["x=c.gguf", "owner/d"])
    assert first[0] == ("b", "b.gguf", "a/b.gguf")
    assert (second[0], second[1].text, second[1].type) == (("x",), "c.gguf", "q8_0")
    assert (third[0], third[1].text) == (("d", "owner/d"), "owner/d")


def test_an_address_that_is_taken(cli: Cli, model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        error = cli("serve", model, *FAST, "--port", port).user_error
        assert f"--port {port}: 127.0.0.1 cannot be used" in error


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0: other machines could use it; give --api-key"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid: "),
        (["--port", "70000"], "--port 70000: expected 0 (any free one) to 65535"),
        (["--queue", "-1"], "--queue -1: expected 0 to"),
        (["--cors", "example.org"], "--cors "),
        (["--api-key-file", "/nowhere/key"], "/nowhere/key: cannot be read"),
        (["--parallel", "0"], "--parallel 0: expected a number, or auto"),
        (["--idle", "soon"], "--idle soon: expected a time such as 90s, 10m or 2h"),
        (["--idle", "0m"], "--idle 0m: expected a time"),
        (["--models", "nowhere.gguf"], "nowhere.gguf"),
        (["--models", "{model}"], "another model is called 'q8_0'; give this one another name"),
        (["--style", "none"], "--style none: expected one of"),
    ],
)
def test_options_that_cannot_work(cli: Cli, model: Path, options: list[str], said: str) -> None:
    options = [option.replace("{model}", str(model)) for option in options]
    assert said in cli("serve", model, *FAST, *options).user_error


def test_keys_that_are_none(cli: Cli, model: Path, tmp_path: Path) -> None:
    for content in ("", " \n", "two words", "two\nlines\n"):
        (tmp_path / "key").write_text(content)
        error = cli("serve", model, "--api-key-file", tmp_path / "key").user_error
        assert "expected a key alone" in error


def test_two_adapters_at_once(converted: Converter, tmp_path: Path) -> None:
    """By the model's name or by a field, in turns: each text is the one that batch writes."""
    base = TESTS / "reference/gptj"
    model = converted(base, "q8_0")
    cache = {"INFER_OS_CACHE": str(tmp_path / "cache")}
    words = ["--adapter", f"a={TESTS / 'reference/adapters/gptj'}",
             "--adapter", f"b={random_adapter(base, tmp_path / 'b')}:0.5"]  # fmt: skip
    records = [{"prompt": "the quick", "adapter": name} for name in ("a", "b", "off")]
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in records))
    options = ["-n", "60", "--temperature", "0", "--context", "100", "--threads", "1"]
    done = subprocess.run(
        [*COMMAND[:-1], "batch", str(model), *words, *options, "--ordered",
         "-i", str(tmp_path / "in.jsonl")],
        capture_output=True, text=True, check=True, env={**os.environ, **cache},
    )  # fmt: skip
    expected = {
        record["adapter"]: json.loads(line)["text"]
        for record, line in zip(records, done.stdout.splitlines(), strict=True)
    }
    assert len(set(expected.values())) == 3
    with serving(model, *words, *options, **cache) as (_, line):
        name = model.stem
        ways: list[tuple[str, dict[str, Any]]] = [
            ("a", {}), ("a", {"model": name}), ("a", {"model": f"{name}:a"}),
            ("b", {"model": f"{name}:b"}), ("b", {"adapter": "b"}),
            ("off", {"model": f"{name}:off"}), ("off", {"model": name, "adapter": "off"}),
            ("b", {"model": f"{name}:b", "adapter": "b"}),
        ]  # fmt: skip

        def ask(fields: dict[str, Any], path: str = "/v1/completions") -> tuple[int, Any]:
            link = connection(line)
            link.request("POST", path, json.dumps({"prompt": "the quick", **fields}))
            got = link.getresponse()
            return got.status, json.loads(got.read())

        with ThreadPoolExecutor(len(ways)) as pool:
            answers = list(pool.map(lambda way: ask(way[1]), ways))
        for (adapter, _), (status, value) in zip(ways, answers, strict=True):
            assert status == 200
            assert value["choices"][0]["text"] == expected[adapter]
        for fields, said in (
            ({"adapter": "c"}, "adapter: 'c' is not here; this model has a, b, off"),
            ({"model": f"{name}:a", "adapter": "b"}, "the model's name says a"),
            ({"adapter": 3}, "adapter"),
        ):
            status, value = ask(fields)
            assert status == 400 and said in value["error"]["message"], value
        link = connection(line)
        link.request("GET", "/v1/models")
        listed = [model["id"] for model in json.loads(link.getresponse().read())["data"]]
        assert [f"{name}:a", f"{name}:b", f"{name}:off"] == listed[-3:]
