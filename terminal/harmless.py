"""Untrusted text, made safe to print on a terminal.

Goes in: any text. Comes out: the same with control characters spelled out, as ``\\x1b``; as one
line, as several, or as JSON, whose value stays. Prints nothing.
"""

from __future__ import annotations

import json
import re

#: What moves the cursor, ends a line, or changes the direction of what follows: C0 and C1, the line
#: and paragraph separators, the bidirectional embeddings, overrides and isolates, invisible format
#: characters, tags and halves of surrogate pairs. Not the joiners and marks that scripts need.
_STEERING = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_OF_TEXT = "\n\t"


def printable(text: str) -> str:
    """Text as one line that cannot control a terminal: control characters are spelled out."""
    return _STEERING.sub(_spelled, text)


def harmless(text: str) -> str:
    """The same for text of several lines."""
    return _STEERING.sub(lambda found: found[0] if found[0] in _OF_TEXT else _spelled(found), text)


def escaped(text: str) -> str:
    """The same for JSON, whose value stays; line ends are left alone."""
    return _STEERING.sub(lambda c: c[0] if c[0] in _OF_TEXT else json.dumps(c[0])[1:-1], text)


def _spelled(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
