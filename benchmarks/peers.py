"""Decode and prefill speed side by side with other programs, by turns in one run.

    python benchmarks/peers.py --llama-bench DIR/llama-bench --python VENV/bin/python
        [--geometry distilgpt2] [--types q8_0,q4_0] [--rounds 7] [--rows FILE]

A checkpoint of random weights and real geometry is made once; infer-os converts it to each type,
transformers (float32, bfloat16), CTranslate2 and OpenVINO (int8) load it as they do, each in the
Python that --python names (which may be given several times: the first that has the program runs
it). llama-bench runs our own files. Programs that are not installed are left out by name. Prints
tokens per second, and ours over theirs as median and quartiles over the rounds. Bytes per weight
differ between the programs: compare what reads as many.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np
from random_model import GEOMETRIES, make_folder

from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.runtime.benchmark.rows import Measurement, json_lines, make_place, make_rows
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.generate import PlainSource
from infer_os.runtime.machine import read_cpu
from infer_os.runtime.settings import EngineSettings, SamplingSettings

_PEERS = ("transformers-float32", "transformers-bfloat16", "ctranslate2-int8", "openvino-int8")
Round = Callable[[], tuple[float, float]]  # seconds of the prompt, and of the decoded tokens


def our_round(engine: LlamaEngine, n_prompt: int, n: int) -> Round:
    """Greedy steps through our token loop."""

    def run() -> tuple[float, float]:
        source = PlainSource(engine, engine.new_sampler(SamplingSettings(temperature=0)))
        engine.forget()
        started = time.perf_counter()
        source.start(list(range(1, n_prompt + 1)))
        drawn = [source.first()]
        middle = time.perf_counter()
        for _ in range(n):
            drawn = source.advance(drawn[-1], 1)
        seconds = middle - started, time.perf_counter() - middle
        source.close()
        return seconds

    return run


def llama_round(program: Path, gguf: Path, threads: int, n_prompt: int, n: int) -> Round:
    """One llama-bench, which warms up by itself."""
    command = [str(program), "-m", str(gguf), "-t", str(threads), "-p", str(n_prompt), "-n",
               str(n), "-r", "1", "-o", "json"]  # fmt: skip

    def run() -> tuple[float, float]:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        by_kind = {row["n_gen"] > 0: row["avg_ns"] / 1e9 for row in json.loads(done.stdout)}
        return by_kind[False], by_kind[True]

    return run


def _ask(stdin: IO[str], stdout: IO[str]) -> tuple[float, float]:
    stdin.write("go\n")
    stdin.flush()
    answer = json.loads(stdout.readline())
    return answer["prefill_s"], answer["decode_s"]


def peer_round(
    stack: ExitStack, kind: str, pythons: list[str], folder: Path, sizes: tuple[int, int, int]
) -> Round | None:
    """A peer in the first Python that has it; None, and a line, if none has."""
    worker = str(Path(__file__).with_name("peer_worker.py"))
    reasons = []
    for python in pythons:
        process = stack.enter_context(
            subprocess.Popen(
                [python, worker, kind, str(folder), *map(str, sizes)], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        if process.stdout.readline() == "ready\n":
            return functools.partial(_ask, process.stdin, process.stdout)
        assert process.stderr is not None
        lines = process.stderr.read().strip().splitlines()
        reasons.append(lines[-1] if lines else f"exit code {process.wait()}")
    reason = "; ".join(dict.fromkeys(reasons)) or "no --python was given"
    print(f"left out: {kind}: {reason}", file=sys.stderr)
    return None


def measure(
    sides: dict[str, Round], rounds: int, n_prompt: int, n: int
) -> dict[str, list[tuple[float, float]]]:
    """Tokens per second (prefill, decode) of each side and round; the first round warms up."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    names = list(sides)
    for i in range(rounds + 1):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            prefill_s, decode_s = sides[name]()
            if i:
                found[name].append((n_prompt / prefill_s, n / decode_s))
    return found


def show(found: dict[str, list[tuple[float, float]]], ours: str) -> list[Measurement]:
    """Print every side beside one of ours."""
    rows = []
    mine = np.array(found[ours])
    kind = ours.partition(" ")[2]
    for name, values in found.items():
        # of ours and of llama.cpp's, the same type alone
        if name != ours and " " in name and name != f"llama-bench {kind}":
            continue
        theirs = np.array(values)
        line = f"  {name:24}"
        for column, what in enumerate(("prefill", "decode")):
            ratios = mine[:, column] / theirs[:, column]
            low, middle, high = np.percentile(ratios, [25, 50, 75])
            rate = np.median(theirs[:, column])
            line += f"  {what} {rate:8.1f}/s"
            if name != ours:
                line += f", ours {middle:6.2f} times ({low:.2f} to {high:.2f})"
                labels = (("ours", ours), ("peer", name))
                rows += [Measurement(f"peer_{what}", "times", r, labels) for r in ratios]
        print(line)
    return rows


def main() -> None:
    """Make the models, take turns, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-bench", type=Path, help="the program, of a build of llama.cpp")
    parser.add_argument("--python", action="append", default=[], help="with peers installed")
    parser.add_argument("--geometry", choices=GEOMETRIES, default="distilgpt2")
    parser.add_argument("--layers", type=int, default=0, help="fewer than the model has")
    parser.add_argument("--types", default="f16,q8_0,q4_0")
    parser.add_argument("--load", default="fast", choices=("mmap", "fast"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=Path, help="append the ratios to this file")
    arguments = parser.parse_args()
    n_prompt, n = arguments.prompt, arguments.tokens
    kinds = arguments.types.split(",")
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        make_folder(arguments.geometry, folder / "model", layers=arguments.layers)
        sides: dict[str, Round] = {}
        for kind in kinds:
            gguf = folder / f"{kind}.gguf"
            convert(ConvertSettings(folder / "model", gguf, kind))
            settings = EngineSettings(n_prompt + n + 8, arguments.load, arguments.threads)
            engine = stack.enter_context(LlamaEngine(gguf, settings))
            sides[f"infer-os {kind}"] = our_round(engine, n_prompt, n)
            program = arguments.llama_bench
            if program is None or not program.is_file():
                print(f"left out: llama-bench {kind}: {program or 'no --llama-bench'}: "
                      "no such program", file=sys.stderr)  # fmt: skip
                continue
            sides[f"llama-bench {kind}"] = llama_round(
                program, gguf, arguments.threads, n_prompt, n
            )
        for peer in _PEERS:
            sizes = (arguments.threads, n_prompt, n)
            run = peer_round(stack, peer, arguments.python, folder / "model", sizes)
            if run is not None:
                sides[peer] = run
        found = measure(sides, arguments.rounds, n_prompt, n)
    print(
        f"{arguments.geometry}, random weights, {n_prompt} tokens of a prompt, {n} decoded, "
        f"{arguments.threads} threads, load {arguments.load}, {arguments.rounds} rounds by turns"
    )
    rows = []
    for kind in kinds:
        print(f"against infer-os {kind}:")
        rows += show(found, f"infer-os {kind}")
    if arguments.rows:
        place = make_place(" ".join(sys.argv), read_cpu().model, arguments.threads)
        with arguments.rows.open("a") as file:
            file.write(json_lines(make_rows(rows, arguments.geometry), place))


if __name__ == "__main__":
    main()
