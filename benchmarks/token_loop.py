"""Decode speed of the token loop against llama.cpp's own loop in C++, alternately.

    python benchmarks/token_loop.py [--geometry distilgpt2] [--type q8_0] [--rounds 15]

Both load the same file with the same settings and take turns at N greedy steps from the same
prompt; the tokens must be the same. Prints the ratio of tokens per second (ours over C++) as
median and quartiles over the rounds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import llama_cpp
import numpy as np
from random_model import GEOMETRIES, make_folder

from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.native.layouts import llama_layouts
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.generate import Generation, PlainSource, stream_tokens
from infer_os.runtime.settings import EngineSettings, SamplingSettings

_PROMPT = [1, 2, 3, 4, 5, 6, 7, 8]


def build_loop(folder: Path) -> Path:
    """Compile token_loop.cpp against the llama.cpp that is installed."""
    packages = Path(llama_cpp.__file__).parent.parent
    library = packages / "llama_cpp" / "lib"
    program = folder / "token_loop"
    subprocess.run(
        ["c++", "-O2", "-std=c++17", str(Path(__file__).with_name("token_loop.cpp")),
         f"-I{packages / 'include'}", f"-L{library}", "-lllama", "-lggml", "-lggml-base",
         f"-Wl,-rpath,{library}", f"-Wl,-rpath-link,{library}", "-o", str(program)],
        check=True,
    )  # fmt: skip
    return program


def our_round(engine: LlamaEngine, n_steps: int) -> tuple[float, int]:
    """Seconds of ``n_steps`` greedy steps through the token loop, and a checksum of the tokens."""
    source = PlainSource(engine, engine.new_sampler(SamplingSettings(temperature=0)))
    engine.forget()
    checksum, count, start = 0, 0, 0.0
    # the first token comes from the prompt; each further one costs a step
    for token in stream_tokens(engine, _PROMPT, source, n_steps + 1, Generation()):
        if count == 0:
            start = time.perf_counter()
        if count < n_steps:
            checksum = (checksum * 31 + token) % 2**64
        count += 1
    seconds = time.perf_counter() - start
    source.close()
    if count != n_steps + 1:
        raise SystemExit("the model ended its text early: choose another --seed")
    return seconds, checksum


def main() -> None:
    """Make the model, take turns, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="distilgpt2")
    parser.add_argument("--type", default="q8_0")
    parser.add_argument("--load", choices=("mmap", "fast"), default="fast")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    n_ctx = 512
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_folder(arguments.geometry, folder / "model")
        gguf = folder / "model.gguf"
        convert(ConvertSettings(folder / "model", gguf, arguments.type))
        # like our engine, do not request layouts that would end the process here
        loaded = "0" if arguments.load == "mmap" else "2" if llama_layouts().types else "1"
        command = [str(build_loop(folder)), str(gguf), str(n_ctx), str(arguments.threads),
                   str(arguments.steps), loaded]  # fmt: skip
        settings = EngineSettings(n_ctx, arguments.load, arguments.threads)
        with (
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            as other,
            LlamaEngine(gguf, settings) as engine,
        ):  # fmt: skip
            assert other.stdin is not None and other.stdout is not None
            ours, theirs = [], []
            for i in range(arguments.rounds + 1):
                other.stdin.write("go\n")
                other.stdin.flush()
                their_seconds, their_sum = other.stdout.readline().split()
                our_seconds, our_sum = our_round(engine, arguments.steps)
                if int(their_sum) != our_sum:
                    sys.exit("the two loops wrote different tokens")
                if i:  # the first round warms up
                    theirs.append(arguments.steps / float(their_seconds))
                    ours.append(arguments.steps / our_seconds)
            other.stdin.close()
    ratios = np.array(ours) / np.array(theirs)
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    print(
        f"{arguments.geometry} {arguments.type}, load {arguments.load}, {arguments.threads} "
        f"threads, {arguments.steps} greedy steps, {arguments.rounds} rounds taking turns:\n"
        f"  llama.cpp in C++ {np.median(theirs):7.1f} tokens/s\n"
        f"  infer-os         {np.median(ours):7.1f} tokens/s\n"
        f"  ratio            {middle:.3f} (quartiles {low:.3f} to {high:.3f})"
    )


if __name__ == "__main__":
    main()
