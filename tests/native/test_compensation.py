"""Compensated quantization against a plain float64 GPTQ of our own, and gguf's decoding."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from infer_os.native.compensation import (
    DAMPING,
    Feedback,
    can_compensate,
    compensate_rows,
    make_feedback,
)
from infer_os.native.errors import QuantizeError
from infer_os.native.ggml_types import GgmlType, ggml_type_named
from infer_os.native.quantize import quantize_rows

SCALAR = ["q4_0", "q8_0", "iq4_nl", "iq4_xs", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"]
# codes stand for several columns; of the first ones, an even number of 8 columns is negative
EVEN = ["iq2_xxs", "iq2_xs", "iq3_xxs"]
VECTOR = ["iq2_s", "iq3_s", *EVEN]
TYPES = [*SCALAR, *VECTOR]
Matrix = NDArray[np.float64]


def inputs_and_weights(
    n_columns: int, n_rows: int = 70, n_inputs: int = 4096, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Second moments of inputs whose columns are correlated and of different sizes, and weights."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((n_inputs, 12)) @ rng.standard_normal((12, n_columns))
    own = rng.standard_normal((n_inputs, n_columns)) * rng.lognormal(0, 0.7, n_columns)
    x = (common + own).astype(np.float32)
    weights = rng.standard_normal((n_rows, n_columns)) * 0.02
    return x.T @ x, weights.astype(np.float32)


def decoded(data: NDArray[np.uint8], target: GgmlType) -> Matrix:
    kind = gguf.GGMLQuantizationType(target.id)
    return gguf.quants.dequantize(data, kind).astype(np.float64)


def loss(weights: NDArray[np.float32], result: Matrix, moments: NDArray[np.float32]) -> float:
    """tr(E H E^T)."""
    error = weights.astype(np.float64) - result
    return float(np.einsum("ri,ij,rj->", error, moments.astype(np.float64), error))


def damped(moments: NDArray[np.float32]) -> Matrix:
    full = moments.astype(np.float64)
    full = np.triu(full) + np.triu(full, 1).T
    return full + DAMPING * np.diag(full).mean() * np.eye(len(full))


def importance_of(moments: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of each column, the pivot of the elimination from the last column to the first."""
    upper = np.linalg.cholesky(damped(moments)[::-1, ::-1])[::-1, ::-1]
    return (np.diag(upper) ** 2 / np.diag(moments).mean()).astype(np.float32)


def plain_gptq(
    weights: NDArray[np.float32], moments: NDArray[np.float32], target: GgmlType
) -> Matrix:
    """The algorithm as its paper has it: the inverse, its factor, a column at a time.

    Scales come from ggml's quantizer at the start of each block; a value then becomes the nearest
    of those that the block can have in that column.
    """
    factor = np.linalg.cholesky(np.linalg.inv(damped(moments))).T  # upper
    left = weights.astype(np.float64).copy()
    result = np.empty_like(left)
    importance = importance_of(moments)
    for start in range(0, weights.shape[1], target.block):
        block = slice(start, start + target.block)
        values = np.ascontiguousarray(left[:, block].astype(np.float32))
        data, _ = quantize_rows(values, target, n_threads=1, importance=importance[block])
        grids = allowed_values(data, target)  # (n_rows, block, n_codes)
        for column in range(block.start, block.stop):
            grid = grids[:, column - start]
            nearest = np.abs(grid - left[:, column, None]).argmin(1)
            result[:, column] = grid[np.arange(len(grid)), nearest]
            move = (left[:, column] - result[:, column]) / factor[column, column]
            left[:, column:] -= move[:, None] * factor[column, column:]
    return result


def allowed_values(data: NDArray[np.uint8], target: GgmlType) -> Matrix:
    """(n_rows, block, n_codes): what each value of each row's block can be, whatever its code."""
    # where the codes lie in a block, and how many there are
    first, end, n_codes = {
        "q4_0": (2, 18, 16), "iq4_nl": (2, 18, 16), "q8_0": (2, 34, 256), "q4_k": (16, 144, 16),
        "q5_k": (16, 176, 32), "q6_k": (0, 192, 64), "q3_k": (0, 96, 8),
        "q2_k": (16, 80, 4), "iq4_xs": (8, 136, 16),
    }[target.name]  # fmt: skip
    found = []
    for pattern in range(256) if n_codes == 256 else range(0, 256, 17):
        changed = data.copy()
        changed[:, first:end] = pattern
        found.append(decoded(changed, target))
    values = np.stack(found, 2)
    if target.name == "q8_0":  # ggml never writes -128
        return np.delete(values, 128, axis=2)
    if n_codes != 16:
        # high and low bits lie in different bytes: these patterns have the ends, not all between
        low, high = values[..., 0], values[..., -1]
        return low[..., None] + (high - low)[..., None] * np.arange(n_codes) / (n_codes - 1)
    return values


