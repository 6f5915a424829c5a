"""Let Ctrl-C, SIGTERM and SIGHUP stop a running llama_decode at once, instead of after it."""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import llama_cpp

from .errors import Interrupted
from .library import load_library


@functools.cache
def abort_callback() -> Any:
    """The ``ggml_abort_callback`` that every context gets: true once an interrupt came."""
    return ctypes.cast(load_library().inferos_interrupt_requested, llama_cpp.ggml_abort_callback)


_depth = 0
_ended: BaseException | None = None
_previous_hook: Callable[[sys.UnraisableHookArgs], object] = sys.__unraisablehook__


@contextmanager
def interruptible() -> Iterator[None]:
    """While inside, SIGINT also aborts decoding; Python's own handler runs as before.

    So do SIGTERM and SIGHUP if Python handles them. A SystemExit that a handler raises while
    llama.cpp is in a callback, which no exception can leave, is raised at the end.

    Signals belong to the main thread: in others this changes nothing, though what another thread
    decodes while the main thread is inside is also aborted. Streams of several models may
    overlap: the last one to end removes the handler.
    """
    if not is_main_thread():
        yield
        return
    _enter()
    try:
        yield
    finally:
        ended = _leave()
        if ended is not None:
            raise ended


@contextmanager
def decoding_aborted() -> Iterator[None]:
    """While inside, whatever decodes in any thread is broken off, and fails with Interrupted."""
    library = load_library()
    library.inferos_interrupt_set(1)
    try:
        yield
    finally:
        library.inferos_interrupt_set(0)


def _enter() -> None:
    global _depth, _previous_hook
    library = load_library()
    library.inferos_interrupt_set(0)
    _depth += 1
    if _depth == 1:
        library.inferos_interrupt_install()
        _previous_hook, sys.unraisablehook = sys.unraisablehook, _report


def _leave() -> BaseException | None:
    global _depth, _ended
    _depth -= 1
    if _depth == 0:
        library = load_library()
        sys.unraisablehook = _previous_hook
        library.inferos_interrupt_restore()
        library.inferos_interrupt_set(0)
    ended, _ended = _ended, None
    return ended


def _report(lost: sys.UnraisableHookArgs) -> None:
    # raised inside llama.cpp's log callback, which no exception can leave
    global _ended
    if lost.exc_type is SystemExit:
        _ended = lost.exc_value
    elif lost.exc_type is not KeyboardInterrupt:  # the flag has already handled that one
        _previous_hook(lost)


@contextmanager
def python_interrupts() -> Iterator[None]:
    """Ctrl-C as Python knows it, in the thread that it is for."""
    try:
        yield
    except Interrupted:
        if is_main_thread():
            raise KeyboardInterrupt from None
        raise


def is_main_thread() -> bool:
    """Whether the calling thread is the one that signals belong to."""
    return threading.current_thread() is threading.main_thread()
