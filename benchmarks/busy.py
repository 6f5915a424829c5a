"""Speed while other programs keep the processors busy, with every number of threads.

    python benchmarks/busy.py FILE.gguf ... [--busy 0,1,2,4] [--rounds 5] [--tokens 100]
        [--sides default,threads,stock] [--llama-bench PATH]

Beside k endless loops: a greedy text with the default, with each fixed number of threads (1, 2, ...
to the number of processors), and by llama.cpp's own kernels (``--no-native``), and llama-bench if
its path is given. All take turns in every round, each a process of its own, so that the loops
disturb all alike. A row per file, k and side: tokens per second and the time to the first token, as
median, smallest and largest. ``of best`` is the default's share of the best fixed number.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROMPT = "It is a truth universally acknowledged, that a single man in possession of a good fortune"
LIMIT_S = 300


@dataclass(frozen=True, slots=True)
class Run:
    """Of one process: tokens per second, and seconds to the first token."""

    rate: float
    first: float


@contextmanager
def busy_loops(n: int) -> Iterator[None]:
    """Programs that never wait for anything."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def generate(file: Path, tokens: int, options: Sequence[str]) -> Run:
    """A text by ``infer-os generate``."""
    command = [
        sys.executable, "-m", "infer_os.cli", "generate", str(file), "-p", PROMPT,
        "-n", str(tokens), "--temperature", "0", "--json", *options,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    timings = json.loads(done.stdout.splitlines()[-1])["timings"]
    return Run(timings["decode_tokens_per_s"], timings["first_token_s"])


def llama_bench(program: Path, file: Path, tokens: int, threads: int) -> Run:
    """Decoding by llama.cpp's own program."""
    command = [
        str(program), "-m", str(file), "-p", "0", "-n", str(tokens), "-t", str(threads),
        "-r", "1", "-fa", "1", "-o", "json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    return Run(json.loads(done.stdout)[0]["avg_ts"], float("nan"))


def sides_of(arguments: argparse.Namespace, processors: int) -> dict[str, list[str]]:
    """What takes turns, by name: options of ``generate``."""
    sides: dict[str, list[str]] = {"default": []}
    wanted = arguments.sides.split(",")
    if "threads" in wanted:
        sides |= {f"{n} threads": ["--threads", str(n)] for n in range(1, processors + 1)}
    if "stock" in wanted:
        sides["--no-native"] = ["--no-native"]
        sides["--no-native, 1 thread"] = ["--no-native", "--threads", "1"]
    return sides


def spread(values: Sequence[float], digits: int) -> str:
    """Median [smallest..largest]."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:9.{digits}f} [{low:.{digits}f}..{high:.{digits}f}]"


def measure(file: Path, n_busy: int, arguments: argparse.Namespace) -> None:
    """All sides in turn, beside so many loops."""
    processors = len(os.sched_getaffinity(0))
    sides = sides_of(arguments, processors)
    found: dict[str, list[Run]] = {side: [] for side in sides}
    with busy_loops(n_busy):
        for _ in range(arguments.rounds):
            for side, options in sides.items():
                found[side].append(generate(file, arguments.tokens, options))
            if arguments.llama_bench:
                for n in (1, processors):
                    run = llama_bench(arguments.llama_bench, file, arguments.tokens, n)
                    found.setdefault(f"llama-bench, {n} threads", []).append(run)
    print(f"{file.name}, {n_busy} busy programs on {processors} processors:")
    for side, runs in found.items():
        rates, firsts = [run.rate for run in runs], [run.first for run in runs]
        print(f"  {side:24} {spread(rates, 1):34} tokens/s, first {spread(firsts, 3)} s")
    fixed = [found[side] for side in sides if side.endswith(" threads")]
    if fixed:
        shares = [
            run.rate / max(runs[i].rate for runs in fixed) for i, run in enumerate(found["default"])
        ]
        ratios = [
            run.first / min(runs[i].first for runs in fixed)
            for i, run in enumerate(found["default"])
        ]
        best = max(statistics.median(run.rate for run in runs) for runs in fixed)
        of_medians = statistics.median(run.rate for run in found["default"]) / best
        print(
            f"  of best                  {of_medians:.2f} by medians, {spread(shares, 2)} by "
            f"rounds; first token {spread(ratios, 2)} times"
        )
    sys.stdout.flush()


def main() -> None:
    """Every file beside every number of loops."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--busy", default="0,1,2,4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--sides", default="threads,stock")
    parser.add_argument("--llama-bench", type=Path)
    arguments = parser.parse_args()
    for file in arguments.files:
        for n in arguments.busy.split(","):
            measure(file, int(n), arguments)


if __name__ == "__main__":
    main()
