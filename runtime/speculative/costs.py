"""What a verification and a guess cost here: seconds, measured at start and while running."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..engine import Engine

#: Sizes of a batch that are measured at start.
MEASURED = (1, 2, 3, 4, 6, 8)
_REPEATS = 3
#: Weight of a new measurement, for its own size and for all (the text grows, machines get busy).
_OWN, _ALL = 0.2, 0.05
#: A measurement so many times its estimate is something else that happened.
_STRAY = 3.0


class StepCosts:
    """Seconds of a batch of ``n`` tokens, between the measured sizes by interpolation."""

    def __init__(self, seconds: Mapping[int, float]) -> None:
        """Start from measured seconds; size 1 and one more at least."""
        self._seconds = dict(sorted(seconds.items()))
        self._scale = 1.0

    def seconds(self, n: int) -> float:
        """Seconds of a batch of ``n`` tokens."""
        return self._scale * _interpolated(self._seconds, n)

    def record(self, n: int, seconds: float) -> None:
        """A batch of ``n`` tokens took so long."""
        expected = self.seconds(n)
        ratio = min(max(seconds / expected, 1 / _STRAY), _STRAY)
        own = _interpolated(self._seconds, n)
        self._seconds[n] = own * (1 + _OWN * (ratio - 1))
        self._seconds = dict(sorted(self._seconds.items()))
        self._scale *= 1 + _ALL * (ratio - 1)

    def measured(self) -> dict[int, float]:
        """What is known, by size."""
        return {n: self._scale * seconds for n, seconds in self._seconds.items()}


def _interpolated(seconds: Mapping[int, float], n: int) -> float:
    if n in seconds:
        return seconds[n]
    sizes = list(seconds)
    low = max((size for size in sizes if size < n), default=sizes[0])
    high = min((size for size in sizes if size > n), default=0)
    if not high:  # beyond the last: as steep as before it
        low, high = sizes[-2], sizes[-1]
    slope = (seconds[high] - seconds[low]) / (high - low)
    return max(seconds[low] + slope * (n - low), min(seconds.values()))


@dataclass(slots=True)
class GuessCosts:
    """Seconds of a drafter's first guess after the text went on, and of each more."""

    first: float = 0.0
    more: float = 0.0
    known: bool = False

    def record(self, first: float, more: list[float]) -> None:
        """A round of guesses took so long."""
        if not self.known:
            self.first, self.more, self.known = first, more[0] if more else first, True
            return
        self.first += _OWN * (min(first, _STRAY * self.first) - self.first)
        for seconds in more:
            self.more += _OWN * (min(seconds, _STRAY * self.more) - self.more)

    def seconds(self, n: int) -> float:
        """Seconds of ``n`` guesses."""
        return self.first + self.more * (n - 1) if n else 0.0


def measure_steps(
    engine: Engine, largest: int, clock: Callable[[], float] = time.perf_counter
) -> dict[int, float]:
    """Seconds of a batch of each size up to ``largest``, behind what the engine holds.

    The text is computed on for a moment and cut off again; the logits of its last token are gone
    then. Sizes take turns, so that a busy moment does not hit one of them alone.
    """
    held = list(engine.tokens)
    room = min(engine.room, engine.n_ctx - len(held))
    sizes = [n for n in MEASURED if n <= min(largest, room)]
    best = dict.fromkeys(sizes, float("inf"))
    filler = [held[-1]] * max(sizes, default=0)
    for _ in range(_REPEATS):
        for n in sizes:
            started = clock()
            engine.extend(filler[:n])
            best[n] = min(best[n], clock() - started)
            engine.trim(len(held))
    return best
