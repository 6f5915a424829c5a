"""Guess with a second, smaller model of the same vocabulary."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from infer_os.native.sampler_chain import Distribution

from ..interface import Engine, shared_prefix
from ..sampler import TokenFilter
from ..settings import SamplingSettings
from .draft import Drafted


class ModelDrafter:
    """A draft model that follows a text.

    Tokens that only the target has are left out of the draft's text. A guess is its likeliest
    token; if the target draws with rejection sampling, the guess is also drawn, with the same
    settings.
    """

    name = "model"

    def __init__(self, engine: Engine, shared: NDArray[np.bool_]) -> None:
        """Take over an engine.

        Args:
            engine: the draft; closed with the drafter.
            shared: per id of the draft, (n_draft,), whether it is the same token in the target.
        """
        self.engine = engine
        self._shared = shared
        # added to the logits: what the target lacks is never guessed
        self._barred = np.where(shared, 0, -np.inf).astype(np.float32) if not shared.all() else None
        self._text: list[int] = []
        # the engine's tokens that belong to the text; guesses follow, perhaps still right
        self._n_right = 0
        self._guessed: list[int] = []
        self._filter: TokenFilter | None = None
        self._random = np.random.default_rng()

    @property
    def backlog(self) -> int:
        """See :meth:`~.draft.Drafter.backlog`."""
        return max(0, len(self._text) - self._n_right - 2)

    def sample_like(self, settings: SamplingSettings | None) -> None:
        """Draw guesses with these settings; None takes the likeliest."""
        if self._filter is not None:
            self._filter.close()
        self._filter = None if settings is None else self.engine.new_filter(settings)
        # never the numbers that the verification draws: guess and verdict must be independent
        seed = settings.seed if settings is not None else None
        self._random = np.random.default_rng(None if seed is None else (seed, 1))

    def begin(self, tokens: Sequence[int]) -> None:
        """See :meth:`~.draft.Drafter.begin`."""
        text = [token for token in tokens if self._knows(token)]
        self._n_right = min(self._n_right, shared_prefix(self._text, text))
        self._guessed.clear()
        self._text = text

    def push(self, token: int) -> None:
        """See :meth:`~.draft.Drafter.push`."""
        if not self._knows(token):
            return
        at_front = self._n_right == len(self._text)
        if at_front and self._guessed and self._guessed[0] == token:
            self._guessed.pop(0)
            self._n_right += 1
        elif at_front:
            self._guessed.clear()
        self._text.append(token)

    def _knows(self, token: int) -> bool:
        return token < len(self._shared) and bool(self._shared[token])

    def guess(self) -> Generator[Drafted]:
        """Guess on from the text, until the draft's context is full."""
        engine, text = self.engine, self._text
        if not text or len(text) >= engine.n_ctx:
            return
        self._guessed.clear()
        # the last token is computed again, if need be: its logits are gone
        keep = min(self._n_right, len(text) - 1)
        self._n_right = keep
        if keep + 1 == len(text) and keep > 0:
            engine.trim(keep)
            engine.step(text[keep])
        else:
            engine.feed(text)
        self._n_right = len(text)
        if self._filter is not None:
            self._filter.begin(text)
        while True:
            drafted = self._next()
            yield drafted
            if len(engine.tokens) >= engine.n_ctx:
                return
            engine.step(drafted.token)
            self._guessed.append(drafted.token)
            if self._filter is not None:
                self._filter.accept(drafted.token)

    def _next(self) -> Drafted:
        logits = self.engine.logits()
        if self._barred is not None:
            logits = logits + self._barred
        if self._filter is None:
            token = int(logits.argmax())
            # softmax of the largest: 1 / sum exp(l - l_max)
            return Drafted(token, 1 / float(np.exp(logits - logits[token]).sum()))
        left: Distribution = self._filter.distribution(logits)
        token = left.draw(self._random.random())
        return Drafted(token, left.of(token), left)

    def close(self) -> None:
        """Close the draft's engine."""
        with closing(self.engine):
            self.sample_like(None)
