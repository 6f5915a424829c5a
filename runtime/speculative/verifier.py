"""Verify guesses in one batch: right ones are kept, the first wrong one is corrected.

Two rules. If the text must be the same as without guesses (greedy, or with a seed), each token is
drawn from the target as usual, and a guess counts if it equals the drawn token.
If only the distribution must be the target's, rejection sampling keeps more of the guesses
(Leviathan et al. 2023, https://arxiv.org/abs/2211.17192, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from infer_os.native.sampler_chain import Distribution

from ..interface import Engine
from ..sampler import Sampler, TokenFilter
from ..settings import MOST_GUESSES, SamplingSettings
from .draft import Drafted


class Verifier(Protocol):
    """Draws tokens from an engine's logits, with guesses or without."""

    def begin(self, prompt: Sequence[int]) -> None:
        """Begin after a computed prompt."""
        ...

    def most_rows(self) -> int:
        """Tokens that a batch should have at most, the first one included."""
        ...

    def draw(self) -> int:
        """Draw the next token from the last logits."""
        ...

    def verify(self, token: int, guesses: Sequence[Drafted]) -> list[int]:
        """Append ``token``, draw the tokens after it as far as the guesses are right, and one more.

        The engine then holds all but the last of the returned tokens.
        """
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class SameText:
    """Draws as without guesses."""

    def __init__(self, engine: Engine, settings: SamplingSettings) -> None:
        """Make a sampler."""
        self._engine = engine
        self._sampler: Sampler = engine.new_sampler(settings)

    def begin(self, prompt: Sequence[int]) -> None:
        """See :meth:`Verifier.begin`."""
        self._sampler.remember(prompt)

    def most_rows(self) -> int:
        """As many as are computed like single steps; with one there are no guesses."""
        return self._engine.rows_alike()

    def draw(self) -> int:
        """See :meth:`Verifier.draw`."""
        return self._engine.sample(self._sampler)

    def verify(self, token: int, guesses: Sequence[Drafted]) -> list[int]:
        """See :meth:`Verifier.verify`."""
        engine = self._engine
        held = len(engine.tokens)
        batch = [token, *(guess.token for guess in guesses)]
        engine.extend(batch)
        drawn: list[int] = []
        for row in range(len(batch)):
            drawn.append(engine.sample(self._sampler, row))
            if row == len(guesses) or drawn[row] != guesses[row].token:
                break
        if len(drawn) < len(batch):
            engine.trim(held + len(drawn))
        return drawn

    def close(self) -> None:
        """Free the sampler."""
        self._sampler.close()


class SameDistribution:
    """Draws from the target's distribution by rejecting guesses that are too likely."""

    def __init__(self, engine: Engine, settings: SamplingSettings) -> None:
        """Make a sampler for tokens without guesses, and a filter for verification."""
        self._engine = engine
        self._sampler: Sampler = engine.new_sampler(settings)
        self._filter: TokenFilter = engine.new_filter(settings)
        self._random = np.random.default_rng(settings.seed)

    def begin(self, prompt: Sequence[int]) -> None:
        """See :meth:`Verifier.begin`."""
        self._sampler.remember(prompt)
        self._filter.begin(prompt)

    def most_rows(self) -> int:
        """Any number."""
        return MOST_GUESSES + 1

    def draw(self) -> int:
        """See :meth:`Verifier.draw`."""
        return self._drawn(-1)

    def _drawn(self, row: int) -> int:
        token = self._engine.sample(self._sampler, row)
        self._filter.accept(token)
        return token

    def _take(self, token: int) -> int:
        """Go on with a token that the sampler did not draw."""
        self._sampler.accept(token)
        self._filter.accept(token)
        return token

    def verify(self, token: int, guesses: Sequence[Drafted]) -> list[int]:
        """See :meth:`Verifier.verify`."""
        engine, random = self._engine, self._random.random
        held = len(engine.tokens)
        engine.extend([token, *(guess.token for guess in guesses)])
        drawn: list[int] = []
        for row, guess in enumerate(guesses):
            left, proposed = self._filter.distribution(engine.logits(row)), _proposal(guess)
            if random() * proposed.of(guess.token) >= left.of(guess.token):
                drawn.append(self._take(left.without(proposed).draw(random())))
                engine.trim(held + len(drawn))
                return drawn
            drawn.append(self._take(guess.token))
        return [*drawn, self._drawn(len(guesses))]

    def close(self) -> None:
        """Free the samplers."""
        self._sampler.close()
        self._filter.close()


def _proposal(guess: Drafted) -> Distribution:
    """What a guess was drawn from: only itself, if it was not drawn."""
    return guess.distribution or Distribution(np.array([guess.token], np.int32), np.ones(1))
