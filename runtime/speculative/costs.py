"""What a verification and a guess cost here: seconds, measured at start and while running."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..settings import MOST_GUESSES

#: Batch sizes that are measured at start.
MEASURED = (1, 2, 3, 4, 6, 8)
#: Weights of a new measurement: for all sizes (the text grows, machines get busy), by whether it is
#: of a single step, and for its own size relative to the others.
_ALL_SINGLE, _ALL, _OWN = 0.25, 0.02, 0.1
_GUESS, _FAR = 0.1, 3.0
#: How fast a size that is no longer measured returns to its value at start.
_RETURN = 0.003
#: Logarithm of how far a measurement counts; anything beyond has some other cause.
_STRAY = math.log(3.0)


class StepCosts:
    """Seconds of a batch of ``n`` tokens, between the measured sizes by interpolation.

    What was measured at start is scaled by later measurements. The logarithms are averaged: the
    mean of a noisy ratio and that of its inverse would drift apart.
    """

    def __init__(self, seconds: Mapping[int, float]) -> None:
        """Start from measured seconds; size 1 and one more at least."""
        known = _rising(dict(sorted(seconds.items())))
        self._sizes = set(seconds)
        self._start = {n: _interpolated(known, n) for n in range(1, MOST_GUESSES + 2)}
        # logarithms: of all sizes, and of a size relative to the single step
        self._scale = 0.0
        self._shift: dict[int, float] = {}

    def seconds(self, n: int) -> float:
        """Seconds of a batch of ``n`` tokens."""
        return self._start[n] * math.exp(self._scale + self._shift.get(n, 0.0))

    def record(self, n: int, seconds: float) -> None:
        """A batch of ``n`` tokens took ``seconds``."""
        error = math.log(max(seconds, 1e-9) / self.seconds(n))
        error = min(max(error, -_STRAY), _STRAY)
        self._scale += (_ALL_SINGLE if n == 1 else _ALL) * error
        if n == 1:
            # other sizes are only comparable relative to a single step
            self._shift = {size: shift * (1 - _RETURN) for size, shift in self._shift.items()}
            return
        self._sizes.add(n)
        self._shift[n] = self._shift.get(n, 0.0) + _OWN * error

    def measured(self) -> dict[int, float]:
        """Seconds of the sizes that were measured."""
        return {n: self.seconds(n) for n in sorted(self._sizes)}


def _rising(seconds: dict[int, float]) -> dict[int, float]:
    """The nearest curve that does not fall: neighbours that do are averaged (isotonic regression).

    A batch does not take less time than a smaller one; such a measurement is noise.
    """
    blocks: list[tuple[float, list[int]]] = []
    for n, value in seconds.items():
        block = (value, [n])
        while blocks and blocks[-1][0] > block[0]:
            other, sizes = blocks.pop()
            total = other * len(sizes) + block[0] * len(block[1])
            block = (total / (len(sizes) + len(block[1])), sizes + block[1])
        blocks.append(block)
    return {n: value for value, sizes in blocks for n in sizes}


def _interpolated(seconds: Mapping[int, float], n: int) -> float:
    if n in seconds:
        return seconds[n]
    sizes = list(seconds)
    low = max((size for size in sizes if size < n), default=sizes[0])
    high = min((size for size in sizes if size > n), default=0)
    if not high:  # beyond the last size, extrapolate the last slope
        low, high = sizes[-2], sizes[-1]
    slope = (seconds[high] - seconds[low]) / (high - low)
    return max(seconds[low] + slope * (n - low), min(seconds.values()))


@dataclass(slots=True)
class GuessCosts:
    """Seconds of a drafter's first guess after new text, and of each further one."""

    first: float = 0.0
    more: float = 0.0
    known: bool = False

    def record(self, first: float, more: list[float]) -> None:
        """A round of guesses took ``seconds``."""
        if not self.known:
            self.first, self.more, self.known = first, more[0] if more else first, True
            return
        self.first += _GUESS * (min(first, _FAR * self.first) - self.first)
        for seconds in more:
            self.more += _GUESS * (min(seconds, _FAR * self.more) - self.more)

    def seconds(self, n: int) -> float:
        """Seconds of ``n`` guesses."""
        return self.first + self.more * (n - 1) if n else 0.0
