"""From token pieces to text: characters that span tokens, and stop strings."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence


class TextStream:
    """Turns pieces into text as soon as it is certain.

    A character whose bytes are not all there is held back, and so is a tail that may be the start
    of a stop string.
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
        # the stop that is complete first counts, so that the cut into tokens does not matter
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
    """Length of the longest end of ``text`` that begins a stop string."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        tail = text[-length:]
        if any(stop.startswith(tail) for stop in stops):
            return length
    return 0


def replaced(chunks: Iterable[str], old: str, new: str) -> Iterator[str]:
    """A stream of text with ``old`` replaced, wherever the chunks cut it."""
    if old == new:
        yield from chunks
        return
    held = ""
    for chunk in chunks:
        held = (held + chunk).replace(old, new)
        certain = len(held) - _longest_partial_stop(held, (old,))
        if certain:
            yield held[:certain]
            held = held[certain:]
    if held:
        yield held


def without_first_space(chunks: Iterable[str]) -> Iterator[str]:
    """A stream of text without the blanks that it begins with.

    Models start a reply with the space that follows the colon.
    """
    started = False
    for chunk in chunks:
        text = chunk if started else chunk.lstrip()
        if text:
            started = True
            yield text
