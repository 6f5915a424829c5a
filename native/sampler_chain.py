"""Own a chain of llama.cpp samplers."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from .owner import Owner

#: ``llama_token_data`` of llama.h
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

#: Filters by the setting that gives their value, in llama.cpp's order; each keeps a token or more.
FILTERS: dict[str, Callable[[Any], Any]] = {
    # the k likeliest
    "top_k": lambda k: llama_cpp.llama_sampler_init_top_k(k),
    # the likeliest whose probabilities sum to p
    "top_p": lambda p: llama_cpp.llama_sampler_init_top_p(p, 1),
    # those at least p times as likely as the likeliest
    "min_p": lambda p: llama_cpp.llama_sampler_init_min_p(p, 1),
}


@dataclass(frozen=True, slots=True)
class Distribution:
    """Probabilities of the tokens that can be drawn: ``ids`` (n,), each once, ``p`` (n,)."""

    ids: NDArray[np.int32]
    p: NDArray[np.float64]

    def of(self, token: int) -> float:
        """The probability of a token."""
        return float(self.p[self.ids == token].sum())

    def draw(self, uniform: float) -> int:
        """The token at a point of the unit interval."""
        at = int(np.searchsorted(np.cumsum(self.p), uniform * float(self.p.sum()), side="right"))
        return int(self.ids[min(at, len(self.ids) - 1)])

    def without(self, other: Distribution) -> Distribution:
        """What remains after subtracting ``other`` and dropping what falls below zero.

        The residual of speculative sampling, ``max(0, p - q)`` normalized (Leviathan et
        al. 2023, https://arxiv.org/abs/2211.17192, section 2.3).
        """
        order = np.argsort(other.ids)
        at = order[np.searchsorted(other.ids, self.ids, sorter=order).clip(max=len(order) - 1)]
        rest = np.maximum(self.p - np.where(other.ids[at] == self.ids, other.p[at], 0), 0)
        total = rest.sum()
        # nothing is left only if both are the same: then a rejection was a rounding error
        return Distribution(self.ids, rest / total) if total > 0 else self


@functools.lru_cache(maxsize=2)
def _candidates(n_vocab: int) -> NDArray[np.void]:
    """Every token, (n_vocab,), without logits."""
    candidates = np.zeros(n_vocab, _CANDIDATE)
    candidates["id"] = np.arange(n_vocab, dtype=np.int32)
    return candidates


class SamplerChain(Owner):
    """llama.cpp's samplers in the order they were added. A context manager."""

    def __init__(self) -> None:
        params = llama_cpp.llama_sampler_chain_default_params()
        params.no_perf = True
        self._pointer = llama_cpp.llama_sampler_chain_init(params)
        self._penalties: Any = None

    @property
    def pointer(self) -> Any:
        """The ``llama_sampler *``."""
        return self._pointer

    def add_logit_bias(self, n_vocab: int, biases: Sequence[tuple[int, float]]) -> None:
        """Add to the logits of tokens, all of which must be below ``n_vocab``."""
        given = (llama_cpp.llama_logit_bias * len(biases))(
            *(llama_cpp.llama_logit_bias(token=token, bias=bias) for token, bias in biases)
        )
        self._add(llama_cpp.llama_sampler_init_logit_bias(n_vocab, len(biases), given))

    def add_penalties(self, n_vocab: int, last_n: int, repeat: float) -> None:
        """Divide the logits of the ``last_n`` tokens by ``repeat`` (multiply negative ones)."""
        self._penalties = llama_cpp.llama_sampler_init_penalties(n_vocab, last_n, repeat, 0.0, 0.0)
        self._add(self._penalties)

    def add_filter(self, name: str, value: Any) -> None:
        """Leave out what a filter of :data:`FILTERS` with this value leaves out."""
        self._add(FILTERS[name](value))

    def add_temperature(self, temperature: float) -> None:
        """Divide the logits by ``temperature``."""
        self._add(llama_cpp.llama_sampler_init_temp(temperature))

    def add_draw(self, seed: int) -> None:
        """End of the chain: draw from what is left."""
        self._add(llama_cpp.llama_sampler_init_dist(seed))

    def add_greedy(self) -> None:
        """End of the chain: take the likeliest."""
        self._add(llama_cpp.llama_sampler_init_greedy())

    def distribution(self, logits: NDArray[np.float32]) -> Distribution:
        """What the chain, which must not end with a draw, leaves of a row of logits (n_vocab,)."""
        candidates = _candidates(len(logits)).copy()
        candidates["logit"] = logits
        data = candidates.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
        array = llama_cpp.llama_token_data_array(
            data=data, size=len(candidates), selected=-1, sorted=False
        )
        llama_cpp.llama_sampler_apply(self._pointer, ctypes.byref(array))
        # a sampler may have moved the candidates elsewhere
        kept = np.ctypeslib.as_array(array.data, (array.size,))
        weights = np.exp(kept["logit"].astype(np.float64) - kept["logit"].max())
        return Distribution(kept["id"].copy(), weights / weights.sum())

    def forget(self) -> None:
        """Forget all accepted tokens."""
        llama_cpp.llama_sampler_reset(self._pointer)

    def penalize(self, token: int) -> None:
        """Let the penalties count a token that was not drawn, but is in the prompt."""
        llama_cpp.llama_sampler_accept(self._penalties, token)

    def _add(self, sampler: Any) -> None:
        # the chain owns it from here on
        llama_cpp.llama_sampler_chain_add(self._pointer, sampler)

    def close(self) -> None:
        """Free the chain and its samplers."""
        if self._pointer:
            llama_cpp.llama_sampler_free(self._pointer)
            self._pointer = None
