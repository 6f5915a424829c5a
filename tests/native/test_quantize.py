"""Our row quantizer against two oracles: the ``gguf`` package in numpy, and ggml itself."""

from __future__ import annotations

import ctypes
from typing import Any

import gguf
import gguf.quants
import llama_cpp
import numpy as np
import pytest
from numpy.typing import NDArray

from infer_os.native.errors import QuantizeError
from infer_os.native.ggml_types import GgmlType, ggml_type_named, ggml_types
from infer_os.native.quantize import LowRank, QuantizeStats, quantize_rows

#: Types that the gguf package quantizes bit for bit as ggml does.
BY_NUMPY = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "tq1_0", "tq2_0"]
#: Types that it can only read back.
READ_BACK = [
    "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "iq3_s", "iq3_xxs",
]  # fmt: skip
NEEDS_IMPORTANCE = ["iq2_xxs", "iq2_xs", "iq1_s"]
#: Types whose tables take seconds to build.
SLOW_TO_START = ("iq2_xs", "iq2_s", "iq1_s", "iq1_m")


def random_rows(n_rows: int, width: int = 256, seed: int = 0) -> NDArray[np.float32]:
    """Rows whose scales differ, with a row of zeros among them."""
    draw = np.random.default_rng(seed)
    scales = 10.0 ** draw.uniform(-3, 1, (n_rows, 1))
    rows = (draw.standard_normal((n_rows, width)) * scales).astype(np.float32)
    rows[n_rows // 2] = 0
    return rows


def to_bf16(rows: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper half of each float, which loses bits without rounding: any bits will do here."""
    return (np.ascontiguousarray(rows).view(np.uint32) >> 16).astype(np.uint16)


def from_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def by_ggml(
    rows: NDArray[np.float32], target: GgmlType, importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """``ggml_quantize_chunk`` on all rows in one call."""
    library = llama_cpp.llama_cpp._lib
    chunk = library.ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    n_rows, width = rows.shape
    out = np.zeros((n_rows, target.row_bytes(width)), np.uint8)
    weights = None if importance is None else importance.ctypes.data
    size = chunk(target.id, rows.ctypes.data, out.ctypes.data, 0, n_rows, width, weights)
    assert size == out.nbytes
    return out


def by_gguf(rows: NDArray[np.float32], name: str) -> NDArray[np.uint8]:
    kind = gguf.GGMLQuantizationType[name.upper()]
    packed = gguf.quants.quantize(rows, kind)
    return np.ascontiguousarray(packed).view(np.uint8).reshape(len(rows), -1)


def read_back(data: NDArray[np.uint8], name: str) -> NDArray[np.float32]:
    kind = gguf.GGMLQuantizationType[name.upper()]
    values: NDArray[np.float32] = gguf.quants.dequantize(data, kind)
    return values


def quantized(rows: NDArray[Any], name: str, **options: Any) -> NDArray[np.uint8]:
    data, _ = quantize_rows(rows, ggml_type_named(name), n_threads=1, **options)
    return data


@pytest.mark.parametrize("name", BY_NUMPY)
def test_bytes_equal_the_gguf_package(name: str) -> None:
    rows = random_rows(37)
    assert np.array_equal(quantized(rows, name), by_gguf(rows, name))


@pytest.mark.parametrize("name", [*BY_NUMPY, *READ_BACK])
def test_bytes_equal_ggml(name: str) -> None:
    rows = random_rows(37, 512)
    assert np.array_equal(quantized(rows, name), by_ggml(rows, ggml_type_named(name)))


@pytest.mark.parametrize("name", READ_BACK)
def test_read_back_by_the_gguf_package(name: str) -> None:
    rows = random_rows(20)
    data, stats = quantize_rows(rows, ggml_type_named(name), n_threads=2)
    values = read_back(data, name)
    assert np.sqrt(((values - rows) ** 2).mean() / (rows**2).mean()) < 0.4
    assert stats.rms_error == pytest.approx(np.sqrt(((values - rows) ** 2).mean()), rel=1e-5)


@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "q8_0", "q4_0", "q6_k"])
def test_sources_of_half_width(name: str) -> None:
    rows = random_rows(9)
    half = rows.astype(np.float16)
    assert np.array_equal(quantized(half, name), quantized(half.astype(np.float32), name))
    bits = to_bf16(rows)
    assert np.array_equal(quantized(bits, name), quantized(from_bf16(bits), name))
    assert not np.array_equal(quantized(bits, name), quantized(rows, name))


def test_a_float_written_in_its_own_type_keeps_its_bits() -> None:
    rows = random_rows(5)
    assert quantized(rows, "f32").tobytes() == rows.tobytes()
    assert quantized(rows.astype(np.float16), "f16").tobytes() == rows.astype(np.float16).tobytes()
    assert quantized(to_bf16(rows), "bf16").tobytes() == to_bf16(rows).tobytes()


@pytest.mark.parametrize("name", ["f32", "q8_0", "q4_k"])
@pytest.mark.parametrize("source", ["f32", "f16", "bf16"])
def test_row_order_picks_rows(name: str, source: str) -> None:
    rows: NDArray[Any] = random_rows(11)
    if source == "f16":
        rows = rows.astype(np.float16)
    elif source == "bf16":
        rows = to_bf16(rows)
    order = np.array([10, 0, 3, 3, 7, 1, 1, 1, 9, 2, 5, 6, 8], np.int64)
    assert np.array_equal(quantized(rows, name, row_order=order), quantized(rows, name)[order])


def test_an_empty_row_order_gives_no_rows() -> None:
    data = quantized(random_rows(3), "q8_0", row_order=np.array([], np.int64))
    assert data.shape == (0, 272)


@pytest.mark.parametrize("name", ["q4_0", "q5_1", "q4_k", "q6_k", "iq4_nl", "iq2_xxs"])
def test_importance_weights(name: str) -> None:
    rows = random_rows(6)
    weights = np.random.default_rng(3).uniform(0.01, 10, 256).astype(np.float32)
    weighted = quantized(rows, name, importance=weights)
    assert np.array_equal(weighted, by_ggml(rows, ggml_type_named(name), weights))
    other = quantized(rows, name, importance=weights[::-1])
    assert not np.array_equal(weighted, other)


@pytest.mark.parametrize("name", ["f16", "q8_0", "q4_0", "q4_k", "iq3_s"])
def test_every_number_of_threads_gives_the_same_bytes(name: str) -> None:
    # 64 K values go to a thread at a time: enough rows for seven of them, and an odd rest
    rows = random_rows(1051, 512)
    target = ggml_type_named(name)
    if name == "iq3_s":
        rows = rows[:300]
    first, stats = quantize_rows(rows, target, n_threads=1)
    for n_threads in range(2, 8):
        again, others = quantize_rows(rows, target, n_threads=n_threads)
        assert np.array_equal(first, again), n_threads
        assert others.sum_squared_error == pytest.approx(stats.sum_squared_error, rel=1e-9)
        assert others.max_abs_error == stats.max_abs_error
        assert others.n_values == rows.size
    assert np.array_equal(first, by_ggml(rows, target))


@pytest.mark.parametrize(("n_rows", "width"), [(1, 32), (3, 64), (129, 512), (2, 131072), (7, 96)])
def test_odd_shapes(n_rows: int, width: int) -> None:
    rows = random_rows(n_rows, width)
    data, _ = quantize_rows(rows, ggml_type_named("q8_0"), n_threads=3)
    assert np.array_equal(data, by_ggml(rows, ggml_type_named("q8_0")))


@pytest.mark.parametrize("name", ["q8_1", "q8_k", "i8", "i32", "f64"])
def test_a_type_without_a_quantizer_is_refused(name: str) -> None:
    with pytest.raises(QuantizeError, match=f"no quantizer from f32 to {name}"):
        quantized(random_rows(2), name)


def test_every_type_is_written_or_refused_but_never_crashes() -> None:
    rows, weights = random_rows(2), np.ones(256, np.float32)
    written = set()
    for target in ggml_types().values():
        if target.name in SLOW_TO_START:
            continue
        try:
            quantize_rows(rows, target, n_threads=1, importance=weights)
            written.add(target.name)
        except QuantizeError:
            pass
    assert {*BY_NUMPY, *READ_BACK, "iq2_xxs"} <= written
    assert not written & {"q8_1", "q8_k", "i8", "i16", "i32", "i64", "f64"}


@pytest.mark.parametrize(
    ("name", "width"), [("q8_0", 33), ("q4_0", 16), ("q4_k", 255), ("q6_k", 128), ("iq4_nl", 48)]
)
def test_rows_that_do_not_divide_into_blocks_are_refused(name: str, width: int) -> None:
    with pytest.raises(QuantizeError, match=f"rows of {width} values do not divide into {name}"):
        quantized(np.zeros((2, width), np.float32), name)


@pytest.mark.parametrize("bad", [-1, 4, 1 << 40])
def test_a_row_outside_the_source_is_refused(bad: int) -> None:
    with pytest.raises(QuantizeError, match="row index"):
        quantized(random_rows(4), "q8_0", row_order=np.array([0, bad, 1], np.int64))


@pytest.mark.parametrize("name", NEEDS_IMPORTANCE)
def test_a_type_that_needs_importance_says_so(name: str) -> None:
    with pytest.raises(QuantizeError, match=f"{name} needs importance weights"):
        quantized(random_rows(2), name)


def test_rows_in_another_layout_are_refused() -> None:
    rows = random_rows(8)
    for bad in (rows.T, rows[:, ::2], rows[0], rows.reshape(2, 4, 256)):
        with pytest.raises(QuantizeError, match="contiguous"):
            quantized(bad, "f32")


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint8, np.complex64, np.int16])
def test_rows_of_another_type_are_refused(dtype: Any) -> None:
    with pytest.raises(QuantizeError, match="cannot quantize from"):
        quantized(np.zeros((2, 32), dtype), "f32")


@pytest.mark.parametrize("shape", [(31,), (33,), (1, 32)])
def test_importance_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(QuantizeError, match="importance weights for rows of 32"):
        quantized(np.zeros((2, 32), np.float32), "q4_0", importance=np.ones(shape, np.float32))


@pytest.mark.parametrize("source", ["f32", "f16", "bf16"])
def test_values_that_are_not_finite_are_counted(source: str) -> None:
    rows: NDArray[Any] = np.ones((5, 32), np.float32)
    rows[0, 0], rows[2, 5], rows[2, 6], rows[4, 31] = np.nan, np.inf, -np.inf, np.nan
    if source == "f16":
        rows = rows.astype(np.float16)
    elif source == "bf16":
        rows = to_bf16(rows)
    for name in ("f32", "f16", "q8_0"):
        _, stats = quantize_rows(rows, ggml_type_named(name), n_threads=2)
        assert stats.n_not_finite == 4, name


def test_finite_extremes_are_not_counted() -> None:
    rows = np.full((1, 32), np.finfo(np.float32).max, np.float32)
    rows[0, 1], rows[0, 2] = np.finfo(np.float32).tiny, -0.0
    _, stats = quantize_rows(rows, ggml_type_named("f32"), n_threads=1)
    assert stats.n_not_finite == 0


@pytest.mark.parametrize("name", ["f32", "f16", "q8_0", "q5_1", "q4_0"])
def test_stats_equal_numpy(name: str) -> None:
    rows = random_rows(41, 512)
    data, stats = quantize_rows(rows, ggml_type_named(name), n_threads=3)
    wide = rows.astype(np.float64)
    difference = read_back(data, name).astype(np.float64) - wide
    assert stats.n_values == rows.size
    assert stats.sum_squared_value == pytest.approx((wide**2).sum(), rel=1e-9)
    assert stats.sum_squared_error == pytest.approx((difference**2).sum(), rel=1e-5)
    assert stats.max_abs_error == pytest.approx(np.abs(difference).max(), rel=1e-5)
    assert stats.rms_error == pytest.approx(np.sqrt((difference**2).mean()), rel=1e-5)
    assert (stats.sum_squared_error > 0) == (name != "f32")


def test_without_measuring_the_bytes_are_the_same_and_the_stats_empty() -> None:
    rows = random_rows(4)
    data, stats = quantize_rows(rows, ggml_type_named("q4_0"), n_threads=1, measure=False)
    assert np.array_equal(data, quantized(rows, "q4_0"))
    assert stats == QuantizeStats()
    assert stats.rms_error == 0.0


def test_stats_add_up() -> None:
    rows = random_rows(10)
    target = ggml_type_named("q4_0")
    total = QuantizeStats()
    for part in (rows[:4], rows[4:]):
        total.add(quantize_rows(part, target, n_threads=1)[1])
    _, whole = quantize_rows(rows, target, n_threads=1)
    assert total.sum_squared_error == pytest.approx(whole.sum_squared_error)
    assert (total.n_values, total.max_abs_error) == (whole.n_values, whole.max_abs_error)


@pytest.mark.parametrize("kind", ["iq3_s", "q4_0", "q6_k", "iq4_nl", "f16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_values_that_no_block_can_hold_reach_no_quantizer(kind: str, value: float) -> None:
    """The i-quants would abort the process."""
    rows = np.random.default_rng(5).standard_normal((4, 256)).astype(np.float32)
    rows[2, 7] = value
    _, stats = quantize_rows(rows, ggml_type_named(kind), n_threads=1)
    assert stats.n_not_finite == 1


@pytest.mark.parametrize("source", ["float32", "float16"])
@pytest.mark.parametrize("rank", [1, 3, 4, 5, 16])
@pytest.mark.parametrize("width", [1, 7, 8, 96, 131])
def test_a_product_is_added_first(width: int, rank: int, source: str) -> None:
    rng = np.random.default_rng(rank * width)
    rows = rng.standard_normal((50, width)).astype(source)
    left = rng.standard_normal((50, rank)).astype(np.float32)
    right = rng.standard_normal((rank, width)).astype(np.float32)
    order = rng.permutation(50)
    data, _ = quantize_rows(
        rows, ggml_type_named("f32"), n_threads=2, row_order=order, added=LowRank(left, right)
    )
    wanted = rows.astype(np.float64) + left.astype(np.float64) @ right.astype(np.float64)
    assert np.allclose(data.view(np.float32), wanted[order], rtol=0, atol=2e-6 * rank + 1e-6)
    # what is quantized is that sum
    if width % 32 == 0:
        quantized = quantize_rows(rows, ggml_type_named("q8_0"), n_threads=1, row_order=order,
                                  added=LowRank(left, right))[0]  # fmt: skip
        summed = np.ascontiguousarray(data.view(np.float32))
        assert (quantized == quantize_rows(summed, ggml_type_named("q8_0"), n_threads=1)[0]).all()


def test_a_product_that_does_not_fit() -> None:
    rows = np.zeros((4, 32), np.float32)
    good = np.zeros((4, 2), np.float32), np.zeros((2, 32), np.float32)
    for left, right in (
        (good[0][:3], good[1]),
        (good[0], good[1][:1]),
        (good[0], good[1][:, :31]),
        (good[0].astype(np.float64), good[1]),
        (good[0], good[1].T.copy().T),
    ):
        with pytest.raises(QuantizeError, match="cannot add matrices of shape"):
            quantize_rows(rows, ggml_type_named("f32"), n_threads=1, added=LowRank(left, right))
