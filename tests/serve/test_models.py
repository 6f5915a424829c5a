"""Several models in one server: loaded when they are asked for, within one bound of memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from http_server import SAMPLING, STOPS, Service, eventually, running

from infer_os.runtime.errors import SettingsError
from infer_os.runtime.plan.memory_plan import MemoryShortage
from infer_os.serve.generation_request import Defaults
from infer_os.serve.models import Offer, Served
from infer_os.serve.pushed_engine import EngineFigures
from infer_os.serve.scripted_engine import ScriptedEngine


class SizedEngine(ScriptedEngine):
    """One that takes memory."""

    def __init__(self, reply: str, n_bytes: int) -> None:
        super().__init__(lambda prompt: reply)
        self._n_bytes = n_bytes

    def figures(self) -> EngineFigures:
        return replace(super().figures(), planned_bytes=self._n_bytes)


@dataclass
class Shelf:
    """A model that says its own name; ``engines`` are those that were loaded."""

    name: str
    n_bytes: int
    engines: list[SizedEngine] = field(default_factory=list)
    memories: list[int | None] = field(default_factory=list)

    def open(self, memory: int | None) -> tuple[SizedEngine, Served]:
        self.memories.append(memory)
        if memory is not None and memory < self.n_bytes:
            plan: Any = SimpleNamespace(total=self.n_bytes)
            raise MemoryShortage(f"takes {self.n_bytes}, raise --memory", plan)
        engine = SizedEngine(self.name, self.n_bytes)
        self.engines.append(engine)
        defaults = Defaults((self.name,), engine.n_vocab, SAMPLING, STOPS)
        return engine, Served(Path(f"{self.name}.gguf"), "Fake", defaults)

    @property
    def is_loaded(self) -> bool:
        return bool(self.engines) and not self.engines[-1].is_closed


@contextmanager
def serving(*shelves: Shelf, memory: int = 1000, **settings: Any) -> Iterator[Service]:
    """A server of these models and a first one, which takes 100 bytes and is called ``first``."""
    offers = [Offer((shelf.name,), shelf.open) for shelf in shelves]
    engine = SizedEngine("first", 100)
    with running(engine, names=("first",), more=offers, memory=memory, **settings) as service:
        yield service


def said(service: Service, model: str | None, **fields: Any) -> str:
    got = service.complete("Hi", model=model, **fields)
    assert got.status == 200, got.body
    return str(got.json["choices"][0]["text"])


def test_models_are_loaded_when_they_are_asked_for() -> None:
    small, large = Shelf("small", 200), Shelf("large", 300)
    with serving(small, large) as service:
        assert said(service, None) == said(service, "first") == "first"
        assert not small.engines and not large.engines
        assert [said(service, name) for name in ("small", "large", "small")] == [
            "small", "large", "small",
        ]  # fmt: skip
        assert service.complete("Hi", model="large", stream=True).status == 200
        got = service.chat("Hi", model="large").json
        assert (got["choices"][0]["message"]["content"], got["model"]) == ("large", "large")
        assert len(small.engines) == len(large.engines) == 1
        # each gets what the others leave
        assert (small.memories, large.memories) == ([900], [700])
        listed = service.get("/v1/models").json["data"]
        assert [model["id"] for model in listed] == ["first", "small", "large"]
        assert service.get("/v1/models/small").json["context_length"] == 256
        status = service.get("/status").json
        assert [(m["name"], m["loaded"], m["planned_bytes"]) for m in status["models"]] == [
            ("first", True, 100), ("small", True, 200), ("large", True, 300),
        ]  # fmt: skip
        assert status["memory"]["planned_bytes"] == 600
        assert "infer_os_loaded_models 3.0" in service.get("/metrics").body.decode()


def test_a_model_that_is_not_here() -> None:
    with serving(Shelf("small", 200)) as service:
        for got in (service.complete("Hi", model="huge"), service.get("/v1/models/huge")):
            assert (got.status, got.error["code"]) == (404, "model_not_found")
            assert "first, small" in got.error["message"]
        assert service.complete("Hi", model=7).error["param"] == "model"


def test_the_one_unused_for_longest_makes_room() -> None:
    small, large = Shelf("small", 200), Shelf("large", 750)
    with serving(small, large) as service:
        assert said(service, "small") == "small"
        assert said(service, "first") == "first"
        drawn = service.get("/status").json["completion_tokens"]
        assert said(service, "large") == "large"
        assert not small.is_loaded and large.is_loaded
        assert service.get("/status").json["completion_tokens"] == drawn + len("large") + 1
        # the one that was longest unused now is the first
        assert said(service, "small") == "small"
        assert large.is_loaded == (750 + 200 <= 1000)
        assert [m["loaded"] for m in service.get("/status").json["models"]] == [False, True, True]


def test_a_model_in_use_is_not_unloaded() -> None:
    small, large = Shelf("small", 500), Shelf("large", 700)
    with serving(small, large) as service:
        assert said(service, "small") == "small"
        small.engines[0].gate.clear()
        texts: list[str] = []
        asker = threading.Thread(target=lambda: texts.append(said(service, "small")))
        asker.start()
        eventually(lambda: len(small.engines[0].submitted) == 2, "it is not taken")
        got = service.complete("Hi", model="large")
        assert (got.status, got.error["code"]) == (503, "no_memory")
        assert "large does not fit beside small" in got.error["message"]
        assert got.headers["retry-after"] == "10"
        small.engines[0].gate.set()
        asker.join(60)
        assert texts == ["small"]
        assert said(service, "large") == "large"


def test_what_can_never_fit_unloads_nobody() -> None:
    small, huge = Shelf("small", 200), Shelf("huge", 1001)
    with serving(small, huge) as service:
        assert said(service, "small") == "small"
        got = service.complete("Hi", model="huge")
        assert (got.status, got.error["code"]) == (503, "no_memory")
        assert got.error["message"] == "huge: takes 1001, raise --memory"
        assert small.is_loaded and len(small.engines) == 1


def test_a_model_that_cannot_be_loaded() -> None:
    def broken(memory: int | None) -> Any:
        raise SettingsError("--draft: none of its vocabulary")

    with running(ScriptedEngine(lambda prompt: "x"), more=[Offer(("bad",), broken)]) as service:
        got = service.complete("Hi", model="bad")
        assert (got.status, got.error["code"]) == (500, "model_failed")
        assert got.error["message"] == "bad: --draft: none of its vocabulary"
        assert service.complete("Hi").status == 200


def test_idle_models_are_unloaded_and_come_back() -> None:
    small = Shelf("small", 200)
    with serving(small, idle=0.3) as service:
        assert said(service, "small") == "small"
        small.engines[0].gate.clear()
        asker = threading.Thread(target=lambda: said(service, "small"))
        asker.start()
        time.sleep(0.8)
        assert small.is_loaded  # somebody waits for it
        small.engines[0].gate.set()
        asker.join(60)
        drawn = service.get("/status").json["completion_tokens"]
        eventually(lambda: not small.is_loaded, "it stays")
        status = service.get("/status").json
        assert status["completion_tokens"] == drawn
        eventually(
            lambda: service.get("/status").json["memory"]["planned_bytes"] == 0, "the first stays"
        )
        assert said(service, "small") == "small"
        # alone it gets all that there is
        assert small.memories == [900, None]


def test_many_ask_for_a_model_while_it_is_loaded() -> None:
    small = Shelf("small", 200)
    open_small = small.open

    def slow(memory: int | None) -> Any:
        time.sleep(0.3)
        return open_small(memory)

    small.open = slow  # type: ignore[method-assign]
    with serving(small) as service:
        texts: list[str] = []
        askers = [
            threading.Thread(target=lambda: texts.append(said(service, "small"))) for _ in range(8)
        ]
        for asker in askers:
            asker.start()
        assert said(service, "first") == "first"  # others are answered meanwhile
        for asker in askers:
            asker.join(60)
        assert texts == ["small"] * 8 and len(small.engines) == 1


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_tokens_of_a_model(path: str) -> None:
    small = Shelf("small", 200)
    with serving(small) as service:
        got = service.post(path, content="Hi", model="small") if path == "/tokenize" else (
            service.post(path, tokens=[72, 105], model="small")
        )  # fmt: skip
        assert got.json in ({"tokens": [72, 105]}, {"content": "Hi"})
        assert small.is_loaded
