"""Own a chain of llama.cpp samplers."""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from .model import Vocab
from .owner import Owner

#: ``llama_token_data`` of llama.h
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

#: Filters by the setting that gives their value, in llama.cpp's order; each keeps a token or more.
FILTERS: dict[str, Callable[[Any], Any]] = {
    # those with a logit at most n standard deviations below the largest
    "top_n_sigma": lambda n: llama_cpp.llama_sampler_init_top_n_sigma(n),
    # the k likeliest
    "top_k": lambda k: llama_cpp.llama_sampler_init_top_k(k),
    # those whose surprise is nearest to the entropy, up to more than p
    "typical_p": lambda p: llama_cpp.llama_sampler_init_typical(p, 1),
    # the likeliest whose probabilities sum to p
    "top_p": lambda p: llama_cpp.llama_sampler_init_top_p(p, 1),
    # those at least p times as likely as the likeliest
    "min_p": lambda p: llama_cpp.llama_sampler_init_min_p(p, 1),
}

#: No context is longer, so no window needs to be: llama.cpp allocates all of it at once.
_LONGEST_WINDOW = 1 << 20
#: Below this share of the largest a probability counts as zero where an entropy is computed, since
#: llama.cpp multiplies zero with its logarithm.
_LEAST_SHARE = 1e-30
#: The coldest dynamic temperature: logits divided by less would leave float32.
_COLDEST = 1e-3
#: Where DRY lets passages begin again; llama.cpp's own defaults.
DRY_BREAKERS = ("\n", ":", '"', "*")


@dataclass(frozen=True, slots=True)
class Penalties:
    """What the ``last_n`` recent tokens lose: a factor, and numbers once and for each time."""

    last_n: int
    repeat: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0


@dataclass(frozen=True, slots=True)
class Dry:
    """How DRY makes repeated passages of the ``last_n`` recent tokens less likely.

    A token that would make a repeated passage of ``allowed_length`` + k tokens longer loses
    ``multiplier * base**k`` (https://github.com/oobabooga/text-generation-webui/pull/5677).
    """

    multiplier: float
    base: float
    allowed_length: int
    last_n: int


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
        # those of its samplers that remember tokens
        self._history: list[Any] = []

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

    def add_penalties(self, n_vocab: int, penalties: Penalties) -> None:
        """Lower the logits of recent tokens."""
        sampler = llama_cpp.llama_sampler_init_penalties(
            n_vocab, min(penalties.last_n, _LONGEST_WINDOW), penalties.repeat,
            penalties.frequency, penalties.presence,
        )  # fmt: skip
        self._history.append(sampler)
        self._add(sampler)

    def add_dry(self, vocab: Vocab, dry: Dry) -> None:
        """Lower the logits of tokens that would repeat a passage."""
        # finding what breaks a passage takes a look at every token
        sampler = llama_cpp.llama_sampler_clone(_dry_prototype(vocab, dry))
        self._history.append(sampler)
        self._add(sampler)

    def add_filter(self, name: str, value: Any) -> None:
        """Leave out what a filter of :data:`FILTERS` with this value leaves out."""
        if name == "typical_p":
            self._drop_impossible()
        self._add(FILTERS[name](value))

    def _drop_impossible(self) -> None:
        self._add(llama_cpp.llama_sampler_init_min_p(_LEAST_SHARE, 1))

    def add_xtc(self, probability: float, threshold: float, seed: int) -> None:
        """Now and then, leave only the unlikeliest of the tokens above a probability, and the rest.

        https://github.com/oobabooga/text-generation-webui/pull/6335
        """
        self._add(llama_cpp.llama_sampler_init_xtc(probability, threshold, 1, seed))

    def add_dynamic_temperature(self, temperature: float, spread: float, exponent: float) -> None:
        """Divide the logits by a temperature within ``spread`` of this one, by their entropy.

        https://arxiv.org/abs/2309.02772
        """
        low, high = max(_COLDEST, temperature - spread), temperature + spread
        self._drop_impossible()
        self._add(
            llama_cpp.llama_sampler_init_temp_ext((low + high) / 2, (high - low) / 2, exponent)
        )

    def add_temperature(self, temperature: float) -> None:
        """Divide the logits by ``temperature``."""
        self._add(llama_cpp.llama_sampler_init_temp(temperature))

    def add_draw(self, seed: int) -> None:
        """End of the chain: draw from what is left."""
        self._add(llama_cpp.llama_sampler_init_dist(seed))

    def add_mirostat(self, seed: int, tau: float, eta: float) -> None:
        """End of the chain: draw with a surprise near ``tau`` bits (mirostat 2).

        https://arxiv.org/abs/2007.14966, algorithm 2
        """
        self._add(llama_cpp.llama_sampler_init_mirostat_v2(seed, tau, eta))

    def add_adaptive(self, seed: int, target: float, decay: float) -> None:
        """End of the chain: draw tokens whose probability is near ``target`` on average.

        https://github.com/ggml-org/llama.cpp/pull/17927
        """
        self._add(llama_cpp.llama_sampler_init_adaptive_p(target, decay, seed))

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
        """Forget the text so far."""
        for sampler in self._history:
            llama_cpp.llama_sampler_reset(sampler)

    def remember(self, tokens: Iterable[int]) -> None:
        """Append tokens that were not drawn here to the text so far."""
        for sampler in self._history:
            for token in tokens:
                llama_cpp.llama_sampler_accept(sampler, token)

    def _add(self, sampler: Any) -> None:
        # the chain owns it from here on
        llama_cpp.llama_sampler_chain_add(self._pointer, sampler)

    def close(self) -> None:
        """Free the chain and its samplers."""
        if self._pointer:
            llama_cpp.llama_sampler_free(self._pointer)
            self._pointer = None


#: DRY samplers without any text, by the vocabulary that they were made for.
_PROTOTYPES: weakref.WeakKeyDictionary[Vocab, dict[Dry, Any]] = weakref.WeakKeyDictionary()


def _dry_prototype(vocab: Vocab, dry: Dry) -> Any:
    """A ``llama_sampler *`` to clone; it is freed with the vocabulary."""
    known = _PROTOTYPES.setdefault(vocab, {})
    if dry not in known:
        breakers = (ctypes.c_char_p * len(DRY_BREAKERS))(*(b.encode() for b in DRY_BREAKERS))
        known[dry] = made = llama_cpp.llama_sampler_init_dry(
            vocab.pointer, dry.multiplier, dry.base, dry.allowed_length,
            min(dry.last_n, _LONGEST_WINDOW), breakers, len(breakers),
        )  # fmt: skip
        weakref.finalize(vocab, llama_cpp.llama_sampler_free, made).atexit = False
    return known[dry]
