"""Bounded reading: the lines of a file or a pipe, and JSON values that span lines.

In: a binary stream of any length, whose lines may have any length too. Out: lines with their
numbers, or objects of JSON, none larger than :data:`LARGEST`; only the one being read is held.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from infer_os.json_text import json_fault

from ..errors import SettingsError

#: Bytes of a record: more than the largest context (1048576 tokens) of long tokens has.
LARGEST = 16 << 20
#: Bytes to skip in search of the end of a line or row before giving up on the file.
MOST_PASSED = 1 << 30
#: Bytes of blank lines to skip in search of a file's beginning.
_MOST_BLANK = 1 << 16
_CHUNK = 1 << 16
_BLANK = b" \t\r\n"
#: The beginnings of UTF-16 and UTF-32.
_OTHER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
# an incomplete word ends within this distance from the end of what was read
_NEAR_END = 16


class JsonError(ValueError):
    """Text that is not JSON; says why in the user's terms."""


class Input:
    """A stream whose beginning was examined: ``start``, without blanks."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        """Examine the beginning, and drop a byte order mark.

        Raises:
            SettingsError: it is UTF-16 or UTF-32.
        """
        self._stream, self._name = stream, name
        held = bytearray()
        while len(held) < _MOST_BLANK:
            piece = stream.readline(_CHUNK)
            held += piece
            text = held.removeprefix(codecs.BOM_UTF8).lstrip(_BLANK)
            # what follows a bracket says whether it opens a list of objects
            if not piece or (text and text.rstrip(_BLANK) != b"["):
                break
        if held.startswith(_OTHER_MARKS):
            raise SettingsError(f"{name}: is UTF-16 or UTF-32 text; save it as UTF-8")
        self._held = bytes(held.removeprefix(codecs.BOM_UTF8))
        self.start = self._held.lstrip(_BLANK)

    def lines(self) -> Iterator[tuple[int, bytes | None]]:
        """Every line with its number from 1; None for one that is too long, which is skipped.

        Raises:
            SettingsError: a line has no end.
        """
        number = 0
        while line := self._readline():
            number += 1
            if len(line) > LARGEST:
                self._pass_line(line)
                yield number, None
            else:
                yield number, line

    def _readline(self) -> bytes:
        """A line, or more than :data:`LARGEST` bytes of it."""
        if not self._held:
            return self._stream.readline(LARGEST + 1)
        end = self._held.find(b"\n") + 1
        line, self._held = self._held[: end or None], self._held[end or len(self._held) :]
        return line if end else line + self._stream.readline(LARGEST + 1)

    def _pass_line(self, line: bytes) -> None:
        passed = len(line)
        while line and not line.endswith(b"\n"):
            line = self._stream.readline(_CHUNK)
            passed += len(line)
            if passed > MOST_PASSED:
                raise SettingsError(f"{self._name}: a line of more than 1 GB: not records")

    def objects(self) -> Iterator[Any]:
        """The values of a JSON array, or successive values, each as soon as it is complete.

        Raises:
            JsonError: the rest is not JSON, or a value is too large.
        """
        decoder = codecs.getincrementaldecoder("utf-8")()
        text, at, size, ended = "", 0, _CHUNK, False
        is_array = self.start.startswith(b"[")
        opened = closed = comma = False
        while True:
            at = _skip_blanks(text, at)
            if at < len(text):
                mark = text[at]
                if closed:
                    raise JsonError("something follows the end of the list")
                if is_array and not opened:
                    opened, at = True, at + 1
                    continue
                if is_array and mark in ",]" and comma:
                    comma, closed, at = False, mark == "]", at + 1
                    continue
                if is_array and mark == "]":  # an empty list, or a comma before its end
                    closed, at = True, at + 1
                    continue
                if comma and is_array:
                    raise JsonError("a comma is missing between two records")
                value, end = _decode(text, at, ended=ended)
                if end:
                    yield value
                    comma, at, size = True, end, _CHUNK
                    continue
            if ended:
                if is_array and not closed:
                    raise JsonError("the list has no end")
                return
            if len(text) - at > LARGEST:
                raise JsonError(f"a record of more than {LARGEST} characters")
            data = self.read(size)
            # twice as much each time, so that a large value is not retried at every chunk
            size, ended = min(2 * size, LARGEST), not data
            try:
                text, at = text[at:] + decoder.decode(data, final=ended), 0
            except UnicodeDecodeError:
                raise JsonError("is not UTF-8 text") from None

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes; nothing at the end."""
        if self._held:
            data, self._held = self._held[:size], self._held[size:]
            return data
        # what a pipe has now, if it can say so
        return getattr(self._stream, "read1", self._stream.read)(size)


def parse_json(text: str) -> Any:
    """A JSON value; a repeated key is an error.

    Raises:
        JsonError: it is not JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise JsonError(json_fault(error)) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise JsonError(f'the key "{twice[:60]}" occurs twice')
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_BLANKS = re.compile(r"[ \t\r\n]*")


def _skip_blanks(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    return found.end() if found else at


def _decode(text: str, at: int, *, ended: bool) -> tuple[Any, int]:
    """The value at a place and where it ends; 0 if more text may complete it."""
    try:
        value, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        is_cut = error.pos >= len(text) - _NEAR_END or error.msg.startswith("Unterminated")
        if ended or not is_cut:
            raise JsonError(json_fault(error)) from None
        return None, 0
    except (ValueError, RecursionError) as error:
        raise JsonError(json_fault(error)) from None
    # a number at the end of the text may be incomplete
    if end == len(text) and not ended and text[end - 1] not in '}]"':
        return None, 0
    return value, end
