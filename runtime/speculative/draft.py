"""What a drafter is: something that guesses how a text goes on."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from infer_os.native.sampler_chain import Distribution


@dataclass(frozen=True, slots=True)
class Drafted:
    """A guessed token. ``confidence`` is how sure the drafter is of it, 0 to 1.

    ``distribution`` is what it was drawn from; None if it was not drawn, but is the only guess.
    """

    token: int
    confidence: float
    distribution: Distribution | None = None


class Drafter(Protocol):
    """Follows a text token by token and guesses what comes next."""

    name: str

    def begin(self, tokens: Sequence[int]) -> None:
        """Set the text."""
        ...

    def push(self, token: int) -> None:
        """Append a token to the text."""
        ...

    def guess(self) -> Generator[Drafted]:
        """Yield guesses, a token at a time, for as long as the caller asks."""
        ...

    @property
    def backlog(self) -> int:
        """Tokens that must be computed before the first guess, beyond the usual one or two."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...
