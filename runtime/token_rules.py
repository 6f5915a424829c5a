"""Which tokens must not come next: what a constraint rules out, repeated n-grams, an early end.

In: settings, then the text token by token. Out: a row of logits in which the tokens that must not
come next are minus infinity, while a token is drawn from it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from infer_os.native.constraint import TokenConstraint
from infer_os.native.model import Vocab

from .sampling_settings import SamplingSettings


class NgramHistory:
    """The n-grams of a text: which tokens would complete one that it has already."""

    def __init__(self, n: int) -> None:
        self._n = n
        self.clear()

    def clear(self) -> None:
        """Begin with an empty text."""
        self._tail: tuple[int, ...] = ()
        self._next: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)

    def push(self, token: int) -> None:
        """Append a token."""
        if len(self._tail) == self._n - 1:
            self._next[self._tail].add(token)
        self._tail = (*self._tail, token)[-(self._n - 1) :] if self._n > 1 else ()

    def repeating(self) -> set[int]:
        """The tokens that would repeat an n-gram."""
        return self._next.get(self._tail, set())


class TokenRules:
    """One text's rules. Where they leave nothing, only the constraint counts.

    So a text that is complete by its constraint ends, and a constraint that leaves one token gets
    it.
    """

    def __init__(self, settings: SamplingSettings, vocab: Vocab | None) -> None:
        """Start a text. Without a ``vocab`` there is no constraint, and no end of text.

        Raises:
            GrammarError: the constraint cannot be followed with this vocabulary.
        """
        has_constraint = settings.constraint is not None and vocab is not None
        self._constraint = (
            TokenConstraint(vocab, *settings.constraint)  # type: ignore[arg-type, misc]
            if has_constraint
            else None
        )
        self._ngrams = NgramHistory(settings.no_repeat_ngram) if settings.no_repeat_ngram else None
        self._min_tokens = settings.min_tokens
        self._ends = vocab.ends() if vocab is not None and settings.min_tokens else []
        self._n_drawn = 0

    def begin(self) -> None:
        """Start again, with an empty text."""
        if self._constraint is not None:
            self._constraint.begin()
        if self._ngrams is not None:
            self._ngrams.clear()
        self._n_drawn = 0

    def remember(self, prompt: Iterable[int]) -> None:
        """Take tokens of the prompt into account."""
        if self._ngrams is not None:
            for token in prompt:
                self._ngrams.push(token)

    def accept(self, token: int) -> None:
        """Append a token to the text.

        Raises:
            ConstraintFailed: the constraint exceeded its bounds.
        """
        self._n_drawn += 1
        if self._constraint is not None:
            self._constraint.accept(token)
        if self._ngrams is not None:
            self._ngrams.push(token)

    def _blocked(self, n_vocab: int) -> NDArray[np.bool_] | None:
        """The tokens that must not come next, (n_vocab,); None if all may."""
        barred = [] if self._ngrams is None else [*self._ngrams.repeating()]
        barred += self._ends if self._n_drawn < self._min_tokens else []
        if self._constraint is None and not barred:
            return None
        outside = np.zeros(n_vocab, np.bool_)
        if self._constraint is not None:
            outside = self._constraint.blocked()
        blocked = outside.copy()
        # a draft may have fewer tokens
        blocked[[token for token in barred if token < n_vocab]] = True
        return outside if blocked.all() else blocked

    @contextmanager
    def applied(self, logits: NDArray[np.float32]) -> Iterator[None]:
        """Lower what must not come next in a row of logits, (n_vocab,), while inside.

        Raises:
            ConstraintFailed: the constraint exceeded its bounds.
        """
        blocked = self._blocked(len(logits))
        if blocked is None:
            yield
            return
        kept = logits.copy()
        logits[blocked] = -np.inf
        try:
            yield
        finally:
            logits[:] = kept
