"""Values per second that each K-quant kernel of ours quantizes, against ggml_quantize_chunk.

    python benchmarks/quantize_types.py [--types q4_k q5_k q6_k q3_k] [--rounds 9] [--values N]

One thread and its CPU time, normal random float32 rows of 2048 values, with and without an
importance matrix. All kernels that this CPU has take turns; their bytes must be ggml's. Each row is
one JSON line: millions of values per second and the ratio to ggml's in the same round, each as
first quartile, median and third quartile.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
from numpy.typing import NDArray

from infer_os.native.errors import QuantizeError
from infer_os.native.ggml_types import GgmlType, ggml_type_named
from infer_os.native.quantize import KERNELS, best_kernel, quantize_rows

_WIDTH = 2048


def available(target: GgmlType) -> list[str]:
    """ggml, and the kernels of ours that run here."""
    found = []
    for kernel in KERNELS[1:]:
        try:
            quantize_rows(np.zeros((1, _WIDTH), np.float32), target, n_threads=1, kernel=kernel)
            found.append(kernel)
        except QuantizeError:
            pass
    return found


def timed(
    rows: NDArray[np.float32],
    target: GgmlType,
    importance: NDArray[np.float32] | None,
    kernel: str,
) -> tuple[float, bytes]:
    """Seconds of CPU time, which other programs do not lengthen, and the bytes written."""
    started = time.thread_time()
    data, _ = quantize_rows(
        rows, target, n_threads=1, importance=importance, measure=False, kernel=kernel
    )
    return time.thread_time() - started, data.tobytes()


def quartiles(values: list[float]) -> list[float]:
    """First, second and third."""
    return [round(float(q), 2) for q in np.percentile(values, [25, 50, 75])]


def main() -> None:
    """Take turns and print a row per type and kernel."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", nargs="+", default=["q4_k", "q5_k", "q6_k", "q3_k"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--values", type=int, default=1 << 20)
    arguments = parser.parse_args()
    draw = np.random.default_rng(0)
    rows = draw.normal(0, 0.02, (arguments.values // _WIDTH, _WIDTH)).astype(np.float32)
    weights = draw.gamma(1, 1, _WIDTH).astype(np.float32)
    print(json.dumps({"best": best_kernel(), "values": rows.size, "rounds": arguments.rounds}))
    for name in arguments.types:
        target = ggml_type_named(name)
        for importance in (None, weights):
            seconds: dict[str, list[float]] = {kernel: [] for kernel in available(target)}
            for _ in range(arguments.rounds):
                written = set()
                for kernel, spent in seconds.items():
                    took, data = timed(rows, target, importance, kernel)
                    spent.append(took)
                    written.add(data)
                assert len(written) == 1, f"the kernels disagree on {name}"
            for kernel, spent in seconds.items():
                print(json.dumps({
                    "type": name, "importance": importance is not None, "kernel": kernel,
                    "million_values_per_s": quartiles([rows.size / s / 1e6 for s in spent]),
                    "times_ggml": quartiles(
                        [g / s for g, s in zip(seconds["ggml"], spent, strict=True)]
                    ),
                }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
