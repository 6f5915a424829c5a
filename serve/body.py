"""Fields of a request's body, taken one by one, each with what it may be.

In goes the body of a request; out come plain values. Whatever is wrong becomes one
:class:`~.errors.ApiError` that names the field.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from typing import Any

from infer_os.fields import Kind

from ..runtime.batch.lines import JsonError, parse_json
from .errors import ApiError

_ANYTHING = object()


def read_object(data: bytes) -> dict[str, Any]:
    """The JSON object that a body is.

    Raises:
        ApiError: it is none.
    """
    try:
        value = parse_json(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ApiError("the body is no UTF-8 text", code="invalid_json") from None
    except JsonError as error:
        raise ApiError(f"the body is no JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError("the body is no JSON object", code="invalid_json")
    return value


class Body:
    """The fields of an object that have not been taken yet. A null is as if it were not there."""

    def __init__(self, value: Mapping[str, Any], place: str = "") -> None:
        """``place`` is put in front of names of fields in errors."""
        self._rest = {key: item for key, item in value.items() if item is not None}
        self._place = place

    def take(self, name: str, kind: Kind, default: Any = None) -> Any:
        """A field's value, checked; the default if it is not there.

        Raises:
            ApiError: it is something else.
        """
        value = self._rest.pop(name, _ANYTHING)
        return default if value is _ANYTHING else checked(f"{self._place}{name}", value, kind)

    def take_all(self, kinds: Mapping[str, Kind]) -> dict[str, Any]:
        """Those of these fields that are there, in this order.

        Raises:
            ApiError: one is something else.
        """
        there = [name for name in kinds if name in self._rest]
        return {name: self.take(name, kinds[name]) for name in there}

    def take_required(self, name: str, kind: Kind) -> Any:
        """A field's value, which must be there.

        Raises:
            ApiError: it is not there, or something else.
        """
        if name not in self._rest:
            place = f"{self._place}{name}"
            raise ApiError(f"{place} is missing", param=place, code="missing_field")
        return self.take(name, kind)

    def ignore(self, *names: str) -> None:
        """Let fields be there that change nothing of an answer."""
        for name in names:
            self._rest.pop(name, None)

    def refuse(self, name: str, why: str, *, harmless: tuple[Any, ...] = ()) -> None:
        """Refuse a field that would change an answer, but for values that ask for nothing.

        Raises:
            ApiError: it asks for something.
        """
        value = self._rest.pop(name, _ANYTHING)
        if value is not _ANYTHING and not any(value == item for item in harmless):
            place = f"{self._place}{name}"
            raise ApiError(
                f"{place} is not supported{why}", param=place, code="unsupported_parameter"
            )

    def end(self) -> None:
        """See that every field was taken.

        Raises:
            ApiError: there is one that nobody knows.
        """
        for name in self._rest:
            place = f"{self._place}{name[:60]}"
            raise ApiError(f"{place} is not known here", param=place, code="unknown_parameter")


def checked(place: str, value: Any, kind: Kind) -> Any:
    """A value as it is kept, if it is of that kind.

    Raises:
        ApiError: it is not; ``place`` names it.
    """
    expected = f"expected {kind.expected or kind.noun}"
    try:
        plain = kind.convert(value)
    except TypeError:
        also = f": {kind.expected}" if kind.expected else ""
        raise ApiError(
            f"{place} is {shown(value)}: expected {kind.noun}{also}", param=place,
            code="invalid_type",
        ) from None  # fmt: skip
    if not kind.is_good(plain):
        raise ApiError(f"{place} is {shown(value)}: {expected}", param=place, code="invalid_value")
    return plain


def shown(value: Any) -> str:
    """A value, short enough for a message."""
    is_word = value is None or isinstance(value, bool)
    return json.dumps(value) if is_word else _short.repr(value)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
_short.maxlist = _short.maxdict = 4
