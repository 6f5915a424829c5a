"""Norms, sums, activations, rotations and rows looked up or stored: against float64 arithmetic and
llama.cpp's own operations, alone and in chains."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ggml_graph import Graph, compute, encoded, ggml
from kv_states import decoded, written
from numpy.typing import NDArray

from infer_os.native.backend import start_kernels

pytestmark = pytest.mark.skipif(
    not start_kernels().in_use, reason=f"our kernels do not run: {start_kernels().reason}"
)

_NEOX, _NORMAL = 2, 0
_HADAMARD = 1

Array = NDArray[Any]


def normal(*shape: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def both(
    build: Callable[[Graph], Any], shape: tuple[int, ...], n_threads: int = 2
) -> tuple[Array, Array]:
    """Ours, with threads that change nothing, and llama.cpp's."""
    ours = compute("whole", build, shape, n_threads)
    alone = compute("whole", build, shape, 1)
    theirs = compute("cpu", build, shape)
    assert ours is not None and alone is not None and theirs is not None
    assert np.array_equal(ours, alone, equal_nan=True)
    return ours, theirs


def close(got: Array, wanted: Array, tolerance: float = 3e-7) -> bool:
    """Whether errors are below this share of the largest value."""
    return bool(np.abs(got - wanted).max() <= tolerance * max(1e-30, np.abs(wanted).max()))


@pytest.mark.parametrize("n", [16, 96, 4096])
def test_norms_are_those_of_float64(n: int) -> None:
    x = normal(7, n) * 3 + 5
    x[3] = 2.5  # no variance: epsilon alone
    x[4] *= 1e-3
    exact = x.astype(np.float64)
    variance = exact.var(1, keepdims=True)
    wanted = (exact - exact.mean(1, keepdims=True)) / np.sqrt(variance + 1e-5)
    ours, theirs = both(lambda g: ggml().ggml_norm(g.context, g.tensor(x, (n, 7)), 1e-5), (7, n))
    assert close(ours, wanted, 1e-6)
    assert close(ours, theirs, 1e-6)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("name", ["ggml_add", "ggml_mul"])
def test_sums_and_products_of_rows(name: str, rows: int) -> None:
    a, b = normal(5, 48), normal(rows, 48, seed=2)

    def build(g: Graph) -> Any:
        x, y = g.tensor(a, (48, 5)), g.tensor(b, (48, rows) if rows > 1 else (48,))
        return getattr(ggml(), name)(g.context, x, y)

    ours, theirs = both(build, (5, 48))
    assert np.array_equal(ours, a + b if name == "ggml_add" else a * b)
    assert np.array_equal(ours, theirs)


def test_a_scale_with_an_offset() -> None:
    x = normal(3, 32)
    ours, theirs = both(
        lambda g: ggml().ggml_scale_bias(g.context, g.tensor(x, (32, 3)), 0.125, 0.5), (3, 32)
    )
    assert close(ours, x.astype(np.float64) * 0.125 + 0.5)
    assert close(ours, theirs)


def gelu(x: Array) -> Array:
    wide = x.astype(np.float64)
    # 0.5 (1 + tanh(u)), without the difference that loses small values
    return wide / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))


def test_gelu_is_the_formula_and_not_a_table() -> None:
    x = np.linspace(-12, 12, 9600, dtype=np.float32).reshape(5, -1)
    ours, theirs = both(lambda g: ggml().ggml_gelu(g.context, g.tensor(x, (1920, 5))), (5, 1920))
    wanted = gelu(x)
    assert np.abs(ours - wanted).max() < 1e-6
    large = np.abs(wanted) > 1e-30
    assert (np.abs(ours - wanted)[large] <= 1e-5 * np.abs(wanted)[large]).all()
    # llama.cpp looks it up with 11 bits
    assert np.abs(theirs - wanted).max() > 1e-4


def test_the_gelu_by_the_error_function() -> None:
    x = np.linspace(-12, 12, 9600, dtype=np.float32).reshape(5, -1)
    ours = compute("erf", lambda g: ggml().ggml_gelu(g.context, g.tensor(x, (1920, 5))), (5, 1920))
    assert ours is not None
    wanted = np.vectorize(lambda v: 0.5 * v * math.erfc(-v / math.sqrt(2)))(x.astype(np.float64))
    assert np.abs(ours - wanted).max() < 1e-6
    plain = x > -9  # below, the square in the exponent is rounded more
    assert (np.abs(ours - wanted)[plain] <= 1e-5 * np.abs(wanted)[plain]).all()
    assert np.abs(gelu(x) - wanted).max() > 4e-4  # the two differ


