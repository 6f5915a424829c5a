"""How far to guess: the draft length that gives the most tokens per second."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Seconds = Callable[[int], float]

#: Guessing must promise this much more than a plain step: rates and times are not exact.
MARGIN = 1.03


def expected_tokens(survival: Sequence[float]) -> float:
    """Tokens that a round is expected to give: its own, and each guess that survives.

    ``survival[i]`` is the probability that guesses 0 to i are all right (Leviathan et al. 2023,
    https://arxiv.org/abs/2211.17192, equation 1, with a rate per guess).
    """
    return 1 + sum(survival)


def best_length(survival: Sequence[float], verify: Seconds, spent: float) -> int:
    """Of the guesses at hand, how many to verify; 0 means a plain step.

    Args:
        survival: per guess, the probability that it and all before are right.
        verify: seconds of a batch by its number of tokens.
        spent: seconds that the guesses have already cost.
    """

    def rate(n: int) -> float:
        promise = expected_tokens(survival[:n]) / (spent + verify(n + 1))
        return promise if n else promise * MARGIN

    return max(range(len(survival) + 1), key=rate)


def pays_to_guess(
    survival: Sequence[float], rate: float, limit: int, verify: Seconds, guess: Seconds
) -> bool:
    """Whether another guess raises the tokens per second that a round is expected to give.

    Looks ahead to ``limit`` guesses, because a batch of some sizes costs no more than a smaller
    one.

    Args:
        survival: of the guesses at hand.
        rate: the probability that a further guess is right, if those before are.
        limit: most guesses.
        verify: seconds of a batch by its number of tokens.
        guess: seconds of a number of guesses.
    """
    here = len(survival)
    tokens = expected_tokens(survival)
    spent = guess(here)
    # what the guesses at hand promise, or the first of them
    n = best_length(survival, verify, spent)
    best = expected_tokens(survival[:n]) / (spent + verify(n + 1)) * (1 if here else MARGIN)
    last = survival[-1] if survival else 1.0
    for n in range(here + 1, limit + 1):
        last *= rate
        tokens += last
        if tokens / (guess(n) + verify(n + 1)) > best:
            return True
    return False


def expected_gain(rate: float, limit: int, verify: Seconds, guess: Seconds) -> float:
    """Tokens per second over those of plain steps, at the best length from 1 on.

    Args:
        rate: the probability that a guess is right, if those before are.
        limit: most guesses.
        verify: seconds of a batch by its number of tokens.
        guess: seconds of a number of guesses.
    """
    best, survival = 0.0, []
    for n in range(1, limit + 1):
        survival.append(rate**n)
        best = max(best, expected_tokens(survival) / (guess(n) + verify(n + 1)))
    return best * verify(1)
