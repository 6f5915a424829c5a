"""Turn one stored tensor into quantized blocks of rows, a few megabytes at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from infer_os.models.network import Part
from infer_os.native.ggml_types import GgmlType
from infer_os.native.quantize import QuantizeStats, quantize_rows
from numpy.typing import NDArray

# Source bytes per block: large enough that threads share it well, small enough to keep the
# converter's own memory to a few tens of megabytes.
_BLOCK_BYTES = 16 << 20


def quantized_blocks(
    part: Part,
    array: NDArray[Any],
    target: GgmlType,
    *,
    n_threads: int,
    importance: NDArray[np.float32] | None = None,
) -> Iterator[tuple[NDArray[np.uint8], int, QuantizeStats]]:
    """Quantize a stored tensor block by block.

    Args:
        part: how its rows go into the file.
        array: the stored tensor, any strides; bfloat16 as uint16.
        target: type to write.
        n_threads: threads of the quantizer.
        importance: (row length,) weight of each column's error.

    Yields:
        Bytes of the next rows, source bytes they stand for, and what quantization did to them.
    """
    order = part.transform.row_order()
    if array.ndim == 1:
        matrix, order = (array if order is None else array[order]).reshape(1, -1), None
    else:
        matrix = array.T if part.transform.transposes else array
    n_rows, width = matrix.shape
    row_bytes = width * array.dtype.itemsize
    step = max(1, _BLOCK_BYTES // row_bytes)
    for first in range(0, n_rows, step):
        rows, block_order = _block(matrix, order, first, min(first + step, n_rows))
        data, stats = quantize_rows(
            rows, target, n_threads=n_threads, row_order=block_order, importance=importance
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
