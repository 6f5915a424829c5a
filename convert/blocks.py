"""Turn one stored tensor into quantized blocks of rows, a few megabytes at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from infer_os.models.network import Part
from infer_os.models.rotation import orthonormal
from infer_os.models.transforms import Fold, Scale
from infer_os.native.compensation import Feedback, compensate_rows
from infer_os.native.ggml_types import GgmlType, ggml_type_named
from infer_os.native.quantize import LowRank, QuantizeStats, needed_importance, quantize_rows

from .decoded import DecodedMatrix

# Source bytes per block: large enough to share among threads, small enough to keep the
# converter's own memory to a few tens of megabytes.
_BLOCK_BYTES = 16 << 20

Item = TypeVar("Item")


def ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The items, each made in another thread while the one before it is in use.

    A caller that stops early must close this iterator (``contextlib.closing``), which waits for the
    item being made.
    """
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def quantized_blocks(
    part: Part,
    array: NDArray[Any] | DecodedMatrix,
    target: GgmlType,
    *,
    n_threads: int,
    importance: NDArray[np.float32] | None = None,
    feedback: Feedback | None = None,
    added: LowRank | None = None,
    ends_only: bool = False,
) -> Iterator[tuple[NDArray[np.uint8], int, QuantizeStats]]:
    """Quantize a stored tensor block by block.

    Args:
        part: how its rows go into the file.
        array: the stored tensor, any strides; bfloat16 as uint16. Or one that is decoded,
            which is not to be transposed.
        target: type to write.
        n_threads: threads of the quantizer.
        importance: (row length,) weight of each column's error; None counts all alike where the
            type needs weights.
        feedback: of the layer's inputs, to compensate errors with; the importance then has no use.
        added: what is added first to the matrix whose rows the transform reorders.
        ends_only: yield only the first and the last block, to compare with what was written.

    Yields:
        Bytes of the next rows, the source bytes they stand for, and quantization's errors.
    """
    order, folds, scales = part.transform.row_order(), part.folds, part.scales
    matrix: NDArray[Any] | DecodedMatrix
    if not isinstance(array, np.ndarray):
        matrix, value_bytes, held_bytes = array, 1, 4
    elif array.ndim == 1:
        values = array if order is None else array[order]
        if folds or scales:
            values = _folded(_scaled(widened(values)[:, None], scales, 0), folds, 0)[:, 0]
        matrix, order, folds, scales = np.ascontiguousarray(values).reshape(1, -1), None, (), ()
        value_bytes = held_bytes = array.dtype.itemsize
    else:
        matrix = array.T if part.transform.transposes else array
        value_bytes = held_bytes = array.dtype.itemsize
    n_rows, width = matrix.shape
    if order is not None:
        n_rows = len(order)
    row_bytes = width * value_bytes
    importance = needed_importance(importance, target, width)
    # what is multiplied is held in float32
    step = max(1, _BLOCK_BYTES // (width * (4 if folds or scales else held_bytes)))
    if folds:
        # a head's rows are mixed with each other: no block may cut a head
        step = max(1, step // folds[0].head_dim) * folds[0].head_dim
    starts = range(0, n_rows, step)
    for first in sorted({starts[0], starts[-1]}) if ends_only else starts:
        rows = slice(first, min(first + step, n_rows))
        block, block_order = _block(matrix, order, rows.start, rows.stop)
        if (folds or scales) and block_order is not None:
            block, block_order = block[block_order], None
        more = _added_to_block(added, order, rows, is_whole=block_order is not None)
        if folds or scales:
            block = _folded(_scaled(_sums(block, more, n_threads), scales, first), folds, first)
            more = None
        if feedback is not None:
            values = _values(block, block_order, more, n_threads)
            data, stats = compensate_rows(values, target, feedback, n_threads=n_threads)
        else:
            data, stats = quantize_rows(
                block, target, n_threads=n_threads, row_order=block_order, importance=importance,
                added=more,
            )  # fmt: skip
        yield data, len(data) * row_bytes, stats


def _block(
    matrix: NDArray[Any] | DecodedMatrix, order: NDArray[np.int64] | None, first: int, stop: int
) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """Rows ``first`` to ``stop``, and the order in which the quantizer takes them."""
    if not isinstance(matrix, np.ndarray):
        return matrix.rows(slice(first, stop) if order is None else order[first:stop]), None
    if order is None:
        return np.ascontiguousarray(matrix[first:stop]), None
    if matrix.flags.c_contiguous:
        return matrix, order[first:stop]
    return np.ascontiguousarray(matrix[order[first:stop]]), None


def _added_to_block(
    added: LowRank | None, order: NDArray[np.int64] | None, rows: slice, *, is_whole: bool
) -> LowRank | None:
    """What is added to a block: to all rows of the matrix if it is whole, else to these."""
    if added is None or is_whole:
        return added
    sources = rows if order is None else order[rows]
    return LowRank(np.ascontiguousarray(added.left[sources]), added.right)


def added_to_target(added: LowRank, part: Part) -> LowRank:
    """What is added to a part's rows as the file has them: reordered, scaled and rotated."""
    order = part.transform.row_order()
    left = added.left.copy() if order is None else added.left[order]
    by_row = tuple(fold for fold in part.folds if not fold.columns)
    by_column = tuple(fold for fold in part.folds if fold.columns)
    left = _folded(_scaled(left, part.scales, 0), by_row, 0)
    return LowRank(left, _folded(added.right.copy(), by_column, 0))


def _sums(rows: NDArray[Any], added: LowRank | None, n_threads: int) -> NDArray[np.float32]:
    """Rows in float32, with what is added to them."""
    return widened(rows) if added is None else _values(rows, None, added, n_threads)


def _values(
    rows: NDArray[Any],
    order: NDArray[np.int64] | None,
    added: LowRank | None,
    n_threads: int,
) -> NDArray[np.float32]:
    """Rows in float32 and in this order, with what is added to them."""
    data, _ = quantize_rows(
        rows, ggml_type_named("f32"), n_threads=n_threads, row_order=order, added=added,
        measure=False,
    )  # fmt: skip
    return data.view(np.float32)


def widened(rows: NDArray[Any]) -> NDArray[np.float32]:
    """A float32 copy; uint16 is bfloat16, the upper half of a float32."""
    if rows.dtype == np.uint16:
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return rows.astype(np.float32)


def _scaled(
    rows: NDArray[np.float32], scales: tuple[Scale, ...], first: int
) -> NDArray[np.float32]:
    """Multiply target rows that begin at ``first``, in place."""
    for scale in scales:
        start, stop = max(scale.first - first, 0), min(scale.stop - first, len(rows))
        if start < stop:
            rows[start:stop] *= np.float32(scale.factor)
    return rows


def _folded(rows: NDArray[np.float32], folds: tuple[Fold, ...], first: int) -> NDArray[np.float32]:
    """Apply the rotations to target rows that begin at ``first``, in place."""
    for fold in folds:
        turn = orthonormal(fold.size)
        if fold.columns:
            heads = rows.reshape(len(rows), -1, fold.head_dim)  # (rows, n_head, head_dim)
            heads[:] = heads @ turn.T
            continue
        start, stop = max(fold.first - first, 0), min(fold.stop - first, len(rows))
        if start < stop:
            heads = rows[start:stop].reshape(-1, fold.head_dim, rows.shape[1])
            heads[:, fold.head_dim - fold.size :] = turn @ heads[:, fold.head_dim - fold.size :]
    return rows
