"""Build llama.cpp's sampler chain from settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from infer_os.native.batch_context import BatchContext
from infer_os.native.context import Context
from infer_os.native.model import Vocab
from infer_os.native.sampler_chain import FILTERS, Distribution, Dry, Penalties, SamplerChain

from .errors import SettingsError
from .sampling_settings import SAMPLER_SETTINGS, SamplingSettings
from .token_rules import TokenRules


class Sampler(Protocol):
    """Draws tokens and remembers what was drawn."""

    def draw(self, source: Any, row: int = -1) -> int:
        """Draw from a row of the engine's logits; -1 is the last."""
        ...

    def remember(self, tokens: Sequence[int]) -> None:
        """Take tokens of the prompt into account."""
        ...

    def accept(self, token: int) -> None:
        """Go on with a token that was not drawn here."""
        ...

    def close(self) -> None:
        """Free it."""
        ...


class TokenFilter(Protocol):
    """What the settings leave of a row of logits before a draw."""

    def begin(self, tokens: Sequence[int]) -> None:
        """Start a text after these tokens."""
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
    """The rules, then llama.cpp's chain: see docs/sampling.md for its order."""

    def __init__(self, settings: SamplingSettings, vocab: Vocab) -> None:
        """Start a text.

        Raises:
            GrammarError: the constraint cannot be followed with this vocabulary.
            SettingsError: a bias is that of a token that the vocabulary does not have.
        """
        check_biases(settings, vocab.n_tokens)
        self._chain = SamplerChain()
        self._history = settings.history
        self._rules = TokenRules(settings, vocab) if settings.bars else None
        seed = settings.chosen_seed()
        add_filters(self._chain, settings, vocab.n_tokens, vocab, _other_seed(seed, 1))
        if settings.temperature == 0:
            self._chain.add_greedy()
        elif settings.mirostat:
            self._chain.add_mirostat(seed, settings.mirostat_tau, settings.mirostat_eta)
        elif settings.adaptive_target >= 0:
            self._chain.add_adaptive(seed, settings.adaptive_target, settings.adaptive_decay)
        else:
            self._chain.add_draw(seed)

    @property
    def chain(self) -> SamplerChain:
        """The chain, to draw from other contexts."""
        return self._chain

    def draw(self, source: Context, row: int = -1) -> int:
        """Draw from a row of the context's logits."""
        if self._rules is None:
            return source.sample(self._chain, row)
        return self.draw_from(source, row, source.logits(row))

    def draw_from(
        self, source: Context | BatchContext, row: int, logits: NDArray[np.float32]
    ) -> int:
        """Draw from a row of a context whose logits are these, (n_vocab,), as a view."""
        if self._rules is None:
            return source.sample(self._chain, row)
        with self._rules.applied(logits):
            token = source.sample(self._chain, row)
            # penalties can lower all that is allowed to minus infinity too
            if np.isneginf(logits[token]):
                token = int(logits.argmax())
        self._rules.accept(token)
        return token

    def remember(self, tokens: Sequence[int]) -> None:
        """See :meth:`Sampler.remember`."""
        if self._history:
            self._chain.remember(tokens[-self._history :])
        if self._rules is not None:
            self._rules.remember(tokens)

    def accept(self, token: int) -> None:
        """See :meth:`Sampler.accept`."""
        self._chain.remember([token])
        if self._rules is not None:
            self._rules.accept(token)

    def close(self) -> None:
        """Free the chain."""
        self._chain.close()


class LlamaFilter:
    """The same without the draw. Without a ``vocab``, constraints and DRY are ignored.

    What :attr:`SamplingSettings.adapts` says is part of the draw: there is no filter for it.
    """

    def __init__(
        self, settings: SamplingSettings, n_vocab: int, vocab: Vocab | None = None
    ) -> None:
        self._rules = TokenRules(settings, vocab) if settings.bars else None
        self._chain = SamplerChain()
        self._history = settings.history
        # never the coins of the sampler that goes on from here
        coins = _other_seed(settings.chosen_seed(), 2)
        add_filters(self._chain, settings, n_vocab, vocab, coins)

    def begin(self, tokens: Sequence[int]) -> None:
        """See :meth:`TokenFilter.begin`."""
        if self._rules is not None:
            self._rules.begin()
            self._rules.remember(tokens)
        if self._history:
            self._chain.forget()
            self._chain.remember(tokens[-self._history :])

    def accept(self, token: int) -> None:
        """See :meth:`TokenFilter.accept`."""
        if self._rules is not None:
            self._rules.accept(token)
        self._chain.remember([token])

    def distribution(self, logits: NDArray[np.float32]) -> Distribution:
        """See :meth:`TokenFilter.distribution`."""
        if self._rules is None:
            return self._chain.distribution(logits)
        with self._rules.applied(logits):
            left = self._chain.distribution(logits)
            if np.isfinite(left.p).all():
                return left
            likeliest = np.array([logits.argmax()], np.int32)
            return Distribution(likeliest, np.ones(1))

    def close(self) -> None:
        """Free the chain."""
        self._chain.close()


def check_biases(settings: SamplingSettings, n_vocab: int) -> None:
    """See that there are the tokens that get a bias.

    Raises:
        SettingsError: one of them is not in the vocabulary.
    """
    for token, _ in settings.logit_bias:
        if token >= n_vocab:
            raise SettingsError(
                f"{token}: the model has no such token, only 0 to {n_vocab - 1}", "logit_bias"
            )


def _other_seed(seed: int, n: int) -> int:
    """A seed of other numbers than ``seed`` and those of another ``n``."""
    return (seed * 2654435761 + n) % 0xFFFFFFFF


def add_filters(
    chain: SamplerChain,
    settings: SamplingSettings,
    n_vocab: int,
    vocab: Vocab | None = None,
    coins: int = 0,
) -> None:
    """Everything before the draw; at temperature 0 only what can change the likeliest token.

    Args:
        chain: what it is added to.
        settings: which filters.
        n_vocab: tokens of a row of logits.
        vocab: what they mean, for DRY.
        coins: seed of XTC's decisions.
    """
    if biases := [pair for pair in settings.logit_bias if pair[0] < n_vocab]:
        chain.add_logit_bias(n_vocab, biases)
    if settings.penalizes:
        chain.add_penalties(
            n_vocab,
            Penalties(
                settings.repeat_last_n, settings.repeat_penalty,
                settings.frequency_penalty, settings.presence_penalty,
            ),
        )  # fmt: skip
    if settings.dries and vocab is not None:
        chain.add_dry(
            vocab,
            Dry(
                settings.dry_multiplier, settings.dry_base, settings.dry_allowed_length,
                settings.dry_penalty_last_n,
            ),
        )  # fmt: skip
    if settings.temperature == 0:
        return
    if not settings.mirostat:
        _add_choices(chain, settings, coins)
    if settings.dynatemp_range:
        chain.add_dynamic_temperature(
            settings.temperature, settings.dynatemp_range, settings.dynatemp_exponent
        )
    else:
        chain.add_temperature(settings.temperature)


def _add_choices(chain: SamplerChain, settings: SamplingSettings, coins: int) -> None:
    """What leaves tokens out."""
    for name in FILTERS:
        value = getattr(settings, name)
        if value != SAMPLER_SETTINGS[name].off:
            chain.add_filter(name, value)
    if settings.xtc_probability:
        chain.add_xtc(settings.xtc_probability, settings.xtc_threshold, coins)
