"""Second moments of activations: against the embedding's own arithmetic, and their diagonal."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from helpers import PARALLEL, TESTS, Converter
from numpy.typing import NDArray

from infer_os.convert.calibrate import collect_importance, decode_observed, open_windows
from infer_os.native.errors import EvaluateError
from infer_os.native.moments import MomentCollector, block_widths, collected_bytes, moment_bytes
from infer_os.native.scoring import Subject

TEXT = TESTS / "reference" / "imatrix" / "text.txt"


@pytest.mark.parametrize(
    ("n_columns", "widths"),
    [(64, (64,)), (2048, (2048,)), (4096, (2048, 2048)), (5120, (1792, 1792, 1536)),
     (6144, (2048,) * 3), (16384, (2048,) * 8), (2080, (1280, 800))],
)  # fmt: skip
def test_blocks_cover_the_columns(n_columns: int, widths: tuple[int, ...]) -> None:
    assert block_widths(n_columns) == widths
    assert sum(widths) == n_columns
    assert moment_bytes(n_columns) == 4 * sum(width**2 for width in widths)
    # on and above the diagonal, and what stripes of up to 64 rows have below it
    upper = sum(width * (width + 1) // 2 for width in widths)
    assert 4 * upper <= collected_bytes(n_columns) <= 4 * (upper + 32 * n_columns)


def first_inputs(path: str, tokens: NDArray[np.int32]) -> NDArray[np.float64]:
    """What enters the first layer's attention: the layer norm of the embedding."""
    tensors = {t.name: np.array(t.data, np.float64) for t in gguf.GGUFReader(path).tensors}
    x = tensors["token_embd.weight"][tokens]
    x = x - x.mean(1, keepdims=True)
    x /= np.sqrt((x**2).mean(1, keepdims=True) + 1e-5)
    return x * tensors["blk.0.attn_norm.weight"] + tensors["blk.0.attn_norm.bias"]


def collected(path: str, matrices: dict[str, int], n_threads: int = 1) -> tuple[object, ...]:
    with (
        open_windows(path, TEXT, n_threads=n_threads, n_ctx=64) as (model, windows, settings),
        MomentCollector(matrices, n_threads) as collector,
    ):
        decode_observed(Subject(model), windows, settings, collector, None)
        found = {name: collector.moments(name) for name in collector.leaders()}
        return found, windows


def test_they_are_the_products_of_the_inputs(converted: Converter) -> None:
    path = converted(PARALLEL, "f32")
    name = "blk.0.attn_qkv.weight"
    found, windows = collected(path, {name: 64})
    x = first_inputs(path, windows.reshape(-1))
    (block,) = found[name].blocks
    assert found[name].n_rows == len(x)
    np.testing.assert_allclose(block, x.T @ x, rtol=1e-4, atol=1e-4 * np.abs(block).max())
    assert np.array_equal(block, block.T)


def test_their_diagonal_is_the_importance(converted: Converter) -> None:
    path = converted(PARALLEL, "f32")
    expected = collect_importance(path, TEXT, n_threads=1, n_ctx=64).entries
    widths = {name: len(entry.sums) for name, entry in expected.items()}
    for n_threads in (1, 2):
        found, _ = collected(path, widths, n_threads)
        assert found.keys() == expected.keys()
        for name, entry in expected.items():
            assert found[name].n_rows == entry.count
            np.testing.assert_allclose(found[name].diagonal, entry.sums, rtol=1e-4)


def test_matrices_with_one_input_share_sums(converted: Converter) -> None:
    path = converted(TESTS / "reference" / "gptj", "f32")
    widths = {
        t.name: int(t.shape[0])
        for t in gguf.GGUFReader(path).tensors
        if t.name.startswith("blk.0.") and len(t.shape) == 2
    }
    found, windows = collected(path, widths)
    assert {moments.n_rows for moments in found.values()} == {windows.size}
    leaders = {name.split(".")[2]: moments.leader for name, moments in found.items()}
    # the one norm of a layer's attention and feed-forward part
    shared = {leaders[part] for part in leaders if part not in ("attn_output", "ffn_down")}
    assert len(shared) == 1
    assert "ffn_up" in leaders
    assert len(set(leaders.values())) == 3


def test_a_width_that_is_not_the_graphs(converted: Converter) -> None:
    with pytest.raises(EvaluateError, match=r"attn_qkv\.weight: the width of its input"):
        collected(converted(PARALLEL, "f32"), {"blk.0.attn_qkv.weight": 32})


def test_a_matrix_that_no_graph_has() -> None:
    with MomentCollector({"blk.9.ffn_up.weight": 64}, 1) as collector:
        assert collector.leaders() == {}
        with pytest.raises(EvaluateError, match="no graph multiplies by it"):
            collector.moments("blk.9.ffn_up.weight")
    with pytest.raises(EvaluateError, match="closed"):
        collector.check()
