"""When events reach the event loop: what is urgent at once, the rest together."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from infer_os.serve import outbox
from infer_os.serve.outbox import Outbox


def run_with(
    send: Callable[[Outbox[int]], None], seconds: float
) -> tuple[list[list[int]], list[list[int]]]:
    """What was delivered, and flushed, while another thread sent: numbers that came together."""
    delivered: list[list[int]] = []
    fresh: list[int] = []
    flushed: list[list[int]] = []

    def deliver(items: list[int]) -> None:
        delivered.append(items)
        fresh.extend(items)

    def flush() -> None:
        flushed.append(fresh.copy())
        fresh.clear()

    async def run() -> None:
        box = Outbox(deliver, flush)
        thread = threading.Thread(target=send, args=(box,))
        thread.start()
        await asyncio.to_thread(thread.join)
        await asyncio.sleep(seconds)

    asyncio.run(run())
    return delivered, flushed


def pause_after_work(monkeypatch: pytest.MonkeyPatch, most_s: float) -> None:
    """Let the loop seem to have worked for long, whenever its time is asked for."""
    used = iter(range(1_000_000))
    monkeypatch.setattr(time, "thread_time", lambda: float(next(used)))
    monkeypatch.setattr(outbox, "_MOST_S", most_s)


def tell(box: Outbox[int], item: int, *, urgent: bool = False) -> None:
    box.put([item], urgent=urgent)
    box.announce()


def test_nothing_arrives_before_it_is_announced() -> None:
    """The loop would take Python from a thread that still needs it."""
    seen: list[int] = []

    async def run() -> None:
        box: Outbox[int] = Outbox(seen.extend, lambda: None)
        box.put([1], urgent=True)
        await asyncio.sleep(0.05)
        assert not seen
        box.announce()
        await asyncio.sleep(0.05)

    asyncio.run(run())
    assert seen == [1]


def test_all_of_it_arrives_in_order_and_once() -> None:
    def send(box: Outbox[int]) -> None:
        for i in range(2000):
            box.put([2 * i], urgent=i % 7 == 0)
            box.put([2 * i + 1], urgent=False)
            box.announce()

    delivered, flushed = run_with(send, 0.3)
    assert [item for items in delivered for item in items] == list(range(4000))
    assert [item for items in flushed for item in items] == list(range(4000))


def test_what_is_not_urgent_comes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    pause_after_work(monkeypatch, 0.5)

    def send(box: Outbox[int]) -> None:
        tell(box, 0)
        time.sleep(0.1)
        for i in range(1, 50):
            tell(box, i)
            time.sleep(0.002)

    _, flushed = run_with(send, 0.8)
    assert flushed == [[0], list(range(1, 50))]


def test_what_is_urgent_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    pause_after_work(monkeypatch, 60)

    def send(box: Outbox[int]) -> None:
        tell(box, 0)
        time.sleep(0.1)
        tell(box, 1)
        tell(box, 2, urgent=True)
        time.sleep(0.1)
        tell(box, 3)

    delivered, flushed = run_with(send, 0.1)
    assert flushed == [[0]]
    assert delivered[0] == [0] and [1, 2] in delivered


def test_a_loop_that_is_closed_hears_nothing() -> None:
    async def make() -> Outbox[int]:
        return Outbox(lambda items: None, lambda: None)

    box = asyncio.run(make())
    tell(box, 1, urgent=True)
