"""The streams and signals of a command, set up before anything heavy is imported.

While the application is imported, a signal ends the process at once; later :func:`ending_in_order`
turns signals into exceptions, so that resources are released.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Signals that end a command cleanly, apart from Ctrl-C.
ENDING = (signal.SIGTERM, signal.SIGHUP)
#: Seconds until a signal whose exception was lost is sent again.
_AGAIN_S = 0.02


def open_streams() -> None:
    """Open /dev/null for closed standard streams.

    Otherwise the next file opened gets the number of a standard stream, and what C libraries
    print goes into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY
            null = os.open(os.devnull, flags)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def end_at_once() -> None:
    """Let signals end the process silently: nothing was begun yet.

    Signals that were ignored, as under ``nohup``, stay ignored.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        os._exit(128 + number)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)
    for number in ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)


@contextmanager
def ending_in_order() -> Iterator[None]:
    """While inside, Ctrl-C raises KeyboardInterrupt, SIGTERM and SIGHUP raise SystemExit(128 + n).

    The latter are raised once: a second one does not disturb the clean-up after the first. Signals
    that are ignored stay ignored. An exception that Python drops, as in a callback of llama.cpp or
    a finalizer, is raised again a moment later. Afterwards the handlers are restored. Signals
    belong to the main thread: in other threads this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    end = _End()
    before = {}
    for number in (signal.SIGINT, *ENDING):
        if signal.getsignal(number) in (signal.SIG_IGN, None):
            continue
        handler = signal.default_int_handler if number == signal.SIGINT else end.take
        before[number] = signal.signal(number, handler)
    hook, sys.unraisablehook = sys.unraisablehook, end.drop
    try:
        yield
    finally:
        sys.unraisablehook = hook
        end.over()
        for number, previous in before.items():
            signal.signal(number, previous)


class _End:
    """How signals end a command: the first one other than Ctrl-C counts."""

    def __init__(self) -> None:
        self._number = 0
        self._again: threading.Timer | None = None
        self._hook = sys.unraisablehook

    def take(self, number: int, _frame: FrameType | None) -> None:
        """The handler of :data:`ENDING`."""
        if not self._number:
            self._number = number
            raise SystemExit(128 + number)

    def drop(self, lost: sys.UnraisableHookArgs) -> None:
        """The hook for exceptions that Python drops: sends the signal again."""
        if lost.exc_type is KeyboardInterrupt:
            number = int(signal.SIGINT)
        elif lost.exc_type is SystemExit and self._number:
            number, self._number = self._number, 0
        else:
            self._hook(lost)
            return
        main = threading.main_thread().ident
        assert main is not None
        self._again = threading.Timer(_AGAIN_S, signal.pthread_kill, (main, number))
        self._again.daemon = True
        self._again.start()

    def over(self) -> None:
        """Send nothing from now on."""
        if self._again is not None:
            self._again.cancel()
