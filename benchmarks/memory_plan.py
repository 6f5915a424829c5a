"""Predicted against measured peak memory, for each load mode and several sizes of model.

    python benchmarks/memory_plan.py [--models austen-6m,pythia-160m] [--loads mmap,fast]
    python benchmarks/memory_plan.py --models gpt-j-6B
    python benchmarks/memory_plan.py --models gpt-neox-20b --loads mmap --context 2048 \
        --kv q8_0 --words 90 --tokens 8 --limit 13G

Every run is ``infer-os generate --json`` in a separate process, on a prompt longer than a batch;
the measured number is its peak resident set. Models of the catalog get random weights of their
real geometry. ``--limit`` limits the process's address space (RLIMIT_AS); otherwise it
runs in the control group that ``--cgroup`` names, whose limit you have set. Rows go to ``--rows``
as JSON lines, and to the screen.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from random_gguf import write_random_gguf

from infer_os.commands.groups import size_option
from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.models.bundled import TARGET
from infer_os.runtime.pages import drop_pages
from infer_os.runtime.plan.machine import read_cpu

_SWAP_KEYS = ("pswpin", "pswpout")


def model_file(name: str, kind: str, folder: Path) -> Path:
    """The GGUF to measure, made if it does not exist."""
    path = folder / f"{name}-{kind}.gguf"
    if not path.exists():
        if name == TARGET.name:
            convert(ConvertSettings(TARGET, path, kind))
        else:
            write_random_gguf(name, kind, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return path


def pages_swapped() -> int:
    """Pages that the machine swapped in or out since it started."""
    lines = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return sum(int(lines[key]) for key in _SWAP_KEYS)


def confined(limit: int, group: Path | None) -> Callable[[], None] | None:
    """What a started process does to itself before it becomes the program."""
    if group is not None:
        return lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None
    if limit:
        return lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return None


def run_once(path: Path, load: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run; returns what it says about its memory."""
    drop_pages(path)  # so that a control group pays for the file itself
    command = [
        sys.executable, "-m", "infer_os.cli", "generate", str(path), "--prompt",
        "the sea " * arguments.words, "-n", str(arguments.tokens),
        "--context", str(arguments.context), "--load", load,
        "--threads", str(arguments.threads), "--temperature", "0", "--json",
    ]  # fmt: skip
    if arguments.kv:
        command += ["--kv", arguments.kv]
    if arguments.limit:
        command += ["--memory", str(arguments.limit)]
    before = pages_swapped()
    result = subprocess.run(
        command, capture_output=True, text=True,
        preexec_fn=confined(arguments.limit, arguments.cgroup),
    )  # fmt: skip
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(command[2:])}: {result.stderr.strip()[-2000:]}")
    answer = json.loads(result.stdout)
    return {
        **answer["memory"],
        "prompt_tokens": answer["prompt_tokens"],
        "decode_tokens_per_s": answer["timings"]["decode_tokens_per_s"],
        "swapped_pages": pages_swapped() - before,
    }


def measure(name: str, load: str, path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A row: medians over the repeats."""
    runs = [run_once(path, load, arguments) for _ in range(arguments.repeats)]
    peaks = [run["peak_rss_bytes"] for run in runs]
    predicted = runs[0]["planned_bytes"]
    median = statistics.median(peaks)
    cpu = read_cpu()
    return {
        "benchmark": "memory_plan", "command": " ".join(sys.argv), "commit": commit(),
        "versions": {n: version(n) for n in ("infer-os", "llama-cpp-python")},
        "python": platform.python_version(), "cpu": cpu.model, "threads": arguments.threads,
        "repeats": arguments.repeats, "model": name, "type": arguments.type, "load": load,
        "context": arguments.context, "kv": arguments.kv or "f16", "limit": arguments.limit,
        "prompt_tokens": runs[0]["prompt_tokens"], "predicted": predicted, "median": median,
        "spread": max(peaks) - min(peaks), "error": predicted / median - 1,
        "swapped_pages": max(run["swapped_pages"] for run in runs), "last": runs[-1],
    }  # fmt: skip


def commit() -> str:
    """The checkout's commit; a plus sign for changes in it."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12"]
    result = subprocess.run(git, capture_output=True, text=True)
    return result.stdout.strip() or "unknown"


def rows(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row per model and load mode."""
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="memory-plan-") as folder:
        for name in arguments.models:
            path = model_file(name, arguments.type, Path(folder))
            for load in arguments.loads:
                yield measure(name, load, path, arguments)
            path.unlink()


def main() -> None:
    """Parse, run, print."""
    listed = lambda text: text.split(",")  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=listed, default=[TARGET.name, "pythia-160m"])
    parser.add_argument("--loads", type=listed, default=["mmap", "fast", "locked", "direct"])
    parser.add_argument("--type", default="q4_0")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--kv", default="")
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument(
        "--words", type=int, default=160, help="repetitions of 'the sea'; 512 tokens fill a batch"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--limit", type=lambda text: size_option("--limit", text), default=0)
    parser.add_argument("--cgroup", type=Path, help="folder of a control group with a limit")
    parser.add_argument("--folder", type=Path, help="where the models are made, and deleted")
    parser.add_argument("--rows", type=Path, help="append rows to this file as JSON lines")
    arguments = parser.parse_args()
    for row in rows(arguments):
        print(
            f"{row['model']:16} {row['load']:7} predicted {row['predicted'] / 1e6:9.1f} MB, peak "
            f"{row['median'] / 1e6:9.1f} MB, {100 * row['error']:+.1f} %, "
            f"{row['prompt_tokens']} prompt tokens, {row['swapped_pages']} pages swapped",
            flush=True,
        )
        if arguments.rows:
            with arguments.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
