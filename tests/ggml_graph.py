"""Single ggml operations on a backend of choice: llama.cpp's CPU backend is the other oracle."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer_os.native.backend import start_kernels
from infer_os.native.ggml_types import ggml_type_named
from infer_os.native.library import load_library
from infer_os.native.quantize import needed_importance, quantize_rows

_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "ggml_new_tensor": (
        [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.POINTER(ctypes.c_int64)],
        ctypes.c_void_p,
    ),
    "ggml_mul_mat": ([ctypes.c_void_p] * 3, ctypes.c_void_p),
    "ggml_mul_mat_set_hint": ([ctypes.c_void_p, ctypes.c_int], None),
    "ggml_norm": ([ctypes.c_void_p] * 2 + [ctypes.c_float], ctypes.c_void_p),
    "ggml_add": ([ctypes.c_void_p] * 3, ctypes.c_void_p),
    "ggml_add_inplace": ([ctypes.c_void_p] * 3, ctypes.c_void_p),
    "ggml_mul": ([ctypes.c_void_p] * 3, ctypes.c_void_p),
    "ggml_gelu": ([ctypes.c_void_p] * 2, ctypes.c_void_p),
    "ggml_relu": ([ctypes.c_void_p] * 2, ctypes.c_void_p),
    "ggml_scale_bias": ([ctypes.c_void_p] * 2 + [ctypes.c_float] * 2, ctypes.c_void_p),
    "ggml_rope_ext": (
        [ctypes.c_void_p] * 4 + [ctypes.c_int] * 3 + [ctypes.c_float] * 6, ctypes.c_void_p,
    ),
    "ggml_get_rows": ([ctypes.c_void_p] * 3, ctypes.c_void_p),
    "ggml_set_rows": ([ctypes.c_void_p] * 4, ctypes.c_void_p),
    "ggml_view_2d": (
        [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 2 + [ctypes.c_size_t] * 2, ctypes.c_void_p,
    ),
    "ggml_view_3d": (
        [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 3 + [ctypes.c_size_t] * 3, ctypes.c_void_p,
    ),
    "ggml_reshape_2d": ([ctypes.c_void_p] * 2 + [ctypes.c_int64] * 2, ctypes.c_void_p),
    "ggml_permute": ([ctypes.c_void_p] * 2 + [ctypes.c_int] * 4, ctypes.c_void_p),
    "ggml_flash_attn_ext": ([ctypes.c_void_p] * 5 + [ctypes.c_float] * 3, ctypes.c_void_p),
    "ggml_flash_attn_ext_add_sinks": ([ctypes.c_void_p] * 2, None),
    "ggml_set_name": ([ctypes.c_void_p, ctypes.c_char_p], ctypes.c_void_p),
    "ggml_new_graph": ([ctypes.c_void_p], ctypes.c_void_p),
    "ggml_build_forward_expand": ([ctypes.c_void_p] * 2, None),
    "ggml_nbytes": ([ctypes.c_void_p], ctypes.c_size_t),
    "ggml_free": ([ctypes.c_void_p], None),
    "ggml_backend_cpu_init": ([], ctypes.c_void_p),
    "ggml_backend_dev_by_name": ([ctypes.c_char_p], ctypes.c_void_p),
    "ggml_backend_dev_init": ([ctypes.c_void_p, ctypes.c_char_p], ctypes.c_void_p),
    "ggml_backend_get_device": ([ctypes.c_void_p], ctypes.c_void_p),
    "ggml_backend_dev_backend_reg": ([ctypes.c_void_p], ctypes.c_void_p),
    "ggml_backend_reg_get_proc_address": ([ctypes.c_void_p, ctypes.c_char_p], ctypes.c_void_p),
    "ggml_backend_supports_op": ([ctypes.c_void_p] * 2, ctypes.c_bool),
    "ggml_backend_alloc_ctx_tensors": ([ctypes.c_void_p] * 2, ctypes.c_void_p),
    "ggml_backend_tensor_set": (
        [ctypes.c_void_p] * 2 + [ctypes.c_size_t] * 2, None,
    ),
    "ggml_backend_tensor_get": (
        [ctypes.c_void_p] * 2 + [ctypes.c_size_t] * 2, None,
    ),
    "ggml_backend_graph_compute": ([ctypes.c_void_p] * 2, ctypes.c_int),
    "ggml_backend_buffer_set_usage": ([ctypes.c_void_p, ctypes.c_int], None),
    "ggml_backend_buffer_free": ([ctypes.c_void_p], None),
    "ggml_backend_free": ([ctypes.c_void_p], None),
}  # fmt: skip


_WEIGHTS = 1  # GGML_BACKEND_BUFFER_USAGE_WEIGHTS


class _InitParams(ctypes.Structure):
    _fields_ = (
        ("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool),
    )  # fmt: skip


def ggml() -> Any:
    """The loaded ggml, with the signatures of what is used here."""
    library = load_library()
    for name, (arguments, result) in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    library.ggml_init.argtypes, library.ggml_init.restype = [_InitParams], ctypes.c_void_p
    return library


@contextmanager
def backend(name: str, n_threads: int = 2) -> Iterator[Any]:
    """A backend: "cpu", "inferos", or "whole", which is ours where it computes every node.

    "erf" is "whole" for a checkpoint whose GELU is the one by the error function.
    """
    library = ggml()
    if name == "cpu":
        pointer = library.ggml_backend_cpu_init()
    else:
        assert start_kernels().in_use
        device = library.ggml_backend_dev_by_name(b"inferos")
        library.inferos_kernels_switch({"inferos": 1, "whole": 3, "erf": 4}[name])
        pointer = library.ggml_backend_dev_init(device, None)
        library.inferos_kernels_switch(1)
    registry = library.ggml_backend_dev_backend_reg(library.ggml_backend_get_device(pointer))
    address = library.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_set_n_threads")
    ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(address)(pointer, n_threads)
    try:
        yield pointer
    finally:
        library.ggml_backend_free(pointer)


class Graph:
    """Tensors with contents, from which an operation is built."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.contents: list[tuple[Any, NDArray[Any]]] = []
        #: The tensor whose contents :func:`compute` returns; None: the last operation's.
        self.looked_at: Any = None

    def tensor(self, data: NDArray[Any], shape: Sequence[int], kind: str = "f32") -> Any:
        """A tensor of ggml's shape (the row's length first)."""
        sizes = (ctypes.c_int64 * len(shape))(*shape)
        pointer = ggml().ggml_new_tensor(self.context, ggml_type_named(kind).id, len(shape), sizes)
        self.contents.append((pointer, np.ascontiguousarray(data)))
        return pointer


