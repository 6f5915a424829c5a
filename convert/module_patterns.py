"""Patterns of module names, as PEFT's ``rank_pattern`` and ``alpha_pattern`` have them.

Goes in: the patterns of an adapter's settings, in their order. Comes out: the first one that a
module's name matches. They are a stranger's, and a few characters keep Python's ``re`` busy for
years, so all of them become one automaton that sees each letter of a name once (K. Thompson,
Regular Expression Search Algorithm, CACM 11(6), 1968).

Known are letters, ``.``, ``\\d``, ``\\w``, sets, groups, ``|``, ``*``, ``+``, ``?``, ``^``, ``$``,
with the meaning that Python gives them. PEFT searches for ``(.*\\.)?(PATTERN)$`` from the start of
a name (``get_pattern_key`` of https://github.com/huggingface/peft, src/peft/utils/other.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

_LONGEST = 200
#: Of all patterns together, since each letter of a name is compared with all that are under way:
#: enough for one per module of a large model. Those with repeats and choices stay under way.
_MOST_LETTERS, _MOST_WITH_CHOICES = 1 << 16, 1 << 10
_MOST_PATTERNS = 1 << 12
_DEEPEST = 20
#: What stands for one letter: Python's ``re`` says which.
_LETTER = re.compile(r"\\[dw.\-]|\[\^?-?(?:\\[dw.\-]|\w-\w|[\w.])+-?\]|[\w.-]", re.ASCII)
_CHOICE = re.compile(r"[*+?|]")
_BEGIN, _END = "^", "$"

#: Makes the states of a piece of a pattern, before a given state; returns the first.
_Build = Callable[[int], int]


@dataclass(frozen=True, slots=True)
class _State:
    """A letter to see, or a place to be at (``^``, ``$``), or neither; and what may come next."""

    letter: re.Pattern[str] | None
    place: str
    following: tuple[int, ...]


class ModulePatterns:
    """Patterns in an order, to be compared with names of modules."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """Read them.

        Raises:
            ValueError: one that is malformed, or is not understood; the message has it.
        """
        n_letters = sum(map(len, patterns))
        n_choosing = sum(len(text) for text in patterns if _CHOICE.search(text))
        if (
            len(patterns) > _MOST_PATTERNS
            or n_letters > _MOST_LETTERS
            or n_choosing > _MOST_WITH_CHOICES
        ):
            raise ValueError(f"{len(patterns)} patterns of {n_letters} letters are too many")
        self._states: list[_State] = []
        self._patterns = patterns
        # by the state that each ends in, so that the least is the first
        self._ends = [self._add(_State(None, "", ())) for _ in patterns]
        self._starts = tuple(
            _Reader(pattern, self._add, self._set).read()(end)
            for pattern, end in zip(patterns, self._ends, strict=True)
        )
        self._steps: dict[tuple[frozenset[int], str], frozenset[int]] = {}

    def first(self, name: str) -> str | None:
        """The first pattern that a module's name matches."""
        states = self._closure(self._starts, {_BEGIN} if name else {_BEGIN, _END})
        for at, letter in enumerate(name, 1):
            states = self._step(states, letter)
            if at == len(name):  # what needs nothing more has come to its end
                states = self._closure(states, {_END})
        found = min(states, default=len(self._ends))
        return self._patterns[found] if found < len(self._ends) else None

    def _step(self, states: frozenset[int], letter: str) -> frozenset[int]:
        """The states behind a letter; kept, since names begin alike."""
        known = self._steps.get((states, letter))
        if known is None:
            seen = (self._states[state] for state in states)
            following = [s.following for s in seen if s.letter and s.letter.fullmatch(letter)]
            # a pattern may begin behind any dot
            begun = self._starts if letter == "." else ()
            known = self._closure((*begun, *(n for nexts in following for n in nexts)), set())
            self._steps[states, letter] = known
        return known

    def _closure(self, states: Iterable[int], places: set[str]) -> frozenset[int]:
        """All states that are reached without a letter, at these places of a name."""
        found, left = set[int](), list(states)
        while left:
            number = left.pop()
            if number in found:
                continue
            found.add(number)
            state = self._states[number]
            if state.letter is None and (not state.place or state.place in places):
                left.extend(state.following)
        return frozenset(found)

    def _add(self, state: _State) -> int:
        self._states.append(state)
        return len(self._states) - 1

    def _set(self, number: int, state: _State) -> None:
        self._states[number] = state


class _Reader:
    """A cursor over one pattern."""

    def __init__(
        self, pattern: str, add: Callable[[_State], int], put: Callable[[int, _State], None]
    ) -> None:
        self._pattern, self._add, self._set = pattern, add, put
        self._at = self._depth = 0

    def read(self) -> _Build:
        """All of it.

        Raises:
            ValueError: see :class:`ModulePatterns`.
        """
        if len(self._pattern) > _LONGEST:
            raise ValueError(
                f"{self._pattern[:40]!r}...: not a pattern of module names: more than "
                f"{_LONGEST} letters"
            )
        whole = self._choice()
        if self._at < len(self._pattern):
            raise self._error()
        return whole

    def _choice(self) -> _Build:
        branches = [self._sequence()]
        while self._takes("|"):
            branches.append(self._sequence())
        if len(branches) == 1:
            return branches[0]
        return lambda end: self._fork(*(branch(end) for branch in branches))

    def _sequence(self) -> _Build:
        pieces = list(self._pieces())

        def build(end: int) -> int:
            for piece in reversed(pieces):
                end = piece(end)
            return end

        return build

    def _pieces(self) -> Iterator[_Build]:
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            for place in (_BEGIN, _END):
                if self._takes(place):
                    yield self._one(None, place)
                    break
            else:
                yield self._repeated(self._atom())

    def _atom(self) -> _Build:
        if self._takes("("):
            self._depth += 1
            if self._depth > _DEEPEST:
                raise self._error()
            self._takes("?:")
            inside = self._choice()
            if not self._takes(")"):
                raise self._error()
            self._depth -= 1
            return inside
        found = _LETTER.match(self._pattern, self._at)
        if found is None:
            raise self._error()
        try:
            letter = re.compile(found[0])
        except re.error:  # a range from Z to A
            raise self._error() from None
        self._at = found.end()
        return self._one(letter, "")

    def _repeated(self, piece: _Build) -> _Build:
        sign = next((sign for sign in "*+?" if self._takes(sign)), "")
        if not sign:
            return piece
        self._takes("?")  # fewest first: the names that match are the same
        if sign == "?":
            return lambda end: self._fork(piece(end), end)

        def build(end: int) -> int:
            again = self._fork()
            start = piece(again)
            self._set(again, _State(None, "", (start, end)))
            return again if sign == "*" else start

        return build

    def _one(self, letter: re.Pattern[str] | None, place: str) -> _Build:
        return lambda end: self._add(_State(letter, place, (end,)))

    def _fork(self, *following: int) -> int:
        return self._add(_State(None, "", following))

    def _takes(self, sign: str) -> bool:
        taken = self._pattern.startswith(sign, self._at)
        self._at += len(sign) * taken
        return taken

    def _error(self) -> ValueError:
        return ValueError(
            f"{self._pattern!r} from letter {self._at + 1}: not a pattern of module names, such as "
            "'q_proj'"
        )
