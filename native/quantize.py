"""Quantize rows of floats to any ggml type on several threads."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import QuantizeError
from .ggml_types import GgmlType, ggml_type_named
from .library import load_library


class _Job(ctypes.Structure):
    """``inferos_quantize_job`` of native/src/inferos.h."""

    _fields_ = (
        ("src", ctypes.c_void_p),
        ("row_order", ctypes.c_void_p),
        ("importance", ctypes.c_void_p),
        ("dst", ctypes.c_void_p),
        ("n_rows", ctypes.c_int64),
        ("n_src_rows", ctypes.c_int64),
        ("n_per_row", ctypes.c_int64),
        ("src_type", ctypes.c_int32),
        ("dst_type", ctypes.c_int32),
        ("n_threads", ctypes.c_int32),
        ("kernel", ctypes.c_int32),
    )


class _Error(ctypes.Structure):
    """``inferos_quantize_error`` of native/src/inferos.h."""

    _fields_ = (
        ("sum_squared_error", ctypes.c_double),
        ("sum_squared_value", ctypes.c_double),
        ("max_abs_error", ctypes.c_double),
        ("n_not_finite", ctypes.c_int64),
    )


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
        """Take another block in."""
        self.n_values += other.n_values
        self.sum_squared_error += other.sum_squared_error
        self.sum_squared_value += other.sum_squared_value
        self.max_abs_error = max(self.max_abs_error, other.max_abs_error)
        self.n_not_finite += other.n_not_finite

    @property
    def rms_error(self) -> float:
        """Root of the mean squared error."""
        return float(np.sqrt(self.sum_squared_error / self.n_values)) if self.n_values else 0.0


# enum inferos_kernel, in its order
KERNELS = ("best", "ggml", "baseline", "avx2", "avx512")

# enum inferos_status
_REFUSALS = {
    1: "no quantizer from {source} to {target}",
    2: "rows of {width} values do not divide into {target}'s blocks of {block}",
    3: "a row index lies outside the source",
    4: "{target} needs importance weights (an importance matrix)",
    5: "not enough memory for the scratch buffers",
    7: "no {kernel} kernel for {target} on this CPU",
}


@functools.cache
def _quantize_function() -> Any:
    function = load_library().inferos_quantize_rows
    function.argtypes = [ctypes.POINTER(_Job), ctypes.POINTER(_Error)]
    function.restype = ctypes.c_int32
    return function


def best_kernel() -> str:
    """Which of ``KERNELS`` "best" stands for: "ggml" if the one loaded rounds unlike ours."""
    function = load_library().inferos_best_kernel
    function.restype = ctypes.c_int32
    return KERNELS[function()]


def _source_type(rows: NDArray[Any]) -> GgmlType:
    names = {"float32": "f32", "float16": "f16", "uint16": "bf16"}
    try:
        return ggml_type_named(names[rows.dtype.name])
    except KeyError:
        raise QuantizeError(
            f"cannot quantize from {rows.dtype}; expected float32, float16 or bfloat16 (as uint16)"
        ) from None


def quantize_rows(
    rows: NDArray[Any],
    target: GgmlType,
    *,
    n_threads: int,
    row_order: NDArray[np.int64] | None = None,
    importance: NDArray[np.float32] | None = None,
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
        measure: fill the stats, at the price of reading the result back.
        kernel: one of ``KERNELS``, for comparison; the bytes are the same.

    Returns:
        (n_rows, bytes per row) uint8 and the stats.

    Raises:
        QuantizeError: types, shape or row indices that do not go together, or a kernel that this
            CPU or type does not have.
    """
    if rows.ndim != 2 or not rows.flags.c_contiguous:
        raise QuantizeError("expected a contiguous matrix of rows")
    source = _source_type(rows)
    n_src_rows, width = rows.shape
    if importance is not None and importance.shape != (width,):
        raise QuantizeError(f"{importance.shape[0]} importance weights for rows of {width} values")
    order = None if row_order is None else np.ascontiguousarray(row_order, np.int64)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    n_rows = n_src_rows if order is None else len(order)
    result = np.empty((n_rows, target.row_bytes(width)), np.uint8)
    job = _Job(
        rows.ctypes.data,
        None if order is None else order.ctypes.data,
        None if weights is None else weights.ctypes.data,
        result.ctypes.data,
        n_rows, n_src_rows, width, source.id, target.id, n_threads, KERNELS.index(kernel),
    )  # fmt: skip
    error = _Error()
    status = _quantize_function()(ctypes.byref(job), ctypes.byref(error) if measure else None)
    if status != 0:
        reason = _REFUSALS.get(status, f"status {status}")
        raise QuantizeError(
            reason.format(
                source=source.name,
                target=target.name,
                width=width,
                block=target.block,
                kernel=kernel,
            )
        )
    stats = QuantizeStats(
        n_rows * width if measure else 0,
        error.sum_squared_error,
        error.sum_squared_value,
        error.max_abs_error,
        error.n_not_finite,
    )
    return result, stats
