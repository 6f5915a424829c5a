"""Check the fields of a settings record: their types first, then their ranges.

Goes in: a record being made, and what each of its fields may be. Comes out: the record with
plain Python values (a numpy number becomes an ``int`` or ``float``), or one error that names the
field. It imports no other room, and every room may import it.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

#: The largest number that C's ``int32_t`` holds.
MOST_INT32 = (1 << 31) - 1

#: Takes a message without the leading field name, and that name.
Refusal = Callable[[str, str], Exception]


@dataclass(frozen=True, slots=True)
class Kind:
    """What a field may be.

    ``convert`` returns the value to keep, and raises TypeError for another type; ``is_good`` judges
    the result. ``noun`` names the type in errors, ``expected`` the range.
    """

    noun: str
    convert: Callable[[Any], Any]
    is_good: Callable[[Any], bool] = lambda value: True
    expected: str = ""

    def or_none(self) -> Kind:
        """The same, or None."""
        return Kind(
            self.noun,
            lambda value: None if value is None else self.convert(value),
            lambda value: value is None or self.is_good(value),
            self.expected,
        )


def whole(low: int, high: int, expected: str = "") -> Kind:
    """A whole number from ``low`` to ``high``; numpy's will do, True and 1.0 will not."""
    return whole_where(lambda value: low <= value <= high, expected or f"{low} to {high}")


def whole_where(is_good: Callable[[int], bool], expected: str) -> Kind:
    """A whole number whose range is not just an interval."""
    return Kind("a whole number", _whole, is_good, expected)


def number(is_good: Callable[[float], bool], expected: str) -> Kind:
    """A number, whole or not. ``is_good`` is False for NaN if it compares with both bounds."""
    return Kind("a number", _number, is_good, expected)


def text(is_good: Callable[[str], bool] = lambda value: True, expected: str = "") -> Kind:
    """A text."""
    return Kind("a text", _exactly(str), is_good, expected)


def texts(is_good: Callable[[tuple[str, ...]], bool], expected: str) -> Kind:
    """A tuple or a list of texts. A single text is refused, not split into letters."""
    return Kind("a tuple of texts", _texts, is_good, expected)


def numbers(low: int, high: int) -> Kind:
    """A tuple or a list of whole numbers from ``low`` to ``high``."""
    return Kind(
        "a tuple of whole numbers", _numbers,
        lambda values: all(low <= value <= high for value in values),
        f"whole numbers from {low} to {high}",
    )  # fmt: skip


def pairs(is_good: Callable[[int, float], bool], expected: str) -> Kind:
    """A tuple or a list of pairs: a whole number, and a number."""
    return Kind(
        "a tuple of pairs of numbers", _pairs,
        lambda values: all(is_good(*pair) for pair in values), expected,
    )  # fmt: skip


def flag() -> Kind:
    """True or False."""
    return Kind("True or False", _exactly(bool))


def members(kind: type) -> Kind:
    """A frozenset of a type's members, such as those of an enum; another set will do."""
    return Kind(f"a set of {kind.__name__}", lambda value: _members(kind, value))


def records(kind: type) -> Kind:
    """A tuple or a list of records of a type."""
    return Kind(f"a tuple of {kind.__name__}", lambda value: _records(kind, value))


def path() -> Kind:
    """A path."""
    return Kind("a path", _exactly(Path))


def check_fields(record: Any, kinds: Mapping[str, Kind], refuse: Refusal) -> None:
    """Check the fields of a frozen record in its ``__post_init__``, and keep plain values.

    Args:
        record: the record being made.
        kinds: what each field may be.
        refuse: makes the error from a message and a field's name.

    Raises:
        What ``refuse`` makes: a field of another type, or out of its range.
    """
    for name, kind in kinds.items():
        value = getattr(record, name)
        try:
            plain = kind.convert(value)
        except TypeError:
            also = f": {kind.expected}" if kind.expected else ""
            raise refuse(f"{_short.repr(value)}: expected {kind.noun}{also}", name) from None
        if not kind.is_good(plain):
            shown = _short.repr(plain) if isinstance(plain, tuple) else plain
            raise refuse(f"{shown}: expected {kind.expected}", name)
        object.__setattr__(record, name, plain)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


def _whole(value: Any) -> int:
    if type(value) is int:  # as nearly always; the others take ten times as long to tell
        return value
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError
    return int(value)


def _number(value: Any) -> float:
    if type(value) is float or type(value) is int:
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError
    if isinstance(value, int):
        return value  # as it was given: 5 is not shown as 5.0, and 10**400 is not a float
    return float(value)


def _exactly(kind: type) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError
        return value

    return convert


def _members(kind: type, value: Any) -> frozenset[Any]:
    if not isinstance(value, (set, frozenset)) or not all(isinstance(v, kind) for v in value):
        raise TypeError
    return frozenset(value)


def _records(kind: type, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)) or not all(isinstance(v, kind) for v in value):
        raise TypeError
    return tuple(value)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (tuple, list)) or not all(isinstance(item, str) for item in value):
        raise TypeError
    return tuple(value)


def _numbers(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)):
        raise TypeError
    return tuple(_whole(item) for item in value)


def _pairs(value: Any) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, (tuple, list)) or not all(
        isinstance(item, (tuple, list)) and len(item) == 2 for item in value
    ):
        raise TypeError
    return tuple((_whole(first), _number(second)) for first, second in value)
