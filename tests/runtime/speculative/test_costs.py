"""What a step costs is measured, interpolated, and follows what happens."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from infer_os.runtime.fake import FakeEngine, saying
from infer_os.runtime.speculative.acceptance import Acceptance
from infer_os.runtime.speculative.costs import GuessCosts, StepCosts
from infer_os.runtime.speculative.rounds import measure_steps


def test_sizes_between_are_interpolated() -> None:
    costs = StepCosts({1: 1.0, 4: 2.5, 8: 3.5})
    assert costs.seconds(1) == 1.0
    assert costs.seconds(2) == pytest.approx(1.5)
    assert costs.seconds(6) == pytest.approx(3.0)
    assert costs.seconds(12) == pytest.approx(4.5)


def test_a_curve_does_not_fall() -> None:
    costs = StepCosts({1: 1.0, 2: 0.8, 3: 2.0, 4: 1.6, 6: 3.0})
    assert [costs.seconds(n) for n in (1, 2, 3, 4, 6)] == pytest.approx([0.9, 0.9, 1.8, 1.8, 3.0])
    assert StepCosts({1: 1.0, 2: 0.9}).seconds(16) == pytest.approx(0.95)


def test_noise_does_not_drive_sizes_apart() -> None:
    random = np.random.default_rng(4)
    costs = StepCosts({1: 1.0, 4: 2.0})
    for noise in random.lognormal(0, 0.5, 5000):
        costs.record(1, float(noise))
    assert costs.seconds(4) / costs.seconds(1) == pytest.approx(2.0)
    assert costs.seconds(1) == pytest.approx(1.0, rel=0.4)


def test_measurements_move_the_curve() -> None:
    costs = StepCosts({1: 1.0, 4: 2.0})
    for _ in range(200):
        costs.record(4, 4.0)
    assert costs.seconds(4) == pytest.approx(4.0, rel=0.05)
    # what slows one size slows the others, until they say otherwise
    assert costs.seconds(1) > 1.1
    for _ in range(200):
        costs.record(1, 1.0)
        costs.record(4, 4.0)
    assert costs.seconds(1) == pytest.approx(1.0, rel=0.05)
    assert costs.seconds(4) == pytest.approx(4.0, rel=0.05)


def test_a_stray_measurement_counts_little() -> None:
    costs = StepCosts({1: 1.0, 4: 2.0})
    costs.record(1, 1000.0)
    assert costs.seconds(1) < 1.6


def test_guess_costs() -> None:
    costs = GuessCosts()
    assert costs.seconds(0) == 0
    costs.record(0.3, [0.1, 0.1])
    assert costs.seconds(3) == pytest.approx(0.5)
    costs.record(0.3, [0.2])
    assert 0.1 < costs.more < 0.2


def test_steps_are_measured_behind_the_text() -> None:
    engine = FakeEngine(saying("hello"), n_ctx=64)
    engine.feed([1, 2, 3])
    times = {1: 10.0, 2: 11.0, 3: 12.0, 4: 13.0, 6: 15.0}
    clock = itertools.count()

    def seconds() -> Iterator[float]:
        now = 0.0
        for _ in clock:
            yield now
            now += times[len(engine.tokens) - 3] if len(engine.tokens) > 3 else 0.0
            yield now

    ticks = seconds()
    assert measure_steps(engine, 7, lambda: next(ticks)) == times
    assert engine.tokens == [1, 2, 3]


def test_no_more_is_measured_than_fits() -> None:
    engine = FakeEngine(saying("hello"), n_ctx=6)
    engine.feed([1, 2, 3])
    assert set(measure_steps(engine, 7)) == {1, 2, 3}


# ---- acceptance


def test_a_drafter_is_believed_until_it_is_measured() -> None:
    acceptance = Acceptance(0.6)
    assert acceptance.rate == pytest.approx(0.6)
    assert acceptance.rate_at(0.9) == pytest.approx(0.9)


def test_a_boaster_is_found_out_at_every_confidence() -> None:
    acceptance = Acceptance(0.6)
    for i in range(12):
        acceptance.record(0.95 if i % 2 else 0.7, right=False)
    assert acceptance.rate < 0.15
    assert acceptance.rate_at(0.95) < 0.15
    # it has claimed nothing of this kind yet, but its word is worth little
    assert acceptance.rate_at(0.3) < 0.1


def test_rates_follow_the_last_guesses() -> None:
    acceptance = Acceptance(0.6)
    for _ in range(300):
        acceptance.record(0.9, right=True)
    for _ in range(60):
        acceptance.record(0.9, right=False)
    assert acceptance.rate_at(0.9) < 0.3


def test_modest_and_sure_guesses_are_told_apart() -> None:
    acceptance = Acceptance(0.6)
    for i in range(100):
        acceptance.record(0.95, right=i % 10 != 0)
        acceptance.record(0.2, right=i % 10 == 0)
    assert acceptance.rate_at(0.95) > 0.8
    assert acceptance.rate_at(0.2) < 0.2
