"""What the loaded llama.cpp uses of the CPU, and how fast it reads memory and multiplies bytes."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import llama_cpp

from infer_os.models.weight_types import TENSOR_TYPES, Layout

from .errors import NativeError
from .library import load_library


def used_features() -> tuple[str, ...]:
    """Names of the features that the loaded libraries were compiled for, as ggml spells them."""
    return parse_features(llama_cpp.llama_print_system_info().decode())


def parse_features(info: str) -> tuple[str, ...]:
    """The features of ``llama_print_system_info``: those of the CPU backend that are not 0."""
    names: list[str] = []
    backend = ""
    for entry in info.split(" | "):
        # a backend's name precedes only its first feature
        label, _, feature = entry.rpartition(" : ")
        backend = label.strip() or backend
        name, _, value = feature.partition(" = ")
        if backend == "CPU" and value.strip() not in ("", "0"):
            names.append(name.strip())
    return tuple(names)


#: The feature whose layout may end the process, see ``layouts.py``.
AMX = "AMX_INT8"


def repacked_types(features: Sequence[str]) -> frozenset[str]:
    """Tensor types that llama.cpp repacks for such a CPU, if allowed.

    :data:`infer_os.models.weight_types.TENSOR_TYPES` has them by instruction set.
    """
    layouts = {
        layout
        for layout, needed in (
            (Layout.AVX2, {"REPACK", "AVX2"}),
            (Layout.NEON, {"REPACK", "NEON", "DOTPROD"}),
            (Layout.AMX, {AMX, "AVX512_VNNI"}),
        )
        if needed.issubset(features)
    }
    return frozenset(row.name for row in TENSOR_TYPES.values() if row.layouts & layouts)


def read_bandwidth(n_threads: int, *, n_bytes: int = 256 << 20, seconds: float = 0.5) -> float:
    """Measured bytes per second that ``n_threads`` threads together read from memory.

    Raises:
        NativeError: no memory for the ``n_bytes`` that are read repeatedly.
    """
    rate = ctypes.c_double()
    status = load_library().inferos_read_bandwidth(n_bytes, n_threads, seconds, ctypes.byref(rate))
    if status != 0:
        raise NativeError(
            f"cannot measure the memory's bandwidth with {n_bytes} bytes and {n_threads} threads"
        )
    return float(rate.value)


def multiply_rate(n_threads: int, *, seconds: float = 0.1, scaled: bool = False) -> float:
    """Measured multiply-adds of bytes per second that ``n_threads`` threads do in registers.

    With ``scaled``, those of the kernels' innermost loop from the L1 cache, where every 32
    products are scaled and added: the bound of a product of quantized weights with many columns.

    Raises:
        NativeError: our kernels have no instructions for this CPU, or there are no such threads.
    """
    rate = ctypes.c_double()
    status = load_library().inferos_multiply_rate(n_threads, seconds, scaled, ctypes.byref(rate))
    if status != 0:
        raise NativeError(f"cannot measure how fast {n_threads} threads multiply bytes here")
    return float(rate.value)


@functools.cache
def possible_threads(n_threads: int) -> int:
    """How many of ``n_threads`` threads this process can have at once.

    OpenMP, used by llama.cpp and our kernels, ends the process if a thread fails to start.
    """
    return int(load_library().inferos_possible_threads(n_threads))
