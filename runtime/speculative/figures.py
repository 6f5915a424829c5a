"""What guessing did: figures for statistics and ``--json``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DrafterReport:
    """A drafter's figures. ``acceptance`` is the running rate, ``guess_s`` seconds of a guess.

    ``gain`` is the expected speed over plain steps; at 1 or below, the drafter is off.
    """

    name: str
    drafted: int
    accepted: int
    rounds: int
    acceptance: float
    guess_s: float
    gain: float
    on: bool


@dataclass(frozen=True, slots=True)
class SpeculationReport:
    """What guessing did since the engine was loaded, and what it cost.

    ``plain_tokens_per_s`` is measured from single steps; ``step_s`` has the seconds of a batch by
    its size.
    """

    drafters: tuple[DrafterReport, ...]
    plain_tokens_per_s: float
    step_s: dict[int, float]

    @property
    def drafted(self) -> int:
        """Guesses verified."""
        return sum(drafter.drafted for drafter in self.drafters)

    @property
    def accepted(self) -> int:
        """Guesses that were right."""
        return sum(drafter.accepted for drafter in self.drafters)

    @property
    def mean_length(self) -> float:
        """Tokens that a verification gave."""
        rounds = sum(drafter.rounds for drafter in self.drafters)
        return (self.accepted + rounds) / rounds if rounds else 0.0
