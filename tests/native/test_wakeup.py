"""Waking a thread that waits for a file: it hears of it, and takes nothing from who woke it."""

from __future__ import annotations

import select
import sys
import threading
import time

from infer_os.native.wakeup import Wakeup


def is_readable(wakeup: Wakeup) -> bool:
    return bool(select.select([wakeup], [], [], 0)[0])


def test_it_is_readable_until_it_is_cleared() -> None:
    with Wakeup() as wakeup:
        assert not is_readable(wakeup)
        for _ in range(100_000):  # more than a pipe holds
            wakeup.wake()
        assert is_readable(wakeup)
        wakeup.clear()
        wakeup.wake()
        assert is_readable(wakeup)
        wakeup.clear()
        assert not is_readable(wakeup)
    wakeup.close()


def test_who_wakes_goes_on() -> None:
    seen: list[bool] = []
    usual_s = sys.getswitchinterval()
    with Wakeup() as wakeup:

        def wait() -> None:
            select.select([wakeup], [], [])
            seen.append(True)

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.1)  # until it waits
        sys.setswitchinterval(1000)
        try:
            wakeup.wake()
            end = time.perf_counter() + 0.1
            while time.perf_counter() < end:
                pass
            assert not seen
        finally:
            sys.setswitchinterval(usual_s)
        thread.join(60)
        assert seen
