"""The graphs of llama.cpp: one row says all that differs between those that files are written for.

Goes in: llama.cpp's name of an architecture, as ``general.architecture`` has it. Comes out: its
tensors, its positions, what a memory plan and the tokenizer must know of it. No file is read here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


class Positions(Enum):
    """How a graph knows where a token stands, and so how far its context can go."""

    #: A table if the file has one, slopes if not.
    EITHER = "either"

    #: A table of the trained length: there is nothing to read past its end.
    LEARNED = "learned"
    #: Rotations: they go on past the trained length, but make no sense there.
    ROTARY = "rotary"
    #: ALiBi's slopes, which know no trained length.
    SLOPES = "slopes"


@dataclass(frozen=True, slots=True)
class GraphTensor:
    """A tensor of a graph, without its layer's prefix.

    ``dims`` are properties of :class:`GraphSizes`, the fastest dimension first, as ggml has them.
    """

    name: str
    dims: tuple[str, ...]
    required: bool = True


@dataclass(frozen=True, slots=True)
class GraphSizes:
    """A model's sizes, every one at least 1; ``n_head_kv`` divides ``n_head``."""

    n_vocab: int
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

    @property
    def n_qkv(self) -> int:
        """Width of a token's query, keys and values together."""
        return self.n_embd + 2 * self.n_kv

    def shape(self, tensor: GraphTensor) -> tuple[int, ...]:
        """A tensor's shape, the fastest dimension first."""
        return tuple(getattr(self, dim) for dim in tensor.dims)


def _affine(name: str, *dims: str, bias_required: bool = True) -> tuple[GraphTensor, GraphTensor]:
    """A weight, and a bias of as many values as it has rows."""
    return (
        GraphTensor(f"{name}.weight", dims), GraphTensor(f"{name}.bias", dims[-1:], bias_required)
    )  # fmt: skip


_EMBEDDING = GraphTensor("token_embd.weight", ("n_embd", "n_vocab"))
_OUTPUT_NORM = _affine("output_norm", "n_embd")
_POSITIONS = GraphTensor("position_embd.weight", ("n_embd", "n_ctx"))
_HEAD = GraphTensor("output.weight", ("n_embd", "n_vocab"))
_TIED_HEAD = GraphTensor("output.weight", ("n_embd", "n_vocab"), required=False)

_NORM_AND_QKV = (*_affine("attn_norm", "n_embd"), *_affine("attn_qkv", "n_embd", "n_qkv"))
_ATTENTION_OUTPUT = _affine("attn_output", "n_embd", "n_embd")
_FEED_FORWARD = (*_affine("ffn_up", "n_embd", "n_ff"), *_affine("ffn_down", "n_ff", "n_embd"))
_TWO_NORMS = (*_NORM_AND_QKV, *_ATTENTION_OUTPUT, *_affine("ffn_norm", "n_embd"), *_FEED_FORWARD)


def _without_biases(tensors: tuple[GraphTensor, ...]) -> tuple[GraphTensor, ...]:
    """The same, but their biases may be missing."""
    return tuple(replace(t, required=t.required and not t.name.endswith(".bias")) for t in tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """What there is to know of a graph.

    Args:
        name: llama.cpp's.
        positions: None where nobody has looked.
        outer: tensors outside of the layers, in the order in which they are looked for.
        layer: those of a layer, named behind ``blk.N.``.
        split_qkv: a layer may have three tensors, or three biases, in place of ``attn_qkv``'s.
        parallel: attention and feed-forward read the same input, where a file says nothing of it.
        flash_attention: llama.cpp has it for this graph on a CPU.
        pre_tokenizer: llama.cpp's name of the split that files were written for before they named
            one; "" for none.
        feed_forward_arrays: arrays of (n, n_embd) that are alive beside the feed-forward's, as
            measured, and ``sequential_arrays`` where the attention comes before it.
        attention_arrays: those that are alive in the attention.
    """

    name: str
    positions: Positions | None = None
    outer: tuple[GraphTensor, ...] = ()
    layer: tuple[GraphTensor, ...] = ()
    split_qkv: bool = False
    parallel: bool = False
    flash_attention: bool = True
    pre_tokenizer: str = ""
    feed_forward_arrays: int = 4
    sequential_arrays: int = 4
    attention_arrays: int = 7

    @property
    def is_own(self) -> bool:
        """Whether infer-os converts to it, so that all of its tensors are known."""
        return bool(self.layer)


#: Tensors follow ``load_arch_tensors`` in llama.cpp's src/models/; arrays are fitted to what its
#: contexts reserve (docs/memory.md).
GRAPHS: dict[str, Graph] = {
    graph.name: graph
    for graph in (
        Graph(
            name="bloom",
            positions=Positions.SLOPES,
            outer=(_EMBEDDING, *_affine("token_embd_norm", "n_embd"), *_OUTPUT_NORM, _TIED_HEAD),
            layer=_TWO_NORMS,
            pre_tokenizer="bloom",
        ),
        Graph(
            name="gpt2",
            positions=Positions.LEARNED,
            outer=(_EMBEDDING, _POSITIONS, *_OUTPUT_NORM, _TIED_HEAD),
            layer=_TWO_NORMS,
            pre_tokenizer="gpt-2",
            attention_arrays=6,
        ),
        Graph(
            name="starcoder",
            positions=Positions.LEARNED,
            outer=(_EMBEDDING, _POSITIONS, *_OUTPUT_NORM, _TIED_HEAD),
            layer=_TWO_NORMS,
            pre_tokenizer="starcoder",
            attention_arrays=6,
        ),
        Graph(
            name="mpt",
            positions=Positions.EITHER,
            outer=(
                _EMBEDDING,
                replace(_POSITIONS, required=False),
                *_affine("output_norm", "n_embd", bias_required=False),
                _TIED_HEAD,
            ),
            layer=(
                *_without_biases(_TWO_NORMS),
                GraphTensor("ffn.act.scales", ("n_ff",), required=False),
            ),
            pre_tokenizer="gpt-2",
            attention_arrays=6,
        ),
        Graph(
            name="gptneox",
            positions=Positions.ROTARY,
            outer=(_EMBEDDING, *_OUTPUT_NORM, _HEAD),
            layer=_TWO_NORMS,
            pre_tokenizer="gpt-2",
            sequential_arrays=3,
        ),
        Graph(
            name="phi2",
            positions=Positions.ROTARY,
            outer=(_EMBEDDING, *_OUTPUT_NORM, _HEAD, GraphTensor("output.bias", ("n_vocab",))),
            layer=(*_NORM_AND_QKV, *_ATTENTION_OUTPUT, *_FEED_FORWARD),
            split_qkv=True,
            parallel=True,
            pre_tokenizer="gpt-2",
            feed_forward_arrays=5,
            attention_arrays=8,
        ),
        Graph(name="grok", flash_attention=False),
    )
}


def graph_named(name: str) -> Graph:
    """The row of a graph; one of which nothing is known is like most."""
    return GRAPHS.get(name) or Graph(name=name)


def positions_of(graph: str, has_table: bool) -> Positions | None:
    """How a model knows where a token stands.

    Args:
        graph: its graph.
        has_table: it has the tensor of learned positions.
    """
    positions = graph_named(graph).positions
    if positions is Positions.EITHER:
        return Positions.LEARNED if has_table else Positions.SLOPES
    return positions


def is_parallel(graph: str, stated: object) -> bool:
    """Whether a model's attention and feed-forward read the same input.

    Args:
        graph: its graph.
        stated: what it says of that itself (``use_parallel_residual``); None for nothing.
    """
    return graph_named(graph).parallel if stated is None else bool(stated)
