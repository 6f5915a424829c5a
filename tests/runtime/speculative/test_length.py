"""The draft length is the one that gives the most tokens per second, by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from infer_os.runtime.speculative.length import (
    MARGIN,
    best_length,
    expected_gain,
    expected_tokens,
    pays_to_guess,
)


def verify_stock(n: int) -> float:
    """A batch of 4 costs 2.3 single tokens, as measured on stock kernels."""
    return 1 + 0.43 * (n - 1)


def verify_native(n: int) -> float:
    return 1 + 0.05 * (n - 1)


def simulated(rate: float, n: int, rounds: int = 40_000) -> float:
    """Tokens of a round: guesses up to the first wrong one, and one more."""
    right = np.random.default_rng(1).random((rounds, n)) < rate
    return float(np.cumprod(right, axis=1).sum(axis=1).mean()) + 1


@pytest.mark.parametrize(("rate", "n"), [(0.3, 2), (0.7, 4), (0.95, 8)])
def test_expected_tokens_are_those_of_a_simulation(rate: float, n: int) -> None:
    assert expected_tokens([rate**i for i in range(1, n + 1)]) == pytest.approx(
        simulated(rate, n), rel=0.01
    )


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("verify", [verify_stock, verify_native])
@pytest.mark.parametrize("spent", [0.0, 0.3])
def test_the_best_length_by_brute_force(rate: float, verify: object, spent: float) -> None:
    assert callable(verify)
    survival = [rate**i for i in range(1, 9)]
    rates = [(1 + sum(survival[:n])) / (spent + verify(n + 1)) for n in range(len(survival) + 1)]
    rates[0] *= MARGIN
    assert best_length(survival, verify, spent) == int(np.argmax(rates))


def test_hopeless_guesses_are_not_verified() -> None:
    assert best_length([0.0] * 4, verify_native, 0.0) == 0
    assert best_length([], verify_native, 0.0) == 0


def test_sure_guesses_are_all_verified() -> None:
    assert best_length([1.0] * 8, verify_stock, 0.0) == 8


@pytest.mark.parametrize("rate", [0.1, 0.4, 0.6, 0.9])
@pytest.mark.parametrize("guess", [0.02, 0.1, 0.4])
@pytest.mark.parametrize("verify", [verify_stock, verify_native])
def test_another_guess_is_made_while_a_longer_round_is_better(
    rate: float, guess: float, verify: object
) -> None:
    assert callable(verify)

    def value(n: int) -> float:
        promise = expected_tokens([rate**i for i in range(1, n + 1)])
        return promise / (guess * n + verify(n + 1)) * (1 if n else MARGIN)

    best = max(range(9), key=value)
    n = 0
    while n < 8 and pays_to_guess(
        [rate**i for i in range(1, n + 1)], rate, 8, verify, lambda k: guess * k
    ):
        n += 1
    assert n == best


def test_the_look_ahead_sees_a_cheap_size() -> None:
    # 2 tokens cost twice one, 4 no more than 2
    costs = {1: 1.0, 2: 2.0, 3: 2.0, 4: 2.0}
    assert pays_to_guess([], 0.95, 3, costs.__getitem__, lambda n: 0.01 * n)
    assert not pays_to_guess([], 0.95, 1, costs.__getitem__, lambda n: 0.01 * n)


def test_the_gain_is_that_of_the_best_length() -> None:
    gain = expected_gain(0.8, 6, verify_native, lambda n: 0.1 * n)
    by_hand = [
        expected_tokens([0.8**i for i in range(1, n + 1)]) / (0.1 * n + verify_native(n + 1))
        for n in range(1, 7)
    ]
    assert gain == pytest.approx(max(by_hand))
    assert expected_gain(0.0, 6, verify_stock, lambda n: 0.1 * n) < 1
    assert all(
        a >= b
        for a, b in itertools.pairwise(
            [gain, expected_gain(0.5, 6, verify_native, lambda n: 0.1 * n)]
        )
    )
