"""Guessing starts where it pays, and stops where it does not, at next to no cost."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from infer_os.runtime.speculative.costs import StepCosts
from infer_os.runtime.speculative.draft import Drafted
from infer_os.runtime.speculative.speculation import Speculation

STOCK = {1: 1.0, 2: 1.75, 4: 2.3, 8: 4.6}
NATIVE = {1: 1.0, 2: 1.02, 4: 1.2, 8: 1.8}


@dataclass
class World:
    """A clock that only work moves, and a text whose guesses are right at a rate."""

    rate: float
    steps: dict[int, float]
    guess_s: float
    now: float = 0.0
    confidence: float = 0.8
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def clock(self) -> float:
        return self.now


class WorldDrafter:
    """Guesses 1 where it is right and 0 where it is wrong; the text is all ones."""

    name = "model"
    backlog = 0

    def __init__(self, world: World) -> None:
        self.world = world
        self.made = 0

    def begin(self, tokens: Sequence[int]) -> None:
        pass

    def push(self, token: int) -> None:
        pass

    def guess(self) -> Generator[Drafted]:
        world = self.world
        while True:
            world.now += world.guess_s
            self.made += 1
            yield Drafted(int(world.random.random() < world.rate), world.confidence)

    def close(self) -> None:
        pass


class SilentDrafter(WorldDrafter):
    """Has nothing to say."""

    def guess(self) -> Generator[Drafted]:
        yield from ()


def run(world: World, n_tokens: int, *, free: bool = False) -> tuple[float, Speculation]:
    """Generate; returns the seconds that it took in the world."""
    drafter = WorldDrafter(world)
    speculation = Speculation([(drafter, free)], 6, clock=world.clock)
    speculation.steps = StepCosts(world.steps)
    true = StepCosts(world.steps)
    speculation.begin([1])
    done = 0
    while done < n_tokens:
        proposal = speculation.propose(n_tokens - done)
        if proposal is None:
            world.now += true.seconds(1)
            speculation.learn_step(true.seconds(1))
            speculation.push(1)
            done += 1
            continue
        seconds = true.seconds(len(proposal.guesses) + 1)
        world.now += seconds
        right = [guess.token for guess in proposal.guesses]
        n_right = right.index(0) if 0 in right else len(right)
        speculation.learn_round(proposal, n_right, seconds)
        for _ in range(n_right + 1):
            speculation.push(1)
        done += n_right + 1
    return world.now / done, speculation


@pytest.mark.parametrize("steps", [STOCK, NATIVE])
@pytest.mark.parametrize("guess_s", [0.02, 0.1, 0.5])
def test_a_hopeless_draft_costs_less_than_two_hundredths(
    steps: dict[int, float], guess_s: float
) -> None:
    seconds, speculation = run(World(0.02, steps, guess_s), 2000)
    assert seconds < 1.02
    assert speculation.report().drafters[0].gain < 1.06


def test_free_guesses_that_are_wrong_cost_nothing_in_the_end() -> None:
    seconds, _ = run(World(0.02, STOCK, 0.0), 2000, free=True)
    assert seconds < 1.02


@pytest.mark.parametrize(
    ("rate", "steps", "guess_s", "gain"),
    [(0.85, NATIVE, 0.1, 1.6), (0.95, STOCK, 0.05, 1.15), (0.7, NATIVE, 0.05, 1.5)],
)
def test_a_good_draft_pays(
    rate: float, steps: dict[int, float], guess_s: float, gain: float
) -> None:
    seconds, speculation = run(World(rate, steps, guess_s), 2000)
    assert 1 / seconds > gain
    report = speculation.report()
    assert report.drafters[0].on
    assert report.drafters[0].acceptance == pytest.approx(rate, abs=0.15)
    assert report.mean_length > 1.5


def test_it_comes_within_a_tenth_of_the_best_fixed_length() -> None:
    world = World(0.8, NATIVE, 0.08)
    seconds, _ = run(world, 4000)
    true = StepCosts(NATIVE)
    best = max(
        sum(0.8**i for i in range(n + 1)) / (0.08 * n + true.seconds(n + 1)) for n in range(7)
    )
    assert 1 / seconds > 0.9 * best


def test_a_draft_that_turns_good_is_found_again() -> None:
    world = World(0.0, NATIVE, 0.05)
    drafter = WorldDrafter(world)
    speculation = Speculation([(drafter, False)], 6, clock=world.clock)
    speculation.steps = StepCosts(NATIVE)
    proposed = 0
    for i in range(6000):
        world.rate = 0.0 if i < 1000 else 0.95
        proposal = speculation.propose(8)
        if proposal is not None:
            proposed += 1
            right = [*(guess.token for guess in proposal.guesses), 0]
            speculation.learn_round(proposal, right.index(0), 1.1)
        else:
            speculation.learn_step(1.0)
        assert proposed < 60 or i > 1000
        speculation.push(1)
    assert proposed > 2000


def test_what_was_not_verified_teaches_nothing() -> None:
    world = World(1.0, NATIVE, 0.01)
    speculation = Speculation([(WorldDrafter(world), True)], 4, clock=world.clock)
    speculation.steps = StepCosts(NATIVE)
    proposal = speculation.propose(8)
    assert proposal is not None
    assert len(proposal.guesses) == 4
    before = speculation.runners[0].acceptance.rate
    speculation.learn_round(proposal, 0, 1.2)
    # one wrong guess, not four
    one_wrong = (2 * 0.4) / (2 + 1)
    assert speculation.runners[0].acceptance.rate == pytest.approx(one_wrong)
    assert before == pytest.approx(0.4)


def test_the_limit_is_kept() -> None:
    world = World(1.0, NATIVE, 0.01)
    speculation = Speculation([(WorldDrafter(world), True)], 6, clock=world.clock)
    speculation.steps = StepCosts(NATIVE)
    assert speculation.propose(0) is None
    proposal = speculation.propose(2)
    assert proposal is not None
    assert len(proposal.guesses) == 2


def test_the_first_drafter_that_has_something_is_taken() -> None:
    world = World(1.0, NATIVE, 0.01)
    silent, other = SilentDrafter(world), WorldDrafter(world)
    speculation = Speculation([(silent, True), (other, True)], 6, clock=world.clock)
    speculation.steps = StepCosts(NATIVE)
    proposal = speculation.propose(8)
    assert proposal is not None
    assert proposal.runner is speculation.runners[1]


def test_single_steps_are_measured_however_good_the_guesses_are() -> None:
    world = World(1.0, NATIVE, 0.01)
    speculation = Speculation([(WorldDrafter(world), True)], 6, clock=world.clock)
    speculation.steps = StepCosts(NATIVE)
    single = 0
    for _ in range(400):
        proposal = speculation.propose(8)
        if proposal is None:
            single += 1
            speculation.learn_step(0.5)
        else:
            # drawing from many rows has become slow
            speculation.learn_round(proposal, len(proposal.guesses), 3.0)
    assert single >= 12
    report = speculation.report()
    assert 1 / report.plain_tokens_per_s < 0.8
    assert report.step_s[7] > 2.0, report


def test_rules_have_costs_of_their_own() -> None:
    speculation = Speculation([(WorldDrafter(World(1.0, NATIVE, 0.01)), True)], 6)
    speculation.set_costs(NATIVE)
    speculation.use_rule("same text")
    for _ in range(50):
        speculation.learn_step(5.0)
    speculation.use_rule("same distribution")
    assert speculation.report().plain_tokens_per_s == pytest.approx(1.0)
    speculation.use_rule("same text")
    assert speculation.report().plain_tokens_per_s < 0.3
