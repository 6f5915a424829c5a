"""What a text follows holds in every way of generating: alone, with guesses, in a batch."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from helpers import BUNDLED, Converter

from infer_os.native.constraint import TokenConstraint, constraint_bytes
from infer_os.native.errors import ConstraintFailed
from infer_os.runtime.batch.batch_engine import BatchEngine
from infer_os.runtime.batch.records import BadRecord, Record, RecordParser, value_of
from infer_os.runtime.batch.settings import BatchSettings
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.errors import SettingsError
from infer_os.runtime.generate import complete
from infer_os.runtime.open import open_engine
from infer_os.runtime.settings import EngineSettings, SamplingSettings, StopSettings

SETTINGS = EngineSettings(context=256, threads=1)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 16, "maximum": 90},
    },
    "required": ["name", "age"],
}
TEXT = json.dumps(SCHEMA)


@pytest.fixture(scope="module")
def model(converted: Converter) -> Path:
    return converted(next(f for f in BUNDLED if f.name == "austen-6m"), "q8_0")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"grammar": 'root ::= "a"', "regex": "a"}, "grammar and regex: give one of them"),
        ({"json_schema": '{"not": {}}'}, "json_schema cannot be used: .*keyword not cannot"),
        ({"regex": "("}, "regex cannot be used: "),
        ({"grammar": "root"}, "grammar cannot be used: "),
        ({"json_schema": SCHEMA}, "json_schema "),
    ],
)
def test_settings_check_themselves(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        SamplingSettings(**given)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_guesses_change_no_text(model: Path, temperature: float, penalty: float) -> None:
    sampling = SamplingSettings(temperature, repeat_penalty=penalty, seed=4, json_schema=TEXT)
    stops = StopSettings(100)
    texts = []
    for draft in ("none", "lookup"):
        with open_engine(model, replace(SETTINGS, draft=draft, native=False)) as engine:
            prompt = engine.vocab.tokenize('{"name": "Mr. Darcy", "age": 28} {"name": "Mr. Darcy')
            done = complete(engine, prompt, sampling, stops)
            jsonschema.validate(json.loads(done.text), SCHEMA)
            assert done.finish_reason.value == "end"
            texts.append(done.tokens)
    assert texts[0] == texts[1]


def test_each_record_of_a_batch_follows_its_own(model: Path) -> None:
    parser = RecordParser(SamplingSettings(0.8, seed=2, regex="[a-z]{3}"), StopSettings(80))
    values = [{"id": i, "prompt": "It is"} for i in range(4)]
    values += [{"id": 10 + i, "prompt": "It is", "json_schema": SCHEMA} for i in range(4)]
    values += [{"id": 20, "prompt": "It is", "grammar": 'root ::= "x" | "y"', "temperature": 0}]
    records = [parser.parse(i + 1, value) for i, value in enumerate(values)]
    with BatchEngine(model, SETTINGS, BatchSettings(8, logprobs=1)) as engine:
        results = {result.id: result for result in engine.run(records)}
    for name, result in results.items():
        assert result.finish_reason == "end", result
        if name == 20:
            assert result.text in ("x", "y")
        elif isinstance(name, int) and name >= 10:
            jsonschema.validate(json.loads(result.text), SCHEMA)
        else:
            assert len(result.text) == 3 and result.text.isalpha()
        # the model's own, which no constraint touches
        assert result.logprobs is not None
        assert all(told.logprob > -100 for told in result.logprobs)
    with LlamaEngine(model, SETTINGS) as alone:
        record = next(r for r in records if isinstance(r, Record) and r.id == 11)
        done = complete(
            alone, alone.vocab.tokenize("It is"), record.sampling_of(0), StopSettings(80)
        )
    assert done.text == results[11].text


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"json_schema": {"not": {}}}, 'line 3: "json_schema" cannot be used: .*keyword not'),
        ({"regex": 5}, '"regex" is a text'),
        ({"regex": "a", "grammar": 'root ::= "a"'}, '"grammar" and "regex": a record has one'),
        ({"grammar": ""}, '"grammar" is empty'),
    ],
)
def test_a_bad_record_says_why(more: dict[str, Any], complaint: str) -> None:
    parsed = RecordParser(SamplingSettings(), StopSettings()).parse(
        3, {"id": 1, "prompt": "x", **more}
    )
    assert isinstance(parsed, BadRecord)
    assert re.search(complaint, parsed.error), parsed.error


def test_a_record_travels_with_what_it_follows() -> None:
    run = RecordParser(SamplingSettings(grammar='root ::= "a"'), StopSettings())
    for more in ({}, {"json_schema": SCHEMA}, {"regex": "a+"}):
        record = run.parse(1, {"id": json.dumps(more), "prompt": "x", **more})
        assert isinstance(record, Record)
        again = RecordParser(SamplingSettings(grammar='root ::= "a"'), StopSettings())
        assert again.parse(1, json.loads(json.dumps(value_of(record)))) == record


def test_a_row_of_logits_is_as_it_was(model: Path) -> None:
    with LlamaEngine(model, SETTINGS) as engine:
        engine.feed(engine.vocab.tokenize("It is"))
        before = engine.logits().copy()
        constraint = TokenConstraint(engine.vocab, "regex", "[0-9]+")
        with constraint.applied(engine.logits()):
            allowed = (engine.logits() > float("-inf")).nonzero()[0]
            assert all(engine.vocab.piece(int(t)).isdigit() for t in allowed)
            assert len(allowed)
        assert (engine.logits() == before).all()


def test_a_record_that_cannot_go_on_fails_alone(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = TokenConstraint.accept
    calls = iter(range(1000))

    def failing(self: TokenConstraint, token: int) -> None:
        if next(calls) == 5:
            raise ConstraintFailed("the text cannot be held to its grammar: too many items")
        accept(self, token)

    monkeypatch.setattr(TokenConstraint, "accept", failing)
    sampling = SamplingSettings(1.0, seed=1, regex="[a-z ]{40}")
    records = [Record(i, i + 1, sampling, StopSettings(60), "It is") for i in range(3)]
    with BatchEngine(model, SETTINGS, BatchSettings(8)) as engine:
        results = list(engine.run(records))
    assert sorted(result.finish_reason for result in results) == ["end", "end", "error"]
    assert [
        r.error for r in results if r.error and "line" in r.error and "too many items" in r.error
    ]


def test_the_memory_is_bounded_by_the_vocabulary() -> None:
    assert constraint_bytes(250_880) < 200_000_000
