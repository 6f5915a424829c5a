"""Throughput of the batch engine against llama.cpp's llama-batched-bench and single prompts.

    python benchmarks/batch.py --batched-bench PATH [--model FILE | --geometry pythia-160m]
                               [--parallel 16] [--prompt 64] [--tokens 64] [--rounds 5]

64 prompts of equal length, greedy, are answered by the batch engine; llama-batched-bench computes
the same number of sequences and tokens at once, in waves (it draws no tokens: they are random);
and the engine of ``generate`` answers some prompts one after another. All alternate in each round,
 with the same file, threads and load mode (llama.cpp's default layout). Prints tokens
per second, prompts included, as median and quartiles, the ratios of each round, and the peak of the
process next to its plan.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from random_model import GEOMETRIES, make_folder

from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.native.layouts import llama_layouts
from infer_os.native.residency import peak_rss_bytes
from infer_os.runtime.batch.batch_engine import BatchEngine
from infer_os.runtime.batch.records import Record
from infer_os.runtime.batch.settings import BatchSettings
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.generate import Generation, PlainSource, stream_tokens
from infer_os.runtime.settings import EngineSettings, SamplingSettings, StopSettings

_PROMPTS = 64
_ALONE = 8


class FixedBatchEngine(BatchEngine):
    """Takes the tokens of a prompt from a table, so that all have the same number."""

    table: dict[object, tuple[int, ...]]

    def prompt_tokens(self, record: Record) -> tuple[int, ...]:
        """Tokens by id."""
        return self.table[record.id]


def batched_bench(program: Path, model: Path, given: argparse.Namespace, n_ctx: int) -> float:
    """Tokens per second that llama.cpp's own tool reports."""
    command = [
        str(program), "-m", str(model), "-c", str(n_ctx * given.parallel), "-b", "512", "-ub",
        "512", "-npp", str(given.prompt), "-ntg", str(given.tokens), "-npl", str(given.parallel),
        "-t", str(given.threads), "-tb", str(given.threads), "--output-format", "jsonl",
        "--load-mode", "mmap" if given.load == "mmap" else "none",
        *(["--no-repack"] if given.load == "mmap" or llama_layouts().reason else []),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return float(rows[-1]["speed"])


def batch_round(engine: FixedBatchEngine, n_tokens: int) -> float:
    """Tokens per second of 64 prompts."""
    greedy = SamplingSettings(temperature=0)
    records = [Record(i, i + 1, greedy, StopSettings(n_tokens), "-") for i in range(_PROMPTS)]
    started = time.perf_counter()
    answers = list(engine.run(records))
    seconds = time.perf_counter() - started
    n_all = sum(len(a.tokens) for a in answers) + sum(map(len, engine.table.values()))
    return n_all / seconds


def alone_round(engine: LlamaEngine, prompts: list[tuple[int, ...]], n_tokens: int) -> float:
    """Tokens per second of prompts one after another."""
    n_all, started = 0, time.perf_counter()
    for prompt in prompts:
        engine.forget()
        source = PlainSource(engine, engine.new_sampler(SamplingSettings(temperature=0)))
        n_all += len(prompt) + sum(
            1 for _ in stream_tokens(engine, prompt, source, n_tokens, Generation())
        )
        source.close()
    return n_all / (time.perf_counter() - started)


def spread(name: str, values: list[float]) -> str:
    """Median and quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"  {name:34} {middle:9.2f} (quartiles {low:.2f} to {high:.2f})"


def main() -> None:
    """Make the model, take turns, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batched-bench", type=Path, help="llama.cpp's llama-batched-bench")
    parser.add_argument("--model", type=Path, help="a GGUF file instead of a geometry")
    parser.add_argument("--geometry", choices=GEOMETRIES, default="pythia-160m")
    parser.add_argument("--type", default="q8_0")
    parser.add_argument("--parallel", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--load", choices=("mmap", "fast"), default="fast")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    n_ctx = -(-(given.prompt + given.tokens) // 256) * 256
    chance = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as temporary:
        model = given.model
        if model is None:
            make_folder(given.geometry, Path(temporary) / "model")
            model = Path(temporary) / "model.gguf"
            convert(ConvertSettings(Path(temporary) / "model", model, given.type))
        settings = EngineSettings(n_ctx, given.load, given.threads)
        ours: list[float] = []
        theirs: list[float] = []
        single: list[float] = []
        with FixedBatchEngine(model, settings, BatchSettings(given.parallel)) as engine:
            engine.table = {
                i: tuple(map(int, chance.integers(1, engine.vocab.n_tokens, given.prompt)))
                for i in range(_PROMPTS)
            }
            batch_round(engine, 4)
            batch_peak, planned = peak_rss_bytes(), engine.planned_bytes
            with LlamaEngine(model, settings) as alone:
                for _ in range(given.rounds):
                    ours.append(batch_round(engine, given.tokens))
                    if given.batched_bench:
                        theirs.append(batched_bench(given.batched_bench, model, given, n_ctx))
                    prompts = list(engine.table.values())[:_ALONE]
                    single.append(alone_round(alone, prompts, given.tokens))
    print(
        f"{model.name if given.model else given.geometry + ' ' + given.type}, load {given.load}, "
        f"{given.threads} threads, {_PROMPTS} prompts of {given.prompt} tokens and {given.tokens} "
        f"drawn, {given.parallel} at once, {given.rounds} rounds, tokens/s:"
    )
    print(spread("infer-os batch", ours))
    if theirs:
        print(spread("llama-batched-bench", theirs))
        print(spread("ratio", [a / b for a, b in zip(ours, theirs, strict=True)]))
    print(spread("one by one", single))
    print(spread("ratio", [a / b for a, b in zip(ours, single, strict=True)]))
    print(f"  peak RSS {batch_peak / 1e6:.1f} MB, planned {planned / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
