"""Our kernels against llama.cpp's, side by side in one process.

    python benchmarks/kernels.py steps [--model gpt-j-6B] [--layers 4] [--types q4_0,q8_0]
    python benchmarks/kernels.py prefill [--tokens 512] ...
    python benchmarks/kernels.py depth [--depth 1800] [--caches f16,q8_0,q4_0] ...
    python benchmarks/kernels.py small FILE.gguf

``steps``: one decoding step of 1 to 32 tokens, all with logits, as for verifying a draft, and the
share of the memory's read bandwidth (measured by a plain C loop in the same repeat) that reading
the weights once in that time uses. ``prefill``: a prompt, and its products as shares
of what the 8-bit multipliers do from registers, and of what the kernels' innermost loop does from
the L1 cache, both measured likewise. ``depth``: a step of one token after many others and after
few, per type of the KV cache. ``small``: a step of a small model from a file. The compared sides
are ``native``, ``stock`` (both with the file's own pages) and ``repacked`` (llama.cpp's fastest, on
private copies); every repeat runs all of them alternately. Weights are random. A row per case and
side, in JSON: the median, and the fastest and slowest, in seconds; ``ratio`` is the median of
stock's, or repacked's, time over ours in the same repeat, with its quartiles.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from random_gguf import write_random_gguf

from infer_os.native.backend import start_kernels
from infer_os.native.context import Context, ContextParams
from infer_os.native.cpu import multiply_rate, read_bandwidth
from infer_os.native.gguf_file import read_gguf_header
from infer_os.native.kv_state import KvFormat, kv_geometry
from infer_os.native.layouts import llama_layouts
from infer_os.native.library import llama_version
from infer_os.native.model import LlamaModel

Case = TypeVar("Case")
#: Threads of llama.cpp's OpenMP wait for more for some milliseconds, on the next side's processors.
_REST_S = 0.02
#: The depth that a deep step is compared with.
_NEAR = 16
_SIDES = {"native": ("mmap", True), "stock": ("mmap", False), "repacked": ("fast", False)}


@dataclass(frozen=True, slots=True)
class Where:
    """What every row says about how it was measured."""

    arguments: argparse.Namespace

    def say(self, row: dict[str, Any]) -> None:
        """Print a row."""
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip()
        cpu = next(
            (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")), platform.processor(),
        )  # fmt: skip
        given = self.arguments
        where = {"layers": given.layers, "repeats": given.repeats, "threads": given.threads,
                 "variant": start_kernels().variant, "cpu": cpu, "llama": llama_version(),
                 "commit": commit, "command": " ".join(sys.argv)}  # fmt: skip
        print(json.dumps(row | where), flush=True)


@contextmanager
def random_file(arguments: argparse.Namespace, kind: str) -> Iterator[Path]:
    """A model of the geometry with random weights, for as long as it is needed."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "model.gguf"
        write_random_gguf(arguments.model, kind, path, layers=arguments.layers)
        yield path


@contextmanager
def sides(path: Path, names: list[str], params: ContextParams) -> Iterator[dict[str, Context]]:
    """A context of every side."""
    with ExitStack() as stack:
        contexts = {}
        for name in names:
            load, native = _SIDES[name]
            model = stack.enter_context(LlamaModel(path, load=load, native=native))
            contexts[name] = stack.enter_context(Context(model, params))
        yield contexts


def by_turns(
    cases: dict[str, Case],
    repeats: int,
    run: Callable[[Case], float],
    *probes: Callable[[], float],
) -> tuple[dict[str, list[float]], list[list[float]]]:
    """Seconds of every side in every repeat, and what each probe says in each.

    The starting side changes, and one round warms up.
    """
    taken: dict[str, list[float]] = {name: [] for name in cases}
    probed: list[list[float]] = [[] for _ in probes]
    names = list(cases)
    for i in range(repeats + 1):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            time.sleep(_REST_S)
            seconds = run(cases[name])
            if i:
                taken[name].append(seconds)
        if i:
            for said, probe in zip(probed, probes, strict=True):
                said.append(probe())
    return taken, probed


def spread(values: list[float]) -> list[float]:
    """The first quartile, the median and the third."""
    return statistics.quantiles(values, n=4) if len(values) > 1 else values * 3


