"""How many threads compute while other programs also use the cores.

Where llama.cpp computes a part of every step, with OpenMP's threads, all wait for the last of
them. One that has to share its core with another program holds up all of them, many times per
token: two threads next to two busy programs on two cores are several hundred times slower than
one. So a thread is only used if a core is free for it. Where our kernels compute whole steps, their
team waits for no thread that does not run (docs/kernels.md), and this is not needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from infer_os.native.processors import processors_left

#: Seconds between two checks, and between two samples of a check.
_EVERY_S, _APART_S = 0.05, 0.0003
#: Samples in a row that must agree before threads are taken away: most tasks run only briefly.
_SAMPLES = 3


class ThreadCount:
    """The number of threads for the next step, from 1 to ``most``."""

    def __init__(
        self,
        most: int,
        *,
        fixed: bool = False,
        left: Callable[[], int | None] = processors_left,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Start with all of them.

        Args:
            most: threads on a quiet machine.
            fixed: always use that many.
            left: says how many processors other programs leave.
            clock: seconds, and ``sleep`` waits for some.
            sleep: see ``clock``.
        """
        self._most, self._fixed = most, fixed or most == 1
        self._left, self._clock, self._sleep = left, clock, sleep
        self._next = float("-inf")
        self._count = most

    def now(self) -> int:
        """Threads to use for the next step; checks the machine now and then."""
        if self._fixed or self._clock() < self._next:
            return self._count
        self._count = self._look()
        self._next = self._clock() + _EVERY_S
        return self._count

    def _look(self) -> int:
        found = 1
        for number in range(_SAMPLES):
            if number:
                self._sleep(_APART_S)
            left = self._left()
            if left is None:
                return self._most
            found = max(found, min(self._most, left))
            # other programs may only seem busy: the best of the samples counts
            if found >= self._count:
                break
        return found
