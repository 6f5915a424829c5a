"""Quantize rows so that each column's rounding makes up for the errors of those before it (GPTQ).

Goes in: the second moments of a layer's inputs, in diagonal blocks of columns, and rows of weights.
Comes out: blocks of bytes in the form that :func:`.quantize.quantize_rows` writes. The method is
that of Frantar et al., GPTQ (2022), https://arxiv.org/abs/2210.17323: the layer's squared error on
those inputs is made small, not that of the weights alone. The work is in native/src/compensation.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .abi import Status, inferos_compensate_job, inferos_quantize_error
from .errors import QuantizeError
from .ggml_types import GgmlType
from .library import load_library
from .quantize import QuantizeStats

#: Share of the diagonal's mean that is added to the diagonal, as GPTQ's authors do.
DAMPING = 0.01
#: How often scales and codes are chosen again after the sweep, unless asked otherwise.
REFINEMENTS = 2


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a sweep over the columns of one matrix needs.

    ``values`` has a square of every block of ``widths`` columns, one after another; ``importance``
    (n_columns,) weighs each column when scales are chosen. ``damping`` is the largest that a block
    took. ``moments`` is what was factored, with its damping, in the order of ``values``.
    """

    widths: NDArray[np.int64]
    values: NDArray[np.float32]
    importance: NDArray[np.float32]
    damping: float
    moments: NDArray[np.float32]

    @property
    def n_bytes(self) -> int:
        """Bytes of the arrays."""
        return self.values.nbytes + self.importance.nbytes + self.moments.nbytes


def can_compensate(target: GgmlType) -> bool:
    """Whether :func:`compensate_rows` writes this type."""
    return bool(load_library().inferos_compensates(target.id))


def make_feedback(
    moments: Sequence[NDArray[np.float32]], *, n_threads: int, damping: float = DAMPING
) -> Feedback | None:
    """Factor the second moments of a layer's inputs.

    Args:
        moments: a matrix (width, width) per block of columns, C-contiguous; the upper half counts.
        n_threads: threads; the result does not depend on them.
        damping: what is tried first; ten times as much follows where no factor exists.

    Returns:
        None if nothing helps: a block is zero, or not finite.

    Raises:
        QuantizeError: a matrix is not square, or there is not enough memory.
    """
    widths = np.array([len(block) for block in moments], np.int64)
    values = np.empty(int((widths**2).sum()), np.float32)
    damped = np.empty_like(values)
    importance = np.empty(int(widths.sum()), np.float32)
    at = column = 0
    largest = damping
    for block in moments:
        width = len(block)
        if block.shape != (width, width) or block.dtype != np.float32 or not width:
            raise QuantizeError(
                f"second moments of shape {block.shape}; expected a square, float32"
            )
        square = np.ascontiguousarray(block)
        took = ctypes.c_double(damping)
        status = load_library().inferos_feedback(
            square.ctypes.data, width, n_threads, values[at:].ctypes.data,
            importance[column:].ctypes.data, ctypes.byref(took), damped[at:].ctypes.data,
        )  # fmt: skip
        if status == Status.NOT_FINITE:
            return None
        if status != Status.OK:
            raise QuantizeError("not enough memory to factor the second moments")
        largest = max(largest, took.value)
        at, column = at + width * width, column + width
    return Feedback(widths, values, importance, largest, damped)


def compensate_rows(
    rows: NDArray[np.float32],
    target: GgmlType,
    feedback: Feedback,
    *,
    n_threads: int,
    refinements: int = REFINEMENTS,
) -> tuple[NDArray[np.uint8], QuantizeStats]:
    """Quantize rows with compensation.

    Args:
        rows: (n_rows, n_columns) float32, C-contiguous.
        target: type to write; see :func:`can_compensate`.
        feedback: of the layer's inputs.
        n_threads: threads; they share the rows, and the bytes do not depend on them.
        refinements: how often scales and codes are chosen again after the sweep.

    Returns:
        (n_rows, bytes per row) uint8, and the errors of the weights.

    Raises:
        QuantizeError: a type that it does not write, or shapes that do not match.
    """
    if rows.ndim != 2 or rows.dtype != np.float32 or not rows.flags.c_contiguous:
        raise QuantizeError("expected a contiguous matrix of float32 rows")
    n_rows, width = rows.shape
    if width != len(feedback.importance):
        raise QuantizeError(
            f"feedback for {len(feedback.importance)} columns; the rows have {width}"
        )
    result = np.empty((n_rows, target.row_bytes(width)), np.uint8)
    job = inferos_compensate_job(
        rows.ctypes.data, feedback.values.ctypes.data, feedback.importance.ctypes.data,
        feedback.widths.ctypes.data, feedback.moments.ctypes.data if refinements else None,
        result.ctypes.data, len(feedback.widths), n_rows, width, target.id, n_threads, refinements,
    )  # fmt: skip
    error = inferos_quantize_error()
    status = load_library().inferos_compensate_rows(ctypes.byref(job), ctypes.byref(error))
    if status != Status.OK:
        reasons = {
            Status.BAD_TYPE: f"{target.name} cannot be written with compensation",
            Status.BAD_SHAPE: f"blocks of {[*feedback.widths]} columns do not divide into "
            f"{target.name}'s blocks of {target.block}",
            Status.NO_MEMORY: "not enough memory for the scratch buffers",
        }
        raise QuantizeError(reasons.get(status, f"status {status}"))
    stats = QuantizeStats(
        n_rows * width, error.sum_squared_error, error.sum_squared_value, error.max_abs_error,
        error.n_not_finite,
    )  # fmt: skip
    return result, stats
