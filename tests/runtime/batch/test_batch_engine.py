"""The batch engine on small models: results do not depend on what else is in the batch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import (
    BUNDLED,
    PARALLEL,
    REFERENCES,
    REPOSITORY,
    Converter,
    copy_checkpoint,
    edit_json,
)  # fmt: skip

from infer_os.runtime.batch.batch_engine import BatchEngine
from infer_os.runtime.batch.records import BadRecord, Record, Result
from infer_os.runtime.batch.settings import BatchSettings
from infer_os.runtime.chat.frame import Message
from infer_os.runtime.chat.framing import choose_frame
from infer_os.runtime.chat.session import Session
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.errors import SettingsError
from infer_os.runtime.generate import complete
from infer_os.runtime.plan.memory_plan import MemoryShortage
from infer_os.runtime.settings import EngineSettings, SamplingSettings, StopSettings
from infer_os.runtime.text import without_first_space

WORDS = (REPOSITORY / "models" / "bundled" / "held-out.txt").read_text().split()
SETTINGS = EngineSettings(context=256, threads=2)
GREEDY = SamplingSettings(temperature=0)
BUNDLED_MODEL = next(folder for folder in BUNDLED if folder.name == "austen-6m")


def records(count: int, sampling: SamplingSettings = GREEDY, most: int = 24) -> list[Record]:
    chance = random.Random(3)
    made = []
    for i in range(count):
        at, length = chance.randrange(len(WORDS) - 60), chance.randint(1, 40)
        stops = StopSettings(chance.randint(1, most))
        made.append(Record(i, i + 1, sampling, stops, " ".join(WORDS[at : at + length])))
    return made


def answers(
    path: Path, items: list[Any], batch: BatchSettings, settings: EngineSettings = SETTINGS
) -> dict[Any, Result]:
    with BatchEngine(path, settings, batch) as engine:
        return {(result.id, result.index): result for result in engine.run(items)}


def texts(results: dict[Any, Result]) -> dict[Any, tuple[tuple[int, ...], str, str]]:
    return {key: (r.tokens, r.text, r.finish_reason) for key, r in results.items()}


def test_greedy_answers_equal_those_of_one_after_the_other(converted: Converter) -> None:
    path = converted(BUNDLED_MODEL, "q8_0")
    items = [r for r in records(64) if len((r.prompt or "").split()) < 25]
    got = answers(path, items, BatchSettings(8))
    with LlamaEngine(path, SETTINGS) as engine:
        for record in items:
            tokens = engine.vocab.tokenize(record.prompt or "")
            alone = complete(engine, tokens, GREEDY, record.stops)
            result = got[record.id, None]
            assert (result.tokens, result.text) == (alone.tokens, alone.text)
            assert result.finish_reason == alone.finish_reason.value


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0", "q4_k_m"])
@pytest.mark.parametrize("load", ["mmap", "fast"])
@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_logprobs_do_not_depend_on_the_neighbours(
    kind: str, load: str, kv: str, converted: Converter
) -> None:
    path = converted(BUNDLED_MODEL, kind)
    settings = replace(SETTINGS, load=load, kv=kv)
    # to the last bit, which a drawn text would show only now and then
    items = records(24, SamplingSettings(seed=5), most=12)
    items.append(replace(items[0], id="long", prompt=" ".join(WORDS[:90])))
    many = answers(path, items, BatchSettings(13, logprobs=3), settings)
    few = answers(path, items[::-1], BatchSettings(2, logprobs=3), settings)
    assert many == few


@pytest.mark.parametrize("folder", REFERENCES, ids=lambda folder: folder.name)
def test_every_architecture_is_independent_of_the_neighbours(
    folder: Path, converted: Converter
) -> None:
    path = converted(folder)
    settings = replace(SETTINGS, context=32)
    items = [
        replace(record, prompt=(record.prompt or "")[:8])
        for record in records(30, SamplingSettings(seed=1, temperature=1.5))
    ]
    many = answers(path, items, BatchSettings(16, logprobs=2), settings)
    assert any(result.finish_reason == "length" for result in many.values())
    assert many == answers(path, items[::-1], BatchSettings(9, logprobs=2), settings)


def test_a_shared_prefix_is_computed_once(converted: Converter) -> None:
    path = converted(BUNDLED_MODEL, "q8_0")
    prefix = " ".join(WORDS[:400])
    with BatchEngine(path, EngineSettings(1024, threads=2), BatchSettings(8, prefix=prefix)) as e:
        items = [replace(r, prompt=" " + " ".join(WORDS[r.line :][:3])) for r in records(64)]
        results = list(e.run(items))
        prompts = [e.prompt_tokens(item) for item in items]
        counts = e.statistics.counts
        common = e.vocab.tokenize(prefix)
    assert len(common) > 512
    shared = next(i for i in range(1000) if len({p[i] for p in prompts}) > 1)
    assert shared >= len(common)
    rest = sum(len(prompt) - shared for prompt in prompts)
    drawn = sum(len(result.tokens) for result in results)
    # rows: the prefix once, what follows it for each, and each drawn token but the last
    assert counts.prefilled + counts.decoded <= shared + rest + drawn - 64
    assert counts.shared >= 63 * shared
    alone = answers(path, items[5:6], BatchSettings(1, prefix=prefix), EngineSettings(1024))
    assert alone[5, None].tokens == next(r for r in results if r.id == 5).tokens


def test_samples_of_a_record(converted: Converter) -> None:
    path = converted(BUNDLED_MODEL, "q8_0")
    prompt = " ".join(WORDS[:60])
    record = Record("a", 1, SamplingSettings(seed=3), StopSettings(12), prompt, n=5)
    with BatchEngine(path, SETTINGS, BatchSettings(8)) as engine:
        results = {result.index: result for result in engine.run([record])}
        n_prompt = len(engine.prompt_tokens(record))
        assert engine.statistics.counts.prefilled == n_prompt - 1
        again = {r.index: r for r in engine.run([record], done={("a", 0), ("a", 3)})}
    assert sorted(results) == [0, 1, 2, 3, 4]
    assert len({result.tokens for result in results.values()}) == 5
    assert again == {index: results[index] for index in (1, 2, 4)}


def test_stop_strings_and_messages(converted: Converter) -> None:
    path = converted(BUNDLED_MODEL, "q8_0")
    free = Record("free", 1, GREEDY, StopSettings(30), "It is a truth")
    full = answers(path, [free], BatchSettings(8))["free", None].text
    word = full.split()[3]
    stopped = replace(free, id="stopped", stops=StopSettings(30, (word,)))
    got = answers(path, [free, stopped], BatchSettings(8))
    assert got["stopped", None].text == full[: full.index(word)]
    assert got["stopped", None].finish_reason == "stop"


TEMPLATE = (
    "{% if messages | length > 3 %}{{ raise_exception('too long') }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}<bot>"
)


@pytest.mark.parametrize("template", ["", TEMPLATE])
@pytest.mark.parametrize("style", ["", "human-bot"])
def test_a_conversation_is_answered_as_in_a_chat(
    template: str, style: str, converted: Converter, tmp_path: Path
) -> None:
    folder = BUNDLED_MODEL
    if template:
        folder = copy_checkpoint(BUNDLED_MODEL, tmp_path / "templated")
        edit_json(folder / "tokenizer_config.json", lambda c: c | {"chat_template": template})
    path = converted(folder, "q8_0")
    asked = ["Where is <|endoftext|> Mr. Darcy?", "He is well."]
    stops = StopSettings(12)
    items: list[Any] = [
        Record(i, i, GREEDY, stops, messages=(Message("user", text),))
        for i, text in enumerate(asked)
    ]
    long = tuple(Message("user", "x") for _ in range(5))
    items.append(Record("long", 9, GREEDY, stops, messages=long))
    got = answers(path, items, BatchSettings(8, style=style, system="In Meryton."))
    with LlamaEngine(path, SETTINGS) as engine:
        frame, _ = choose_frame(engine, style, "In Meryton.")
        for i, text in enumerate(asked):
            session = Session(engine, frame, "In Meryton.")
            reply = "".join(without_first_space(session.reply(text, GREEDY, stops)))
            assert reply
            assert got[i, None].text == reply
            assert got[i, None].tokens == tuple(session.last.tokens)
    error = got["long", None].error
    if template and not style:
        assert error == "line 9: the chat template fails: TemplateError: too long"
    else:
        assert error is None


def test_logprobs_are_those_of_the_model(converted: Converter) -> None:
    path = converted(BUNDLED_MODEL, "q8_0")
    record = Record("a", 1, GREEDY, StopSettings(6), "It is a truth")
    result = answers(path, [record], BatchSettings(8, logprobs=4))["a", None]
    assert result.logprobs is not None and len(result.logprobs) == len(result.tokens)
    with LlamaEngine(path, SETTINGS) as engine:
        tokens = engine.vocab.tokenize("It is a truth")
        for told in result.logprobs:
            engine.feed(tokens)
            logits = engine.context.logits().astype(np.float64)
            logs = logits - np.log(np.exp(logits).sum())
            assert told.logprob == pytest.approx(logs[told.token], abs=1e-9)
            assert [t for t, _ in told.top] == [*np.argsort(-logs, kind="stable")[:4]]
            tokens.append(told.token)


def test_what_cannot_be_answered_is_told_and_the_run_goes_on(converted: Converter) -> None:
    items = [
        BadRecord(1, "line 1: not JSON"),
        Record("long", 2, GREEDY, StopSettings(4), "x" * 4000),
        Record("empty", 3, GREEDY, StopSettings(4), ""),
        Record("good", 4, GREEDY, StopSettings(4), "abc"),
        BadRecord(5, "line 5: not JSON"),
    ]
    with BatchEngine(converted(), replace(SETTINGS, context=32), BatchSettings(2)) as engine:
        got = {result.id or result.line: result for result in engine.run(items)}
        assert engine.statistics.failed == 4
    assert sorted(got, key=str) == [1, 5, "empty", "good", "long"]
    assert "line 2: the prompt has" in (got["long"].error or "")
    assert "empty" in (got["empty"].error or "")
    assert got["good"].error is None


def test_a_full_context_ends_a_sequence(converted: Converter) -> None:
    path = converted(BUNDLED_MODEL, "q8_0")
    items = records(12, most=1)
    items = [replace(r, stops=StopSettings(1000)) for r in items if len(r.prompt or "") < 100]
    settings = replace(SETTINGS, context=64)
    got = answers(path, items, BatchSettings(8, logprobs=1), settings)
    with LlamaEngine(path, settings) as engine:
        for record in items:
            tokens = engine.vocab.tokenize(record.prompt or "")
            alone = complete(engine, tokens, GREEDY, record.stops)
            assert got[record.id, None].tokens == alone.tokens
            assert got[record.id, None].finish_reason == alone.finish_reason.value
    assert any(result.finish_reason == "context" for result in got.values())


def test_records_are_taken_as_there_is_room(converted: Converter) -> None:
    taken: list[int] = []

    def source() -> Iterator[Record]:
        for record in records(40):
            taken.append(record.line)
            yield replace(record, prompt="abc", stops=StopSettings(8))

    with BatchEngine(converted(), replace(SETTINGS, context=32), BatchSettings(4)) as engine:
        run = engine.run(source())
        next(run)
        assert len(taken) <= 6
        run.close()
        # what was left over is forgotten
        assert len(list(engine.run(records(1)))) == 1


def test_grammar_in_a_batch(converted: Converter) -> None:
    sampling = SamplingSettings(1.5, seed=1, grammar='root ::= [ab]+ "."')
    items = records(20, sampling)
    got = answers(converted(BUNDLED_MODEL, "q8_0"), items, BatchSettings(8))
    assert all(set(result.text) <= set("ab.") for result in got.values())
    assert len({result.text for result in got.values()}) > 3


def test_automatic_parallel_stays_within_the_memory(converted: Converter) -> None:
    path = converted()
    with BatchEngine(path, replace(SETTINGS, context=32), BatchSettings(0)) as engine:
        assert engine.n_seq in (8, 16, 32)
        assert engine.curve[0].n_seq == 8
        assert len(list(engine.run(records(3)))) == 3
    with pytest.raises(MemoryShortage):
        BatchEngine(path, replace(SETTINGS, memory=1000), BatchSettings(4))


def test_a_style_that_the_model_lacks(converted: Converter) -> None:
    with pytest.raises(SettingsError, match="has no chat template; --style dialogue does"):
        BatchEngine(converted(PARALLEL), SETTINGS, BatchSettings(1, style="template"))


@pytest.mark.parametrize(("parallel", "logprobs"), [(257, 0), (-1, 0), (1, 101), (1, -1)])
def test_settings_check_themselves(parallel: int, logprobs: int) -> None:
    with pytest.raises(SettingsError):
        BatchSettings(parallel, logprobs)


@pytest.mark.parametrize("parallel", range(1, 10))
def test_any_number_of_sequences_with_llama_cpps_kernels(
    converted: Converter, parallel: int
) -> None:
    # rows are filled up to whole steps, all of them with logits
    path = converted(PARALLEL, "f16")
    items = [replace(r, prompt="a b a b a b"[: 3 + r.line]) for r in records(12, most=6)]
    for draft in ("none", "lookup"):
        settings = EngineSettings(context=128, threads=1, native=False, draft=draft)
        got = answers(path, items, BatchSettings(parallel), settings)
        assert len(got) == len(items) and not any(result.error for result in got.values())


def test_a_constraint_of_a_record_is_counted_with_the_first(converted: Converter) -> None:
    path = converted(BUNDLED_MODEL, "q8_0")
    free = Record("free", 1, GREEDY, StopSettings(4), "It is")
    held = replace(free, id="held", sampling=replace(GREEDY, regex="[a-z ]+"))
    with BatchEngine(path, SETTINGS, BatchSettings(2)) as engine:
        before = engine.planned_bytes
        list(engine.run([free]))
        assert engine.planned_bytes == before
        assert [result.error for result in engine.run([held, replace(held, id="2")])] == [None] * 2
        assert before + 5_000_000 < engine.planned_bytes < before + 20_000_000
    tight = replace(SETTINGS, memory=before + 1_000_000)
    with BatchEngine(path, tight, BatchSettings(2)) as engine:
        results = {result.id: result for result in engine.run([free, held])}
    assert results["free"].error is None
    assert "a constraint takes" in str(results["held"].error)
    assert "raise --memory" in str(results["held"].error)
    assert results["held"].lacks_memory
