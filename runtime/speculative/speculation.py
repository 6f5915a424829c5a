"""Decide at every step whether to guess, with which drafter, and how far; learn from the outcome.

A guess that does not pay is not made. To find out whether it would pay again, a few tokens are
guessed without verifying them, so rarely that it costs about a hundredth of the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice

from .acceptance import Acceptance
from .costs import GuessCosts, StepCosts
from .draft import Drafted, Drafter
from .figures import DrafterReport, SpeculationReport
from .length import best_length, expected_gain, pays_to_guess
from .stored import CostStore

#: Guesses that are only compared, not verified, before a drafter is trusted or left for a while.
_TRIALS = 5
#: Share of the time that trials may take.
_TRIAL_SHARE = 0.008
#: Each failed trial makes the next pause longer, up to this many times.
_LONGEST_PAUSE = 16
#: Rounds between two single steps, which must be measured too: a round must beat them.
_ROUNDS = 24
#: Free guesses in vain before they are asked for less often, the longest time without, and the
#: seconds that a decision takes apart from the asking.
_VAIN, _LONGEST_VAIN_PAUSE, _ASKING_S = 8, 48, 15e-6
#: Guesses with this many tokens to compute first say nothing about the usual cost.
_USUAL_BACKLOG = 4


@dataclass(frozen=True, slots=True)
class Proposal:
    """Guesses to verify and whose they are."""

    runner: Runner
    guesses: tuple[Drafted, ...]


@dataclass(slots=True)
class Tally:
    """What a drafter did: guesses verified, those that were right, verifications, trials."""

    drafted: int = 0
    accepted: int = 0
    rounds: int = 0
    trials: int = 0


@dataclass(slots=True)
class Runner:
    """A drafter and what is known about it."""

    drafter: Drafter
    #: Whether a guess is cheap enough to be always made.
    free: bool
    acceptance: Acceptance
    costs: GuessCosts = field(default_factory=GuessCosts)
    tally: Tally = field(default_factory=Tally)
    trials_left: int = _TRIALS
    trials_right: int = 0
    trial_s: float = 0.0
    #: Tokens to go without it.
    pause: int = 0
    patience: int = 1
    vain: int = 0
    trial: Drafted | None = None

    @property
    def is_off(self) -> bool:
        """Whether it does not pay at present."""
        return self.pause > 0 and not self.free

    def follow(self, tokens: Sequence[int]) -> None:
        """Append tokens to the text."""
        if self.trial is not None:
            right = self.trial.token == tokens[0]
            self.acceptance.record(self.trial.confidence, right)
            self.trials_right += right
            self.trial = None
        for token in tokens:
            self.drafter.push(token)
        if self.pause > 0:
            self.pause = max(0, self.pause - len(tokens))
            if not self.pause and not self.free:
                self.start_trials()

    def start_trials(self) -> None:
        """Start measuring its guesses again."""
        self.trials_left, self.trials_right, self.trial_s = _TRIALS, 0, 0.0


class Speculation:
    """The drafters of an engine, and when to use them."""

    def __init__(
        self,
        drafters: Sequence[tuple[Drafter, bool]],
        draft_max: int,
        store: CostStore | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Take over drafters, in the order in which they are asked.

        Args:
            drafters: each with whether its guesses are free.
            draft_max: most guesses of a round.
            store: keeps the measured costs of steps.
            clock: seconds, for tests.
        """
        self.runners = [Runner(d, free, Acceptance(0.4 if free else 0.6)) for d, free in drafters]
        self.draft_max = draft_max
        self._store = store
        known = store.load() if store is not None else None
        self.steps: StepCosts | None = StepCosts(known) if known else None
        #: Plain steps before the next decision.
        self.idle = 0
        self._clock = clock
        self._measured = known
        self._steps_of: dict[str, StepCosts] = {}
        self._rounds = 0
        # tokens that the drafters have not seen
        self._unseen: list[int] = []

    def begin(self, tokens: Sequence[int]) -> None:
        """Begin with a text to continue."""
        self._unseen.clear()
        self.idle = 0
        for runner in self.runners:
            runner.trial = None
            runner.drafter.begin(tokens)

    def use_rule(self, rule: str) -> None:
        """Keep the costs of this verification rule separate: drawing takes time too."""
        if self._measured and rule not in self._steps_of:
            self._steps_of[rule] = StepCosts(self._measured)
        self.steps = self._steps_of.get(rule, self.steps)

    def set_costs(self, seconds: dict[int, float]) -> None:
        """Set the measured seconds of steps, by size."""
        self._measured = seconds
        self.steps = StepCosts(seconds)
        if self._store is not None:
            self._store.store(seconds)

    def push(self, token: int) -> None:
        """Append a token to the text."""
        self._unseen.append(token)

    def propose(self, limit: int) -> Proposal | None:
        """Guesses worth verifying, at most ``limit``; None for a plain step."""
        limit = min(limit, self.draft_max)
        if self.steps is None or limit < 1:
            return None
        if self._unseen:
            for runner in self.runners:
                runner.follow(self._unseen)
            self._unseen.clear()
        if self._rounds >= _ROUNDS:
            return None
        for runner in self.runners:
            if runner.pause > 0:
                continue
            guesses = self._free(runner, limit) if runner.free else self._paid(runner, limit)
            if guesses:
                return Proposal(runner, tuple(guesses))
        # this step is one of them
        self.idle = max(0, min(runner.pause for runner in self.runners) - 1)
        return None

    def _free(self, runner: Runner, limit: int) -> list[Drafted]:
        """Guesses that cost nothing; those that are not worth verifying still teach."""
        started = self._clock()
        with closing(runner.drafter.guess()) as source:
            guesses = list(islice(source, limit))
        n = best_length(self._survival(runner, guesses), self._verify, 0.0) if guesses else 0
        if n:
            return guesses[:n]
        if guesses:
            runner.trial = guesses[0]
        runner.vain += 1
        if runner.vain >= _VAIN:
            # asking is not quite free: with a tiny model's steps it is noticeable
            share = (self._clock() - started + _ASKING_S) / (_TRIAL_SHARE * self._verify(1))
            runner.pause = min(int(share), _LONGEST_VAIN_PAUSE)
        return []

    def _paid(self, runner: Runner, limit: int) -> list[Drafted]:
        if runner.trials_left > 0:
            self._try(runner)
            return []
        if not self._pays(runner, [], limit):
            latest = runner.trials_right / _TRIALS
            # a limit near the end of a text says nothing about the drafter
            if limit < min(self.draft_max, _TRIALS):
                pass
            elif runner.trials_right and self._pays_at(runner, [], latest, limit):
                runner.start_trials()  # it may have improved: soon its past counts less
            else:
                self._rest(runner)
            return []
        guesses, seconds = self._guess(runner, limit)
        n = best_length(self._survival(runner, guesses), self._verify, sum(seconds))
        if guesses and not n:
            runner.trial = guesses[0]
        return guesses[:n]

    def _guess(self, runner: Runner, limit: int) -> tuple[list[Drafted], list[float]]:
        guesses: list[Drafted] = []
        seconds: list[float] = []
        usual = runner.drafter.backlog <= _USUAL_BACKLOG
        with closing(runner.drafter.guess()) as source:
            while len(guesses) < limit and self._pays(runner, guesses, limit):
                started = self._clock()
                guess = next(source, None)
                if guess is None:
                    break
                guesses.append(guess)
                seconds.append(self._clock() - started)
        if usual and guesses:
            runner.costs.record(seconds[0], seconds[1:])
        return guesses, seconds

    def _pays(self, runner: Runner, guesses: Sequence[Drafted], limit: int) -> bool:
        return self._pays_at(runner, guesses, runner.acceptance.rate, limit)

    def _pays_at(self, runner: Runner, guesses: Sequence[Drafted], rate: float, limit: int) -> bool:
        survival = self._survival(runner, guesses)
        return pays_to_guess(survival, rate, limit, self._verify, runner.costs.seconds)

    def _survival(self, runner: Runner, guesses: Sequence[Drafted]) -> list[float]:
        survival, alive = [], 1.0
        for guess in guesses:
            alive *= runner.acceptance.rate_at(guess.confidence)
            survival.append(alive)
        return survival

    def _verify(self, n: int) -> float:
        return self.steps.seconds(n) if self.steps is not None else 0.0

    # ---- trials

    def _try(self, runner: Runner) -> None:
        """Guess one token and see, at the next push, whether it was right."""
        usual = runner.drafter.backlog <= _USUAL_BACKLOG
        started = self._clock()
        with closing(runner.drafter.guess()) as source:
            runner.trial = next(source, None)
        seconds = self._clock() - started
        runner.trials_left -= 1
        runner.trial_s += seconds
        runner.tally.trials += 1
        if runner.trial is None:  # its context is full
            self._rest(runner)
        elif usual:
            runner.costs.record(seconds, [])

    def _rest(self, runner: Runner) -> None:
        """Pause it for long enough that the next trials are a small share of the time."""
        expected = max(runner.trial_s, _TRIALS * runner.costs.first)
        tokens = expected / (_TRIAL_SHARE * self._verify(1))
        runner.pause = max(_TRIALS, int(tokens)) * runner.patience
        runner.patience = min(2 * runner.patience, _LONGEST_PAUSE)
        runner.trial_s, runner.trials_right = 0.0, 0

    # ---- outcomes

    def learn_round(self, proposal: Proposal, n_right: int, seconds: float) -> None:
        """A round was verified: ``n_right`` guesses from the first on were right."""
        runner, guesses = proposal.runner, proposal.guesses
        self._count(proposal, n_right)
        # those after the first wrong one were never judged
        for i, guess in enumerate(guesses[: n_right + 1]):
            runner.acceptance.record(guess.confidence, i < n_right)
        if n_right:
            runner.patience, runner.vain = 1, 0
        runner.trials_right = 0
        if self.steps is not None:
            self.steps.record(len(guesses) + 1, seconds)

    def _count(self, proposal: Proposal, n_right: int) -> None:
        tally = proposal.runner.tally
        self._rounds += 1
        tally.rounds += 1
        tally.drafted += len(proposal.guesses)
        tally.accepted += n_right

    def learn_step(self, seconds: float) -> None:
        """A plain step took so long."""
        self._rounds = 0
        if self.steps is not None:
            self.steps.record(1, seconds)

    def report(self) -> SpeculationReport:
        """What has happened so far."""
        single = self._verify(1)
        return SpeculationReport(
            drafters=tuple(self._drafter_report(runner) for runner in self.runners),
            plain_tokens_per_s=1 / single if single else 0.0,
            step_s=self.steps.measured() if self.steps is not None else {},
        )

    def _drafter_report(self, runner: Runner) -> DrafterReport:
        rate, tally, gain = runner.acceptance.rate, runner.tally, 0.0
        if self.steps is not None:
            gain = expected_gain(rate, self.draft_max, self._verify, runner.costs.seconds)
        return DrafterReport(
            runner.drafter.name, tally.drafted, tally.accepted, tally.rounds, rate,
            runner.costs.first, gain, not runner.is_off,
        )  # fmt: skip

    def close(self) -> None:
        """Close the drafters."""
        for runner in self.runners:
            runner.drafter.close()