def compute(
    name: str,
    build: Callable[[Graph], Any],
    shape: Sequence[int],
    n_threads: int = 2,
    *,
    weights: bool = False,
) -> NDArray[np.float32] | None:
    """The float32 result of an operation, as an array of ``shape``; None: not supported.

    ``weights``: its tensors pass for those of a model.
    """
    library = ggml()
    context = library.ggml_init(_InitParams(1 << 20, None, True))
    buffer = None
    with backend(name, n_threads) as pointer:
        try:
            graph = Graph(context)
            result = build(graph)
            nodes = library.ggml_new_graph(context)
            library.ggml_build_forward_expand(nodes, result)
            buffer = library.ggml_backend_alloc_ctx_tensors(context, pointer)
            if weights:
                library.ggml_backend_buffer_set_usage(buffer, _WEIGHTS)
            if not library.ggml_backend_supports_op(pointer, result):
                return None
            for tensor, data in graph.contents:
                assert data.nbytes == library.ggml_nbytes(tensor)
                library.ggml_backend_tensor_set(tensor, data.ctypes.data, 0, data.nbytes)
            assert library.ggml_backend_graph_compute(pointer, nodes) == 0
            out = np.empty(shape, np.float32)
            if graph.looked_at is not None:
                result = graph.looked_at
            assert out.nbytes == library.ggml_nbytes(result)
            library.ggml_backend_tensor_get(result, out.ctypes.data, 0, out.nbytes)
            return out
        finally:
            if buffer:
                library.ggml_backend_buffer_free(buffer)
            library.ggml_free(context)


def encoded(values: NDArray[np.float32], kind: str) -> NDArray[Any]:
    """Rows in a ggml type, as bytes; float types too."""
    if kind == "f32":
        return values
    if kind == "f16":
        return values.astype(np.float16)
    rows = values.reshape(-1, values.shape[-1])
    target = ggml_type_named(kind)
    importance = needed_importance(None, target, rows.shape[1])
    return quantize_rows(rows, target, n_threads=1, importance=importance)[0]