@pytest.mark.parametrize("form", ["whole", "erf"])
def test_gelu_of_what_is_no_plain_number(form: str) -> None:
    x = np.array([[np.inf, -np.inf, np.nan, 0.0, -0.0, 1e38, -1e38, 1e-40] * 2], np.float32)
    ours = compute(form, lambda g: ggml().ggml_gelu(g.context, g.tensor(x, (16, 1))), (1, 16))
    assert ours is not None
    assert np.array_equal(ours[0, :8], [np.inf, 0, np.nan, 0, 0, x[0, 5], 0, x[0, 7] / 2],
                          equal_nan=True)  # fmt: skip


@pytest.mark.parametrize("mode", [_NEOX, _NORMAL])
@pytest.mark.parametrize(("head", "n_turned"), [(64, 16), (64, 64), (80, 20), (256, 64)])
def test_positions_turn_pairs(head: int, n_turned: int, mode: int) -> None:
    x = normal(9, 3, head)
    positions = np.array([0, 1, 2, 33, 500, 501, 2047, 1, 40000], np.int32)

    def build(g: Graph) -> Any:
        return ggml().ggml_rope_ext(
            g.context, g.tensor(x, (head, 3, 9)), g.tensor(positions, (9,), "i32"), None,
            n_turned, mode, 2048, 10000.0, 1.0, 0.0, 1.0, 32.0, 1.0,
        )  # fmt: skip

    ours, theirs = both(build, (9, 3, head))
    # the angles of transformers: products in float32
    pairs = n_turned // 2
    inverse = (1.0 / 10000.0 ** (np.arange(pairs) / pairs)).astype(np.float32)
    angle = (positions[:, None].astype(np.float32) * inverse).astype(np.float64)[:, None]
    wanted = x.astype(np.float64)
    if mode == _NEOX:
        a, b = slice(0, pairs), slice(pairs, n_turned)
    else:
        a, b = slice(0, n_turned, 2), slice(1, n_turned, 2)
    wanted[..., a] = x[..., a] * np.cos(angle) - x[..., b] * np.sin(angle)
    wanted[..., b] = x[..., a] * np.sin(angle) + x[..., b] * np.cos(angle)
    assert close(ours[:7], wanted[:7], 1e-6)
    assert close(ours, wanted, 1e-3)  # an angle of 40000 is rounded by 0.002
    assert close(ours[:3], theirs[:3], 1e-5)


def test_the_positions_of_a_longer_context_are_turned_less() -> None:
    x, positions = normal(4, 1, 32), np.array([7, 8, 9, 4000], np.int32)

    def build(g: Graph, scale: float = 0.25) -> Any:
        return ggml().ggml_rope_ext(
            g.context, g.tensor(x, (32, 1, 4)), g.tensor(positions, (4,), "i32"), None,
            32, _NEOX, 2048, 10000.0, scale, 0.0, 1.0, 32.0, 1.0,
        )  # fmt: skip

    ours, theirs = both(build, (4, 1, 32))
    assert close(ours, theirs, 1e-4)


@pytest.mark.parametrize("n", [16, 64, 256])
def test_the_rotation_of_a_cache_is_hadamards(n: int) -> None:
    x = normal(6, n)
    signs = np.array([[1.0]])
    while len(signs) < n:
        signs = np.block([[signs, signs], [signs, -signs]])
    matrix = (signs / math.sqrt(n)).astype(np.float32)

    def build(g: Graph) -> Any:
        product = ggml().ggml_mul_mat(g.context, g.tensor(matrix, (n, n)), g.tensor(x, (n, 6)))
        ggml().ggml_mul_mat_set_hint(product, _HADAMARD)
        return product

    ours, theirs = both(build, (6, n))
    assert close(ours, x.astype(np.float64) @ (signs / math.sqrt(n)), 1e-6)
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "q4_0", "q4_k", "q6_k"])
def test_rows_are_looked_up(kind: str) -> None:
    table = normal(40, 256)
    rows = np.array([3, 39, 0, 3, 17], np.int32)

    def build(g: Graph) -> Any:
        weights = g.tensor(encoded(table, kind), (256, 40), kind)
        return ggml().ggml_get_rows(g.context, weights, g.tensor(rows, (5,), "i32"))

    ours, theirs = both(build, (5, 256))
    assert np.array_equal(ours, theirs)
    assert close(ours, table[rows], 0.2)


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0", "f32"])
def test_rows_are_stored_in_the_cache(kind: str) -> None:
    values, rows = normal(4, 64), np.array([5, 0, 9, 2], np.int64)
    before = encoded(np.zeros((10, 64), np.float32), kind)

    def build(g: Graph) -> Any:
        cache = g.tensor(before, (64, 10), kind)
        source = g.tensor(values, (64, 4))
        stored = ggml().ggml_set_rows(g.context, cache, source, g.tensor(rows, (4,), "i64"))
        everything = g.tensor(np.arange(10, dtype=np.int32), (10,), "i32")
        return ggml().ggml_get_rows(g.context, stored, everything)

    ours, theirs = both(build, (10, 64))
    if kind == "q4_0":  # searched for: test_cache_rows.py
        theirs = np.zeros_like(ours)
        theirs[rows] = decoded(written(values, kind), kind, 64)
    assert np.array_equal(ours, theirs)
    assert np.array_equal(ours.any(1), np.isin(np.arange(10), rows))


