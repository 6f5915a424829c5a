"""Adapters in the Python API: one per call, as the commands have them, and never mixed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from adapter_files import random_adapter
from helpers import TESTS, Converter

from infer_os import (
    BatchSettings,
    EngineSettings,
    Model,
    SamplingSettings,
    SettingsError,
    StopSettings,
    load,
)
from infer_os.convert.errors import SourceError, UnsupportedError
from infer_os.runtime.errors import SessionError

GPTJ = TESTS / "reference/gptj"
ADAPTER = TESTS / "reference/adapters/gptj"
PROMPT = "the quick brown fox"
GREEDY, SHORT = SamplingSettings(temperature=0), StopSettings(12)
ONE = EngineSettings(threads=1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFER_OS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def file(converted: Converter) -> Path:
    return converted(GPTJ, "q8_0")


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    return [f"a={ADAPTER}", f"b={random_adapter(GPTJ, tmp_path / 'other')}:0.7"]


@pytest.fixture
def model(file: Path, texts: list[str]) -> Iterator[Model]:
    with load(file, settings=ONE, adapters=texts) as model:
        yield model


def text_of(model: Model, adapter: str | None = None) -> str:
    return model.generate(PROMPT, sampling=GREEDY, stops=SHORT, adapter=adapter).text


@pytest.fixture
def alone(file: Path, texts: list[str]) -> dict[str, str]:
    """The text of each, from a model that has no other; ``off`` is the plain model's."""
    found = {}
    for name, given in (("a", texts[:1]), ("b", texts[1:]), ("off", [])):
        with load(file, settings=ONE, adapters=given) as model:
            found[name] = text_of(model)
    assert len(set(found.values())) == 3
    return found


def test_one_for_each_call(model: Model, alone: dict[str, str]) -> None:
    assert model.adapters == ("a", "b")
    for name in ("a", "off", "b", "b", "off", "a"):
        assert text_of(model, name) == alone[name]
        with model.stream(PROMPT, sampling=GREEDY, stops=SHORT, adapter=name) as chunks:
            assert "".join(chunks) == alone[name]
    assert text_of(model) == alone["a"]  # the first
    text_of(model, "b")
    assert text_of(model) == alone["a"]  # not the last that was used


def test_several_threads(model: Model, alone: dict[str, str]) -> None:
    wrong = []

    def ask(name: str) -> None:
        wrong.extend(name for _ in range(3) if text_of(model, name) != alone[name])

    threads = [threading.Thread(target=ask, args=(name,)) for name in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_conversations(model: Model, file: Path, texts: list[str]) -> None:
    def reply(chat_model: Model, adapter: str | None) -> list[str]:
        chat = chat_model.chat(style="plain", sampling=GREEDY, stops=SHORT, adapter=adapter)
        return [chat.say("hello"), chat.say("more")]

    expected = []
    for given in (texts[:1], texts[1:], []):
        with load(file, settings=ONE, adapters=given) as other:
            expected.append(reply(other, None))
    chats = [
        model.chat(style="plain", sampling=GREEDY, stops=SHORT, adapter=name)
        for name in ("a", "b", "off")
    ]
    got = [[chat.say(message) for chat in chats] for message in ("hello", "more")]
    assert [list(pair) for pair in zip(*got, strict=True)] == expected
    held = len(model._engine.tokens)
    chats[2].undo()
    chats[2].reset()
    assert len(model._engine.tokens) == held > 0  # what is computed stays
    chats[0].adapter = "b"
    chats[0].undo()
    again = model.chat(style="plain", sampling=GREEDY, stops=SHORT, adapter="a")
    again.say("hello")
    again.undo()
    assert again.say("hello") == expected[0][0]
    chats[0].adapter = "zz"
    with pytest.raises(SettingsError, match="'zz': expected one of a, b, off"):
        chats[0].say("hello")


def test_files_of_conversations(model: Model, tmp_path: Path) -> None:
    chat = model.chat(style="plain", sampling=GREEDY, stops=SHORT, adapter="b")
    chat.say("hello")
    text_of(model, "off")  # another one has the cache
    chat.save(tmp_path / "s")
    more = chat.say("more")
    text_of(model, "a")
    kept = model.chat(style="plain", sampling=GREEDY, stops=SHORT, adapter="b")
    kept.load(tmp_path / "s")
    assert kept.say("more") == more
    for name in ("a", "off"):
        other = model.chat(style="plain", adapter=name)
        with pytest.raises(SessionError, match="another adapter"):
            other.load(tmp_path / "s")


def test_batches(model: Model, alone: dict[str, str]) -> None:
    asked = [{"prompt": PROMPT, "adapter": name} for name in alone] + [{"prompt": PROMPT}]
    results = model.batch(
        asked, sampling=GREEDY, stops=SHORT, settings=BatchSettings(3), ordered=True
    )
    assert [result.text for result in results] == [*alone.values(), alone["a"]]
    assert text_of(model, "b") == alone["b"]


def test_scores_and_vectors_are_of_the_plain_model(model: Model, file: Path) -> None:
    def found(of: Model) -> list[float]:
        (score,), (vector,) = of.score([PROMPT]), of.embed([PROMPT])
        assert score.logprob is not None and vector.embedding is not None
        return [score.logprob, *vector.embedding]

    text_of(model, "b")
    with load(file, settings=ONE) as plain:
        assert found(model) == pytest.approx(found(plain), abs=1e-5)


@pytest.mark.parametrize("name", ["zz", "A", "a "])
def test_names_that_are_not_loaded(model: Model, name: str) -> None:
    said = f"{name!r}: expected one of a, b, off"
    with pytest.raises(SettingsError, match=said):
        model.generate(PROMPT, adapter=name)
    with pytest.raises(SettingsError, match=said):
        model.stream(PROMPT, adapter=name)  # at once
    with pytest.raises(SettingsError, match=said):
        model.chat(adapter=name)
    with pytest.raises(SettingsError, match="3: expected a text"):
        model.generate(PROMPT, adapter=3)  # type: ignore[arg-type]


def test_without_adapters(file: Path) -> None:
    with load(file, settings=ONE) as model:
        assert model.adapters == ()
        assert text_of(model, "off") == text_of(model)
        with pytest.raises(SettingsError, match="'a': no adapter is loaded"):
            text_of(model, "a")


def test_what_cannot_be_loaded(file: Path) -> None:
    with pytest.raises(SettingsError, match="'gptj' is the name of two"):
        load(file, adapters=[str(ADAPTER), f"{ADAPTER}:0.5"])
    with pytest.raises(UnsupportedError, match="expected a list of texts"):
        load(file, adapters=str(ADAPTER))
    for text in ("no\0file", "half a \ud800", "x" * 10_000):
        with pytest.raises(SourceError, match="no such folder"):
            load(file, adapters=[text])
    with pytest.raises(SettingsError, match="expected a text or a path"):
        load("no\0file")
