"""Attention over a cache as one ggml operation: cases, and what float64 arithmetic says of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ggml_graph import Graph, encoded, ggml
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

_TYPES = {"q8_0": GGMLQuantizationType.Q8_0, "q4_0": GGMLQuantizationType.Q4_0}


@dataclass(frozen=True, slots=True)
class Case:
    """Sizes and contents.

    The mask is "none", "causal", "holes", "rare" or "blind" (a query sees none).
    """

    keys: str = "q8_0"
    values: str = "q8_0"
    head: int = 64
    n_tokens: int = 1
    n_positions: int = 256
    n_heads: int = 3
    n_kv_heads: int = 3
    n_sequences: int = 1
    mask: str = "causal"
    max_bias: float = 0.0
    seed: int = 1

    def queries(self) -> NDArray[np.float32]:
        """(n_sequences, n_tokens, n_heads, head)"""
        shape = self.n_sequences, self.n_tokens, self.n_heads, self.head
        return np.random.default_rng(self.seed).standard_normal(shape, np.float32)

    def cache(self, seed: int) -> NDArray[np.float32]:
        """(n_sequences, n_positions, n_kv_heads, head)"""
        shape = self.n_sequences, self.n_positions, self.n_kv_heads, self.head
        return np.random.default_rng(seed).standard_normal(shape, np.float32)

    def mask_rows(self) -> NDArray[np.float16] | None:
        """(n_sequences, n_tokens, n_positions); with ALiBi, minus the distances."""
        if self.mask == "none":
            return None
        first = self.n_positions - self.n_tokens
        at = np.arange(self.n_positions)
        query = first + np.arange(self.n_tokens)[:, None]
        seen = at <= query
        if self.mask == "holes":
            seen = seen & ((at // 40) % 3 != 1)
        if self.mask == "rare":  # one position of each panel
            seen = seen & (at % 16 == 15)
        if self.mask == "blind":
            seen = seen & (np.arange(self.n_tokens) != 0)[:, None]
        distance = -np.abs(query - at) if self.max_bias else np.zeros_like(query - at)
        rows = np.where(seen, distance, -np.inf).astype(np.float16)
        return np.broadcast_to(rows, (self.n_sequences, *rows.shape))


Cache = tuple[NDArray[np.generic], NDArray[np.generic]]


def stored(case: Case) -> Cache:
    """K and V in their types, as bytes."""
    return encoded(case.cache(11), case.keys), encoded(case.cache(12), case.values)


def build_from(case: Case, cache: Cache, name: bytes = b"") -> Callable[[Graph], object]:
    """The operation as llama.cpp's graphs have it: heads beside each other, then permuted.

    ``name`` is that of the tensors behind K and V.
    """

    def build(graph: Graph) -> object:
        library = ggml()

        def permuted(data: NDArray[np.generic], n: int, n_heads: int, kind: str) -> object:
            tensor = graph.tensor(data, (case.head, n_heads, n, case.n_sequences), kind)
            library.ggml_set_name(tensor, name)
            return library.ggml_permute(graph.context, tensor, 0, 2, 1, 3)

        rows = case.mask_rows()
        mask = None
        if rows is not None:
            shape = case.n_positions, case.n_tokens, 1, case.n_sequences
            mask = graph.tensor(rows, shape, "f16")
        return library.ggml_flash_attn_ext(
            graph.context, permuted(case.queries(), case.n_tokens, case.n_heads, "f32"),
            permuted(cache[0], case.n_positions, case.n_kv_heads, case.keys),
            permuted(cache[1], case.n_positions, case.n_kv_heads, case.values),
            mask, case.head**-0.5, case.max_bias, 0.0,
        )  # fmt: skip

    return build


def decoded(data: NDArray[np.generic], kind: str, case: Case) -> NDArray[np.float64]:
    shape = case.n_sequences, case.n_positions, case.n_kv_heads, case.head
    if kind in _TYPES:
        data = dequantize(data.reshape(-1, data.shape[-1]), _TYPES[kind])
    return data.astype(np.float64).reshape(shape)


def slopes(case: Case) -> NDArray[np.float64]:
    """ALiBi's slopes as its authors extend them to any number of heads."""
    if not case.max_bias:
        return np.ones(case.n_heads)
    power = 1 << (case.n_heads.bit_length() - 1)
    plain = [2.0 ** (-case.max_bias * (i + 1) / power) for i in range(power)]
    between = [2.0 ** (-case.max_bias * (i + 0.5) / power) for i in range(power)]
    return np.array(plain + between[: case.n_heads - power])


def exact(case: Case) -> NDArray[np.float64]:
    """In float64, of the values that the cache holds; a query is rounded as its products need."""
    keys, values = stored(case)
    k, v = decoded(keys, case.keys, case), decoded(values, case.values, case)
    k, v = (np.repeat(x, case.n_heads // case.n_kv_heads, 2) for x in (k, v))
    q = case.queries()
    if case.keys in _TYPES:
        q8_0 = GGMLQuantizationType.Q8_0
        q = dequantize(quantize(q.reshape(-1, case.head), q8_0), q8_0).reshape(q.shape)
    scores = np.einsum("sthd,snhd->shtn", q.astype(np.float64), k) * case.head**-0.5
    rows = case.mask_rows()
    if rows is not None:
        scores = scores + slopes(case)[None, :, None, None] * rows[:, None].astype(np.float64)
    largest = scores.max(-1, keepdims=True)
    p = np.exp(scores - np.where(np.isfinite(largest), largest, 0))
    total = p.sum(-1, keepdims=True)
    return np.einsum("shtn,snhd->sthd", p / np.where(total == 0, 1, total), v)