def vector_gptq(
    weights: NDArray[np.float32], moments: NDArray[np.float32], target: GgmlType
) -> Matrix:
    """As ``plain_gptq``, but every vector of the codebook is tried for the columns it stands for.

    The one whose columns leave the least error behind, in the paper's units, is taken.
    """
    quants = getattr(gguf.quants, target.name.upper())
    quants.init_grid()
    assert quants.grid is not None
    book = quants.grid[0, 0].astype(np.float64)  # (vectors, columns), through gguf's own table
    n = book.shape[1]
    factor = np.linalg.cholesky(np.linalg.inv(damped(moments))).T  # upper
    left = weights.astype(np.float64).copy()
    result = np.empty_like(left)
    importance = importance_of(moments)
    for start in range(0, weights.shape[1], n):
        if start % target.block == 0:
            block = slice(start, start + target.block)
            values = np.ascontiguousarray(left[:, block].astype(np.float32))
            data, _ = quantize_rows(values, target, n_threads=1, importance=importance[block])
            scales = vector_scales(data, target, quants)  # (n_rows, block)
        scale = scales[:, start % target.block : start % target.block + n, None]
        corner = factor[start : start + n, start : start + n]
        is_last = target.name in EVEN and (start + n) % 8 == 0
        best = np.full(len(left), np.inf)
        for flip in range(-1, n if is_last else 0):
            chosen, lost = vector_losses(left[:, start : start + n], book, scale, corner, flip)
            if is_last:
                before = np.signbit(result[:, start + n - 8 : start]).sum(1)
                lost[(np.signbit(chosen).sum(2) + before[:, None]) % 2 == 1] = np.inf
            least = lost.argmin(1)
            taken = chosen[np.arange(len(left)), least]
            better = lost[np.arange(len(left)), least] < best
            best = np.minimum(best, lost.min(1))
            result[better, start : start + n] = taken[better]
        for column in range(start, start + n):
            move = (left[:, column] - result[:, column]) / factor[column, column]
            left[:, column:] -= move[:, None] * factor[column, column:]
    return result


def vector_losses(
    wanted: Matrix, book: Matrix, scale: Matrix, corner: Matrix, flip: int
) -> tuple[Matrix, Matrix]:
    """(n_rows, vectors, columns) values with every vector, column ``flip`` negated; losses."""
    tried = np.repeat(wanted[:, None], len(book), axis=1)
    chosen, lost = np.empty_like(tried), np.zeros(tried.shape[:2])
    for i in range(book.shape[1]):
        chosen[..., i] = np.copysign(scale[:, i] * book[None, :, i], tried[..., i])
        chosen[..., i] *= -1 if i == flip else 1
        move = (tried[..., i] - chosen[..., i]) / corner[i, i]
        lost += move**2
        tried[..., i:] -= move[..., None] * corner[i, i:]
    return chosen, lost


