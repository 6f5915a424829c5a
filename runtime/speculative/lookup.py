"""Prompt lookup: guess that the text goes on as it did after an earlier occurrence of its ending.

Texts that are revised, translated, summarized or quoted repeat themselves; no second model is
needed. The idea is that of A. Saxena's "prompt lookup decoding" (2023).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from .draft import Drafted

#: Lengths of the endings to look for, longest first.
LONGEST, SHORTEST = 5, 2
#: Initial confidence by the length in tokens of the ending that was found.
_CONFIDENCE = {2: 0.35, 3: 0.55, 4: 0.7, 5: 0.8}


class LookupDrafter:
    """Guesses from the n-grams of the text itself."""

    name = "lookup"
    backlog = 0

    def __init__(self) -> None:
        self._tokens: list[int] = []
        # where the text goes on after the latest occurrence of each n-gram
        self._follows: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def begin(self, tokens: Sequence[int]) -> None:
        """See :meth:`~.draft.Drafter.begin`."""
        held = self._tokens
        if len(tokens) < len(held) or list(tokens[: len(held)]) != held:
            self._follows.clear()
            self._indexed = 0
        self._tokens = list(tokens)

    def push(self, token: int) -> None:
        """See :meth:`~.draft.Drafter.push`."""
        self._tokens.append(token)

    def guess(self) -> Generator[Drafted]:
        """Go on as after the latest earlier occurrence of the longest ending found."""
        self._index()
        tokens = self._tokens
        for length in range(min(LONGEST, len(tokens) - 1), SHORTEST - 1, -1):
            at = self._follows.get(tuple(tokens[-length:]))
            if at is None:
                continue
            confidence = _CONFIDENCE[length]
            # a period shorter than the guess repeats
            period = len(tokens) - at
            guessed = 0
            while True:
                yield Drafted(tokens[at + guessed % period], confidence)
                guessed += 1
        return

    def _index(self) -> None:
        """Enter every n-gram that something follows, so not the ending itself."""
        tokens = self._tokens
        for end in range(max(self._indexed, SHORTEST), len(tokens)):
            for length in range(SHORTEST, min(LONGEST, end) + 1):
                self._follows[tuple(tokens[end - length : end])] = end
        self._indexed = max(self._indexed, len(tokens))

    def close(self) -> None:
        """Nothing to free."""
