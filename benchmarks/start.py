"""How long a cached model takes to be ready when named, against the same file by its path.

    python benchmarks/start.py [--geometry distilgpt2 pythia-160m ...] [--rounds 11]

A checkpoint of a published geometry with random weights is converted to Q4_0 into a cache of its
own. Alternately, each in a separate process: ``infer-os run --model NAME --interactive`` with
nothing to read, which ends when it is ready to talk, with a hub that does not exist; ``infer-os
chat FILE``, the same without the cache; and Python importing llama-cpp-python alone. Seconds by the
clock as median and quartiles, and the median of processor seconds, which other load on the
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


def measure(geometry: str, layers: int, rounds: int, place: Path) -> None:
    """Convert one model and time its starts."""
    make_folder(geometry, place / "model", layers=layers)
    path = shelf_of(find_source(geometry)).file("q4_0")
    path.parent.mkdir(parents=True)
    n_bytes = convert(ConvertSettings(place / "model", path, "q4_0")).n_bytes
    infer_os = [sys.executable, "-m", "infer_os.cli"]
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"}
    sides = {
        "run by name": [*infer_os, "run", "--model", geometry, "--interactive"],
        "chat by path": [*infer_os, "chat", str(path)],
        "import llama_cpp": [sys.executable, "-c", "import llama_cpp"],
    }
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
            f"  {side:17} {middle:.2f} s (quartiles {low:.2f} to {high:.2f}), "
            f"{np.median(worked):.2f} s of the processor"
        )


def main() -> None:
    """Measure each geometry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--geometry", nargs="+", choices=GEOMETRIES, default=["distilgpt2"])
    parser.add_argument("--layers", type=int, default=0, help="fewer layers than published")
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()
    for geometry in arguments.geometry:
        with tempfile.TemporaryDirectory() as temporary:
            os.environ["INFER_OS_CACHE"] = f"{temporary}/cache"
            measure(geometry, arguments.layers, arguments.rounds, Path(temporary))


if __name__ == "__main__":
    main()
