"""How often a drafter's guesses are right, given how sure it is of them."""

from __future__ import annotations

from dataclasses import dataclass, field

_BUCKETS = 8
#: A guess counts less with every later one in its bucket, so that about the last forty decide.
_FADE = 0.975
#: Weight of the prior expectation, in guesses.
_PRIOR = 2.0


@dataclass(slots=True)
class _Count:
    right: float = 0.0
    tried: float = 0.0

    def add(self, right: bool) -> None:
        self.right = self.right * _FADE + right
        self.tried = self.tried * _FADE + 1

    def rate(self, expected: float) -> float:
        return (self.right + _PRIOR * expected) / (self.tried + _PRIOR)


@dataclass(slots=True)
class Acceptance:
    """Running rates by confidence. A drafter's confidence is believed until measured."""

    first: float
    _all: _Count = field(default_factory=_Count)
    _claimed: float = 0.0
    _buckets: list[_Count] = field(default_factory=lambda: [_Count() for _ in range(_BUCKETS)])

    @property
    def rate(self) -> float:
        """The rate of a guess of unknown confidence."""
        return self._all.rate(self.first)

    def rate_at(self, confidence: float) -> float:
        """The rate of a guess with that confidence."""
        # how far the drafter's confidence held overall, then at this level
        worth = (self._all.right + _PRIOR) / (self._claimed + _PRIOR)
        return self._buckets[_bucket(confidence)].rate(min(1.0, confidence * worth))

    def record(self, confidence: float, right: bool) -> None:
        """Record whether a verified guess was right."""
        self._all.add(right)
        self._claimed = self._claimed * _FADE + confidence
        self._buckets[_bucket(confidence)].add(right)


def _bucket(confidence: float) -> int:
    return min(int(confidence * _BUCKETS), _BUCKETS - 1)
