"""The prompt of a command: what was typed, what was piped in, or both.

A pipe and a file on stdin count and go in front of the typed text, as in ollama and llm; a
terminal, /dev/null and a closed stdin do not. An open pipe without data cannot be distinguished
from a slow one, so it is waited for, and a line on stderr says so.
"""

from __future__ import annotations

import os

from ..terminal import console

_WAIT_S = 3.0


def with_stdin(typed: str | None) -> bytes:
    """A prompt from the command line: piped input, a blank line, what was typed.

    Args:
        typed: the prompt; None makes all of stdin the prompt.
    """
    if typed is None:
        return _read().removesuffix(b"\n")
    data = os.fsencode(typed)
    piped = _read().rstrip(b"\r\n") if console.stdin_is_piped() else b""
    return piped + b"\n\n" + data if piped.strip() and data else data or piped


def _read() -> bytes:
    from ..runtime.prompt import read_stream

    if not console.wait_for_stdin(_WAIT_S):
        console.note("waiting for the end of the piped input; if there is none, add </dev/null")
    return read_stream(console.stdin_stream())
