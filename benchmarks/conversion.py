"""Conversion against llama.cpp's own: convert_hf_to_gguf.py, then llama-quantize, alternately.

    python benchmarks/conversion.py --llama-cpp SOURCE --llama-build BUILD --python PYTHON \
        [--geometry pythia-1.4b] [--types q4_0 q8_0 q4_k_m] [--rounds 3]

SOURCE is llama.cpp's source folder, BUILD its build folder (with bin/llama-quantize), PYTHON an
interpreter with what convert_hf_to_gguf.py needs (torch, transformers 4). For Q8_0 the other side
needs only one pass, as its converter writes that type itself. Both sides read the same folder of
random weights from a warm page cache. Prints wall time, peak memory and scratch space of each side,
and the ratio of the wall times with its range over the rounds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from random_model import GEOMETRIES, make_folder


@dataclass(frozen=True)
class Run:
    """One side's cost: seconds, largest resident set of a process, extra bytes on the disk."""

    seconds: float
    peak_rss: int
    scratch: int


def run(commands: list[list[str]], scratch: Path | None = None, path: Path | None = None) -> Run:
    """Run commands one after another; ``scratch`` is the file between them.

    ``path`` goes to PYTHONPATH.
    """
    environment = {**os.environ, **({"PYTHONPATH": str(path)} if path else {})}
    seconds, peak = 0.0, 0
    for command in commands:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
        )
        assert process.stderr is not None
        complaint = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds += time.perf_counter() - started
        peak = max(peak, usage.ru_maxrss * 1024)
        if process.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{complaint.decode(errors='replace')[-2000:]}")
    return Run(seconds, peak, scratch.stat().st_size if scratch and scratch.exists() else 0)


# llama.cpp's converter recognises published tokenizers by a hash; ours is made up, of GPT-2's kind
_WRAPPER = """
import runpy, sys
import conversion.base as base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def their_commands(
    arguments: argparse.Namespace, source: Path, kind: str, place: Path
) -> tuple[list[list[str]], Path | None]:
    """llama.cpp's way to a type, and the file that it needs on the way."""
    script = str(arguments.llama_cpp / "convert_hf_to_gguf.py")
    convert = [arguments.python, "-c", _WRAPPER, script, str(source), "--outtype"]
    out = str(place / "theirs.gguf")
    if kind == "q8_0":
        return [[*convert, "q8_0", "--outfile", out]], None
    between = place / "between.gguf"
    quantize = str(arguments.llama_build / "bin" / "llama-quantize")
    return [
        [*convert, "f16", "--outfile", str(between)],
        [quantize, str(between), out, kind.upper(), str(arguments.threads)],
    ], between


def our_command(source: Path, kind: str, place: Path, threads: int) -> list[str]:
    """Ours."""
    return [
        sys.executable, "-m", "infer_os.cli", "convert", str(source), "--type", kind,
        "-o", str(place / "ours.gguf"), "--force", "--threads", str(threads),
    ]  # fmt: skip


def main() -> None:
    """Take turns and print a row per type."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("--llama-build", type=Path, required=True)
    parser.add_argument("--python", required=True)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="pythia-1.4b")
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--types", nargs="+", default=["q4_0", "q8_0", "q4_k_m"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        source = place / arguments.geometry
        make_folder(arguments.geometry, source, layers=arguments.layers)
        total = sum(file.stat().st_size for file in source.glob("*.safetensors"))
        print(f"{arguments.geometry}: {total / 1e9:.2f} GB of float16, {arguments.rounds} rounds")
        for kind in arguments.types:
            theirs, ours = [], []
            for _ in range(arguments.rounds):
                commands, between = their_commands(arguments, source, kind, place)
                theirs.append(run(commands, between, arguments.llama_cpp))
                ours.append(run([our_command(source, kind, place, arguments.threads)]))
            print_row(kind, theirs, ours)


def print_row(kind: str, theirs: list[Run], ours: list[Run]) -> None:
    """Medians of both sides, and the range of the ratio."""
    ratios = np.array([t.seconds / o.seconds for t, o in zip(theirs, ours, strict=True)])
    for name, runs in (("llama.cpp", theirs), ("infer-os", ours)):
        print(
            f"{kind:8} {name:10} {np.median([r.seconds for r in runs]):7.1f} s  peak RSS "
            f"{max(r.peak_rss for r in runs) / 1e9:.2f} GB  scratch {runs[0].scratch / 1e9:.2f} GB"
        )
    print(
        f"{kind:8} {np.median(ratios):.2f} times as fast ({ratios.min():.2f} to {ratios.max():.2f})"
    )


if __name__ == "__main__":
    main()
