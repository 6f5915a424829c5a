"""Windows that begin alike: every row of logits once, every window all of its scores."""

from __future__ import annotations

import random

import pytest

from infer_os.runtime.scoring.joining import Window
from infer_os.runtime.scoring.paths import make_paths


def check(windows: list[Window]) -> int:
    """Walk the paths, and see that each score is had once, after the right tokens; rows wanted."""
    scored: dict[tuple[int, int], int] = {}
    held: tuple[int, ...] = ()
    n_rows, least = 0, min(window.first for window in windows) - 1
    for path in make_paths(windows):
        first = len(path.tokens) - path.n_wanted
        # of what has logits, what is not fed again is held
        assert held[:first] == path.tokens[:first] or first == least
        held, n_rows = path.tokens, n_rows + path.n_wanted
        for ask in path.asks:
            window = windows[ask.window]
            assert first <= ask.first < ask.end <= len(path.tokens)
            assert window.tokens[: ask.end] == path.tokens[: ask.end]
            for position in range(ask.first, ask.end):
                key = (ask.window, position)
                scored[key] = scored.get(key, 0) + 1
    wanted = {
        (i, position)
        for i, window in enumerate(windows)
        for position in range(window.first - 1, len(window.tokens) - 1)
    }
    assert scored == dict.fromkeys(wanted, 1)
    return n_rows


def test_answers_of_one_token_take_one_row() -> None:
    assert check([Window((1, 2, 3, answer), 3) for answer in (9, 8, 7, 9)]) == 1


def test_the_row_behind_a_context_is_computed_once() -> None:
    # 3 is followed by 4 or 9, and 4 by 5 or 6
    answers = [(4, 5, 1), (9, 1, 1), (4, 6, 1)]
    assert check([Window((1, 2, 3, *answer), 3) for answer in answers]) == 1 + 2 + 2 + 1


def test_one_window_may_be_the_beginning_of_another() -> None:
    assert check([Window((1, 2, 3, 4, 5), 2), Window((1, 2, 3), 2), Window((1, 2, 3, 4), 2)]) == 3


def test_windows_may_score_from_different_tokens_on() -> None:
    assert check([Window((1, 2, 3, 4), 3), Window((1, 2, 3, 5), 1)]) == 3


@pytest.mark.parametrize("seed", range(300))
def test_any_windows(seed: int) -> None:
    chance = random.Random(seed)
    windows = []
    for _ in range(chance.randint(1, 9)):
        n = chance.randint(2, 7)
        tokens = tuple(chance.randrange(2) for _ in range(n))
        windows.append(Window(tokens, chance.randint(1, n - 1)))
    n_rows = check(windows)
    first = min(window.first for window in windows)
    # no beginning is computed twice
    assert n_rows == len({w.tokens[:n] for w in windows for n in range(first, len(w.tokens))})
