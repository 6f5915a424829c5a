"""Room for log-probabilities: who waits, who goes on, what is refused."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from http_server import eventually, running

from infer_os.serve import generating
from infer_os.serve.errors import ApiError
from infer_os.serve.score_room import ScoreRoom
from infer_os.serve.scripted_engine import ScriptedEngine


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_room_is_given_in_the_order_of_requests() -> None:
    async def go() -> None:
        room, order = ScoreRoom(10), list[str]()

        async def one(name: str, n: int) -> None:
            await room.take(n)
            order.append(name)

        await one("first", 8)
        tasks = [asyncio.create_task(one(*given)) for given in (("big", 9), ("small", 1))]
        await settled()
        assert order == ["first"]  # nobody overtakes
        room.give(8)
        await settled()
        assert order == ["first", "big", "small"]
        room.give(10)
        await asyncio.gather(*tasks)
        await one("all", 10)
        with pytest.raises(ApiError, match="11 log-probabilities of prompts are more than the 10"):
            await room.take(11)
        await room.take(0)

    asyncio.run(go())


@pytest.mark.parametrize("late", [False, True])
def test_who_goes_away_takes_no_room(late: bool) -> None:
    async def go() -> None:
        room = ScoreRoom(10)
        await room.take(10)
        gone = asyncio.create_task(room.take(6))
        stays = asyncio.create_task(room.take(10))
        await settled()
        if late:  # as its turn comes
            room.give(10)
            gone.cancel()
        else:
            gone.cancel()
            room.give(10)
        await asyncio.wait_for(stays, 10)
        assert gone.cancelled()

    asyncio.run(go())


def test_requests_wait_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generating, "ScoreRoom", lambda: ScoreRoom(20))
    engine = ScriptedEngine(lambda prompt: "abc")
    with running(engine) as service:
        ask: dict[str, Any] = {"logprobs": 1, "echo": True, "max_tokens": 0}
        assert service.complete("x" * 11, **ask).error["code"] == "too_many_logprobs"
        engine.gate.clear()
        got: list[int] = []
        threads = [
            threading.Thread(target=lambda: got.append(service.complete("x" * 8, **ask).status))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        eventually(lambda: service.get("/status").json["running"] == 1, "none is taken")
        # others are not held up, as far as they are not scored
        writing = threading.Thread(target=lambda: got.append(service.complete("y").status))
        writing.start()
        eventually(lambda: service.get("/status").json["running"] == 2, "it waits for those")
        time.sleep(0.1)
        assert service.get("/status").json["running"] == 2
        engine.gate.set()
        for thread in (*threads, writing):
            thread.join(60)
        assert got == [200] * 4
        assert service.complete("x" * 10, **ask).status == 200