def rows(taken: dict[str, list[float]], about: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row per side."""
    for name, seconds in taken.items():
        row = about | {"side": name, "median_s": statistics.median(seconds),
                       "spread_s": [min(seconds), max(seconds)]}  # fmt: skip
        if name != "native":
            ratios = [s / n for s, n in zip(seconds, taken["native"], strict=True)]
            low, middle, high = spread(ratios)
            row |= {"ratio": middle, "quartiles": [low, high]}
        yield row


def shares(amount: int, seconds: list[float], rates: list[float]) -> list[float]:
    """An amount per those seconds as a share of a rate per second, with its spread."""
    return spread([amount / s / rate for s, rate in zip(seconds, rates, strict=True)])


def timed_step(n: int, position: int, outputs: int) -> Callable[[Context], float]:
    """A step of ``n`` tokens at a position, which is forgotten again."""
    tokens = [(7 * i) % 1000 + 1 for i in range(n)]

    def run(context: Context) -> float:
        start = time.perf_counter()
        context.decode(tokens, position, outputs=outputs)
        context.logits()
        seconds = time.perf_counter() - start
        context.trim(position)
        return seconds

    return run


def weight_bytes(context_path: Path) -> int:
    """Bytes of the matrices that a step reads; of a separate embedding it reads only a row."""
    tensors = read_gguf_header(context_path).tensors
    tied = all(tensor.name != "output.weight" for tensor in tensors)
    return sum(
        tensor.n_bytes for tensor in tensors
        if tensor.name not in ("token_embd.weight", "position_embd.weight")
        or (tied and tensor.name == "token_embd.weight")
    )  # fmt: skip


def products(path: Path, n: int) -> int:
    """Multiply-adds of a prompt's matrices.

    After the last layer's attention llama.cpp goes on with only the last token.
    """
    header = read_gguf_header(path)
    sizes = {t.name: math.prod(t.shape) for t in header.tensors if len(t.shape) == 2}
    layers = {name: size for name, size in sizes.items() if name.startswith("blk.")}
    once = f"blk.{header.count('block_count', 1) - 1}.ffn_"
    all_tokens = sum(size for name, size in layers.items() if not name.startswith(once))
    last_token = sum(size for name, size in layers.items() if name.startswith(once))
    head = sizes.get("output.weight", sizes["token_embd.weight"])
    return n * all_tokens + last_token + head


def steps(arguments: argparse.Namespace, where: Where) -> None:
    """Steps of few tokens."""
    counts = [int(n) for n in arguments.counts.split(",")]
    params = ContextParams(256, arguments.threads, n_batch=max(counts), n_outputs_max=max(counts))
    for kind in arguments.types.split(","):
        with (
            random_file(arguments, kind) as path,
            sides(path, arguments.sides, params) as contexts,
        ):
            n_bytes = weight_bytes(path)
            for n in counts:
                taken, (bandwidth,) = by_turns(
                    contexts, arguments.repeats, timed_step(n, 0, n),
                    lambda: read_bandwidth(arguments.threads, seconds=0.05),
                )  # fmt: skip
                about = {"what": "step", "model": arguments.model, "type": kind, "tokens": n}
                for row in rows(taken, about):
                    share = shares(n_bytes, taken[row["side"]], bandwidth)
                    where.say(row | {"bandwidth_share": share, "bandwidth": spread(bandwidth)})


def prefill(arguments: argparse.Namespace, where: Where) -> None:
    """A prompt, into every type of cache."""
    n = arguments.tokens
    for kind in arguments.types.split(","):
        with random_file(arguments, kind) as path:
            n_products = products(path, n)
            for cache in arguments.caches.split(","):
                params = ContextParams(n, arguments.threads, n_batch=min(n, 512), type_k=cache,
                                       type_v=cache)  # fmt: skip
                with sides(path, arguments.sides, params) as contexts:
                    taken, (rate, scaled) = by_turns(
                        contexts, arguments.repeats, timed_step(n, 0, 1),
                        lambda: multiply_rate(arguments.threads, seconds=0.05),
                        lambda: multiply_rate(arguments.threads, seconds=0.05, scaled=True),
                    )  # fmt: skip
                about = {"what": "prefill", "model": arguments.model, "type": kind, "tokens": n,
                         "cache": cache}  # fmt: skip
                for row in rows(taken, about):
                    seconds = taken[row["side"]]
                    where.say(row | {"tokens_per_s": n / row["median_s"],
                                     "int8_share": shares(n_products, seconds, rate),
                                     "loop_share": shares(n_products, seconds, scaled),
                                     "int8_rate": spread(rate)})  # fmt: skip


def depth(arguments: argparse.Namespace, where: Where) -> None:
    """A step after many tokens and after few, alternating all types of cache.

    ``of_bytes`` is the step after many, over the step after few and the time that the memory needs
    for what the cache holds.
    """
    depths, kind = (_NEAR, arguments.depth), arguments.types.split(",")[0]
    with random_file(arguments, kind) as path, ExitStack() as stack:
        cases: dict[tuple[str, str, int], tuple[Context, int]] = {}
        for cache in arguments.caches.split(","):
            for n in depths:
                params = ContextParams(n + 64, arguments.threads, type_k=cache, type_v=cache)
                made = stack.enter_context(sides(path, arguments.sides, params))
                cases |= {(cache, name, n): (context, n) for name, context in made.items()}
        for context, n in cases.values():
            fill(context, n)
        taken, (bandwidth,) = by_turns(
            {" ".join(map(str, key)): case for key, case in cases.items()},
            arguments.repeats,
            lambda case: timed_step(1, case[1], 1)(case[0]),
            lambda: read_bandwidth(arguments.threads, seconds=0.05),
        )
        far = {
            (cache, name): taken[f"{cache} {name} {n}"]
            for cache, name, n in cases if n == arguments.depth
        }  # fmt: skip
        for (cache, name), seconds in far.items():
            near = taken[f"{cache} {name} {_NEAR}"]
            n_bytes = cache_bytes(path, cache) * arguments.depth
            need = [n + n_bytes / rate for n, rate in zip(near, bandwidth, strict=True)]
            row = {"what": "depth", "model": arguments.model, "type": kind, "cache": cache,
                   "depth": arguments.depth, "side": name, "median_s": statistics.median(seconds),
                   "spread_s": [min(seconds), max(seconds)], "near_s": statistics.median(near),
                   "of_bytes": spread([a / b for a, b in zip(seconds, need, strict=True)]),
                   }  # fmt: skip
            if f16 := far.get(("f16", "native")):
                ratios = [a / b for a, b in zip(f16, seconds, strict=True)]
                row["f16_over_this"] = statistics.median(ratios)
            where.say(row)


def fill(context: Context, n: int) -> None:
    """Tokens for the first n cells."""
    for first in range(0, n, context.n_batch):
        count = min(context.n_batch, n - first)
        context.decode([(7 * i) % 1000 + 1 for i in range(count)], first, outputs=0)


def cache_bytes(path: Path, cache: str) -> int:
    """Bytes of a token in a cache of one type."""
    geometry = kv_geometry(read_gguf_header(path))
    return geometry.n_layer * sum(KvFormat(cache, cache).row_bytes(geometry))


def small(arguments: argparse.Namespace, where: Where) -> None:
    """A step of a model from a file."""
    path = arguments.file
    params = ContextParams(256, arguments.threads)
    with sides(path, arguments.sides, params) as contexts:
        taken, _ = by_turns(contexts, arguments.repeats, timed_step(1, 16, 1))
        for row in rows(taken, {"what": "small", "file": path.name}):
            where.say(row)


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("steps", "prefill", "depth", "small"))
    parser.add_argument("file", nargs="?", type=Path, help="of small")
    parser.add_argument("--model", default="gpt-j-6B")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--types", default="q4_0,q8_0")
    parser.add_argument("--counts", default="1,2,3,4,6,8,16,32")
    parser.add_argument("--caches", default="f16")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--depth", type=int, default=1800)
    parser.add_argument("--sides", default="native,stock,repacked")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", help="for the temporary model")
    arguments = parser.parse_args()
    arguments.sides = arguments.sides.split(",")
    for side in arguments.sides:
        if side not in _SIDES:
            parser.error(f"--sides {side}: choose from {', '.join(_SIDES)}")
    if "repacked" in arguments.sides and (reason := llama_layouts().reason):
        arguments.sides.remove("repacked")
        print(f"repacked is left out: {reason}", file=sys.stderr)
    what = {"steps": steps, "prefill": prefill, "depth": depth, "small": small}
    what[arguments.what](arguments, Where(arguments))


if __name__ == "__main__":
    main()
