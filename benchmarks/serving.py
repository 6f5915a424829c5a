"""A server under load: ``infer-os serve`` against ``batch``, and against llama.cpp's servers.

    python benchmarks/serving.py [--models bundled,pythia-160m] [--clients 1,8,32,128] [--type q8_0]
        [--tokens 64] [--prompt 40] [--rounds 5] [--least 32] [--threads N] [--drop 0.3]
        [--equal] [--requests 2000] [--parallel N] [--queue 256] [--llama-python VENV/bin/python]
        [--llama-server FILE] [--work DIR]

Clients on loopback ask for greedy completions of prompts of ``--prompt`` words, each its next one
when the last one has ended: in a round all streamed, in another one all whole. An answer has at
most half to one and a half times ``--tokens``, drawn for each; with ``--equal`` all have as many,
so that batch ends and begins all its texts in the same step, as no server's clients do. For each
number of clients, ``serve`` computes as many texts at once as there are clients, and so does the
batch engine, which gets the same prompts in this process; they take turns, each round with the
same prompts, two for each client and at least ``--least``. Prints drawn tokens per second of each
as the median with the least and the most, serve over batch of each round, the time to the first
token (p50 and p99), and the processor time that the server and the clients (:mod:`.load_clients`)
took.

Then, with ``--drop``, this share of the clients goes away at a random moment: those that stay must
each get the text that batch has, once, and nothing may be left running. With ``--requests``, so
many short requests come from 16 clients, of which some go away; those that stay must each get an
answer, once, and the server's memory is printed meanwhile (``--clients ""`` does this alone).
With ``--parallel``, so many texts are computed at once instead, by batch as well, and ``--queue``
wait; further clients are sent away, and come again when they were asked to.

``--llama-python`` is a Python with ``llama-cpp-python[server]``, whose server takes part with 1 and
8 clients; it answers one at a time. ``--llama-server`` is llama.cpp's own server. Models are the
bundled one, or names of the catalog with random weights.
"""

from __future__ import annotations

import argparse
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from load_clients import Clients, random_drops
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


@dataclass(frozen=True)
class Server:
    """A running server: its port and its process."""

    port: int
    process: psutil.Process

    def cpu_s(self) -> float:
        """Processor time that it took so far."""
        now = self.process.cpu_times()
        return float(now.user + now.system)


@contextmanager
def serving(model: Path, n_seq: int, given: argparse.Namespace) -> Iterator[Server]:
    """``infer-os serve``."""
    command = [
        sys.executable, "-m", "infer_os.entry", "serve", str(model), "--port", "0", "--parallel",
        str(n_seq), "--context", str(given.context), "--threads", str(given.threads),
        "--queue", str(given.queue),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = re.search(r"http://\S+:(\d+)", process.stdout.readline())
        assert said is not None, "it does not start"
        try:
            yield Server(int(said[1]), psutil.Process(process.pid))
        finally:
            process.terminate()


@contextmanager
def llama_python_serving(model: Path, n_seq: int, given: argparse.Namespace) -> Iterator[Server]:
    """llama-cpp-python's own server, which answers one request at a time."""
    command = [
        str(given.llama_python), "-m", "llama_cpp.server", "--model", str(model), "--n_ctx",
        str(given.context), "--n_threads", str(given.threads), "--n_threads_batch",
        str(given.threads), "--verbose", "False",
        # else a request that comes ends the one before it
        "--interrupt_requests", "False",
    ]  # fmt: skip
    with _other_serving(command, "/v1/models") as server:
        yield server


@contextmanager
def llama_serving(model: Path, n_seq: int, given: argparse.Namespace) -> Iterator[Server]:
    """llama.cpp's own server, with as many slots and as much context for each."""
    command = [
        str(given.llama_server), "--model", str(model), "--ctx-size", str(given.context * n_seq),
        "--parallel", str(n_seq), "--threads", str(given.threads), "--threads-batch",
        str(given.threads), "--no-webui",
    ]  # fmt: skip
    with _other_serving(command, "/health") as server:
        yield server


@contextmanager
def _other_serving(command: list[str], path: str) -> Iterator[Server]:
    """A server that is ready once it answers at a path."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*command, "--port", str(port)], **quiet) as process:
        try:
            for _ in range(600):
                if process.poll() is not None:
                    raise SystemExit(f"it does not start: {' '.join(command)}")
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}{path}").close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield Server(port, psutil.Process(process.pid))
        finally:
            process.terminate()


def status(port: int) -> dict[str, Any]:
    """What the server says of itself."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/status") as answer:
        return dict(json.load(answer))


