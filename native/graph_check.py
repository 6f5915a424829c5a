"""Check what llama.cpp only asserts: a wrong value would abort the process.

Goes in: the header of a GGUF file. Comes out: nothing, or an error that says which key, token or
tensor is wrong. For the graphs that infer-os converts to, a list says which keys and tensors a file
may have: ``llama_model_base::load_hparams`` in llama.cpp's src/llama-model.cpp and src/models/ read
them. For other graphs only what all share is checked here; :mod:`.trial` loads those first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infer_os.models.graphs import GraphSizes, Positions, graph_named

from .attention_windows import read_windows
from .errors import GgufError
from .gguf_file import GgufArray, GgufHeader, read_gguf_header
from .graph_tensors import check_tensors
from .vocab_check import check_vocabulary

# ggml's CPU buffers and kernels need tensors at multiples of this
_ALIGNMENT = 32
_MOST_LAYERS = 512  # LLAMA_MAX_LAYERS
# far above any real model's
_LONGEST_CONTEXT = 1 << 24
_LARGEST_SIZE = 1 << 24

#: The last header that was read and passed.
_passed: GgufHeader | None = None

_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")

#: A setting of the graph: what it must be, in words, and a test for it.
_Rule = tuple[str, Callable[[Any], bool]]


def read_model_header(path: Path) -> GgufHeader:
    """Read the header of a model's file and check it as :func:`check_graph` does.

    A start asks several times, to plan and to load; an unchanged file is checked once.

    Raises:
        GgufError: no such file, not a GGUF, or a header that llama.cpp must not see.
    """
    global _passed
    header = read_gguf_header(path)
    if header is not _passed:
        check_graph(header)
        _passed = header
    return header


def check_graph(header: GgufHeader, *, vocab_only: bool = False) -> None:
    """Refuse a header that llama.cpp would end the process on.

    Args:
        header: of any GGUF file.
        vocab_only: only the vocabulary will be loaded, and the file may hold nothing else.

    Raises:
        GgufError: sizes that contradict each other, a key or a tensor that the graph does not have
            or a value that it does not take, a vocabulary that does not fit its tokenizer, or data
            that is not aligned.
    """
    if header.alignment % _ALIGNMENT:
        raise _bad(header, f"alignment {header.alignment}; llama.cpp computes with {_ALIGNMENT}")
    own = is_own(header)
    is_vocabulary = vocab_only and not header.tensors
    if own and not is_vocabulary:
        _check_sizes(header)
        _check_keys(header)
    elif f"{header.architecture}.embedding_length" in header.metadata:
        _check_sizes(header)
    if own:
        read_windows(header)
        check_vocabulary(header)
    if own and not is_vocabulary:
        check_tensors(header, _graph_sizes(header))


def is_own(header: GgufHeader) -> bool:
    """Whether the file is a whole model of one of the graphs that are checked in full."""
    n_parts = header.metadata.get("split.count", 1)
    return graph_named(header.architecture).is_own and type(n_parts) is int and n_parts <= 1


def _check_sizes(header: GgufHeader) -> None:
    """Sizes that contradict each other."""
    graph = graph_named(header.architecture)
    own = graph.is_own
    n_embd = header.count("embedding_length", default=0)
    n_head = header.count("attention.head_count", default=0 if own else 1)
    n_head_kv = header.count("attention.head_count_kv", default=n_head)
    if n_head % n_head_kv:
        raise _bad(header, f"{n_head} heads for {n_head_kv} key heads")
    key = header.count("attention.key_length", default=n_embd // n_head)
    value = header.count("attention.value_length", default=n_embd // n_head)
    if f"{header.architecture}.attention.key_length" not in header.metadata and n_embd % n_head:
        raise _bad(header, f"{n_head} heads do not divide an embedding of {n_embd}")
    if own and not key == value == n_embd // n_head:
        raise _bad(header, f"keys of {key} and values of {value}; a head has {n_embd // n_head}")
    rotates = graph.positions is Positions.ROTARY
    # ggml's rotation of zero dimensions never ends
    low = 2 if rotates else 0
    n_rot = header.count("rope.dimension_count", default=key if rotates else 0, low=low)
    if n_rot % 2 or n_rot > key:
        raise _bad(header, f"{n_rot} rotary dimensions; expected an even number up to {key}")


def _graph_sizes(header: GgufHeader) -> GraphSizes:
    return GraphSizes(
        n_vocab=len(header.metadata["tokenizer.ggml.tokens"]),
        n_layer=header.count("block_count", default=0),
        n_ctx=header.count("context_length", default=0),
        n_embd=header.count("embedding_length", default=0),
        n_ff=header.count("feed_forward_length", default=0),
        n_head=header.count("attention.head_count", default=0),
        n_head_kv=header.count(
            "attention.head_count_kv", default=header.count("attention.head_count", default=0)
        ),
    )


def _check_keys(header: GgufHeader) -> None:
    """The graph's own settings: required ones, allowed ones, and their values."""
    prefix = f"{header.architecture}."
    for name in _REQUIRED:
        if prefix + name not in header.metadata:
            raise _bad(header, f"the key {prefix + name!r} is missing")
    n_layer = header.metadata[f"{prefix}block_count"]
    for key, value in header.metadata.items():
        if not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix)
        rule = _SETTINGS.get(name)
        if rule is None:
            raise _bad(
                header, f"the key {key!r}, which the graph {header.architecture!r} does not have"
            )
        wanted, is_good = rule
        values = [value]
        if isinstance(value, GgufArray):
            values = list(value) if name in _PER_LAYER and len(value) == n_layer else []
            # other graphs write one value per layer here; ours have one for all
            if len(set(values)) != 1:
                shown = f"an array of {len(value)}"
                raise _bad(header, f"{key!r} is {shown}; expected {wanted}")
        if not all(map(is_good, values)):
            raise _bad(header, f"{key!r} is {value!r}; expected {wanted}")


