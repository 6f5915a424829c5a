"""Build llama.cpp's sampler chain from settings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from infer_os.native.context import Context
from infer_os.native.model import Vocab
from infer_os.native.sampler import SamplerChain

from .settings import SamplingSettings


class Sampler(Protocol):
    """Draws tokens and remembers what was drawn."""

    def draw(self, source: Any) -> int:
        """Draw from the logits that the engine hands over."""
        ...

    def remember(self, tokens: Iterable[int]) -> None:
        """Take tokens of the prompt into account, for the repetition penalty."""
        ...

    def close(self) -> None:
        """Free it."""
        ...


class LlamaSampler:
    """llama.cpp's usual order: grammar, penalty, top-k, top-p, min-p, temperature, draw."""

    def __init__(self, settings: SamplingSettings, vocab: Vocab) -> None:
        self._chain = SamplerChain()
        n_vocab = vocab.n_tokens
        if settings.grammar:
            self._chain.add_grammar(vocab, settings.grammar)
        self._penalized = settings.repeat_penalty != 1 and settings.repeat_last_n > 0
        if self._penalized:
            self._chain.add_penalties(n_vocab, settings.repeat_last_n, settings.repeat_penalty)
        if settings.temperature == 0:
            self._chain.add_greedy()
            return
        if settings.top_k:
            self._chain.add_top_k(settings.top_k)
        if settings.top_p < 1:
            self._chain.add_top_p(settings.top_p)
        if settings.min_p:
            self._chain.add_min_p(settings.min_p)
        self._chain.add_temperature(settings.temperature)
        self._chain.add_draw(settings.chosen_seed())

    @property
    def chain(self) -> SamplerChain:
        """The chain, for those who draw from other rows than the last."""
        return self._chain

    def draw(self, source: Context) -> int:
        """Draw from the context's last row of logits."""
        return source.sample(self._chain)

    def remember(self, tokens: Iterable[int]) -> None:
        """See :meth:`Sampler.remember`."""
        if self._penalized:
            for token in tokens:
                self._chain.penalize(token)

    def close(self) -> None:
        """Free the chain."""
        self._chain.close()
