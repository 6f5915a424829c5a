"""Check the settings that llama.cpp asserts instead of checking: a wrong one aborts the process."""

from __future__ import annotations

from .errors import GgufError
from .gguf_file import GgufHeader

# ggml's CPU buffers and kernels want tensors at multiples of this
_ALIGNMENT = 32


def check_graph(header: GgufHeader) -> None:
    """Refuse a header whose sizes contradict each other.

    Raises:
        GgufError: heads that do not divide the embedding, keys and values of other sizes than the
            head, rotary dimensions that are odd or exceed it, or data that is not aligned.
    """
    if header.alignment % _ALIGNMENT:
        raise _bad(header, f"alignment {header.alignment}; llama.cpp computes with {_ALIGNMENT}")
    if f"{header.architecture}.embedding_length" not in header.metadata:
        return  # llama.cpp names the missing key itself
    n_embd = header.count("embedding_length", default=0)
    n_head = header.count("attention.head_count", default=1)
    n_head_kv = header.count("attention.head_count_kv", default=n_head)
    if n_head % n_head_kv:
        raise _bad(header, f"{n_head} heads for {n_head_kv} key heads")
    key = header.count("attention.key_length", default=n_embd // n_head)
    value = header.count("attention.value_length", default=n_embd // n_head)
    if f"{header.architecture}.attention.key_length" not in header.metadata and n_embd % n_head:
        raise _bad(header, f"{n_head} heads do not divide an embedding of {n_embd}")
    if header.architecture in _OWN_GRAPHS and not key == value == n_embd // n_head:
        raise _bad(header, f"keys of {key} and values of {value}; a head has {n_embd // n_head}")
    n_rot = header.count("rope.dimension_count", default=0, low=0)
    if n_rot % 2 or n_rot > key:
        raise _bad(header, f"{n_rot} rotary dimensions; expected an even number up to {key}")


#: The graphs that infer-os converts to; others may have keys and values of sizes of their own.
_OWN_GRAPHS = ("bloom", "gpt2", "gptneox", "phi2")


def _bad(header: GgufHeader, what: str) -> GgufError:
    return GgufError(f"{header.path}: bad GGUF header: {what}")