def vector_scales(data: NDArray[np.uint8], target: GgmlType, quants: Any) -> Matrix:
    """What the magnitudes of a block's vectors are multiplied by, of each of its columns."""
    changed = data.copy()
    if target.name in ("iq2_xxs", "iq3_xxs"):
        # scales are the high 4 bits of every second, or of the last, words of 32 bits
        changed[:, 2:] = 0
        high = np.arange(9, 66, 8) if target.name == "iq2_xxs" else np.arange(69, 98, 4)
        changed[:, high] = data[:, high] & 0xF0
    else:
        end = {"iq3_s": 106, "iq2_s": 74, "iq2_xs": 66}[target.name]  # what lies behind are scales
        changed[:, 2:end] = 0
    first = quants.grid.reshape(-1, quants.grid.shape[-1])[0].astype(np.float64)
    return decoded(changed, target) / np.tile(first, target.block // len(first))


def feedback_of(moments: NDArray[np.float32], n_threads: int = 1) -> Feedback:
    feedback = make_feedback([moments], n_threads=n_threads)
    assert feedback is not None
    return feedback


def swept(
    weights: NDArray[np.float32], target: GgmlType, moments: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """The sweep alone."""
    return compensate_rows(weights, target, feedback_of(moments), n_threads=2, refinements=0)[0]


@pytest.mark.parametrize("name", VECTOR)
def test_the_best_vector_is_taken(name: str) -> None:
    target = ggml_type_named(name)
    n_columns, n_rows = (256, 24) if name in EVEN else (512, 40)
    moments, weights = inputs_and_weights(n_columns, n_rows)
    data = swept(weights, target, moments)
    ours, papers = decoded(data, target), vector_gptq(weights, moments, target)
    assert loss(weights, ours, moments) == pytest.approx(loss(weights, papers, moments), rel=0.03)
    same = np.isclose(ours, papers, rtol=1e-5, atol=1e-9)
    assert same[:, :64].mean() > 0.97


@pytest.mark.parametrize("name", EVEN)
def test_every_sign_is_what_the_sweep_counted_with(name: str) -> None:
    """A wrong number of negatives would come back with the sign of a column changed."""
    target = ggml_type_named(name)
    moments, weights = inputs_and_weights(512, n_rows=200, seed=5)
    data, stats = compensate_rows(weights, target, feedback_of(moments), n_threads=2)
    values = decoded(data, target)
    assert (np.signbit(values).reshape(-1, 8).sum(1) % 2 == 0).all()
    assert stats.sum_squared_error == pytest.approx(((weights - values) ** 2).sum(), rel=1e-6)
    assert stats.max_abs_error == pytest.approx(np.abs(weights - values).max(), rel=1e-6)


@pytest.mark.parametrize("name", SCALAR)
def test_it_is_the_papers_algorithm(name: str) -> None:
    target = ggml_type_named(name)
    moments, weights = inputs_and_weights(512)
    data, stats = compensate_rows(weights, target, feedback_of(moments), n_threads=2, refinements=0)
    ours, papers = decoded(data, target), plain_gptq(weights, moments, target)
    # a value between two codes goes either way in float32, and moves those behind it
    assert loss(weights, ours, moments) == pytest.approx(loss(weights, papers, moments), rel=0.02)
    same = np.isclose(ours, papers, rtol=1e-5, atol=1e-9)
    assert same[:, : target.block].mean() > 0.95
    assert stats.sum_squared_error == pytest.approx(((weights - ours) ** 2).sum(), rel=1e-3)
    assert stats.max_abs_error == pytest.approx(np.abs(weights - ours).max(), rel=1e-3)


@pytest.mark.parametrize("name", TYPES)
def test_it_loses_less_than_rounding(name: str) -> None:
    target = ggml_type_named(name)
    moments, weights = inputs_and_weights(768, seed=3)
    data, _ = compensate_rows(weights, target, feedback_of(moments), n_threads=2)
    ours = loss(weights, decoded(data, target), moments)
    diagonal = np.ascontiguousarray(np.diag(moments) / np.diag(moments).mean())
    needs = name in ("iq2_xxs", "iq2_xs")
    for importance in (diagonal,) if needs else (None, diagonal):
        rounded, _ = quantize_rows(weights, target, n_threads=1, importance=importance)
        assert ours < 0.7 * loss(weights, decoded(rounded, target), moments)


@pytest.mark.parametrize("name", TYPES)
def test_bytes_do_not_depend_on_threads_or_on_other_rows(name: str) -> None:
    target = ggml_type_named(name)
    moments, weights = inputs_and_weights(512, n_rows=200)
    one, two = feedback_of(moments, 1), feedback_of(moments, 2)
    assert one.values.tobytes() == two.values.tobytes()
    whole, _ = compensate_rows(weights, target, one, n_threads=1)
    shared, _ = compensate_rows(weights, target, one, n_threads=3)
    assert whole.tobytes() == shared.tobytes()
    part, _ = compensate_rows(np.ascontiguousarray(weights[101:177]), target, one, n_threads=2)
    assert part.tobytes() == whole[101:177].tobytes()


#: Where the halves lie that all scales, and all minima, of a block contain.
HALVES = {
    "q4_0": (0,), "q8_0": (0,), "iq4_nl": (0,), "iq4_xs": (0,), "q2_k": (80, 82), "q3_k": (108,),
    "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,), "iq2_xxs": (0,), "iq2_xs": (0,),
    "iq2_s": (0,), "iq3_xxs": (0,), "iq3_s": (0,),
}  # fmt: skip


def plain_descent(
    weights: NDArray[np.float32], moments: NDArray[np.float32], target: GgmlType, times: int
) -> Matrix:
    """What refinements of a swept result are: block by block, scales and then codes in order.

    A scale becomes the one of least squares, in half precision, if that is better; a column takes
    the allowed value next to the one that is best for all others.
    """
    data, metric = swept(weights, target, moments), damped(moments)
    size, n_rows = target.block, len(weights)
    results = decoded(data, target)
    blocks = data.reshape(n_rows, -1, target.bytes)
    for _ in range(times):
        for number in range(blocks.shape[1]):
            columns = slice(number * size, (number + 1) * size)
            block, corner = np.ascontiguousarray(blocks[:, number]), metric[columns, columns]
            for at in HALVES[target.name]:
                # code 0 stands for what is in proportion to the minimum
                has_minima = len(HALVES[target.name]) == 2
                lowest = allowed_values(block, target)[:, :, 0] if has_minima else 0.0
                is_minimum = at == HALVES[target.name][-1] and has_minima
                parts = lowest if is_minimum else results[:, columns] - lowest
                gradient = ((weights - results) @ metric)[:, columns]
                along, across = (parts * gradient).sum(1), ((parts @ corner) * parts).sum(1)
                was = block[:, at : at + 2].copy().view(np.float16)[:, 0].astype(np.float64)
                with np.errstate(divide="ignore", invalid="ignore"):
                    fitted = (was * (1 + along / across)).astype(np.float16).astype(np.float64)
                    factor = np.nan_to_num(fitted / was - 1)
                better = (factor**2 * across < 2 * factor * along) & (across > 0)
                factor = np.where(better, factor, 0.0)
                results[:, columns] += factor[:, None] * parts
                block = with_halves(block, at, was * (1 + factor))
            blocks[:, number] = block
            grids = allowed_values(block, target)
            for column in range(columns.start, columns.stop):
                gradient = (weights - results) @ metric[:, column]
                wanted = results[:, column] + gradient / metric[column, column]
                grid = grids[:, column - columns.start]
                nearest = np.abs(grid - wanted[:, None]).argmin(1)
                results[:, column] = grid[np.arange(n_rows), nearest]
    return results


def with_halves(block: NDArray[np.uint8], at: int, values: Matrix) -> NDArray[np.uint8]:
    """Blocks whose half ``at`` so many bytes from their start is another."""
    changed = block.copy()
    changed[:, at : at + 2] = values.astype(np.float16)[:, None].view(np.uint8)
    return changed


@pytest.mark.parametrize("name", SCALAR)
def test_refinements_are_a_descent_along_columns_and_scales(name: str) -> None:
    target = ggml_type_named(name)
    moments, weights = inputs_and_weights(512, n_rows=24, seed=4)
    feedback = feedback_of(moments)
    data, stats = compensate_rows(weights, target, feedback, n_threads=2, refinements=2)
    ours, plain = decoded(data, target), plain_descent(weights, moments, target, 2)
    # a value between two codes goes either way in float32, and moves others
    assert loss(weights, ours, moments) == pytest.approx(loss(weights, plain, moments), rel=0.02)
    assert np.isclose(ours, plain, rtol=1e-4, atol=1e-9).mean() > 0.9
    assert stats.sum_squared_error == pytest.approx(((weights - ours) ** 2).sum(), rel=1e-3)


@pytest.mark.parametrize("name", TYPES)
def test_each_refinement_loses_less(name: str) -> None:
    target = ggml_type_named(name)
    moments, weights = inputs_and_weights(768, n_rows=40, seed=6)
    feedback, metric = feedback_of(moments), damped(moments).astype(np.float32)
    losses = []
    for refinements in (0, 1, 2, 5):
        data, _ = compensate_rows(weights, target, feedback, n_threads=2, refinements=refinements)
        losses.append(loss(weights, decoded(data, target), metric))
    assert losses[0] > losses[1] > losses[2] > losses[3]
    # of few codes, more are chosen again
    assert losses[2] < {"q8_0": 0.995, "q6_k": 0.98}.get(name, 0.97) * losses[0]


@pytest.mark.parametrize("name", VECTOR)
def test_no_other_vector_is_much_better_in_the_end(name: str) -> None:
    """After many refinements, every vector of the codebook is tried in some places."""
    target = ggml_type_named(name)
    quants = getattr(gguf.quants, target.name.upper())
    moments, weights = inputs_and_weights(256, n_rows=12, seed=7)
    data, _ = compensate_rows(weights, target, feedback_of(moments), n_threads=1, refinements=30)
    ours, metric = decoded(data, target), damped(moments)
    quants.init_grid()
    book = quants.grid[0, 0].astype(np.float64)
    n = book.shape[1]
    signs = np.array(list(np.ndindex(*(2,) * n))) * -2.0 + 1
    scales = vector_scales(data, target, quants)
    gains, total = [], np.einsum("ri,ij,rj->r", weights - ours, metric, weights - ours)
    for row in range(len(weights)):
        start = (row * 40) % 256 // n * n
        place = slice(start, start + n)
        tried = (scales[row, place] * book)[:, None] * signs  # (vectors, signs, columns)
        if name in EVEN:
            eight = slice(start // 8 * 8, start // 8 * 8 + 8)
            others = np.signbit(ours[row, eight]).sum() - np.signbit(ours[row, place]).sum()
            tried = tried[:, (np.signbit(signs).sum(1) + others) % 2 == 0]
        change = tried.reshape(-1, n) - ours[row, place]
        gradient = (metric @ (weights[row] - ours[row]))[place]
        gain = 2 * change @ gradient - np.einsum(
            "vi,ij,vj->v", change, metric[place, place], change
        )
        gains.append(gain.max() / total[row])
    assert np.median(gains) < 1e-6
    assert max(gains) < 0.01


def test_blocks_of_columns_are_swept_alone() -> None:
    target = ggml_type_named("q4_0")
    moments, weights = inputs_and_weights(352)
    pieces = [np.ascontiguousarray(moments[:256, :256]), np.ascontiguousarray(moments[256:, 256:])]
    both = make_feedback(pieces, n_threads=1)
    assert both is not None
    together, _ = compensate_rows(weights, target, both, n_threads=1)
    for piece, columns in zip(pieces, (slice(0, 256), slice(256, 352)), strict=True):
        alone, _ = compensate_rows(
            np.ascontiguousarray(weights[:, columns]), target, feedback_of(piece), n_threads=1
        )
        n_bytes = slice(*(target.row_bytes(n) for n in (columns.start or 0, columns.stop)))
        assert together[:, n_bytes].tobytes() == alone.tobytes()


def test_dead_columns_are_rounded_by_themselves() -> None:
    target = ggml_type_named("q8_0")
    moments, weights = inputs_and_weights(256)
    dead = [3, 200]
    moments[dead], moments[:, dead] = 0, 0
    data, _ = compensate_rows(weights, target, feedback_of(moments), n_threads=1)
    error = np.abs(decoded(data, target) - weights)[:, dead]
    # half a step of the block: nothing was moved onto them
    assert (error <= np.abs(weights).max() * 1.3 / 127).all()


def test_more_damping_where_no_factor_exists() -> None:
    moments, _ = inputs_and_weights(64)
    assert feedback_of(moments).damping == DAMPING
    values, vectors = np.linalg.eigh(moments.astype(np.float64))
    values[0] = -0.05 * np.diag(moments).mean()
    indefinite = ((vectors * values) @ vectors.T).astype(np.float32)
    assert feedback_of(indefinite).damping == pytest.approx(10 * DAMPING)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_moments_that_no_damping_helps(value: float) -> None:
    assert make_feedback([np.full((64, 64), value, np.float32)], n_threads=1) is None


def test_weights_that_are_not_finite_are_counted() -> None:
    moments, weights = inputs_and_weights(256, n_rows=130)
    weights[70, 5], weights[129, 1] = np.nan, np.inf
    _, stats = compensate_rows(weights, ggml_type_named("q4_0"), feedback_of(moments), n_threads=2)
    assert stats.n_not_finite == 2


def test_what_does_not_fit_is_refused() -> None:
    moments, weights = inputs_and_weights(96)
    feedback = feedback_of(moments)
    with pytest.raises(QuantizeError, match="q4_k's blocks of 256"):
        compensate_rows(weights, ggml_type_named("q4_k"), feedback, n_threads=1)
    with pytest.raises(QuantizeError, match="q5_0 cannot be written with compensation"):
        compensate_rows(weights, ggml_type_named("q5_0"), feedback, n_threads=1)
    with pytest.raises(QuantizeError, match="feedback for 96 columns; the rows have 64"):
        compensate_rows(
            np.ascontiguousarray(weights[:, :64]), ggml_type_named("q4_0"), feedback, n_threads=1
        )
    assert not can_compensate(ggml_type_named("q5_0"))
    with pytest.raises(QuantizeError, match="expected a square"):
        make_feedback([np.zeros((2, 3), np.float32)], n_threads=1)
