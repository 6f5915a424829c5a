"""Prompt lookup goes on as the text did where its ending stood before."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import pytest

from infer_os.runtime.speculative.lookup import LONGEST, LookupDrafter


def guesses(tokens: Sequence[int], n: int = 4) -> list[int]:
    drafter = LookupDrafter()
    drafter.begin(tokens)
    return [guess.token for guess in islice(drafter.guess(), n)]


def by_hand(tokens: Sequence[int], n: int) -> list[int]:
    """The definition, by brute force: longest ending first, its latest earlier place."""
    for length in range(LONGEST, 1, -1):
        ending = list(tokens[-length:])
        if len(ending) < length:
            continue
        for at in range(len(tokens) - length - 1, -1, -1):
            if list(tokens[at : at + length]) == ending:
                found = list(tokens[at + length :])
                return (found * (n // len(found) + 1))[:n]
    return []


def test_it_goes_on_as_before() -> None:
    assert guesses([1, 2, 3, 4, 5, 9, 1, 2, 3]) == [4, 5, 9, 1]


def test_the_longest_ending_counts() -> None:
    assert guesses([7, 1, 2, 3, 50, 1, 2, 60, 8, 7, 1, 2])[0] == 3
    assert guesses([1, 2, 3, 50, 1, 2, 60, 8, 9, 1, 2])[0] == 60


def test_a_period_is_repeated() -> None:
    assert guesses([1, 2, 1, 2, 1, 2], 6) == [1, 2, 1, 2, 1, 2]


@pytest.mark.parametrize("tokens", [[], [1], [1, 2], [1, 2, 3], [5, 1, 6, 1]])
def test_without_a_match_nothing_is_guessed(tokens: list[int]) -> None:
    assert guesses(tokens) == []


def test_a_longer_match_is_surer() -> None:
    drafter = LookupDrafter()
    drafter.begin([1, 2, 9, 3, 1, 2])
    short = next(drafter.guess()).confidence
    drafter.begin([7, 8, 1, 2, 9, 7, 8, 1, 2])
    assert next(drafter.guess()).confidence > short


def test_pushed_tokens_equal_a_new_beginning() -> None:
    import numpy as np

    random = np.random.default_rng(3)
    tokens = [int(t) for t in random.integers(0, 4, 200)]
    drafter = LookupDrafter()
    drafter.begin(tokens[:20])
    for end in range(20, 200):
        got = [guess.token for guess in islice(drafter.guess(), 5)]
        assert got == by_hand(tokens[:end], 5), end
        drafter.push(tokens[end])


def test_another_text_forgets_the_first() -> None:
    drafter = LookupDrafter()
    drafter.begin([1, 2, 3, 4, 1, 2])
    assert next(drafter.guess()).token == 3
    drafter.begin([9, 8, 1, 2])
    assert next(drafter.guess(), None) is None
    # a longer text keeps what it knows
    drafter.begin([9, 8, 1, 2, 5, 1, 2])
    assert next(drafter.guess()).token == 5
