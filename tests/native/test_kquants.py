"""Every compilation of the K-quant kernels against ggml itself, byte for byte."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from infer_os.native.errors import QuantizeError
from infer_os.native.ggml_types import ggml_type_named
from infer_os.native.quantize import KERNELS, best_kernel, quantize_rows

from .test_quantize import by_ggml

Floats = NDArray[np.float32]
Draw = np.random.Generator

TYPES = ("q3_k", "q4_k", "q5_k", "q6_k")
#: Fewer super-blocks than lanes, about as many, and more; odd numbers of rows.
SHAPES = ((1, 256), (5, 1792), (37, 256), (35, 768))


def here(kernel: str) -> bool:
    """Whether this build and CPU have a kernel."""
    try:
        quantize_rows(np.zeros((1, 256), np.float32), ggml_type_named("q4_k"), n_threads=1,
                      kernel=kernel)  # fmt: skip
    except QuantizeError:
        return False
    return True


OURS = [name for name in KERNELS[2:] if here(name)]


def in_sub_blocks(draw: Draw, shape: tuple[int, int], scales: Floats) -> Floats:
    """Normal values, each sixteen of them with a scale of their own out of ``scales``."""
    values = draw.standard_normal((*shape,)).reshape(-1, 16)
    return (values * draw.choice(scales, (len(values), 1))).reshape(shape).astype(np.float32)


def with_outlier(draw: Draw, shape: tuple[int, int]) -> Floats:
    rows = draw.standard_normal(shape) * 1e-3
    rows[np.arange(shape[0]), draw.integers(0, shape[1], shape[0])] = 50000 * draw.choice([-1, 1])
    return rows.astype(np.float32)


def constant(draw: Draw, shape: tuple[int, int]) -> Floats:
    """Each thirty-two values alike, some of them zero."""
    levels = draw.choice([-3.0, -1e-3, -0.0, 0.0, 1e-20, 0.7, 42.0], (shape[0] * shape[1] // 32, 1))
    return np.repeat(levels, 32, axis=1).reshape(shape).astype(np.float32)


ROWS: dict[str, Callable[[Draw, tuple[int, int]], Floats]] = {
    "normal": lambda draw, shape: draw.normal(0, 0.02, shape).astype(np.float32),
    "heavy-tailed": lambda draw, shape: (
        draw.standard_cauchy(shape).clip(-60000, 60000).astype(np.float32)
    ),
    "positive": lambda draw, shape: draw.uniform(0.5, 1, shape).astype(np.float32),
    "negative": lambda draw, shape: draw.uniform(-7, -6, shape).astype(np.float32),
    "zeros": lambda draw, shape: np.zeros(shape, np.float32),
    "signed zeros": lambda draw, shape: draw.choice([0.0, -0.0, 1.0], shape).astype(np.float32),
    "constant": constant,
    "outlier": with_outlier,
    "sparse": lambda draw, shape: (
        draw.standard_normal(shape) * (draw.random(shape) < 0.05)
    ).astype(np.float32),
    "ties": lambda draw, shape: draw.integers(-4, 4, shape).astype(np.float32),
    "scales apart": lambda draw, shape: in_sub_blocks(
        draw, shape, np.float32(10) ** np.arange(-6, 4, dtype=np.float32)
    ),
    # around 1e-15, where ggml takes a block for zeros
    "next to nothing": lambda draw, shape: in_sub_blocks(
        draw, shape, np.array([1e-16, 3e-16, 1e-15, 3e-15, 1e-14], np.float32)
    ),
    "denormal": lambda draw, shape: in_sub_blocks(
        draw, shape, np.array([1e-45, 1e-43, 1e-40, 1e-38, 1e-36], np.float32)
    ),
    "denormal among others": lambda draw, shape: in_sub_blocks(
        draw, shape, np.array([1e-42, 1e-38, 1e-3, 1.0], np.float32)
    ),
    "largest": lambda draw, shape: draw.choice(
        [-65504.0, 65504.0, 65000.0, 1.0, 0.0], shape
    ).astype(np.float32),
}


def one_column(draw: Draw, n: int) -> Floats:
    weights = np.zeros(n, np.float32)
    weights[draw.integers(0, n, 1 + n // 64)] = 3
    return weights


IMPORTANCE: dict[str, Callable[[Draw, int], Floats | None]] = {
    "none": lambda draw, n: None,
    "uniform": lambda draw, n: draw.uniform(0.01, 10, n).astype(np.float32),
    "heavy-tailed": lambda draw, n: np.exp(draw.normal(0, 5, n)).astype(np.float32),
    "zeros among": lambda draw, n: (draw.uniform(0, 1, n) * (draw.random(n) < 0.4)).astype(
        np.float32
    ),
    "one column": one_column,
    "zeros": lambda draw, n: np.zeros(n, np.float32),
    "tiny": lambda draw, n: draw.uniform(1e-38, 1e-36, n).astype(np.float32),
    "huge": lambda draw, n: draw.uniform(1e28, 1e30, n).astype(np.float32),
}


def test_the_kernels_of_this_cpu_are_there() -> None:
    assert "baseline" in OURS
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    assert ("avx2" in OURS) == (" avx2 " in flags)
    needed = ("avx512f", "avx512bw", "avx512dq", "avx512vl")
    assert ("avx512" in OURS) == all(f" {flag} " in flags for flag in needed)
    assert best_kernel() in (OURS[-1], "ggml")


@pytest.mark.parametrize("importance", IMPORTANCE)
@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("kernel", OURS)
def test_bytes_equal_ggml(kernel: str, name: str, importance: str) -> None:
    target = ggml_type_named(name)
    for seed, (kind, make) in enumerate(ROWS.items()):
        for shape in SHAPES:
            draw = np.random.default_rng(seed)
            rows, weights = make(draw, shape), IMPORTANCE[importance](draw, shape[1])
            assert rows.shape == shape
            data, stats = quantize_rows(
                rows, target, n_threads=1, importance=weights, kernel=kernel
            )
            assert stats.n_not_finite == 0
            assert np.array_equal(data, by_ggml(rows, target, weights)), (kind, shape)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("kernel", [*OURS, "best"])
def test_many_super_blocks(kernel: str, name: str) -> None:
    """What a search does once in thousands of blocks."""
    draw, target = np.random.default_rng(11), ggml_type_named(name)
    rows = draw.standard_t(4, (512, 2048)).astype(np.float32)
    weights = draw.gamma(0.5, 1, 2048).astype(np.float32)
    for importance in (None, weights):
        data, _ = quantize_rows(rows, target, n_threads=2, importance=importance, kernel=kernel)
        assert np.array_equal(data, by_ggml(rows, target, importance))


@pytest.mark.parametrize("kernel", OURS)
def test_every_number_of_threads_gives_the_same_bytes(kernel: str) -> None:
    rows = ROWS["normal"](np.random.default_rng(1), (1051, 512))
    target = ggml_type_named("q5_k")
    first, stats = quantize_rows(rows, target, n_threads=1, kernel=kernel)
    for n_threads in range(2, 6):
        again, _ = quantize_rows(rows, target, n_threads=n_threads, kernel=kernel)
        assert np.array_equal(first, again), n_threads
    assert stats.max_abs_error > 0


@pytest.mark.parametrize("name", ["q2_k", "q4_0", "f16"])
def test_a_type_without_such_a_kernel_is_refused(name: str) -> None:
    rows = np.ones((2, 256), np.float32)
    with pytest.raises(QuantizeError, match=f"no baseline kernel for {name}"):
        quantize_rows(rows, ggml_type_named(name), n_threads=1, kernel="baseline")
    assert len(quantize_rows(rows, ggml_type_named(name), n_threads=1, kernel="ggml")[0]) == 2


_SHIM = """
#include <stddef.h>
#include <stdint.h>
size_t ggml_quantize_chunk(int type, const float * src, uint8_t * dst, int64_t start,
                           int64_t n_rows, int64_t n_per_row, const float * imatrix) {
    dst[0] = 1;
    return 1;
}
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not shutil.which("cc"), reason="needs cc and LD_PRELOAD"
)
def test_a_ggml_of_other_bytes_is_left_to_its_own(tmp_path: Path) -> None:
    """One compiled with fused multiply-add, for example."""
    source, library = tmp_path / "shim.c", tmp_path / "shim.so"
    source.write_text(_SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    found = subprocess.run(
        [sys.executable, "-c",
         "from infer_os.native.quantize import best_kernel; print(best_kernel())"],
        env={**os.environ, "LD_PRELOAD": str(library)}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert found.stdout == "ggml\n"
