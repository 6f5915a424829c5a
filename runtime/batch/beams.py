"""Beam search: the likeliest continuations of a prompt, several followed at once.

In: rows of logits of the texts that are followed. Out: which of them go on with which tokens, and
at the end the best finished ones. Scores and the end of the search are those that transformers has
by default (a length penalty of 1, ``early_stopping`` False): ``GenerationMixin._beam_search``,
https://github.com/huggingface/transformers/blob/main/src/transformers/generation/utils.py
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Beam:
    """A text: its drawn tokens and its score.

    The score is the sum of their log-probabilities; of a finished text, their mean.
    """

    tokens: tuple[int, ...] = ()
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """How the search goes on: ``parents[i]`` is the text that ``tokens[i]`` is appended to."""

    parents: tuple[int, ...]
    tokens: tuple[int, ...]


class BeamSearch:
    """The search after one prompt."""

    def __init__(self, n_beams: int, ends: Collection[int], limit: int) -> None:
        """Begin with an empty text.

        Args:
            n_beams: texts to follow.
            ends: tokens that finish a text.
            limit: the most tokens of a text, 1 or more.
        """
        self._n_beams, self._ends, self._limit = n_beams, frozenset(ends), limit
        # so many that all beams go on even if each of them could also end in every way
        self._n_best = max(2, 1 + len(self._ends)) * n_beams
        self._running = [Beam()]
        self._finished: list[Beam] = []

    @property
    def finished(self) -> list[Beam]:
        """The finished texts, best first."""
        return self._finished

    def push(self, logits: NDArray[np.float32]) -> Step | None:
        """Go on from what may come next; None if the search is over.

        Args:
            logits: of each text that is followed, (n_running, n_vocab).
        """
        n_tokens = len(self._running[0].tokens) + 1
        running: list[tuple[int, int, Beam]] = []
        for rank, (score, parent, token) in enumerate(self._best(logits)):
            beam = Beam((*self._running[parent].tokens, token), score)
            if token not in self._ends and n_tokens < self._limit:
                running.append((parent, token, beam))
            elif rank < self._n_beams:
                self._finished.append(Beam(beam.tokens, score / n_tokens))
        # the first of equal ones stays
        self._finished.sort(key=lambda beam: -beam.score)
        del self._finished[self._n_beams :]
        del running[self._n_beams :]
        self._running = [beam for _, _, beam in running]
        if not running or self._is_settled(n_tokens):
            return None
        return Step(
            tuple(parent for parent, _, _ in running), tuple(token for _, token, _ in running)
        )

    def _is_settled(self, n_tokens: int) -> bool:
        """Whether the best text that is followed, as long as it is now, is no better than all."""
        full = len(self._finished) == self._n_beams
        return full and self._running[0].score / n_tokens <= self._finished[-1].score

    def _best(self, logits: NDArray[np.float32]) -> list[tuple[float, int, int]]:
        """The best continuations of all texts: score, text and token of each, best first."""
        found: list[tuple[float, int, int]] = []
        for i, beam in enumerate(self._running):
            # a row at a time, in float64
            values = logits[i].astype(np.float64)
            values -= values.max()
            values += beam.score - np.log(np.exp(values).sum())
            n = min(self._n_best, len(values))
            top = np.argpartition(-values, n - 1)[:n]
            found += [(float(values[token]), i, int(token)) for token in top]
        found.sort(key=lambda each: (-each[0], each[1], each[2]))
        return found[: self._n_best]
