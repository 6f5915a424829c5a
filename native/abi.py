"""What Python calls of our native library, and of ggml through it: each function and struct, once.

The tables mirror native/src/inferos.h; a test compares them with the header, name by name. The
structs bear their names in C. :func:`declare` gives a loaded library its types, so that whoever has
it calls ``library.inferos_...`` and ctypes checks the arguments.
"""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    c_bool,
    c_char_p,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint64,
    c_void_p,
)
from enum import IntEnum
from typing import Any, Final

#: The start of the SHA-256 of the header that this file was written for.
HEADER_HASH: Final = "5d464d444aaa539f"


class Status(IntEnum):
    """``inferos_status``: what most functions return."""

    OK = 0
    BAD_TYPE = 1
    BAD_SHAPE = 2
    BAD_ROW = 3
    NEEDS_IMPORTANCE = 4
    NO_MEMORY = 5
    NOT_FINITE = 6
    NO_KERNEL = 7
    UNKNOWN_LLAMA = 8


class inferos_build_info(ctypes.Structure):
    """What the library was compiled against and what it found in this process."""

    _fields_ = (
        ("ggml_version_built", c_char_p),
        ("ggml_version_loaded", c_char_p),
        ("libllama_path", c_char_p),
        ("sizeof_model_params", c_uint64),
        ("sizeof_context_params", c_uint64),
        ("sizeof_batch", c_uint64),
    )


class inferos_quantize_job(ctypes.Structure):
    """Rows to quantize."""

    _fields_ = (
        ("src", c_void_p),
        ("row_order", c_void_p),
        ("importance", c_void_p),
        ("dst", c_void_p),
        ("left", c_void_p),
        ("right", c_void_p),
        ("rank", c_int64),
        ("n_rows", c_int64),
        ("n_src_rows", c_int64),
        ("n_per_row", c_int64),
        ("src_type", c_int32),
        ("dst_type", c_int32),
        ("n_threads", c_int32),
        ("kernel", c_int32),
    )


class inferos_quantize_error(ctypes.Structure):
    """What quantizing did to the values."""

    _fields_ = (
        ("sum_squared_error", c_double),
        ("sum_squared_value", c_double),
        ("max_abs_error", c_double),
        ("n_not_finite", c_int64),
    )


class inferos_activation_sums(ctypes.Structure):
    """What entered one matrix."""

    _fields_ = (
        ("name", c_char_p),
        ("sum_squares", POINTER(c_double)),
        ("n_columns", c_int64),
        ("n_rows", c_int64),
    )


class inferos_moment_sums(ctypes.Structure):
    """What entered one matrix, as second moments."""

    _fields_ = (
        ("leader", c_char_p),
        ("blocks", POINTER(c_float)),
        ("n_values", c_int64),
        ("n_rows", c_int64),
        ("stripe", c_int64),
    )


class inferos_compensate_job(ctypes.Structure):
    """Rows to quantize with compensation."""

    _fields_ = (
        ("rows", c_void_p),
        ("feedback", c_void_p),
        ("importance", c_void_p),
        ("widths", c_void_p),
        ("moments", c_void_p),
        ("dst", c_void_p),
        ("n_blocks", c_int64),
        ("n_rows", c_int64),
        ("n_per_row", c_int64),
        ("dst_type", c_int32),
        ("n_threads", c_int32),
        ("refinements", c_int32),
    )


class inferos_score_job(ctypes.Structure):
    """Rows of logits to score."""

    _fields_ = (
        ("reference", c_void_p),
        ("candidate", c_void_p),
        ("targets", c_void_p),
        ("rows", c_void_p),
        ("n_scores", c_int64),
        ("n_rows", c_int64),
        ("n_vocab", c_int64),
        ("n_threads", c_int32),
    )


class inferos_row_score(ctypes.Structure):
    """The score of one token behind a row."""

    _fields_ = (
        ("reference_log_prob", c_double),
        ("candidate_log_prob", c_double),
        ("kl", c_double),
        ("reference_top", c_int32),
        ("candidate_top", c_int32),
    )


class inferos_buffers(ctypes.Structure):
    """Bytes that llama.cpp holds for a context and its model."""

    _fields_ = (
        ("model", c_uint64),
        ("context", c_uint64),
        ("compute", c_uint64),
    )


class inferos_kv_part(ctypes.Structure):
    """Rows of one layer's K or V."""

    _fields_ = (
        ("src", c_void_p),
        ("dst", c_void_p),
        ("n_rows", c_int64),
        ("n_per_row", c_int64),
        ("src_type", c_int32),
        ("dst_type", c_int32),
        ("src_rotation", c_int32),
        ("dst_rotation", c_int32),
    )


class inferos_mul_mat(ctypes.Structure):
    """One product, for tests and benchmarks."""

    _fields_ = (
        ("weights", c_void_p),
        ("x", c_void_p),
        ("out", c_void_p),
        ("n_rows", c_int64),
        ("n_per_row", c_int64),
        ("n_columns", c_int64),
        ("row_bytes", c_int64),
        ("type", c_int32),
        ("n_threads", c_int32),
    )


# a function's result, and its parameters; a pointer to what Python never looks into is c_void_p
_Types = tuple[Any, tuple[Any, ...]]

