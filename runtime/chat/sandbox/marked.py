"""Text that records who wrote each of its characters.

Whatever jinja2 and Python compute from it is computed from the real letters. An operation unknown
here gives ordinary text, whose writer is unknown: marks get lost, but are never made up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, SupportsIndex

#: Marks: text of an unknown writer, the template's own, and the first message's.
UNKNOWN, OWN, FIRST_MESSAGE = "\0", "\1", 2

_PLACES = re.compile("%(.)", re.DOTALL)


class Marked(str):
    """A text and a mark for every character of it."""

    # the sandbox keeps templates from names that begin like this
    __slots__ = ("_marks",)
    _marks: str

    def __new__(cls, text: str = "") -> Marked:
        """A text of unknown writers; :func:`marked` sets them."""
        made = str.__new__(cls, text)
        made._marks = UNKNOWN * len(made)
        return made

    def __str__(self) -> str:
        return self

    def __format__(self, spec: str) -> str:
        return self if not spec else whole(str.__format__(self, spec), self)

    def __add__(self, other: str) -> str:
        # a type such as Markup decides itself what the sum becomes
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return NotImplemented
        return join((self, other))

    def __radd__(self, other: str) -> str:
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return NotImplemented
        return join((other, self))

    def __mul__(self, count: SupportsIndex) -> str:
        return marked(str.__mul__(self, count), self._marks * count)

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        text = str.__mod__(self, values)
        parts = values if isinstance(values, tuple) else (values,)
        forms = _PLACES.findall(self)
        if set(forms) <= {"s", "%"} and forms.count("s") == len(parts):
            return _filled(self, iter(parts), text)
        return whole(text, self, *parts)

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        return marked(str.__getitem__(self, key), self._marks[key])

    def __iter__(self) -> Iterator[str]:
        return map(marked, str.__iter__(self), self._marks)

    def join(self, items: Iterable[str], /) -> str:
        """See :meth:`str.join`."""
        return join(items, self)

    def strip(self, chars: str | None = None, /) -> str:
        """See :meth:`str.strip`."""
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> str:
        """See :meth:`str.lstrip`."""
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None, /) -> str:
        """See :meth:`str.rstrip`."""
        return self[: len(str.rstrip(self, chars))]

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """See :meth:`str.split`."""
        return self._found(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """See :meth:`str.rsplit`."""
        return self._found(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        """See :meth:`str.splitlines`."""
        whole = self._found(str.splitlines(self, True), "")
        lines = str.splitlines(self, keepends)
        return [part[: len(line)] for part, line in zip(whole, lines, strict=True)]

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        """See :meth:`str.partition`."""
        before, middle, after = self._found(str.partition(self, sep), "")
        return before, middle, after

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        """See :meth:`str.rpartition`."""
        before, middle, after = self._found(str.rpartition(self, sep), "")
        return before, middle, after

    def removeprefix(self, prefix: str, /) -> str:
        """See :meth:`str.removeprefix`."""
        return self[len(self) - len(str.removeprefix(self, prefix)) :]

    def removesuffix(self, suffix: str, /) -> str:
        """See :meth:`str.removesuffix`."""
        return self[: len(str.removesuffix(self, suffix))]

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        """See :meth:`str.replace`."""
        if not old:
            return whole(str.replace(self, old, new, count), self, new)
        return join(self.split(old, count), new)

    def upper(self) -> str:
        """See :meth:`str.upper`."""
        return each(self, str.upper)

    def lower(self) -> str:
        """See :meth:`str.lower`."""
        return each(self, str.lower)

    def title(self) -> str:
        """See :meth:`str.title`."""
        return each(self, str.title)

    def capitalize(self) -> str:
        """See :meth:`str.capitalize`."""
        return each(self, str.capitalize)

    def _found(self, parts: Iterable[str], sep: str | None) -> list[str]:
        """The parts, which occur in this text in order, with ``sep`` (or blanks) between them."""
        found, at = [], 0
        for part in parts:
            if sep is None:
                at = str.index(self, part, at)
            found.append(self[at : at + len(part)])
            at += len(part) + len(sep or "")
        return found


def marked(text: str, marks: str) -> Marked:
    """A text with its marks, of the same length."""
    if len(text) != len(marks):
        raise ValueError("every character has one mark")
    made = Marked(text)
    made._marks = marks
    return made


def own(text: str) -> Marked:
    """The template's own text."""
    return marked(text, OWN * len(text))


def marks_of(text: str) -> str:
    """The marks of any text."""
    return text._marks if isinstance(text, Marked) else UNKNOWN * len(text)


def join(items: Iterable[str], between: str = "") -> str:
    """The items as one text, with ``between`` between them."""
    items = list(items)
    text = str.join(between, items)
    return marked(text, marks_of(between).join(map(marks_of, items)))


def each(text: str, change: Callable[[str], str]) -> str:
    """A text whose characters were changed one by one, if their number has stayed the same."""
    changed, marks = change(str.__str__(text)), marks_of(text)
    if len(changed) != len(text):
        lengths = (len(change(char)) for char in str.__iter__(text))
        marks = "".join(mark * n for mark, n in zip(marks, lengths, strict=True))
    return marked(changed, marks if len(marks) == len(changed) else UNKNOWN * len(changed))


def _is_own(value: Any) -> bool:
    """Whether only the template wrote it; a number reveals nothing of a message's text."""
    if isinstance(value, str):
        return not marks_of(value).strip(OWN)
    return isinstance(value, int)


def whole(text: str, *sources: Any) -> str:
    """A text made from the sources in an unknown way."""
    return own(text) if all(map(_is_own, sources)) else text


def _filled(form: Marked, values: Iterator[Any], text: str) -> str:
    """What ``%`` made of a form that has only ``%s`` and ``%%``."""
    parts, at = [], 0
    for place in _PLACES.finditer(form):
        parts += [form[at : place.start()], str(next(values)) if place[1] == "s" else form[0:0]]
        at = place.end() - (place[1] == "%")
    filled = join([*parts, form[at:]])
    return filled if filled == text else text
