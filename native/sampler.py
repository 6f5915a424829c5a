"""Own a chain of llama.cpp samplers."""

from __future__ import annotations

from typing import Any

import llama_cpp

from .errors import GrammarError
from .grammar import new_grammar
from .model import Vocab
from .owner import Owner


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

    def add_penalties(self, n_vocab: int, last_n: int, repeat: float) -> None:
        """Divide the logits of the ``last_n`` tokens by ``repeat`` (multiply negative ones)."""
        self._penalties = llama_cpp.llama_sampler_init_penalties(n_vocab, last_n, repeat, 0.0, 0.0)
        self._add(self._penalties)

    def add_grammar(self, vocab: Vocab, text: str) -> None:
        """Keep the tokens with which the text goes on as a GBNF grammar says.

        Raises:
            GrammarError: it is no grammar, or the model has no token that could end a text.
        """
        if not vocab.has_end:
            raise GrammarError("a grammar needs a model with a token that ends a text; it has none")
        self._add(new_grammar(text, vocab.pointer))

    def add_top_k(self, k: int) -> None:
        """Keep the ``k`` likeliest tokens."""
        self._add(llama_cpp.llama_sampler_init_top_k(k))

    def add_top_p(self, p: float) -> None:
        """Keep the likeliest tokens whose probabilities sum to ``p``."""
        self._add(llama_cpp.llama_sampler_init_top_p(p, 1))

    def add_min_p(self, p: float) -> None:
        """Keep tokens at least ``p`` times as likely as the likeliest."""
        self._add(llama_cpp.llama_sampler_init_min_p(p, 1))

    def add_temperature(self, temperature: float) -> None:
        """Divide the logits by ``temperature``."""
        self._add(llama_cpp.llama_sampler_init_temp(temperature))

    def add_draw(self, seed: int) -> None:
        """End of the chain: draw from what is left."""
        self._add(llama_cpp.llama_sampler_init_dist(seed))

    def add_greedy(self) -> None:
        """End of the chain: take the likeliest."""
        self._add(llama_cpp.llama_sampler_init_greedy())

    def penalize(self, token: int) -> None:
        """Let the penalties count a token that was not drawn: one of the prompt."""
        # the other samplers must not see it: a grammar describes only what is drawn
        llama_cpp.llama_sampler_accept(self._penalties, token)

    def _add(self, sampler: Any) -> None:
        # the chain owns it from here on
        llama_cpp.llama_sampler_chain_add(self._pointer, sampler)

    def close(self) -> None:
        """Free the chain and its samplers."""
        if self._pointer:
            llama_cpp.llama_sampler_free(self._pointer)
            self._pointer = None
