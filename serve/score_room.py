"""Room for log-probabilities of prompts, which are held until an answer is complete.

Each takes about half a kilobyte, so those of all requests together are bounded; a request waits its
turn for room, and one that could never have it is refused.
"""

from __future__ import annotations

import asyncio
from collections import deque

from .errors import ApiError

#: Log-probabilities that may be held at once: 20 MB, which the plan of a server counts.
MOST_SCORES = 50_000


class ScoreRoom:
    """Counts log-probabilities, in the event loop's thread; who comes first goes first."""

    def __init__(self, most: int = MOST_SCORES) -> None:
        self._most = self._free = most
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, n: int) -> None:
        """Wait for room for so many; whoever has it gives it back.

        Raises:
            ApiError: there is never so much.
        """
        if n > self._most:
            raise ApiError(
                f"{n} log-probabilities of prompts are more than the {self._most} that are "
                "computed at once; ask for fewer prompts, or for fewer tokens beside each one",
                413, param="logprobs", code="too_many_logprobs",
            )  # fmt: skip
        if not n:
            return
        if not self._line and n <= self._free:
            self._free -= n
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((n, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # its turn came at the same moment
                self.give(n)
            raise

    def give(self, n: int) -> None:
        """Give room back, to whoever is next."""
        self._free += n
        while self._line:
            wanted, turn = self._line[0]
            if not turn.cancelled():
                if wanted > self._free:
                    return
                self._free -= wanted
                turn.set_result(None)
            self._line.popleft()
