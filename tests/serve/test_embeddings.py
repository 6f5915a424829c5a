"""/v1/embeddings: the form of the answers, and what is refused."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from http_server import Service, eventually, running

from infer_os.native.errors import NotFinite
from infer_os.runtime.errors import PromptError
from infer_os.runtime.plan.memory_plan import MemoryShortage
from infer_os.serve.scripted_engine import ScriptedEngine


@pytest.fixture
def service() -> Iterator[Service]:
    with running(ScriptedEngine(lambda prompt: "abc", n_ctx=16)) as service:
        yield service


def embed(service: Service, value: Any, **fields: Any) -> Any:
    return service.post("/v1/embeddings", input=value, **fields)


def vectors(service: Service, value: Any, **fields: Any) -> list[Any]:
    got = embed(service, value, **fields).json
    assert got["object"] == "list"
    assert [item["index"] for item in got["data"]] == list(range(len(got["data"])))
    assert {item["object"] for item in got["data"]} == {"embedding"}
    return [item["embedding"] for item in got["data"]]


def test_texts_and_tokens(service: Service) -> None:
    # bytes 4 and 8 are alike to the scripted engine, as are 5 and 9
    one, two = [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]
    assert vectors(service, "@D") == [one]
    assert vectors(service, ["@D", "AE"]) == [one, two]
    assert vectors(service, [64, 68]) == [one]
    assert vectors(service, [[65], [64, 68]]) == [two, one]
    got = embed(service, ["@D", "A"]).json
    assert got["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert got["model"] == "fake"


def test_base64(service: Service) -> None:
    (text,) = vectors(service, "@AE", encoding_format="base64")
    vector = np.frombuffer(base64.b64decode(text), "<f4")
    assert vector.tolist() == vectors(service, "@AE")[0]
    assert np.linalg.norm(vector) == pytest.approx(1)


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({}, 400, "input"), ({"input": ""}, 400, "input"), ({"input": []}, 400, "input"),
        ({"input": ["a", ""]}, 400, "input"), ({"input": 5}, 400, "input"),
        ({"input": [[1], [999]]}, 400, "input[1][0]"), ({"input": ["a", 5]}, 400, "input[1]"),
        ({"input": ["a"] * 1025}, 400, "input"), ({"input": "a" * 17}, 413, "input"),
        ({"input": [65] * 17}, 413, "input"), ({"input": "a" * 100_000}, 413, "input"),
        ({"input": "a", "encoding_format": "int8"}, 400, "encoding_format"),
        ({"input": "a", "dimensions": 3}, 400, "dimensions"),
        ({"input": "a", "pooling": "max"}, 400, "pooling"),
        ({"input": "a", "model": "other"}, 404, "model"),
    ],
)  # fmt: skip
def test_what_is_refused(service: Service, fields: Any, status: int, param: str) -> None:
    got = service.post("/v1/embeddings", fields)
    assert (got.status, got.error["param"]) == (status, param)


def test_fields_that_ask_for_nothing_else(service: Service) -> None:
    assert embed(service, "a", dimensions=4, user="me", encoding_format=None).status == 200


def engine_that_raises(error: Exception) -> ScriptedEngine:
    """Whenever it is to embed."""
    engine = ScriptedEngine(lambda prompt: "abc")

    def embed_nothing(tokens: list[int]) -> Any:
        raise error

    engine.embed = embed_nothing  # type: ignore[method-assign]
    return engine


def test_no_memory_for_it() -> None:
    with running(engine_that_raises(MemoryShortage("takes 5 GB, raise --memory"))) as service:
        got = embed(service, "a")
        assert (got.status, got.error["code"]) == (503, "no_memory")
        assert "takes 5 GB" in got.error["message"]
        assert service.complete("Hi").status == 200


def test_a_vector_that_is_none() -> None:
    error = PromptError("the model computes a vector of length 0")
    with running(engine_that_raises(error)) as service:
        got = embed(service, "a")
        assert (got.status, got.error["param"]) == (400, "input")
        assert "of length 0" in got.error["message"]
        assert service.complete("Hi").status == 200


def test_an_engine_that_dies() -> None:
    engine = engine_that_raises(RuntimeError("out of luck"))
    with pytest.raises(Exception, match="out of luck"), running(engine) as service:
        got = embed(service, "a")
        assert (got.status, got.error["code"]) == (500, "engine_failed")


def test_it_waits_in_the_queue() -> None:
    engine = ScriptedEngine(lambda prompt: "abc", n_seq=1)
    with running(engine, queue=0) as service:
        engine.gate.clear()
        asker = threading.Thread(target=embed, args=(service, "a"))
        asker.start()
        eventually(lambda: service.get("/status").json["running"] == 1, "it does not count")
        assert embed(service, "a").status == service.complete("Hi").status == 429
        engine.gate.set()
        asker.join(60)
        assert service.get("/status").json["running"] == 0
        assert embed(service, "a").status == 200


def test_a_vector_that_is_not_finite(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error for this text alone: the server goes on."""

    def broken(engine: ScriptedEngine, tokens: list[int]) -> Any:
        raise NotFinite("vector")

    monkeypatch.setattr(ScriptedEngine, "embed", broken)
    got = embed(service, "AB")
    assert got.status == 500 and "no finite vector" in got.json["error"]["message"]
    monkeypatch.undo()
    assert len(vectors(service, "AB")) == 1
