"""Quantize rows of floats to any ggml type on several threads."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .abi import Status, inferos_quantize_error, inferos_quantize_job
from .errors import QuantizeError
from .ggml_types import GgmlType, ggml_type_named
from .library import load_library


@dataclass(slots=True)
class QuantizeStats:
    """What quantization did to the values, summed over blocks.

    ``n_not_finite`` counts NaN and infinity in the source.
    """

    n_values: int = 0
    sum_squared_error: float = 0.0
    sum_squared_value: float = 0.0
    max_abs_error: float = 0.0
    n_not_finite: int = 0

    def add(self, other: QuantizeStats) -> None:
        """Add another block's errors."""
        self.n_values += other.n_values
        self.sum_squared_error += other.sum_squared_error
        self.sum_squared_value += other.sum_squared_value
        self.max_abs_error = max(self.max_abs_error, other.max_abs_error)
        self.n_not_finite += other.n_not_finite

    @property
    def rms_error(self) -> float:
        """Root of the mean squared error."""
        return float(np.sqrt(self.sum_squared_error / self.n_values)) if self.n_values else 0.0


@dataclass(frozen=True, slots=True)
class LowRank:
    """What is added to a matrix: the product of (n_rows, r) and (r, n_columns)."""

    left: NDArray[np.float32]
    right: NDArray[np.float32]


# enum inferos_kernel, in its order
KERNELS = ("best", "ggml", "baseline", "avx2", "avx512")

_REFUSALS = {
    Status.BAD_TYPE: "no quantizer from {source} to {target}",
    Status.BAD_SHAPE: "rows of {width} values do not divide into {target}'s blocks of {block}",
    Status.BAD_ROW: "a row index lies outside the source",
    Status.NEEDS_IMPORTANCE: "{target} needs importance weights (an importance matrix)",
    Status.NO_MEMORY: "not enough memory for the scratch buffers",
    Status.NO_KERNEL: "no {kernel} kernel for {target} on this CPU",
}


def best_kernel() -> str:
    """Which of ``KERNELS`` "best" stands for: "ggml" if the loaded ggml rounds unlike ours."""
    return KERNELS[load_library().inferos_best_kernel()]


def needed_importance(
    importance: NDArray[np.float32] | None, target: GgmlType, n_columns: int
) -> NDArray[np.float32] | None:
    """The weights; without any, equal ones for a type that cannot be written without."""
    if importance is None and load_library().ggml_quantize_requires_imatrix(target.id):
        return np.ones(n_columns, np.float32)
    return importance


def _source_type(rows: NDArray[Any]) -> GgmlType:
    names = {"float32": "f32", "float16": "f16", "uint16": "bf16"}
    try:
        return ggml_type_named(names[rows.dtype.name])
    except KeyError:
        raise QuantizeError(
            f"cannot quantize from {rows.dtype}; expected float32, float16 or bfloat16 (as uint16)"
        ) from None


def _check_added(added: LowRank, rows: NDArray[Any]) -> None:
    shapes = added.left.shape, added.right.shape
    arrays = (added.left, added.right)
    plain = all(array.dtype == np.float32 and array.flags.c_contiguous for array in arrays)
    if not plain or shapes != ((len(rows), len(added.right)), (len(added.right), rows.shape[1])):
        raise QuantizeError(f"cannot add matrices of shape {shapes} to rows of {rows.shape}")


def quantize_rows(
    rows: NDArray[Any],
    target: GgmlType,
    *,
    n_threads: int,
    row_order: NDArray[np.int64] | None = None,
    importance: NDArray[np.float32] | None = None,
    added: LowRank | None = None,
    measure: bool = True,
    kernel: str = "best",
) -> tuple[NDArray[np.uint8], QuantizeStats]:
    """Quantize rows.

    Args:
        rows: (n_src_rows, n_per_row) float32, float16 or bfloat16 bits as uint16, C-contiguous.
        target: type to write.
        n_threads: threads to use; they share the rows.
        row_order: (n_rows,) source row of each output row; None for all in order.
        importance: (n_per_row,) weight of each column's squared error.
        added: what is added to the source rows first, in float32.
        measure: fill the stats, at the cost of reading the result back.
        kernel: one of ``KERNELS``, for comparison; the bytes are the same.

    Returns:
        (n_rows, bytes per row) uint8 and the stats.

    Raises:
        QuantizeError: types, shape or row indices that do not match, or a kernel that this
            CPU or type does not have.
    """
    source = _check_rows(rows, importance)
    n_src_rows, width = rows.shape
    if added is not None:
        _check_added(added, rows)
    order = None if row_order is None else np.ascontiguousarray(row_order, np.int64)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    n_rows = n_src_rows if order is None else len(order)
    result = np.empty((n_rows, target.row_bytes(width)), np.uint8)
    job = inferos_quantize_job(
        rows.ctypes.data,
        None if order is None else order.ctypes.data,
        None if weights is None else weights.ctypes.data,
        result.ctypes.data,
        None if added is None else added.left.ctypes.data,
        None if added is None else added.right.ctypes.data,
        0 if added is None else len(added.right),
        n_rows, n_src_rows, width, source.id, target.id, n_threads, KERNELS.index(kernel),
    )  # fmt: skip
    error = inferos_quantize_error()
    status = load_library().inferos_quantize_rows(
        ctypes.byref(job), ctypes.byref(error) if measure else None
    )
    if status != Status.OK:
        reason = _REFUSALS.get(status, f"status {status}").format(
            source=source.name, target=target.name, width=width, block=target.block, kernel=kernel
        )
        raise QuantizeError(reason)
    n_values = n_rows * width if measure else 0
    return result, QuantizeStats(
        n_values,
        error.sum_squared_error,
        error.sum_squared_value,
        error.max_abs_error,
        error.n_not_finite,
    )


def _check_rows(rows: NDArray[Any], importance: NDArray[np.float32] | None) -> GgmlType:
    """The type of what is to be quantized."""
    if rows.ndim != 2 or not rows.flags.c_contiguous:
        raise QuantizeError("expected a contiguous matrix of rows")
    source = _source_type(rows)
    width = rows.shape[1]
    if importance is not None and importance.shape != (width,):
        raise QuantizeError(f"{importance.shape[0]} importance weights for rows of {width} values")
    return source