def _count(high: int, low: int = 1) -> _Rule:
    return f"a whole number from {low} to {high}", lambda n: type(n) is int and low <= n <= high


def _number(wanted: str, is_good: Callable[[float], bool]) -> _Rule:
    return wanted, lambda x: isinstance(x, float) and math.isfinite(x) and is_good(x)


_POSITIVE = _number("a number above 0", lambda x: x > 0)
_NOT_NEGATIVE = _number("a number from 0", lambda x: x >= 0)
_FINITE = _number("a number", lambda x: True)
_FLAG: _Rule = ("true or false", lambda x: isinstance(x, bool))
_TEXT: _Rule = ("text", lambda x: isinstance(x, str))

_REQUIRED = (
    "context_length", "embedding_length", "block_count", "feed_forward_length",
    "attention.head_count", "attention.layer_norm_epsilon",
)  # fmt: skip
_PER_LAYER = ("feed_forward_length", "attention.head_count", "attention.head_count_kv")

#: What llama.cpp reads of our graphs, and what else its converter writes of them.
_SETTINGS: dict[str, _Rule] = {
    "context_length": _count(_LONGEST_CONTEXT),
    "embedding_length": _count(_LARGEST_SIZE),
    "block_count": _count(_MOST_LAYERS),
    "feed_forward_length": _count(_LARGEST_SIZE),
    "use_parallel_residual": _FLAG,
    "vocab_size": _count(_LARGEST_SIZE),
    "tensor_data_layout": _TEXT,
    "attention.head_count": _count(_LARGEST_SIZE),
    "attention.head_count_kv": _count(_LARGEST_SIZE),
    "attention.key_length": _count(_LARGEST_SIZE),
    "attention.value_length": _count(_LARGEST_SIZE),
    "attention.layer_norm_epsilon": _NOT_NEGATIVE,
    "attention.max_alibi_bias": _NOT_NEGATIVE,
    "attention.clamp_kqv": _NOT_NEGATIVE,
    "attention.causal": ("true", lambda x: x is True),
    "rope.dimension_count": _count(_LARGEST_SIZE, low=0),
    "rope.freq_base": _POSITIVE,
    "rope.scale_linear": _NOT_NEGATIVE,
    "rope.scaling.type": (
        f"one of {', '.join(_ROPE_SCALINGS)}", lambda x: isinstance(x, str) and x in _ROPE_SCALINGS
    ),
    "rope.scaling.factor": _NOT_NEGATIVE,
    "rope.scaling.attn_factor": _FINITE,
    "rope.scaling.original_context_length": _count(_LONGEST_CONTEXT),
    "rope.scaling.finetuned": _FLAG,
    "rope.scaling.yarn_ext_factor": _FINITE,
    "rope.scaling.yarn_attn_factor": _FINITE,
    "rope.scaling.yarn_beta_fast": _FINITE,
    "rope.scaling.yarn_beta_slow": _FINITE,
}  # fmt: skip


def _bad(header: GgufHeader, what: str) -> GgufError:
    return GgufError(f"{header.path}: bad GGUF header: {what}")