def layer(g: Graph, n_tokens: int, x: Array) -> Any:
    """A norm, biases, heads that are turned, and a sum with what came in."""
    n, c = 96, g.context
    positions = g.tensor(np.arange(n_tokens, dtype=np.int32) * 3, (n_tokens,), "i32")
    taken = g.tensor(x, (n, n_tokens))
    cur = ggml().ggml_norm(c, taken, 1e-5)
    cur = ggml().ggml_mul(c, cur, g.tensor(normal(n, seed=3), (n,)))
    cur = ggml().ggml_add(c, cur, g.tensor(normal(n, seed=4), (n,)))
    heads = ggml().ggml_view_3d(c, cur, 32, 3, n_tokens, 128, 384, 0)
    heads = ggml().ggml_rope_ext(
        c, heads, positions, None, 16, _NEOX, 2048, 10000.0, 1.0, 0.0, 1.0, 32.0, 1.0
    )
    flat = ggml().ggml_reshape_2d(c, heads, n, n_tokens)
    cur = ggml().ggml_gelu(c, flat)
    return ggml().ggml_add(c, cur, taken)


@pytest.mark.parametrize("n_tokens", [1, 2, 37])
def test_a_chain_computes_what_its_operations_do(n_tokens: int) -> None:
    x = normal(n_tokens, 96)
    ours, theirs = both(lambda g: layer(g, n_tokens, x), (n_tokens, 96), 3)
    assert close(ours, theirs, 2e-3)  # llama.cpp's GELU
    for t in (0, n_tokens - 1):  # and a token does not depend on those beside it
        alone = compute("whole", lambda g, t=t: _of_token(g, n_tokens, x, t), (96,), 1)
        assert alone is not None and np.array_equal(alone, ours[t])


def _of_token(g: Graph, n_tokens: int, x: Array, t: int) -> Any:
    other = normal(n_tokens, 96, seed=9)
    other[t] = x[t]
    return ggml().ggml_view_2d(g.context, layer(g, n_tokens, other), 96, 1, 384, 384 * t)


def test_a_row_that_another_token_writes_is_waited_for() -> None:
    """The second operation reads, for token t, what the first writes for token t + 1."""
    n = 64
    values, more = normal(n + 1, 16), normal(n, 16, seed=2)

    def build(g: Graph) -> Any:
        base = g.tensor(values, (16, n + 1))
        first = ggml().ggml_view_2d(g.context, base, 16, n, 64, 0)
        summed = ggml().ggml_add_inplace(g.context, first, g.tensor(more, (16, n)))
        following = ggml().ggml_view_2d(g.context, base, 16, n, 64, 64)
        return ggml().ggml_add(g.context, following, summed)

    for _ in range(20):
        ours, theirs = both(build, (n, 16), 2)
        assert np.array_equal(ours, theirs)


def test_what_is_not_known_is_left_to_llama_cpp() -> None:
    def supported(build: Callable[[Graph], Any], shape: tuple[int, ...]) -> bool:
        return compute("whole", build, shape) is not None

    x = normal(2, 24)
    assert not supported(lambda g: ggml().ggml_relu(g.context, g.tensor(x, (24, 2))), (2, 24))
    # a row is a multiple of 16
    assert not supported(lambda g: ggml().ggml_norm(g.context, g.tensor(x, (24, 2)), 1e-5), (2, 24))
    assert not supported(  # YaRN
        lambda g: ggml().ggml_rope_ext(
            g.context, g.tensor(normal(1, 1, 32), (32, 1, 1)),
            g.tensor(np.zeros(1, np.int32), (1,), "i32"), None,
            32, _NEOX, 2048, 10000.0, 0.25, 1.0, 1.0, 32.0, 1.0,
        ),
        (1, 1, 32),
    )  # fmt: skip
    # the backend that shares a graph with llama.cpp leaves all of them
    assert compute("inferos", lambda g: ggml().ggml_gelu(g.context, g.tensor(x, (24, 2))),
                   (2, 24)) is None  # fmt: skip
