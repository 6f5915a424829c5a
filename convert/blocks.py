"""Turn one planned tensor into quantized blocks of rows, a few megabytes at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer_os.native.quantize import QuantizeStats, quantize_rows

from .plan import PlannedTensor

# Source bytes per block: large enough that threads share it well, small enough to keep the
# converter's own memory to a few tens of megabytes.
_BLOCK_BYTES = 16 << 20


def quantized_blocks(
    tensor: PlannedTensor,
    array: NDArray[Any],
    *,
    n_threads: int,
    importance: NDArray[np.float32] | None = None,
) -> Iterator[tuple[NDArray[np.uint8], int, QuantizeStats]]:
    """Quantize a tensor block by block.

    Args:
        tensor: what to write.
        array: the source tensor, any strides; bfloat16 as uint16.
        n_threads: threads of the quantizer.
        importance: (row length,) weight of each column's error.

    Yields:
        Bytes of the next rows, source bytes they stand for, and what quantization did to them.
    """
    matrix = array.reshape(1, -1) if array.ndim == 1 else array
    order = tensor.rule.transform.row_order(tensor.rule.shape)
    if array.ndim == 1 and order is not None:
        matrix, order = array[order].reshape(1, -1), None
    n_rows, width = len(order) if order is not None else len(matrix), matrix.shape[1]
    row_bytes = width * array.dtype.itemsize
    step = max(1, _BLOCK_BYTES // row_bytes)
    for first in range(0, n_rows, step):
        rows, block_order = _block(matrix, order, first, min(first + step, n_rows))
        data, stats = quantize_rows(
            rows, tensor.type, n_threads=n_threads, row_order=block_order, importance=importance
        )
        yield data, len(data) * row_bytes, stats


def _block(
    matrix: NDArray[Any], order: NDArray[np.int64] | None, first: int, stop: int
) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """Rows ``first`` to ``stop``, and the order in which the quantizer takes them."""
    if order is None:
        return np.ascontiguousarray(matrix[first:stop]), None
    if matrix.flags.c_contiguous:
        return matrix, order[first:stop]
    return np.ascontiguousarray(matrix[order[first:stop]]), None
