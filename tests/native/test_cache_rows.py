"""Rows of a q4_0 cache: against gguf's own encoder, and against the search in numpy, bit by bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from kv_states import decoded, encoded, written
from numpy.typing import NDArray

Rows = NDArray[np.float32]


def searched(rows: Rows) -> bytes:
    """The same search as cache_rows.cpp, in float32 and in its order."""
    blocks = rows.reshape(-1, 32)
    high, low = np.maximum(blocks.max(1), 0), np.minimum(blocks.min(1), 0)
    largest = np.where(high > -low, high, low)
    best = np.full(len(blocks), np.inf, np.float32)
    codes = np.zeros(blocks.shape, np.uint8)
    scales = np.zeros(len(blocks), np.float16)
    for part in (-8.0, -7.4, -8.6):
        divisor = largest / np.float32(part)
        inverse = np.divide(1, divisor, out=np.zeros_like(divisor), where=divisor != 0)
        code = np.clip(blocks * inverse[:, None] + np.float32(8.5), 0, 15).astype(np.int32)
        whole = (code - 8).astype(np.float32)
        product, square = _sums(blocks * whole), _sums(whole * whole)
        scale = np.divide(product, square, out=np.zeros_like(product), where=square != 0)
        scale = scale.astype(np.float16).astype(np.float32)
        error = scale * (scale * square - 2 * product)
        better = error < best
        best[better], codes[better] = error[better], code[better]
        scales[better] = scale[better].astype(np.float16)
    packed = codes[:, :16] | codes[:, 16:] << 4
    return np.hstack([scales[:, None].view(np.uint8), packed]).tobytes()


def _sums(terms: Rows) -> Rows:
    """Of every block: eight lanes one vector after another, then the lanes by halves."""
    lanes = np.zeros((len(terms), 8), np.float32)
    for vector in terms.reshape(-1, 4, 8).transpose(1, 0, 2):
        lanes += vector
    even = (lanes[:, 0] + lanes[:, 4]) + (lanes[:, 2] + lanes[:, 6])
    return np.asarray(even + ((lanes[:, 1] + lanes[:, 5]) + (lanes[:, 3] + lanes[:, 7])))


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 300.0])
def test_every_bit_is_that_of_the_search(scale: float) -> None:
    rows = np.random.default_rng(5).standard_normal((400, 128)).astype(np.float32)
    rows[:100] **= 3  # with outliers
    rows[100] = np.abs(rows[100])
    rows *= np.float32(scale)
    assert written(rows, "q4_0") == searched(rows)


@pytest.mark.parametrize("power", [1, 3])
def test_no_block_loses_more_than_in_ggmls_encoding(power: int) -> None:
    rows = np.random.default_rng(6).standard_normal((500, 256)).astype(np.float32) ** power
    ours = decoded(written(rows, "q4_0"), "q4_0", 256)
    theirs = decoded(encoded(rows, "q4_0"), "q4_0", 256)
    mine, ggmls = (((got - rows) ** 2).reshape(-1, 32).sum(1) for got in (ours, theirs))
    assert (mine <= ggmls * (1 + 1e-5)).all()
    assert mine.mean() < 0.95 * ggmls.mean()


def test_the_largest_scale_is_a_number() -> None:
    rows = np.full((1, 32), 5.23e5, np.float32)
    rows[0, ::2] *= -1
    assert np.isfinite(decoded(written(rows, "q4_0"), "q4_0", 32)).all()


def test_what_needs_no_search_is_exact() -> None:
    steps = np.tile(np.arange(-8, 8, dtype=np.float32), 2)
    rows = np.stack([np.zeros(32, np.float32), steps / 4, -steps, np.full(32, -2.0, np.float32)])
    assert np.array_equal(decoded(written(rows, "q4_0"), "q4_0", 32), rows)


def test_a_value_that_is_no_number_stays_in_its_block() -> None:
    rows = np.random.default_rng(7).standard_normal((1, 96)).astype(np.float32)
    clean = decoded(written(rows, "q4_0"), "q4_0", 96)
    rows[0, 40] = np.nan
    got = decoded(written(rows, "q4_0"), "q4_0", 96)
    assert np.array_equal(got[0, :32], clean[0, :32]) and np.array_equal(got[0, 64:], clean[0, 64:])
    assert np.isnan(got[0, 32:64]).all()


@pytest.mark.parametrize("name", ["f16", "q8_0", "q5_1"])
def test_other_types_are_ggmls(name: str) -> None:
    rows = np.random.default_rng(8).standard_normal((9, 64)).astype(np.float32)
    expected = gguf.quants.quantize(rows, Kind[name.upper()])
    got = np.frombuffer(written(rows, name), np.uint8)
    assert (got == expected.view(np.uint8).reshape(-1)).mean() > 0.99  # roundings of ties differ
