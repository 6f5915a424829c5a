"""Build llama.cpp's sampler chain from settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from infer_os.native.batch_context import BatchContext
from infer_os.native.constraint import TokenConstraint
from infer_os.native.context import Context
from infer_os.native.model import Vocab
from infer_os.native.sampler_chain import FILTERS, Distribution, SamplerChain

from .settings import SAMPLER_SETTINGS, SamplingSettings


class Sampler(Protocol):
    """Draws tokens and remembers what was drawn."""

    def draw(self, source: Any, row: int = -1) -> int:
        """Draw from a row of the engine's logits; -1 is the last."""
        ...

    def remember(self, tokens: Iterable[int]) -> None:
        """Take tokens of the prompt into account, for the repetition penalty."""
        ...

    def close(self) -> None:
        """Free it."""
        ...


class TokenFilter(Protocol):
    """What the settings leave of a row of logits before a draw."""

    def begin(self, tokens: Sequence[int]) -> None:
        """Set the text so far, for the repetition penalty."""
        ...

    def accept(self, token: int) -> None:
        """Append a token to the text."""
        ...

    def distribution(self, logits: NDArray[np.float32]) -> Distribution:
        """The tokens that may be drawn, with their probabilities."""
        ...

    def close(self) -> None:
        """Free it."""
        ...


class LlamaSampler:
    """A constraint, then llama.cpp's order: penalty, top-k, top-p, min-p, temperature, draw."""

    def __init__(self, settings: SamplingSettings, vocab: Vocab) -> None:
        self._chain = SamplerChain()
        self._penalizes = settings.penalizes
        self._constraint = new_constraint(settings, vocab)
        add_filters(self._chain, settings, vocab.n_tokens)
        if settings.temperature == 0:
            self._chain.add_greedy()
        else:
            self._chain.add_draw(settings.chosen_seed())

    @property
    def chain(self) -> SamplerChain:
        """The chain, to draw from other contexts."""
        return self._chain

    def draw(self, source: Context, row: int = -1) -> int:
        """Draw from a row of the context's logits."""
        if self._constraint is None:
            return source.sample(self._chain, row)
        return self.draw_from(source, row, source.logits(row))

    def draw_from(
        self, source: Context | BatchContext, row: int, logits: NDArray[np.float32]
    ) -> int:
        """Draw from a row of a context whose logits are these, (n_vocab,), as a view."""
        if self._constraint is None:
            return source.sample(self._chain, row)
        with self._constraint.applied(logits):
            token = source.sample(self._chain, row)
        self._constraint.accept(token)
        return token

    def remember(self, tokens: Iterable[int]) -> None:
        """See :meth:`Sampler.remember`."""
        if self._penalizes:
            for token in tokens:
                self._chain.penalize(token)

    def close(self) -> None:
        """Free the chain."""
        self._chain.close()


class LlamaFilter:
    """The same without the draw. Without a ``vocab``, constraints are ignored."""

    def __init__(
        self, settings: SamplingSettings, n_vocab: int, vocab: Vocab | None = None
    ) -> None:
        self._constraint = new_constraint(settings, vocab) if vocab is not None else None
        self._chain = SamplerChain()
        self._window = settings.repeat_last_n if settings.penalizes else 0
        add_filters(self._chain, settings, n_vocab)

    def begin(self, tokens: Sequence[int]) -> None:
        """See :meth:`TokenFilter.begin`."""
        if self._constraint is not None:
            self._constraint.begin()
        if self._window:
            self._chain.forget()
            for token in tokens[-self._window :]:
                self._chain.penalize(token)

    def accept(self, token: int) -> None:
        """See :meth:`TokenFilter.accept`."""
        if self._constraint is not None:
            self._constraint.accept(token)
        if self._window:
            self._chain.penalize(token)

    def distribution(self, logits: NDArray[np.float32]) -> Distribution:
        """See :meth:`TokenFilter.distribution`."""
        if self._constraint is not None:
            with self._constraint.applied(logits):
                return self._chain.distribution(logits)
        return self._chain.distribution(logits)

    def close(self) -> None:
        """Free the chain."""
        self._chain.close()


def new_constraint(settings: SamplingSettings, vocab: Vocab) -> TokenConstraint | None:
    """The settings' constraint, at the beginning of a text.

    Raises:
        GrammarError: it cannot be followed with this vocabulary.
    """
    return TokenConstraint(vocab, *settings.constraint) if settings.constraint else None


def add_filters(chain: SamplerChain, settings: SamplingSettings, n_vocab: int) -> None:
    """Everything before the draw; at temperature 0 only what can change the likeliest token."""
    if settings.logit_bias:
        chain.add_logit_bias(n_vocab, settings.logit_bias)
    if settings.penalizes:
        chain.add_penalties(n_vocab, settings.repeat_last_n, settings.repeat_penalty)
    if settings.temperature == 0:
        return
    for name in FILTERS:
        value = getattr(settings, name)
        if value != SAMPLER_SETTINGS[name].off:
            chain.add_filter(name, value)
    chain.add_temperature(settings.temperature)
