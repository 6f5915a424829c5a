"""Adapters of an engine and of a batch: switched by name, and never mixed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_files import loadable, random_adapter
from helpers import TESTS, Converter

from infer_os.runtime.batch.batch_engine import BatchEngine
from infer_os.runtime.batch.records import Result, parsed_prompts
from infer_os.runtime.batch.settings import BatchSettings
from infer_os.runtime.chat.prompt_file import load_prompt, save_prompt
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.errors import SettingsError
from infer_os.runtime.generate import Generation, stream_text
from infer_os.runtime.open import open_engine
from infer_os.runtime.settings import (
    AdapterFile,
    EngineSettings,
    SamplingSettings,
    StopSettings,
)

GPTJ = TESTS / "reference/gptj"
PROMPT = "the quick brown fox"
GREEDY = SamplingSettings(temperature=0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFER_OS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(converted: Converter) -> Path:
    return converted(GPTJ, "q8_0")


@pytest.fixture
def adapters(model: Path, tmp_path: Path) -> tuple[AdapterFile, ...]:
    """Two, ``a`` and ``b``."""
    other = random_adapter(GPTJ, tmp_path / "other")
    return loadable(model, f"a={TESTS / 'reference/adapters/gptj'}", f"b={other}:0.7")


def text(engine: LlamaEngine, n: int = 24) -> str:
    tokens = engine.vocab.tokenize(PROMPT)
    return "".join(stream_text(engine, tokens, GREEDY, StopSettings(n), Generation()))


def texts_alone(model: Path, adapters: tuple[AdapterFile, ...], **settings: Any) -> dict[str, str]:
    """The text of each adapter, from an engine that has no other; "" is the plain model."""
    found = {}
    for chosen in ((), *((adapter,) for adapter in adapters)):
        with LlamaEngine(model, EngineSettings(adapters=chosen, threads=1, **settings)) as engine:
            assert engine.adapter == (chosen[0].name if chosen else "")
            found[engine.adapter] = text(engine)
    assert len(set(found.values())) == 3
    return found


@pytest.mark.parametrize("native", [True, False], ids=["ours", "stock"])
def test_switching(model: Path, adapters: tuple[AdapterFile, ...], native: bool) -> None:
    alone = texts_alone(model, adapters, native=native)
    settings = EngineSettings(adapters=adapters, threads=1, native=native)
    with LlamaEngine(model, settings) as engine:
        assert engine.info.adapters == ("a", "b") and engine.adapter == "a"
        for name in ("a", "b", "", "b", "b", "a"):
            engine.use_adapter(name)
            assert text(engine) == alone[name]
        held = len(engine.tokens)
        engine.use_adapter("a")
        assert len(engine.tokens) == held  # nothing changes
        engine.use_adapter("b")
        assert not engine.tokens
        with pytest.raises(SettingsError, match="'c': expected one of a, b, off"):
            engine.use_adapter("c")
        assert engine.adapter == "b"


def test_stages_of_the_cache_keep_it(model: Path, adapters: tuple[AdapterFile, ...]) -> None:
    settings = EngineSettings(
        adapters=adapters, threads=1, kv="f16:32,q8_0:128", context=128, native=False
    )
    tokens = list(range(40, 80))
    rows = {}
    with LlamaEngine(model, settings) as engine:
        for name in ("", "b"):
            engine.use_adapter(name)
            engine.feed(tokens[:20])
            for token in tokens[20:]:
                engine.step(token)
            rows[name] = engine.logits().copy()
            assert engine.kv.stage == 2
    with LlamaEngine(model, EngineSettings(adapters=adapters[1:], threads=1)) as engine:
        engine.feed(tokens)
        whole = engine.logits().copy()
    assert np.abs(rows["b"] - whole).max() < 0.1 * np.abs(rows[""] - whole).max()


def test_guesses_are_verified_with_it(model: Path, adapters: tuple[AdapterFile, ...]) -> None:
    alone = texts_alone(model, adapters)
    for draft in ("lookup", str(model)):
        settings = EngineSettings(adapters=adapters, threads=1, draft=draft)
        with open_engine(model, settings) as engine:
            for name in ("b", "", "a"):
                engine.use_adapter(name)
                assert text(engine) == alone[name]


def test_llama_cpps_products_of_adapters_round_otherwise(
    model: Path, adapters: tuple[AdapterFile, ...]
) -> None:
    """They are of float32, whose batches do not round as single tokens do: no guesses then."""
    rows = {}
    for native in (True, False):
        for chosen in ((), adapters):
            settings = EngineSettings(adapters=chosen, threads=1, native=native, draft="lookup")
            with open_engine(model, settings) as engine:
                rows[native, bool(chosen)] = engine.rows_alike()
                noted = any("f32" in note for note in engine.info.notes)
                assert noted == (bool(chosen) and not native)
                if noted:
                    text(engine)
                    assert engine.speculation is not None
                    assert engine.speculation.report().drafted == 0
    assert rows[True, True] == rows[True, False] > rows[False, False] > rows[False, True] == 1


def test_kept_prompts_are_of_one_adapter(
    model: Path, adapters: tuple[AdapterFile, ...], tmp_path: Path
) -> None:
    file = tmp_path / "prompt"
    with LlamaEngine(model, EngineSettings(adapters=adapters, threads=1)) as engine:
        prompt = engine.vocab.tokenize(PROMPT)
        engine.feed(prompt)
        assert save_prompt(file, engine, prompt, tmp_path) == ""
        for name, said in (("b", "saved with another adapter"), ("", "or with none"), ("a", "")):
            engine.use_adapter(name)
            engine.forget()
            problem = load_prompt(file, engine, prompt, tmp_path)
            assert said in problem and bool(said) == bool(problem)
            assert len(engine.tokens) == (0 if said else len(prompt) - 1)
    scaled = (AdapterFile("a", adapters[0].path, 0.25, adapters[0].n_bytes),)
    with LlamaEngine(model, EngineSettings(adapters=scaled, threads=1)) as engine:
        assert "another adapter" in load_prompt(file, engine, prompt, tmp_path)


def test_two_of_one_name(adapters: tuple[AdapterFile, ...]) -> None:
    with pytest.raises(SettingsError, match="'a' is the name of two; write NAME="):
        EngineSettings(adapters=(adapters[0], adapters[0]))


def test_the_plan_counts_them(model: Path, adapters: tuple[AdapterFile, ...]) -> None:
    totals = []
    for chosen in ((), adapters):
        with LlamaEngine(model, EngineSettings(adapters=chosen, threads=1)) as engine:
            assert engine.info.plan is not None
            totals.append(engine.info.plan)
            text(engine)
            assert engine.memory().compute <= engine.info.plan.compute
    n_bytes = sum(adapter.n_bytes for adapter in adapters)
    assert ("adapters", n_bytes) in totals[1].beside.parts
    assert totals[1].total >= totals[0].total + n_bytes


# ---- batches


def records(n: int, seed: int) -> list[dict[str, Any]]:
    """Of three adapters mixed, with prefixes in common, some until the context is full."""
    chance = random.Random(seed)
    beginnings = (f"{PROMPT} jumps over", "a common prefix of the text, shared by many of them ")
    return [
        {
            "id": i, "prompt": chance.choice(beginnings) + "abcdefghij"[: chance.randrange(10)],
            "adapter": chance.choice(["a", "b", "off"]),
            "max_tokens": chance.choice([3, 30, -1]), "temperature": chance.choice([0, 0.9]),
        }
        for i in range(n)
    ]  # fmt: skip


def answers(
    model: Path, settings: EngineSettings, parallel: int, asked: list[dict[str, Any]]
) -> dict[Any, Result]:
    with BatchEngine(model, settings, BatchSettings(parallel)) as engine:
        sampling = SamplingSettings(seed=3)
        found = engine.run(parsed_prompts(asked, sampling, StopSettings(40)))
        return {result.id: result for result in found}


@pytest.mark.parametrize(
    ("native", "draft", "parallel"),
    [(True, "none", 5), (True, "lookup", 3), (False, "none", 4)],
    ids=["ours", "guesses", "stock"],
)
def test_mixed_records_equal_single_ones(
    native: bool, draft: str, parallel: int, model: Path, adapters: tuple[AdapterFile, ...]
) -> None:
    asked = records(24, seed=parallel)
    settings = EngineSettings(adapters=adapters, threads=1, native=native, draft=draft, context=100)
    mixed = answers(model, settings, parallel, asked)
    alone = EngineSettings(adapters=adapters, threads=1, native=native, context=100)
    for record in asked:
        single = answers(model, alone, 1, [record])[record["id"]]
        got = mixed[record["id"]]
        assert (got.tokens, got.finish_reason) == (single.tokens, single.finish_reason)
    texts = {
        name: answers(
            model, settings, 1, [{"prompt": PROMPT, "adapter": name, "temperature": 0}]
        )[1].text
        for name in ("a", "b", "off")
    }  # fmt: skip
    assert len(set(texts.values())) == 3


def test_a_batch_begins_with_the_first(model: Path, adapters: tuple[AdapterFile, ...]) -> None:
    asked = [{"prompt": PROMPT}, {"prompt": PROMPT, "adapter": "a"},
             {"prompt": PROMPT, "adapter": "off"}]  # fmt: skip
    settings = EngineSettings(adapters=adapters, threads=1)
    found = answers(model, settings, 3, [{**one, "temperature": 0} for one in asked])
    plain = answers(model, EngineSettings(threads=1), 1, [{"prompt": PROMPT, "temperature": 0}])
    assert found[1].text == found[2].text != found[3].text == plain[1].text


def test_bad_names_in_records(model: Path, adapters: tuple[AdapterFile, ...]) -> None:
    asked = [{"prompt": "x", "adapter": "zz"}, {"prompt": "x", "adapter": 3}]
    found = answers(model, EngineSettings(adapters=adapters, threads=1), 2, asked)
    assert found[1].error == "record 1: adapter 'zz': expected one of a, b, off"
    assert found[2].error == 'record 2: "adapter" is a text, not a whole number'
    found = answers(model, EngineSettings(threads=1), 2, asked[:1])
    assert found[1].error == "record 1: adapter 'zz': no adapter is loaded"


def test_a_batch_keeps_the_prompt_of_its_own_adapter(
    model: Path, adapters: tuple[AdapterFile, ...], tmp_path: Path
) -> None:
    file = tmp_path / "prompt"
    long = f"{PROMPT} jumps over the lazy dog, again and again "
    asked = [{"prompt": long + end, "adapter": name, "temperature": 0}
             for end, name in (("x", "a"), ("y", "b"), ("z", "a"))]  # fmt: skip

    def run(chosen: tuple[AdapterFile, ...]) -> tuple[list[str], int, tuple[str, ...]]:
        settings = EngineSettings(adapters=chosen, threads=1)
        with BatchEngine(model, settings, BatchSettings(2)) as engine:
            engine.keep_prompt(file, tmp_path)
            found = engine.run(parsed_prompts(asked, SamplingSettings(), StopSettings(8)))
            texts = [r.text for r in sorted(found, key=lambda result: str(result.id))]
            return texts, engine.statistics.counts.shared, engine.notes

    first, _, _ = run(adapters)
    again, shared, notes = run(adapters)
    assert again == first and shared > 20 and not notes
    swapped, _, notes = run(adapters[::-1])  # the run's own is b now
    assert swapped == first and "another adapter" in notes[0]


def test_beams(model: Path, adapters: tuple[AdapterFile, ...]) -> None:
    settings = EngineSettings(adapters=adapters, threads=1)
    found = {}
    with BatchEngine(model, settings, BatchSettings(beams=3)) as engine:
        for name in ("off", "b", "off"):
            asked = [{"prompt": PROMPT, "adapter": name}]
            (result,) = engine.run(parsed_prompts(asked, SamplingSettings(), StopSettings(8)))
            assert found.setdefault(name, result.text) == result.text
    assert found["off"] != found["b"]