#: Those of native/src/inferos.h, in its order.
FUNCTIONS: Final[dict[str, _Types]] = {
    "inferos_header_hash": (c_char_p, ()),
    "inferos_get_build_info": (None, (POINTER(inferos_build_info),)),
    "inferos_interrupt_install": (c_int32, ()),
    "inferos_interrupt_restore": (c_int32, ()),
    "inferos_interrupt_set": (None, (c_int32,)),
    "inferos_interrupt_requested": (c_bool, (c_void_p,)),
    "inferos_quantize_rows": (
        c_int32,
        (POINTER(inferos_quantize_job), POINTER(inferos_quantize_error)),
    ),
    "inferos_best_kernel": (c_int32, ()),
    "inferos_activations_create": (c_void_p, ()),
    "inferos_activations_destroy": (None, (c_void_p,)),
    "inferos_activations_observe": (c_bool, (c_void_p, c_bool, c_void_p)),
    "inferos_activations_status": (c_int32, (c_void_p,)),
    "inferos_activations_culprit": (c_char_p, (c_void_p,)),
    "inferos_activations_n_entries": (c_int64, (c_void_p,)),
    "inferos_activations_entry": (c_int32, (c_void_p, c_int64, POINTER(inferos_activation_sums))),
    "inferos_moments_values": (c_int64, (c_int64, c_int64)),
    "inferos_moments_create": (c_void_p, (c_int32,)),
    "inferos_moments_destroy": (None, (c_void_p,)),
    "inferos_moments_want": (c_int32, (c_void_p, c_char_p, c_int64, c_int64)),
    "inferos_moments_observe": (c_bool, (c_void_p, c_bool, c_void_p)),
    "inferos_moments_status": (c_int32, (c_void_p,)),
    "inferos_moments_culprit": (c_char_p, (c_void_p,)),
    "inferos_moments_of": (c_int32, (c_void_p, c_char_p, POINTER(inferos_moment_sums))),
    "inferos_feedback": (
        c_int32,
        (c_void_p, c_int64, c_int32, c_void_p, c_void_p, POINTER(c_double), c_void_p),
    ),
    "inferos_compensates": (c_int32, (c_int32,)),
    "inferos_compensate_rows": (
        c_int32,
        (POINTER(inferos_compensate_job), POINTER(inferos_quantize_error)),
    ),
    "inferos_score_rows": (c_int32, (POINTER(inferos_score_job), POINTER(inferos_row_score))),
    "inferos_read_bandwidth": (c_int32, (c_uint64, c_int32, c_double, POINTER(c_double))),
    "inferos_multiply_rate": (c_int32, (c_int32, c_double, c_int32, POINTER(c_double))),
    "inferos_possible_threads": (c_int32, (c_int32,)),
    "inferos_context_buffers": (c_int32, (c_void_p, POINTER(inferos_buffers))),
    "inferos_file_residency": (c_int32, (c_char_p, c_uint64, c_uint64, POINTER(c_uint64))),
    "inferos_guard_watch": (c_int32, (c_int32,)),
    "inferos_guard_damaged": (POINTER(c_int32), (c_int32,)),
    "inferos_guard_release": (None, (c_int32,)),
    "inferos_try_layouts": (c_int32, ()),
    "inferos_kv_reencode": (c_int32, (POINTER(inferos_kv_part), c_int64, c_int32)),
    "inferos_kernels_complaint": (c_char_p, ()),
    "inferos_kernels_start": (c_char_p, ()),
    "inferos_kernels_name": (c_char_p, ()),
    "inferos_kernels_takes": (c_int32, (c_int32,)),
    "inferos_has_amx": (c_int32, ()),
    "inferos_kernels_try": (c_int32, (c_char_p,)),
    "inferos_kernels_choose": (c_int32, (c_char_p,)),
    "inferos_kernels_switch": (None, (c_int32,)),
    "inferos_kernels_windows": (c_int32, (c_int32, POINTER(c_int32))),
    "inferos_kernels_left_out": (c_double, ()),
    "inferos_kernels_most_columns": (c_int32, ()),
    "inferos_kernels_takes_columns": (c_int32, (c_int32,)),
    "inferos_kernels_mul_mat": (c_int32, (c_char_p, POINTER(inferos_mul_mat))),
}

#: Those of ggml.h that llama-cpp-python does not declare; our library finds them in libggml.
GGML_FUNCTIONS: Final[dict[str, _Types]] = {
    "ggml_set_abort_callback": (c_void_p, (c_void_p,)),
    "ggml_type_name": (c_char_p, (c_int,)),
    "ggml_blck_size": (c_int64, (c_int,)),
    "ggml_type_size": (c_size_t, (c_int,)),
    "ggml_is_quantized": (c_bool, (c_int,)),
    "ggml_quantize_requires_imatrix": (c_bool, (c_int,)),
}


def header_hash(library: ctypes.CDLL) -> str:
    """Of the ``inferos.h`` that a library was built with; empty: it is too old to say.

    The one function to call before it is known to be :data:`HEADER_HASH`.
    """
    if not hasattr(library, "inferos_header_hash"):
        return ""
    _declare(library, "inferos_header_hash")
    return str(library.inferos_header_hash().decode())


def declare(library: ctypes.CDLL) -> None:
    """Give every function of both tables its types, in a library of :data:`HEADER_HASH`."""
    for name in FUNCTIONS | GGML_FUNCTIONS:
        _declare(library, name)


def _declare(library: ctypes.CDLL, name: str) -> None:
    function = getattr(library, name)
    function.restype, function.argtypes = (FUNCTIONS | GGML_FUNCTIONS)[name]
