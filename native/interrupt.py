"""Let Ctrl-C stop a running llama_decode at once, instead of after it."""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llama_cpp

from .library import load_library


@functools.cache
def abort_callback() -> Any:
    """The ``ggml_abort_callback`` that every context gets: true once an interrupt came."""
    return ctypes.cast(load_library().inferos_interrupt_requested, llama_cpp.ggml_abort_callback)


@contextmanager
def interruptible() -> Iterator[None]:
    """While inside, SIGINT also aborts decoding; Python's own handler runs as before.

    Signals belong to the main thread: elsewhere this changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    library = load_library()
    library.inferos_interrupt_set(0)
    library.inferos_interrupt_install()
    previous = sys.unraisablehook

    def report(lost: sys.UnraisableHookArgs) -> None:
        # raised inside llama.cpp's log callback, which no exception leaves: the flag has done it
        if lost.exc_type is not KeyboardInterrupt:
            previous(lost)

    sys.unraisablehook = report
    try:
        yield
    finally:
        sys.unraisablehook = previous
        library.inferos_interrupt_restore()
        library.inferos_interrupt_set(0)
