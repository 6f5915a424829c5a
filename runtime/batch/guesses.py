"""Guessed tokens for the sequences of a batch, each with drafters of its own.

A step of the batch engine has at least :data:`~..plan.step_rows.LEAST_ROWS` rows. With
fewer sequences than that, the others are fillers: guesses take their place, so that verifying them
costs nothing, and a draft model only has to pay for its own time. With more sequences a step is
bound by arithmetic, and guesses would displace certain tokens: then there are no guesses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..plan.step_rows import LEAST_ROWS
from ..speculative.costs import StepCosts
from ..speculative.draft import Drafter
from ..speculative.speculation import Proposal, Speculation

MakeDrafters = Callable[[], list[tuple[Drafter, bool]]]


class Guesses:
    """Which drafters guess for which slot. Drafters of a finished sequence go to the next one."""

    def __init__(self, make: MakeDrafters, draft_max: int) -> None:
        """Start without drafters; they are made when a sequence needs them.

        Args:
            make: drafters for one more sequence, each with whether its guesses are free.
            draft_max: most guesses of a sequence in a step.
        """
        self._make, self._draft_max = make, draft_max
        self._of: dict[int, Speculation] = {}
        self._free: list[Speculation] = []
        self._proposals: dict[int, Proposal] = {}
        self._step_s = 0.0

    def begin(self, slot: int, tokens: Sequence[int]) -> None:
        """A slot's sequence holds these tokens and goes on from them."""
        if slot not in self._of:
            self._of[slot] = self._free.pop() if self._free else self._new()
        self._of[slot].begin(tokens)

    def _new(self) -> Speculation:
        return Speculation(self._make(), self._draft_max)

    def has(self, slot: int) -> bool:
        """Whether something guesses for a slot."""
        return slot in self._of

    def move(self, source: int, target: int) -> None:
        """A sequence has gone to another slot."""
        self.end(target)
        if source in self._of:
            self._of[target] = self._of.pop(source)
        if source in self._proposals:
            self._proposals[target] = self._proposals.pop(source)

    def end(self, slot: int) -> None:
        """A slot's sequence is finished."""
        self._proposals.pop(slot, None)
        ended = self._of.pop(slot, None)
        if ended is not None:
            self._free.append(ended)

    def push(self, slot: int, token: int) -> None:
        """A slot's sequence has one more token."""
        if slot in self._of:
            self._of[slot].push(token)

    def propose(self, slot: int, limit: int) -> list[int]:
        """Guesses for the next step of a slot, at most ``limit``."""
        speculation = self._of.get(slot)
        if speculation is None or not self._step_s:
            return []
        if speculation.idle > 0:
            speculation.idle -= 1
            return []
        if speculation.steps is None:
            speculation.steps = StepCosts({1: self._step_s, LEAST_ROWS: self._step_s})
        proposal = speculation.propose(limit)
        if proposal is None:
            speculation.learn_step(self._step_s)
            return []
        self._proposals[slot] = proposal
        return [guess.token for guess in proposal.guesses]

    def learn(self, slot: int, n_right: int) -> None:
        """Of the guesses of a slot, the first ``n_right`` were right."""
        proposal = self._proposals.pop(slot, None)
        if proposal is not None:
            self._of[slot].learn_round(proposal, n_right, self._step_s)

    def drop(self, slot: int) -> None:
        """The guesses of a slot are not verified: nothing is learned from them."""
        self._proposals.pop(slot, None)

    def step_took(self, seconds: float, n_busy: int) -> None:
        """Record a step's time; each of its sequences can gain a share of it by guessing."""
        share = seconds / n_busy
        self._step_s = share if not self._step_s else 0.9 * self._step_s + 0.1 * share

    @property
    def counts(self) -> tuple[int, int]:
        """Guesses verified, and those that were right."""
        tallies = [
            runner.tally
            for speculation in (*self._of.values(), *self._free)
            for runner in speculation.runners
        ]
        return sum(t.drafted for t in tallies), sum(t.accepted for t in tallies)

    def close(self) -> None:
        """Close the drafters."""
        for speculation in (*self._of.values(), *self._free):
            speculation.close()
        self._of.clear()
        self._free.clear()