@dataclass
class Round:
    """Drawn tokens per second, the texts, and the processor time per token of whoever wrote them.

    Of a server also the seconds to the first tokens, the clients' processor time per token,
    events per token, and how often a client was sent away.
    """

    speed: float
    texts: list[str]
    cpu_s: float
    first_s: list[float] = field(default_factory=list)
    client_s: float = 0.0
    events: float = 0.0
    n_sent_away: int = 0
    n_reopened: int = 0


#: A prompt, and the most tokens of its answer.
Request = tuple[str, int]


def batch_round(engine: BatchEngine, requests: list[Request]) -> Round:
    """All prompts once."""
    greedy = SamplingSettings(temperature=0)
    records = [
        Record(i, i, greedy, StopSettings(n_tokens), prompt)
        for i, (prompt, n_tokens) in enumerate(requests)
    ]
    started, cpu_s = time.perf_counter(), time.process_time()
    answers = sorted(engine.run(records), key=lambda answer: answer.line)
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
    n = sum(len(answer.tokens) for answer in answers)
    return Round(n / seconds, [answer.text for answer in answers], cpu_s / n)


def body_of(request: Request, *, stream: bool) -> dict[str, Any]:
    """A request for a greedy completion."""
    prompt, n_tokens = request
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": n_tokens, "temperature": 0}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def server_round(server: Server, n_clients: int, bodies: list[dict[str, Any]]) -> Round:
    """All requests once."""
    client_s, server_s = time.process_time(), server.cpu_s()
    clients = Clients(server.port, n_clients)
    seconds, found = clients.ask(bodies)
    client_s, server_s = time.process_time() - client_s, server.cpu_s() - server_s
    answers = [answer for answer in found if answer is not None]
    assert all(answer.n_ends == 1 for answer in answers)
    n_tokens = sum(answer.n_tokens for answer in answers)
    return Round(
        n_tokens / seconds, [answer.text for answer in answers], server_s / n_tokens,
        [answer.first_s for answer in answers], client_s / n_tokens,
        sum(answer.n_events for answer in answers) / n_tokens, clients.n_sent_away,
        clients.n_reopened,
    )  # fmt: skip


def spread(name: str, values: list[float], unit: str = "") -> str:
    """Median, least and most."""
    return (
        f"  {name:30} {statistics.median(values):10.3f}{unit} "
        f"({min(values):.3f} to {max(values):.3f})"
    )


