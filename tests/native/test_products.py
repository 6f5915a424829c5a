"""Products of quantized weights: every variant against the portable path, that against gguf's own
decoding, and the backend against llama.cpp's."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from ggml_graph import Graph, compute, encoded, ggml
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from infer_os.native.abi import Status, inferos_mul_mat
from infer_os.native.ggml_types import ggml_type_named
from infer_os.native.library import load_library

TYPES = (
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl",
    "iq4_xs", "iq3_s", "iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs",
)  # fmt: skip
VARIANTS = ("avx2", "avxvnni", "avx512vnni", "avx512vbmi", "neon")
#: Bytes of a block of each type that hold float16 numbers.
HALVES = {
    "q4_0": (0,), "q8_0": (0,), "q3_k": (108,), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,),
    "iq4_nl": (0,), "iq4_xs": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2),
    "q2_k": (80, 82), "iq3_s": (0,), "iq3_xxs": (0,), "iq2_s": (0,), "iq2_xs": (0,),
    "iq2_xxs": (0,),
}  # fmt: skip


def product(
    variant: str, kind: str, weights: NDArray[np.uint8], x: NDArray[np.float32], threads: int = 1
) -> NDArray[np.float32] | None:
    """(n_columns, n_rows); None where this CPU has no such variant."""
    out = np.full((len(x), len(weights)), 7, np.float32)
    job = inferos_mul_mat(
        weights.ctypes.data, x.ctypes.data, out.ctypes.data, len(weights), x.shape[1], len(x),
        weights.shape[1], ggml_type_named(kind).id, threads,
    )  # fmt: skip
    status = load_library().inferos_kernels_mul_mat(variant.encode(), ctypes.byref(job))
    if status == Status.BAD_TYPE:
        return None
    assert status == 0
    return out


def variants() -> list[str]:
    """Those that this CPU runs."""
    one, x = np.zeros((16, 18), np.uint8), np.zeros((1, 32), np.float32)
    return [name for name in VARIANTS if product(name, "q4_0", one, x) is not None]


def skip_unless_it_runs(variant: str) -> None:
    """Skip the test where this CPU has no such variant."""
    if variant not in ("portable", *variants()):
        pytest.skip("not on this CPU")


def random_weights(kind: str, n_rows: int, n_per_row: int, seed: int = 1) -> NDArray[np.uint8]:
    """Blocks of any bits: every quant, every scale, but scales of plain size."""
    random = np.random.default_rng(seed)
    known = ggml_type_named(kind)
    blocks = random.integers(
        0, 256, (n_rows, n_per_row // known.block, known.bytes), np.uint8, endpoint=False
    )
    for at in HALVES[kind]:
        scales = random.uniform(-0.02, 0.02, blocks.shape[:2]).astype(np.float16)
        blocks[:, :, at : at + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(n_rows, -1)


def random_columns(n: int, n_per_row: int, seed: int = 2) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, n_per_row), np.float32)


def same_bits(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    """Equal to the last bit; one NaN is as good as another."""
    return bool(np.array_equal(a, b, equal_nan=True))


def test_a_variant_runs_here_or_the_backend_says_why() -> None:
    library = load_library()
    runs = variants()
    assert (library.inferos_kernels_complaint() == b"") == bool(runs)
    assert library.inferos_kernels_name().decode() == (runs[-1] if runs else "")


@pytest.mark.parametrize("kind", TYPES)
def test_the_portable_path_multiplies_what_gguf_decodes(kind: str) -> None:
    weights, x = random_weights(kind, 37, 512), random_columns(5, 512)
    got = product("portable", kind, weights, x)
    exact = dequantize(weights, GGMLQuantizationType[kind.upper()]).astype(np.float64)
    q8_0 = GGMLQuantizationType.Q8_0
    rounded = dequantize(quantize(x, q8_0), q8_0).astype(np.float64)
    wanted = rounded @ exact.T
    assert got is not None
    # gguf rounds halves away from zero, ggml's CPU code to even: one step of few activations
    assert np.abs(got - wanted).max() < 2e-5 * np.abs(rounded).max() * np.abs(exact).sum(1).max()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_equals_the_portable_path(variant: str, kind: str) -> None:
    skip_unless_it_runs(variant)
    for n_rows, n_per_row, counts in (
        (37, 256, range(1, 71)),
        (16, 2304, (1, 4, 9, 70)),  # more than is unpacked at once
        (35, 4864, (1, 2)),  # and a row that is no whole number of groups of 16 blocks
        (17, 16384, (1,)),  # and a few that do not fit into the first cache
        (131, 512, (1, 7, 17)),
        (1025, 256, (3, 33)),
        (1000, 256, (9, 11, 12, 13)),  # by two panels, with one left over that overlaps
        (600, 256, (12,)),
        (1025, 2304, (9, 10)),  # and several panels at once
    ):
        weights = random_weights(kind, n_rows, n_per_row)
        x = random_columns(max(counts), n_per_row)
        wanted = product("portable", kind, weights, x)
        assert wanted is not None
        for n in counts:
            got = product(variant, kind, weights, x[:n], 1 + n % 2)
            assert got is not None
            assert same_bits(got, wanted[:n]), (n_rows, n)


@pytest.mark.parametrize("kind", [k for k in TYPES if ggml_type_named(k).block == 32])
@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_of_any_number_of_blocks_come_out_alike(variant: str, kind: str) -> None:
    skip_unless_it_runs(variant)
    for n_blocks in (1, 15, 16, 17, 31, 33, 49):
        weights = random_weights(kind, 37, 32 * n_blocks)
        x = random_columns(2, 32 * n_blocks)
        wanted = product("portable", kind, weights, x)
        assert wanted is not None
        for n in (1, 2):
            got = product(variant, kind, weights, x[:n], n)
            assert got is not None
            assert same_bits(got, wanted[:n]), (n_blocks, n)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_apart_from_each_other_come_out_alike(variant: str, kind: str) -> None:
    skip_unless_it_runs(variant)
    weights, x = random_weights(kind, 37, 768), random_columns(9, 768)
    apart = np.pad(weights, ((0, 0), (0, 26)), constant_values=0x7E)
    for n in (1, 2, 9):
        got = product(variant, kind, apart, x[:n])
        wanted = product(variant, kind, weights, x[:n])
        assert got is not None and wanted is not None
        assert same_bits(got, wanted), n


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("variant", ["portable", *VARIANTS])
def test_nothing_is_read_behind_the_last_row(variant: str, kind: str) -> None:
    skip_unless_it_runs(variant)
    for n_per_row in (256, 768, 4096):
        weights = random_weights(kind, 20, n_per_row)
        x = random_columns(12, n_per_row)
        with before_a_barred_page(weights) as placed:
            for n in (1, 2, 12):
                got = product(variant, kind, placed, x[:n])
                wanted = product(variant, kind, weights, x[:n])
                assert got is not None and wanted is not None
                assert same_bits(got, wanted), (n_per_row, n)


@contextmanager
def before_a_barred_page(values: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """A copy, behind whose last byte a read ends the process."""
    page = mmap.PAGESIZE
    n_bytes = -(-values.nbytes // page) * page
    memory = mmap.mmap(-1, n_bytes + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    behind, size = ctypes.c_void_p(start + n_bytes), ctypes.c_size_t(page)
    assert libc.mprotect(behind, size, 0) == 0  # PROT_NONE
    try:
        at = n_bytes - values.nbytes
        copy = np.frombuffer(memory, np.uint8, values.nbytes, at).reshape(values.shape)
        copy[...] = values
        yield copy
    finally:
        assert libc.mprotect(behind, size, mmap.PROT_READ | mmap.PROT_WRITE) == 0


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_extreme_numbers_come_out_alike(variant: str, kind: str) -> None:
    skip_unless_it_runs(variant)
    random = np.random.default_rng(3)
    x = random_columns(12, 512)
    x[1] = 0
    x[2] = -0.0
    x[3, ::2] *= 1e-41  # denormal
    x[4] *= 1e-30
    x[5] *= 1e30  # no float16 scale is as large
    x[6, 40] = np.nan
    x[7, 70] = np.inf
    x[8] = random.choice([-1.0, 1.0], 512)  # every quant is 127 or -127
    x[9] *= 8e6
    weights = random_weights(kind, 40, 512).reshape(40, -1, ggml_type_named(kind).bytes)
    halves = np.array([65504, -65504, 6e-8, 0, np.nan, np.inf, 6.1e-5], np.float16)
    for at in HALVES[kind]:
        weights[: len(halves), 0, at : at + 2] = halves[:, None].view(np.uint8)
    weights[8] = 0
    weights[9, :, max(HALVES[kind]) + 2 if kind != "q6_k" else 0 :] = 0x80  # the least quants
    weights[9, :, 0:2] = np.array([1.0], np.float16).view(np.uint8)
    weights = weights.reshape(40, -1)
    for n in (1, 7, 12):
        wanted, got = (product(name, kind, weights, x[:n]) for name in ("portable", variant))
        assert wanted is not None and got is not None
        assert same_bits(got, wanted), n
    for i, column in enumerate(x):
        got = product(variant, kind, weights, column[None], 2)
        assert got is not None and same_bits(got[0], wanted[i]), i
    assert np.isnan(wanted[6]).all()
    assert np.isnan(wanted[:, 4]).all()
    finite = np.isfinite(np.delete(wanted, [5, 6, 7, 9], 0))
    assert finite[:, 10:].all()


@pytest.mark.parametrize("kind", TYPES)
def test_a_column_does_not_depend_on_those_beside_it(kind: str) -> None:
    weights, x = random_weights(kind, 100, 2304), random_columns(70, 2304)
    for variant in variants():
        alone = [product(variant, kind, weights, x[i : i + 1]) for i in (0, 3, 69)]
        together = product(variant, kind, weights, x, 2)
        assert together is not None
        assert all(
            one is not None and same_bits(one[0], together[i])
            for one, i in zip(alone, (0, 3, 69), strict=True)
        )


def test_shapes_that_do_not_fit_are_refused() -> None:
    x = random_columns(1, 512)
    job = inferos_mul_mat(0, x.ctypes.data, x.ctypes.data, 15, 512, 1, 288, 2, 1)
    library = load_library()
    for variant in variants():
        assert (
            library.inferos_kernels_mul_mat(variant.encode(), ctypes.byref(job)) == Status.BAD_SHAPE
        )
        job.type = 35  # tq2_0
        assert (
            library.inferos_kernels_mul_mat(variant.encode(), ctypes.byref(job)) == Status.BAD_TYPE
        )
        job.type = 2


def mul_mat(kind: str, weights: NDArray[np.uint8], x: NDArray[np.float32], n_per_row: int):  # type: ignore[no-untyped-def]
    def build(graph: Graph) -> object:
        w = graph.tensor(weights, (n_per_row, len(weights)), kind)
        return ggml().ggml_mul_mat(graph.context, w, graph.tensor(x, (n_per_row, len(x))))

    return build


@pytest.mark.skipif(not variants(), reason="no variant runs on this CPU")
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("n", [1, 2, 5, 8, 9, 33])
def test_the_backend_agrees_with_llama_cpp(kind: str, n: int) -> None:
    values = np.random.default_rng(4).standard_normal((45, 512), np.float32)
    weights, x = encoded(values, kind), random_columns(n, 512)
    weights = weights.reshape(45, -1)
    build = mul_mat(kind, weights, x, 512)
    ours, theirs = (compute(name, build, (n, 45)) for name in ("inferos", "cpu"))
    assert ours is not None and theirs is not None
    exact = x @ dequantize(weights, GGMLQuantizationType[kind.upper()]).T
    error = np.abs(ours - exact).mean()
    # the same integers where the activations' blocks are the same, a finer scale than K-quants'
    assert np.abs(ours - theirs).max() < (2e-4 if kind in ("q4_0", "q8_0") else 1.0)
    assert error < 1.02 * np.abs(theirs - exact).mean()


@pytest.mark.skipif(not variants(), reason="no variant runs on this CPU")
def test_the_backend_leaves_what_it_does_not_compute() -> None:
    x = random_columns(3, 512)
    f32 = np.zeros((45, 512), np.float32)
    assert compute("inferos", mul_mat("f32", f32.view(np.uint8), x, 512), (3, 45)) is None
    few_rows = random_weights("q4_0", 15, 512)
    assert compute("inferos", mul_mat("q4_0", few_rows, x, 512), (3, 15)) is None
    other = encoded(f32, "tq2_0").reshape(45, -1)
    assert compute("inferos", mul_mat("tq2_0", other, x, 512), (3, 45)) is None
    assert compute("cpu", mul_mat("tq2_0", other, x, 512), (3, 45)) is not None
