"""Bits that must be equal: products by every variant, and texts with any threads or company.

    python benchmarks/bits.py FILE.gguf [--products 10000] [--texts 200] [--busy 2] [--seed 1]

Products: random weights, shapes, numbers of columns and of threads; each variant that this
processor runs against the portable path. Texts: random beginnings and lengths, greedy and seeded;
alone with one thread, alone with all, and all of them in one batch must be the same, with their
log-probabilities. ``--busy`` programs keep the processors from all of this meanwhile.
Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from busy import busy_loops
from infer_os.api import load
from infer_os.native.abi import Status, inferos_mul_mat
from infer_os.native.backend import start_kernels, taken_types
from infer_os.native.ggml_types import ggml_type_named
from infer_os.native.library import load_library
from infer_os.runtime.batch.settings import BatchSettings
from infer_os.runtime.settings import EngineSettings

VARIANTS = ("avx2", "avxvnni", "avx512vnni", "avx512vbmi", "amx-emulated", "neon")
WORDS = [
    "the", "sea", "a", "letter", "of", "my", "sister", "was", "said", "to", "her", "and", "never",
]  # fmt: skip


def product(
    variant: str, kind: str, weights: NDArray[np.uint8], x: NDArray[np.float32], threads: int
) -> NDArray[np.float32] | None:
    """(n_columns, n_rows); None where this processor has no such variant."""
    out = np.zeros((len(x), len(weights)), np.float32)
    job = inferos_mul_mat(
        weights.ctypes.data, x.ctypes.data, out.ctypes.data, len(weights), x.shape[1], len(x),
        weights.shape[1], ggml_type_named(kind).id, threads,
    )  # fmt: skip
    status = load_library().inferos_kernels_mul_mat(variant.encode(), ctypes.byref(job))
    if status == Status.BAD_TYPE:
        return None
    if status != 0:
        raise RuntimeError(f"{variant} {kind}: status {status}")
    return out


def compare_products(count: int, random: np.random.Generator) -> int:
    """How many of so many random products differ."""
    kinds = sorted(taken_types(start_kernels()))
    different = compared = 0
    for _ in range(count):
        kind = kinds[random.integers(len(kinds))]
        known = ggml_type_named(kind)
        unit = max(known.block, 32)
        n_rows, n_columns = int(random.integers(16, 200)), int(random.integers(1, 40))
        n_per_row = unit * int(random.integers(1, 1 + 1024 // unit))
        size = n_per_row // known.block * known.bytes
        # any bits: NaN and infinity among the scales too
        weights = random.integers(0, 256, (n_rows, size), np.uint8)
        x = random.standard_normal((n_columns, n_per_row), np.float32)
        wanted = product("portable", kind, weights, x, 1)
        assert wanted is not None
        for variant in VARIANTS:
            got = product(variant, kind, weights, x, int(random.integers(1, 5)))
            if got is not None:
                compared += 1
                different += not np.array_equal(got, wanted, equal_nan=True)
    print(f"products: {count} in {', '.join(kinds)}; {compared} comparisons, {different} differ")
    return different


def compare_texts(file: Path, count: int, random: np.random.Generator) -> int:
    """How many of so many texts differ with other threads, or in a batch."""
    records = [
        {
            "id": i,
            "prompt": " ".join(random.choice(WORDS, int(random.integers(1, 120)))),
            "max_tokens": int(random.integers(4, 40)),
            "temperature": float(random.choice([0.0, 0.8])),
            "seed": int(random.integers(1 << 30)),
        }
        for i in range(count)
    ]
    processors = os.cpu_count() or 1
    answers: dict[str, list[tuple[object, object]]] = {}
    for name, threads, parallel in (
        ("1 thread", 1, 1), (f"{processors} threads", processors, 1), ("8 at once", processors, 8),
        ("13 at once, 1 thread", 1, 13),
    ):  # fmt: skip
        settings = BatchSettings(parallel=parallel, logprobs=1)
        with load(file, settings=EngineSettings(threads=threads, context=512)) as model:
            done = model.batch(records, settings=settings, ordered=True)
            answers[name] = [(answer.text, answer.logprobs) for answer in done]
    first = answers.pop("1 thread")
    different = 0
    for name, others in answers.items():
        unlike = sum(one != other for one, other in zip(first, others, strict=True))
        print(f"texts: {count}, 1 thread against {name}: {unlike} differ")
        different += unlike
    return different


def main() -> int:
    """Compare, print, and say whether all was equal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--products", type=int, default=10_000)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--busy", type=int, default=2, help="programs beside it")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    random = np.random.default_rng(arguments.seed)
    with busy_loops(arguments.busy):
        different = compare_products(arguments.products, random)
        different += compare_texts(arguments.file, arguments.texts, random)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
