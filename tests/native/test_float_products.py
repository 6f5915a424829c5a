"""Products of float weights: every variant against the portable path, that against float64, and the
backend against llama.cpp's."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from ggml_graph import compute, encoded
from numpy.typing import NDArray

from infer_os.native.abi import Status, inferos_mul_mat
from infer_os.native.library import load_library

from .test_products import VARIANTS, mul_mat, product, random_columns, same_bits, variants

TYPES = ("f32", "f16", "bf16")


def random_rows(
    kind: str, n_rows: int, n_per_row: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Rows as bytes, and the very numbers that they hold."""
    values = np.random.default_rng(5).standard_normal((n_rows, n_per_row), np.float32)
    if kind == "f16":
        halves = values.astype(np.float16)
        return halves.view(np.uint8), halves.astype(np.float64)
    if kind == "bf16":
        values = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        upper = (values.view(np.uint32) >> 16).astype(np.uint16)
        return upper.view(np.uint8), values.astype(np.float64)
    return values.view(np.uint8), values.astype(np.float64)


@pytest.mark.parametrize("kind", TYPES)
def test_the_portable_path_multiplies_what_the_rows_hold(kind: str) -> None:
    (weights, values), x = random_rows(kind, 19, 752), random_columns(3, 752)
    got = product("portable", kind, weights, x)
    wanted = x.astype(np.float64) @ values.T
    assert got is not None
    bound = 60 * 2.0**-24 * (np.abs(x).astype(np.float64) @ np.abs(values).T)
    assert (np.abs(got - wanted) < bound).all()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_equals_the_portable_path(variant: str, kind: str) -> None:
    if variant not in variants():
        pytest.skip("not on this CPU")
    for n_rows, n_per_row, counts in (
        (1, 16, (1, 2)),
        (37, 272, range(1, 23)),
        (131, 512, (1, 7, 17)),
        (1030, 2304, (1, 3, 9)),  # more than one run of rows
    ):
        weights, _ = random_rows(kind, n_rows, n_per_row)
        x = random_columns(max(counts), n_per_row)
        wanted = product("portable", kind, weights, x)
        assert wanted is not None
        for n in counts:
            got = product(variant, kind, weights, x[:n], 1 + n % 2)
            assert got is not None
            assert same_bits(got, wanted[:n]), (n_rows, n)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_extreme_numbers_come_out_alike(variant: str, kind: str) -> None:
    if variant not in variants():
        pytest.skip("not on this CPU")
    weights, _ = random_rows(kind, 24, 64)
    size = weights.shape[1] // 64
    weights = weights.copy()
    weights[3] = 0xFF  # NaN
    weights[4] = 0
    weights[5, -size:] = np.frombuffer(
        {4: b"\0\0\x80\x7f", 2: b"\0\x7c"}[size], np.uint8
    )  # infinite
    weights[6, :size] = 1  # denormal
    x = random_columns(4, 64)
    x[1, 5], x[2, 6], x[3] = np.nan, np.inf, 3e38
    wanted, got = (product(name, kind, weights, x) for name in ("portable", variant))
    assert wanted is not None and got is not None
    assert same_bits(got, wanted)
    assert np.isnan(wanted[:, 3]).all() and np.isnan(wanted[1]).all()


def test_shapes_that_do_not_fit_are_refused() -> None:
    x = random_columns(1, 24)
    job = inferos_mul_mat(0, x.ctypes.data, x.ctypes.data, 16, 24, 1, 96, 0, 1)
    for variant in variants():
        status = load_library().inferos_kernels_mul_mat(variant.encode(), ctypes.byref(job))
        assert status == Status.BAD_SHAPE


@pytest.mark.skipif(not variants(), reason="no variant runs on this CPU")
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("n", [1, 2, 5, 9, 33])
def test_the_backend_is_nearer_to_the_truth_than_llama_cpp(kind: str, n: int) -> None:
    (weights, values), x = random_rows(kind, 45, 512), random_columns(n, 512)
    build = mul_mat(kind, weights, x, 512)
    ours, theirs = (compute(name, build, (n, 45), weights=True) for name in ("inferos", "cpu"))
    assert ours is not None and theirs is not None
    exact = x.astype(np.float64) @ values.T
    # llama.cpp rounds activations to float16 or bfloat16 first
    assert np.abs(ours - exact).mean() <= 1.5 * np.abs(theirs - exact).mean()
    assert np.abs(ours - exact).max() < 1e-4


@pytest.mark.skipif(not variants(), reason="no variant runs on this CPU")
def test_matrices_that_are_no_weights_are_left_to_llama_cpp() -> None:
    weights, x = encoded(np.ones((45, 512), np.float32), "f32"), random_columns(3, 512)
    assert compute("inferos", mul_mat("f32", weights, x, 512), (3, 45)) is None
    odd = np.ones((45, 24), np.float32)
    assert compute("inferos", mul_mat("f32", odd, x[:, :24], 24), (3, 45), weights=True) is None
