"""llama.cpp's log lines, into Python's ``logging`` under the name ``infer_os.llama``.

And its last words, if it ends the process: one line to standard error.
"""

from __future__ import annotations

import ctypes
import logging
import os
from typing import Any

import llama_cpp

from .library import load_library

logger = logging.getLogger("infer_os.llama")
# without a handler, logging itself would print errors that an exception already reports
logger.addHandler(logging.NullHandler())

# enum ggml_log_level; 5 continues the line before it
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.INFO, 4: logging.ERROR}
_CONTINUE = 5

_recent: list[str] = []
_MOST_RECENT = 8
_last_level = logging.DEBUG
_LONGEST = 300


def last_complaint() -> str:
    """llama.cpp's first error line since :func:`forget_complaints`; empty if none.

    The first line says why; later ones only say that its callers failed too.
    """
    return _recent[0] if _recent else ""


def forget_complaints() -> None:
    """Forget earlier complaints, before a call whose failure should be explained."""
    _recent.clear()


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _on_line(level: int, text: bytes, _user_data: Any) -> None:
    global _last_level
    if level != _CONTINUE:
        _last_level = _LEVELS.get(level, logging.DEBUG)
    line = text.decode("utf-8", "replace").strip()
    if not line or line == ".":
        return
    if _last_level >= logging.ERROR and len(_recent) < _MOST_RECENT:
        _recent.append(line)
    logger.log(_last_level, "%s", line)


def route_logs() -> None:
    """Send llama.cpp's lines to ``logging``; without a handler they go nowhere."""
    llama_cpp.llama_log_set(_on_line, ctypes.c_void_p(0))


@ctypes.CFUNCTYPE(None, ctypes.c_char_p)  # type: ignore[untyped-decorator]
def _on_abort(message: bytes) -> None:
    # /path/to/ggml.c:1644: GGML_ASSERT(ctx->mem_buffer != NULL) failed
    said = " ".join(message.decode("utf-8", "replace").split()).rpartition("/")[2]
    hint = "; not enough memory?" if "NULL" in said or "nullptr" in said else ""
    line = f"error: llama.cpp cannot go on: {said[:_LONGEST]}{hint}\n"
    try:
        os.write(2, line.encode())
    finally:
        # otherwise abort() follows: a signal, a debugger's backtrace and perhaps a core file
        os._exit(1)


def route_last_words() -> None:
    """End the process with one line and code 1 where ggml would abort it.

    If the system fails to provide promised memory while a graph is being built, ggml asserts: no
    caller can go on from there.
    """
    load_library().ggml_set_abort_callback(_on_abort)  # of the ggml that computes
