"""From token pieces to text: characters that span tokens, and stop strings."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence


class TextStream:
    """Turns pieces into text as soon as it is certain.

    An incomplete character is held back, as is a tail that may be the start of a stop string.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: bytes) -> str:
        """Take a piece; return the text that is now certain. Sets ``stopped`` at a stop string."""
        return self._release(self._decoder.decode(piece))

    def finish(self) -> str:
        """The text still held back; bytes without an end become U+FFFD."""
        text = self._release(self._decoder.decode(b"", final=True))
        if self.stopped:
            return text
        text, self._held = text + self._held, ""
        return text

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        if not self._stops:
            return text
        self._held += text
        # the first stop to be complete counts, so that token boundaries do not matter
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            text, self._held = self._held[: min(found)[1]], ""
            self.stopped = True
            return text
        keep = _longest_partial_stop(self._held, self._stops)
        text, self._held = (
            self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )
        return text


def _longest_partial_stop(text: str, stops: Sequence[str]) -> int:
    """Length of the longest suffix of ``text`` that begins a stop string."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        tail = text[-length:]
        if any(stop.startswith(tail) for stop in stops):
            return length
    return 0


class Replacement:
    """Puts ``new`` in the place of ``old`` in a text that comes in pieces, wherever they cut it."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new
        self._held = ""

    def push(self, piece: str) -> str:
        """Take a piece; return the text that is now certain."""
        if self._old == self._new:
            return piece
        text = (self._held + piece).replace(self._old, self._new)
        certain = len(text) - _longest_partial_stop(text, (self._old,))
        self._held = text[certain:]
        return text[:certain]

    def finish(self) -> str:
        """The text still held back."""
        text, self._held = self._held, ""
        return text


def replaced(chunks: Iterable[str], old: str, new: str) -> Iterator[str]:
    """A stream of text with ``old`` replaced, even across chunks."""
    replacement = Replacement(old, new)
    for chunk in chunks:
        if text := replacement.push(chunk):
            yield text
    if text := replacement.finish():
        yield text


def without_first_space(chunks: Iterable[str]) -> Iterator[str]:
    """A stream of text without its leading blanks.

    Models start a reply with the space that follows the colon.
    """
    started = False
    for chunk in chunks:
        text = chunk if started else chunk.lstrip()
        if text:
            started = True
            yield text
