"""Where the command begins: streams and signals are in order before anything heavy is imported.

``main`` opens the standard streams that are closed and lets a signal end the process while the
application is imported; :func:`infer_os.cli.main` then handles signals in order. What happens
before the first line of this module, while Python itself starts, is Python's.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

#: Signals that end a command in order, besides Ctrl-C.
ENDING = (signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    """Run the command line; see :func:`infer_os.cli.main` for its exit codes."""
    open_streams()
    _end_at_once()
    from .cli import main as run

    run()


def open_streams() -> None:
    """Give closed standard streams /dev/null.

    Otherwise the next file that is opened gets a standard stream's number, and what C libraries
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


def _end_at_once() -> None:
    """Let signals end the process without a word: nothing was begun yet.

    What was ignored, as by ``nohup``, stays ignored.
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

    Each of the latter once: a second one does not disturb what the first one ends. Signals that
    are ignored stay ignored. Afterwards the handlers are as they were. Signals belong to the main
    thread: elsewhere this changes nothing.
    """
    ended = False

    def end(number: int, _frame: FrameType | None) -> None:
        nonlocal ended
        if not ended:
            ended = True
            raise SystemExit(128 + number)

    before = {}
    with suppress(ValueError):  # not the main thread
        for number in (signal.SIGINT, *ENDING):
            if signal.getsignal(number) in (signal.SIG_IGN, None):
                continue
            handler = signal.default_int_handler if number == signal.SIGINT else end
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


if __name__ == "__main__":
    main()
