"""A server under load: ``infer-os serve`` against ``batch``, and against llama-cpp-python's server.

    python benchmarks/serving.py [--models bundled,pythia-160m] [--clients 1,8,32,128] [--type q8_0]
        [--tokens 64] [--prompt 40] [--rounds 5] [--threads N] [--drop 0.3] [--requests N]
        [--llama-python VENV/bin/python] [--work DIR]

Clients on loopback stream greedy completions of prompts of ``--prompt`` words, each its next one
when the last one has ended. For each number of clients, ``serve`` computes as many texts at once as
there are clients, and so does the batch engine, which gets the same prompts in this process; they
take turns, each round with the same prompts. Prints drawn tokens per second of each as the median
with the least and the most, serve over batch of each round, and the time to the first token (p50
and p99).

Then, with ``--drop``, this share of the clients goes away at a random moment: those that stay must
each get the text that batch has, once, and nothing may be left running. With ``--requests``, so
many short requests come from 8 clients, and the server's memory is printed meanwhile.
``--llama-python`` is a Python with ``llama-cpp-python[server]``, whose server takes part with 1 and
8 clients; it answers one at a time. Models are the bundled one, or names of the catalog with random
weights.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from random_gguf import write_random_gguf

from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.native.processors import usable_cores
from infer_os.runtime.batch.batch_engine import BatchEngine
from infer_os.runtime.batch.records import Record
from infer_os.runtime.batch.settings import BatchSettings
from infer_os.runtime.settings import EngineSettings, SamplingSettings, StopSettings

REPOSITORY = Path(__file__).parents[1]
_WORDS = (REPOSITORY / "models" / "bundled" / "held-out.txt").read_text().split()
_LEAST_REQUESTS = 32
_PEER_CLIENTS = 8


@dataclass
class Answer:
    """A streamed text, its tokens, the seconds to the first of them, and how often it ended."""

    text: str
    n_tokens: int
    first_s: float
    n_ends: int


async def ask(port: int, prompt: str, n_tokens: int, drop: float | None = None) -> Answer | None:
    """One completion, streamed; with ``drop`` the client goes away after so many seconds."""
    body = json.dumps({
        "prompt": prompt, "max_tokens": n_tokens, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }).encode()  # fmt: skip
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    try:
        if drop is None:
            return await _read(reader, started)
        await asyncio.wait_for(_read(reader, started), drop)
        return None
    except asyncio.TimeoutError:
        return None
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader, started: float) -> Answer:
    answer = Answer("", 0, 0.0, 0)
    status = await reader.readline()
    if b" 200 " not in status:
        raise SystemExit(f"{status!r}: {await reader.read()!r}")
    while line := await reader.readline():
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            answer.n_ends += 1
            continue
        value = json.loads(line.removeprefix(b"data: "))
        if value.get("usage"):
            answer.n_tokens = value["usage"]["completion_tokens"]
        for choice in value["choices"]:
            if choice["text"]:
                answer.first_s = answer.first_s or time.perf_counter() - started
                answer.text += choice["text"]
                answer.n_tokens += "usage" not in value
    return answer


async def load(
    port: int, prompts: list[str], n_clients: int, n_tokens: int, drop: float = 0.0
) -> list[Answer | None]:
    """Answers to all prompts, each client with one at a time; None for those who went away."""
    chance = random.Random(len(prompts))
    moments = [chance.random() if chance.random() < drop else None for _ in prompts]
    answers: list[Answer | None] = [None] * len(prompts)
    line = iter(range(len(prompts)))

    async def client() -> None:
        for i in line:
            answers[i] = await ask(port, prompts[i], n_tokens, moments[i])

    await asyncio.gather(*(client() for _ in range(n_clients)))
    lost = [i for i, moment in enumerate(moments) if moment is None and answers[i] is None]
    assert not lost, f"no answer to {lost}"
    return answers


@contextmanager
def serving(model: Path, n_seq: int, given: argparse.Namespace) -> Iterator[int]:
    """The port of ``infer-os serve``."""
    command = [
        sys.executable, "-m", "infer_os.entry", "serve", str(model), "--port", "0", "--parallel",
        str(n_seq), "--context", str(given.context), "--threads", str(given.threads),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = re.search(r"http://\S+:(\d+)", process.stdout.readline())
        assert said is not None, "it does not start"
        try:
            yield int(said[1])
        finally:
            process.terminate()


@contextmanager
def llama_serving(model: Path, given: argparse.Namespace) -> Iterator[int]:
    """The port of llama-cpp-python's own server."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        str(given.llama_python), "-m", "llama_cpp.server", "--model", str(model), "--port",
        str(port), "--n_ctx", str(given.context), "--n_threads", str(given.threads),
        "--n_threads_batch", str(given.threads), "--verbose", "False",
        # else a request that comes ends the one before it
        "--interrupt_requests", "False",
    ]  # fmt: skip
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as process:
        try:
            for _ in range(600):
                if process.poll() is not None:
                    raise SystemExit("llama_cpp.server does not start: is [server] installed?")
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models").close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield port
        finally:
            process.terminate()


