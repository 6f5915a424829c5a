"""How long a cached model takes to be ready when named, against the same file by its path.

    python benchmarks/start.py [--geometry distilgpt2 ...] [--rounds 11] [--before PYTHON]

A checkpoint of a published geometry with random weights is converted to Q4_0 into a cache of its
own. Alternately, each in a separate process: ``infer-os run --model NAME --interactive`` with
nothing to read, which ends when it is ready to talk, with a hub that does not exist; ``infer-os
chat FILE``, the same without the cache; Python importing llama-cpp-python alone; and ``--help``.
``--before`` is the interpreter of another installation, whose starts join the rounds. Seconds by
the clock as median and quartiles, and the median of processor seconds, which other load on the
machine hardly changes.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from random_model import GEOMETRIES, make_folder

from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.store.resolve import find_source
from infer_os.store.shelves import shelf_of


def seconds(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Run a command to its end: seconds by the clock, and of the processor."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, check=True, env=environment
    )
    taken, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return taken, worked


def measure(geometry: str, layers: int, rounds: int, place: Path, before: str) -> None:
    """Convert one model and time its starts."""
    make_folder(geometry, place / "model", layers=layers)
    path = shelf_of(find_source(geometry)).file("q4_0")
    path.parent.mkdir(parents=True)
    n_bytes = convert(ConvertSettings(place / "model", path, "q4_0")).n_bytes
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"}
    sides = {}
    for python, when in ((sys.executable, ""), (before, ", before")):
        if python:
            infer_os = [str(Path(python).with_name("infer-os"))]
            sides[f"run by name{when}"] = [*infer_os, "run", "--model", geometry, "--interactive"]
            sides[f"chat by path{when}"] = [*infer_os, "chat", str(path)]
            sides[f"import llama_cpp{when}"] = [python, "-c", "import llama_cpp"]
            sides[f"--help{when}"] = [*infer_os, "--help"]
    found: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for i in range(rounds + 1):
        for side, command in sides.items():
            taken = seconds(command, environment)
            if i:  # the first round warms up
                found[side].append(taken)
    print(f"{geometry}, {n_bytes / 1e6:.0f} MB, {rounds} rounds taking turns:")
    for side, values in found.items():
        clock, worked = np.array(values).T
        low, middle, high = np.percentile(clock, [25, 50, 75])
        print(
            f"  {side:24} {middle:.2f} s (quartiles {low:.2f} to {high:.2f}), "
            f"{np.median(worked):.2f} s of the processor"
        )


def main() -> None:
    """Measure each geometry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--geometry", nargs="+", choices=GEOMETRIES, default=["distilgpt2"])
    parser.add_argument("--layers", type=int, default=0, help="fewer layers than published")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--before", default="", help="the python of another installation")
    arguments = parser.parse_args()
    for geometry in arguments.geometry:
        with tempfile.TemporaryDirectory() as temporary:
            os.environ["INFER_OS_CACHE"] = f"{temporary}/cache"
            measure(geometry, arguments.layers, arguments.rounds, Path(temporary), arguments.before)


if __name__ == "__main__":
    main()
