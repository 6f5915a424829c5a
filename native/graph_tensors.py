"""Which tensors the graphs that infer-os converts to have: names, shapes and types.

Follows ``load_arch_tensors`` of bloom.cpp, gpt2.cpp, gptneox.cpp and phi2.cpp in llama.cpp's
src/models/. Types are those that ggml's CPU kernels take in that place.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass

from .errors import GgufError
from .gguf_file import GgufHeader, GgufTensor

#: The graphs that infer-os converts to.
OWN_GRAPHS = ("bloom", "gpt2", "gptneox", "phi2")

#: Types without a product (``vec_dot`` of ``ggml_type_traits_cpu``): ggml's inner layouts and
#: whole numbers. Rows of the others can be looked up as well.
NO_MATRIX = ("q8_1", "q8_k", "i8", "i16", "i32", "i64", "f64")

# ggml adds to, and multiplies, f32 with f32 only (``ggml_compute_forward_binary_op``)
_VECTOR = "f32"


@dataclass(frozen=True, slots=True)
class GraphSizes:
    """A graph's sizes, every one at least 1; ``n_head_kv`` divides ``n_head``."""

    n_layer: int
    n_ctx: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int

    @property
    def n_kv(self) -> int:
        """Width of all keys of a token."""
        return self.n_embd // self.n_head * self.n_head_kv


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A tensor that a graph has: ``shape`` as ggml has it, the fastest dimension first."""

    name: str
    shape: tuple[int, ...]
    required: bool = True


def check_tensors(header: GgufHeader, sizes: GraphSizes) -> None:
    """Compare a file's tensors with its graph's; the vocabulary was checked.

    Raises:
        GgufError: one is missing, unknown to the graph, or of a shape or type that it cannot have.
    """
    found = {tensor.name: tensor for tensor in header.tensors}
    n_vocab = len(header.metadata["tokenizer.ggml.tokens"])
    known: set[str] = set()
    for wanted in _tensors(header.architecture, sizes, n_vocab, found.keys()):
        known.add(wanted.name)
        tensor = found.get(wanted.name)
        if tensor is None:
            if wanted.required:
                raise _bad(header, f"the tensor {wanted.name!r} is missing")
            continue
        if _padded(tensor.shape) != _padded(wanted.shape):
            raise _bad(
                header,
                f"the tensor {tensor.name!r} is {_shown(tensor.shape)}; expected "
                f"{_shown(wanted.shape)}",
            )
        _check_type(header, tensor, is_vector=len(wanted.shape) == 1)
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
        raise _bad(
            header, f"the tensor {tensor.name!r} is {kind}, which llama.cpp multiplies nothing with"
        )


def _tensors(graph: str, sizes: GraphSizes, n_vocab: int, present: Set[str]) -> Iterator[_Wanted]:
    n_embd = sizes.n_embd
    head_required = graph in ("gptneox", "phi2")
    yield _Wanted("token_embd.weight", (n_embd, n_vocab))
    if graph == "gpt2":
        yield _Wanted("position_embd.weight", (n_embd, sizes.n_ctx))
    if graph == "bloom":
        yield from _affine("token_embd_norm", (n_embd,))
    yield from _affine("output_norm", (n_embd,))
    yield _Wanted("output.weight", (n_embd, n_vocab), head_required)
    if graph == "phi2":
        yield _Wanted("output.bias", (n_vocab,))
    for layer in range(sizes.n_layer):
        here = f"blk.{layer}"
        yield from _affine(f"{here}.attn_norm", (n_embd,))
        yield from _attention_inputs(graph, here, sizes, present)
        yield from _affine(f"{here}.attn_output", (n_embd, n_embd))
        if graph != "phi2":
            yield from _affine(f"{here}.ffn_norm", (n_embd,))
        yield from _affine(f"{here}.ffn_up", (n_embd, sizes.n_ff))
        yield from _affine(f"{here}.ffn_down", (sizes.n_ff, n_embd))


def _attention_inputs(
    graph: str, here: str, sizes: GraphSizes, present: Set[str]
) -> Iterator[_Wanted]:
    """Queries, keys and values: fused, or for phi2 also one by one, with or without a bias."""
    n_embd, n_kv = sizes.n_embd, sizes.n_kv
    fused = (n_embd, n_embd + 2 * n_kv)
    if graph != "phi2":
        yield from _affine(f"{here}.attn_qkv", fused)
        return
    is_fused = f"{here}.attn_qkv.weight" in present
    if is_fused:
        yield from _affine(f"{here}.attn_qkv", fused, bias_required=False)
    if is_fused and f"{here}.attn_qkv.bias" in present:
        return
    for name, n_rows in (("attn_q", n_embd), ("attn_k", n_kv), ("attn_v", n_kv)):
        if not is_fused:
            yield _Wanted(f"{here}.{name}.weight", (n_embd, n_rows))
        yield _Wanted(f"{here}.{name}.bias", (n_rows,), required=False)


def _affine(name: str, shape: tuple[int, ...], *, bias_required: bool = True) -> Iterator[_Wanted]:
    yield _Wanted(f"{name}.weight", shape)
    yield _Wanted(f"{name}.bias", shape[-1:], bias_required)


def _padded(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape, 1, 1, 1, 1)[:4]


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _bad(header: GgufHeader, what: str) -> GgufError:
    return GgufError(f"{header.path}: bad GGUF header: {what}")
