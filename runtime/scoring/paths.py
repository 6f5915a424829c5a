"""How windows that begin alike are computed in one sequence, each of their tokens once.

In: windows, such as a question with each of its answers. Out: paths, one after the other in the
same part of the cache: each goes back to where it leaves those before it. A row of logits that
several windows go through gives each the probability of its own next token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..interface import shared_prefix
from .joining import Window


class Ask(NamedTuple):
    """The rows at positions ``first`` to ``end`` score the tokens behind them in a window.

    ``window`` is its number.
    """

    window: int
    first: int
    end: int


class Path(NamedTuple):
    """``tokens`` to feed; the last ``n_wanted`` get logits, which ``asks`` are after."""

    tokens: tuple[int, ...]
    n_wanted: int
    asks: tuple[Ask, ...]


def make_paths(windows: Sequence[Window]) -> list[Path]:
    """Paths that give every window its scores; no path of its own for one that others contain."""
    # neighbours in this order have the longest beginnings in common, and a beginning comes first
    order = sorted(range(len(windows)), key=lambda i: windows[i].tokens)
    first_row = min(window.first for window in windows) - 1
    starts: list[int] = []
    asks: list[list[Ask]] = []
    for number, i in enumerate(order):
        window = windows[i]
        start = first_row
        if number:
            before = windows[order[number - 1]].tokens
            shared = shared_prefix(before, window.tokens)
            # of a window the last token is not fed
            start = max(start, min(shared, len(before) - 1))
        starts.append(start)
        asks.append([])
        end = len(window.tokens) - 1
        for owner in range(number, -1, -1):
            begin = max(starts[owner], window.first - 1)
            if begin < end:
                asks[owner].append(Ask(i, begin, end))
            end = min(end, starts[owner])
    return [
        Path(tokens, len(tokens) - starts[number], tuple(asks[number]))
        for number, i in enumerate(order)
        if len(tokens := windows[i].tokens[:-1]) > starts[number]
    ]
