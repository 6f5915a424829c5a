"""Compare a file's tensors with its graph's row of :mod:`infer_os.models.graphs`.

Types are those that ggml's CPU kernels accept in that place.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import replace

from infer_os.models.graphs import Graph, GraphSizes, GraphTensor, graph_named

from .errors import GgufError
from .gguf_file import GgufHeader, GgufTensor

#: Types without a product (``vec_dot`` of ``ggml_type_traits_cpu``): ggml's internal layouts and
#: whole numbers. Rows of all others can also be looked up.
NO_MATRIX = ("q8_1", "q8_k", "i8", "i16", "i32", "i64", "f64")

# ggml adds and multiplies f32 only with f32 (``ggml_compute_forward_binary_op``)
_VECTOR = "f32"

_FUSED = "attn_qkv"
#: What may stand in its place, with the rows of each.
_SPLIT = (("attn_q", "n_embd"), ("attn_k", "n_kv"), ("attn_v", "n_kv"))


def check_tensors(header: GgufHeader, sizes: GraphSizes) -> None:
    """Compare a file's tensors with its graph's; the vocabulary has been checked.

    Raises:
        GgufError: one is missing, unknown to the graph, or of a shape or type that it cannot have.
    """
    found = {tensor.name: tensor for tensor in header.tensors}
    known: set[str] = set()
    for wanted in _tensors(graph_named(header.architecture), sizes, found.keys()):
        known.add(wanted.name)
        tensor = found.get(wanted.name)
        if tensor is None:
            if wanted.required:
                raise _bad(header, f"the tensor {wanted.name!r} is missing")
            continue
        shape = sizes.shape(wanted)
        if _padded(tensor.shape) != _padded(shape):
            raise _bad(
                header,
                f"the tensor {tensor.name!r} is {_shown(tensor.shape)}; expected {_shown(shape)}",
            )
        _check_type(header, tensor, is_vector=len(shape) == 1)
    for name in found:
        if name not in known:
            raise _bad(
                header,
                f"the tensor {name!r}, which the graph {header.architecture!r} of "
                f"{sizes.n_layer} layers does not have",
            )


def _check_type(header: GgufHeader, tensor: GgufTensor, *, is_vector: bool) -> None:
    kind = tensor.type.name
    if is_vector and kind != _VECTOR:
        raise _bad(
            header, f"the tensor {tensor.name!r} is {kind}; llama.cpp computes with it in {_VECTOR}"
        )
    if kind in NO_MATRIX:
        raise _bad(header, f"the tensor {tensor.name!r} is {kind}, which llama.cpp cannot multiply")


def _tensors(graph: Graph, sizes: GraphSizes, present: Set[str]) -> Iterator[GraphTensor]:
    yield from graph.outer
    for layer in range(sizes.n_layer):
        here = f"blk.{layer}."
        wanted = graph.layer
        if graph.split_qkv:
            wanted = tuple(_with_split_qkv(graph.layer, here, present))
        for tensor in wanted:
            yield replace(tensor, name=here + tensor.name)


def _with_split_qkv(
    tensors: tuple[GraphTensor, ...], here: str, present: Set[str]
) -> Iterator[GraphTensor]:
    """A layer whose queries, keys and values are fused or one by one, with or without biases."""
    weight, bias = f"{_FUSED}.weight", f"{_FUSED}.bias"
    is_fused, has_bias = here + weight in present, here + bias in present
    for tensor in tensors:
        if tensor.name not in (weight, bias) or (is_fused and (tensor.name == weight or has_bias)):
            yield tensor
        elif tensor.name == bias:
            for name, rows in _SPLIT:
                if not is_fused:
                    yield GraphTensor(f"{name}.weight", ("n_embd", rows))
                yield GraphTensor(f"{name}.bias", (rows,), required=False)


def _padded(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape, 1, 1, 1, 1)[:4]


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _bad(header: GgufHeader, what: str) -> GgufError:
    return GgufError(f"{header.path}: bad GGUF header: {what}")
