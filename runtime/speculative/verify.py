"""Verify guesses in one batch: what is right is kept, the first wrong one is put right.

Two rules. Where the text must be the one that would have come without guesses (greedy, or a seed is
given), each token is drawn from the target as ever, and a guess counts if it is what was drawn.
Where only the distribution must be the target's, rejection sampling keeps more of the guesses
(Leviathan et al. 2023, https://arxiv.org/abs/2211.17192, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from infer_os.native.sampler import Distribution

from ..engine import Engine
from ..sampler import Sampler, TokenFilter
from ..settings import MOST_GUESSES, SamplingSettings
from .draft import Drafted

#: Two logits are as good as equal if they differ by less than so many standard deviations of their
#: row: a batch rounds differently from single tokens (measured: 99 % of differences are smaller).
_TIE = 0.011


class Verifier(Protocol):
    """Draws tokens from an engine's logits, with guesses or without."""

    #: Tokens that were computed again because two were as good as equally likely.
    n_redone: int

    def begin(self, prompt: Sequence[int]) -> None:
        """A prompt was computed."""
        ...

    def most_rows(self) -> int:
        """Tokens that a batch should have at most, the first one included."""
        ...

    def draw(self) -> int:
        """Draw the next token from the last logits."""
        ...

    def verify(self, token: int, guesses: Sequence[Drafted]) -> list[int]:
        """Append ``token``, draw the tokens behind it as far as the guesses are right, and one.

        The engine then holds everything but the last of what is returned.
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
        self._greedy = settings.temperature == 0
        # the penalty decides ties, too
        self._penalties: TokenFilter | None = None
        if self._greedy and settings.penalizes:
            self._penalties = engine.new_filter(settings)
        self.n_redone = 0

    def begin(self, prompt: Sequence[int]) -> None:
        """See :meth:`Verifier.begin`."""
        self._sampler.remember(prompt)
        if self._penalties is not None:
            self._penalties.begin(prompt)

    def most_rows(self) -> int:
        """As many as are computed like single steps; where none are, as many as there may be."""
        alike = self._engine.rows_alike()
        return alike if alike > 1 else MOST_GUESSES + 1

    def draw(self) -> int:
        """See :meth:`Verifier.draw`."""
        return self._drawn(-1)

    def _drawn(self, row: int) -> int:
        token = self._engine.sample(self._sampler, row)
        if self._penalties is not None:
            self._penalties.accept(token)
        return token

    def verify(self, token: int, guesses: Sequence[Drafted]) -> list[int]:
        """See :meth:`Verifier.verify`."""
        engine = self._engine
        held = len(engine.tokens)
        batch = [token, *(guess.token for guess in guesses)]
        # ties are drawn as a single step draws them; see :mod:`.rounding`
        differs = self._greedy and len(batch) > engine.rows_alike()
        engine.extend(batch)
        drawn: list[int] = []
        for row, given in enumerate(batch):
            if differs and self._is_tie(row):
                self.n_redone += 1
                engine.trim(held + row)
                engine.step(given)
                return [*drawn, self.draw()]
            drawn.append(self._drawn(row))
            if row == len(guesses) or drawn[row] != guesses[row].token:
                break
        if len(drawn) < len(batch):
            engine.trim(held + len(drawn))
        return drawn

    def _is_tie(self, row: int) -> bool:
        logits = self._engine.logits(row)
        if self._penalties is not None:
            with np.errstate(divide="ignore"):
                left = self._penalties.distribution(logits)
                return _margin(np.log(left.p)) < _TIE * float(logits.std())
        return _margin(logits) < _TIE * float(logits.std())

    def close(self) -> None:
        """Free the samplers."""
        self._sampler.close()
        if self._penalties is not None:
            self._penalties.close()


def _margin(logits: NDArray[np.floating]) -> float:
    """By how much the largest exceeds the second largest."""
    at = int(logits.argmax())
    others = [part.max() for part in (logits[:at], logits[at + 1 :]) if len(part)]
    return float(logits[at] - max(others)) if others else float("inf")


class SameDistribution:
    """Draws from the target's distribution by rejecting guesses that are too likely."""

    def __init__(self, engine: Engine, settings: SamplingSettings) -> None:
        """Make a sampler for what is not guessed, and a filter for what is."""
        self._engine = engine
        self._sampler: Sampler = engine.new_sampler(settings)
        self._filter: TokenFilter = engine.new_filter(settings)
        self._random = np.random.default_rng(settings.seed)
        self.n_redone = 0

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
        self._sampler.remember([token])
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
    """What a guess was drawn from: where it was not drawn, it alone."""
    return guess.distribution or Distribution(np.array([guess.token], np.int32), np.ones(1))