def status(port: int) -> dict[str, Any]:
    """What the server says of itself."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/status") as answer:
        return dict(json.load(answer))


def batch_round(engine: BatchEngine, prompts: list[str], n_tokens: int) -> tuple[float, list[str]]:
    """Drawn tokens per second, and the texts."""
    greedy = SamplingSettings(temperature=0)
    records = [Record(i, i, greedy, StopSettings(n_tokens), p) for i, p in enumerate(prompts)]
    started = time.perf_counter()
    answers = sorted(engine.run(records), key=lambda answer: answer.line)
    seconds = time.perf_counter() - started
    return sum(len(a.tokens) for a in answers) / seconds, [a.text for a in answers]


def server_round(
    port: int, prompts: list[str], n_clients: int, n_tokens: int
) -> tuple[float, list[float], list[str]]:
    """Drawn tokens per second, seconds to the first tokens, and the texts."""
    started = time.perf_counter()
    answers = [a for a in asyncio.run(load(port, prompts, n_clients, n_tokens)) if a is not None]
    seconds = time.perf_counter() - started
    assert all(answer.n_ends == 1 for answer in answers)
    firsts = [answer.first_s for answer in answers]
    return sum(a.n_tokens for a in answers) / seconds, firsts, [a.text for a in answers]


def spread(name: str, values: list[float], unit: str = "") -> str:
    """Median, least and most."""
    return (
        f"  {name:30} {statistics.median(values):10.3f}{unit} "
        f"({min(values):.3f} to {max(values):.3f})"
    )


def make_prompts(chance: random.Random, n: int, n_words: int) -> list[str]:
    """Prompts that begin differently."""
    starts = [chance.randrange(len(_WORDS) - n_words) for _ in range(n)]
    return [" ".join(_WORDS[at : at + n_words]) for at in starts]


def compare(model: Path, n_clients: int, given: argparse.Namespace) -> None:
    """Rounds of serve and batch, and of the peer, in turns; prints."""
    chance = random.Random(n_clients)
    found: dict[str, list[float]] = {}
    firsts: dict[str, list[float]] = {}
    settings = EngineSettings(given.context, threads=given.threads)
    with ExitStack() as stack:
        engine = stack.enter_context(BatchEngine(model, settings, BatchSettings(n_clients)))
        ports = {"serve": stack.enter_context(serving(model, n_clients, given))}
        if given.llama_python and n_clients <= _PEER_CLIENTS:
            ports["llama_cpp.server"] = stack.enter_context(llama_serving(model, given))
        n = max(_LEAST_REQUESTS, 2 * n_clients)
        for number in range(given.rounds + 1):  # the first one warms up
            prompts = make_prompts(chance, n, given.prompt)
            speed, expected = batch_round(engine, prompts, given.tokens)
            rows = {"batch": (speed, list[float]())}
            for name, port in ports.items():
                speed, first_s, texts = server_round(port, prompts, n_clients, given.tokens)
                rows[name] = speed, first_s
                assert name != "serve" or texts == expected, "other texts than those of batch"
            if number:
                for name, (speed, first_s) in rows.items():
                    found.setdefault(name, []).append(speed)
                    firsts.setdefault(name, []).extend(first_s)
        print(f"{n_clients} clients, {n} requests a round, {given.tokens} tokens at most each:")
        for name, values in found.items():
            print(spread(f"{name}, tokens/s", values))
        for name in ports:
            ratios = [a / b for a, b in zip(found[name], found["batch"], strict=True)]
            print(spread(f"{name} over batch", ratios))
            percents = statistics.quantiles(firsts[name], n=100, method="inclusive")
            print(f"  {name}, first token: p50 {percents[49]:.3f} s, p99 {percents[98]:.3f} s")
        if given.drop:
            check_drops(engine, ports["serve"], n_clients, given)


def check_drops(engine: BatchEngine, port: int, n_clients: int, given: argparse.Namespace) -> None:
    """Clients go away at random; the others get their texts, once, and nothing is left."""
    prompts = make_prompts(random.Random(7), max(_LEAST_REQUESTS, 4 * n_clients), given.prompt)
    _, expected = batch_round(engine, prompts, given.tokens)
    answers = asyncio.run(load(port, prompts, n_clients, given.tokens, given.drop))
    for answer, text in zip(answers, expected, strict=True):
        assert answer is None or (answer.text, answer.n_ends) == (text, 1)
    for _ in range(100):
        now = status(port)
        if not now["running"] and not now["waiting"]:
            break
        time.sleep(0.1)
    assert not now["running"] and not now["waiting"], now
    n_gone = sum(answer is None for answer in answers)
    print(f"  {n_gone} of {len(answers)} went away; the others got their texts, once each")


def watch_memory(model: Path, given: argparse.Namespace) -> None:
    """Memory of the server over many short requests; prints it at every tenth of them."""
    with serving(model, 8, given) as port:
        told: list[float] = []
        tenth = max(1, given.requests // 10)
        for number in range(10):
            prompts = make_prompts(random.Random(number), tenth, 8)
            asyncio.run(load(port, prompts, 16, 4, given.drop / 10))
            told.append(status(port)["memory"]["rss_bytes"] / 1e6)
        planned = status(port)["memory"]["planned_bytes"] / 1e6
    print(
        f"memory over {10 * tenth} requests, MB at every tenth: "
        f"{', '.join(f'{n:.1f}' for n in told)}; planned {planned:.1f}"
    )


def main() -> None:
    """Make the models, and go through them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", default="bundled,pythia-160m")
    parser.add_argument("--clients", default="1,8,32,128")
    parser.add_argument("--type", default="q8_0")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=40)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--drop", type=float, default=0.3)
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--llama-python", type=Path)
    parser.add_argument("--work", type=Path)
    given = parser.parse_args()
    print(f"{given.threads} threads, {given.type}, load average {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        for name in given.models.split(","):
            model = Path(folder) / f"{name}.gguf"
            if name == "bundled":
                source = REPOSITORY / "models" / "bundled" / "austen-6m"
                convert(ConvertSettings(source, model, given.type))
            else:
                write_random_gguf(name, given.type, model)
            print(f"== {name}")
            for n_clients in map(int, given.clients.split(",")):
                compare(model, n_clients, given)
            if given.requests:
                watch_memory(model, given)


if __name__ == "__main__":
    main()