def make_requests(chance: random.Random, n: int, given: argparse.Namespace) -> list[Request]:
    """Prompts that begin differently, with answers of various lengths."""
    least, most = (given.tokens,) * 2 if given.equal else (given.tokens // 2, given.tokens * 3 // 2)
    starts = [chance.randrange(len(_WORDS) - given.prompt) for _ in range(n)]
    return [
        (" ".join(_WORDS[at : at + given.prompt]), chance.randint(least, most)) for at in starts
    ]


def compare(model: Path, n_clients: int, given: argparse.Namespace) -> None:
    """Rounds of batch, of serve in both ways, and of the peers, in turns; prints."""
    chance = random.Random(n_clients)
    n_seq = given.parallel or n_clients
    settings = EngineSettings(given.context, threads=given.threads)
    with ExitStack() as stack:
        engine = stack.enter_context(BatchEngine(model, settings, BatchSettings(n_seq)))
        server = stack.enter_context(serving(model, n_seq, given))
        ways = {"serve, streaming": (server, True), "serve, whole": (server, False)}
        if given.llama_server:
            peer = stack.enter_context(llama_serving(model, n_seq, given))
            ways |= {"llama-server, streaming": (peer, True), "llama-server, whole": (peer, False)}
        if given.llama_python and n_clients <= _PEER_CLIENTS:
            peer = stack.enter_context(llama_python_serving(model, n_seq, given))
            ways["llama_cpp.server, streaming"] = (peer, True)
        batches: list[Round] = []
        found: dict[str, list[Round]] = {name: [] for name in ways}
        n = max(given.least, 2 * n_clients)
        for number in range(given.rounds + 1):  # the first one warms up
            requests = make_requests(chance, n, given)
            batch = batch_round(engine, requests)
            batches += [batch] * bool(number)
            for name, (asked, stream) in ways.items():
                bodies = [body_of(request, stream=stream) for request in requests]
                done = server_round(asked, n_clients, bodies)
                assert asked is not server or done.texts == batch.texts, "other texts than batch's"
                found[name] += [done] * bool(number)
        print(
            f"{n_clients} clients, {n_seq} texts at once, {n} requests a round, {given.tokens} "
            f"tokens at most {'each' if given.equal else 'on average'}:"
        )
        print(spread("batch, tokens/s", [batch.speed for batch in batches]))
        for name, rounds in found.items():
            show(name, rounds, batches)
        if given.drop:
            check_drops(engine, server, n_clients, given)


def show(name: str, rounds: list[Round], batches: list[Round]) -> None:
    """What came of the rounds of a server, beside those of batch; prints."""
    pairs = list(zip(rounds, batches, strict=True))
    print(spread(f"{name}, tokens/s", [done.speed for done in rounds]))
    print(spread("  over batch", [done.speed / batch.speed for done, batch in pairs]))
    # which counts for more where others use the machine
    print(spread("  processor time over batch's", [one.cpu_s / two.cpu_s for one, two in pairs]))
    firsts = [seconds for done in rounds for seconds in done.first_s]
    percents = statistics.quantiles(firsts, n=100, method="inclusive")
    what = "first token" if "streaming" in name else "whole answer"
    server_s, client_s, events = (
        statistics.median(getattr(done, name) for done in rounds)
        for name in ("cpu_s", "client_s", "events")
    )
    print(
        f"    {what}: p50 {percents[49]:.3f} s, p99 {percents[98]:.3f} s; processor time per "
        f"token: server {1e6 * server_s:.0f} us, clients {1e6 * client_s:.0f} us; "
        f"{events:.2f} events per token; sent away {sum(done.n_sent_away for done in rounds)} "
        f"times, connected again {sum(done.n_reopened for done in rounds)} times"
    )


def check_drops(
    engine: BatchEngine, server: Server, n_clients: int, given: argparse.Namespace
) -> None:
    """Clients go away at random; the others get their texts, once, and nothing is left."""
    chance = random.Random(7)
    n = max(given.least, 4 * n_clients)
    requests = make_requests(chance, n, given)
    started = time.perf_counter()
    expected = batch_round(engine, requests).texts
    # about as long as an answer takes
    longest = (time.perf_counter() - started) * n_clients / n
    bodies = [body_of(request, stream=chance.random() < 0.5) for request in requests]
    drops = random_drops(n, given.drop, longest, chance)
    _, answers = Clients(server.port, n_clients).ask(bodies, drops)
    for answer, text in zip(answers, expected, strict=True):
        assert answer is None or (answer.text, answer.n_ends) == (text, 1)
    wait_until_idle(server)
    n_gone = sum(answer is None for answer in answers)
    print(f"  {n_gone} of {len(answers)} went away; the others got their texts, once each")


def watch_memory(model: Path, given: argparse.Namespace) -> None:
    """Memory of the server over many short requests; prints it at every tenth of them."""
    short = argparse.Namespace(prompt=8, tokens=4, equal=True)
    with serving(model, 8, given) as server:
        sizes: list[tuple[float, float]] = []
        n_gone, tenth = 0, max(1, given.requests // 10)
        chance = random.Random(1)
        for _ in range(10):
            bodies = [
                body_of(request, stream=chance.random() < 0.5)
                for request in make_requests(chance, tenth, short)
            ]
            drops = random_drops(tenth, given.drop / 10, 0.02, chance)
            _, answers = Clients(server.port, 16).ask(bodies, drops)
            assert all(answer.n_ends == 1 and answer.n_tokens for answer in answers if answer)
            n_gone += answers.count(None)
            wait_until_idle(server)
            memory = server.process.memory_full_info()
            sizes.append((memory.rss / 1e6, memory.pss / 1e6))
        n_counted = counted_requests(server.port)
        planned = status(server.port)["memory"]["planned_bytes"] / 1e6
    n = 10 * tenth
    # of a client that goes away at once, nobody may have seen a request
    assert n - n_gone <= n_counted <= n, f"{n_counted} of {n} requests were answered"
    rss, pss = (", ".join(f"{size:.1f}" for size in column) for column in zip(*sizes, strict=True))
    print(
        f"{n} requests, of which {n_gone} went away and the others were answered once each\n"
        f"  MB at every tenth: RSS {rss}; PSS {pss}; planned {planned:.1f}"
    )


def wait_until_idle(server: Server) -> None:
    """See that nothing is left of clients that are gone."""
    for _ in range(100):
        now = status(server.port)
        if not now["running"] and not now["waiting"]:
            return
        time.sleep(0.1)
    raise SystemExit(f"there is something left: {now}")


def counted_requests(port: int) -> int:
    """How many completions the server has answered, or begun to, by its own count."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    begins = 'infer_os_requests_total{path="/v1/completions"'
    return round(sum(float(line.split()[-1]) for line in lines if line.startswith(begins)))


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
    parser.add_argument("--least", type=int, default=_LEAST_REQUESTS)
    parser.add_argument("--equal", action="store_true")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--parallel", type=int, default=0)
    parser.add_argument("--queue", type=int, default=256)
    parser.add_argument("--llama-python", type=Path)
    parser.add_argument("--llama-server", type=Path)
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
            for n_clients in map(int, filter(None, given.clients.split(","))):
                compare(model, n_clients, given)
            if given.requests:
                watch_memory(model, given)


if __name__ == "__main__":
    main()
