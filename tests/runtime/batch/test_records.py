from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from infer_os.runtime.batch.records import BadRecord, Record, RecordParser, Result, value_of
from infer_os.runtime.settings import SamplingSettings, StopSettings


def parse(*values: Any, seed: int | None = 1) -> list[Record | BadRecord]:
    parser = RecordParser(SamplingSettings(seed=seed, top_k=7), StopSettings(9, ("s",)))
    return [parser.parse(line, value) for line, value in enumerate(values, 1)]


def good(*values: Any, seed: int | None = 1) -> Record:
    record = parse(*values, seed=seed)[-1]
    assert isinstance(record, Record), record
    return record


def test_settings_of_a_record_come_before_those_of_the_run() -> None:
    plain = good({"id": 1, "prompt": "x"})
    assert (plain.sampling.top_k, plain.stops.max_tokens, plain.stops.strings) == (7, 9, ("s",))
    own = good({
        "id": "a", "prompt": "x", "max_tokens": 3, "temperature": 0, "top_k": 2, "top_p": 0.5,
        "min_p": 0.1, "seed": 5, "stop": ["a", "b"], "n": 2,
    })  # fmt: skip
    assert own.stops == StopSettings(3, ("a", "b"))
    assert own.sampling_of(0) == SamplingSettings(0, 2, 0.5, 0.1, seed=5)
    assert own.n == 2
    assert good({"id": 1, "prompt": "x", "stop": "end"}).stops.strings == ("end",)


def test_messages() -> None:
    record = good({"id": 1, "messages": [{"role": "user", "content": "hello"}]})
    assert record.prompt is None
    assert record.messages[0].content == "hello"


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ([1], "object, not a list"),
        ("text", "object, not a text"),
        ({"id": 1.5, "prompt": "x"}, '"id" is a text or a whole number'),
        ({"id": True, "prompt": "x"}, '"id" is a text or a whole number'),
        ({"id": 10**5000, "prompt": "x"}, '"id" is a number with thousands of digits'),
        ({"id": 1}, 'either "prompt" or "messages"'),
        ({"id": 1, "prompt": "x", "messages": []}, 'either "prompt" or "messages"'),
        ({"id": 1, "prompt": 3}, '"prompt" is a text'),
        ({"id": 1, "prompt": "x", "temprature": 1}, "unknown setting 'temprature'"),
        ({"id": 1, "prompt": "x", "temperature": "hot"}, '"temperature" is a number'),
        ({"id": 1, "prompt": "x", "temperature": -1}, '"temperature" -1: expected 0'),
        ({"id": 1, "prompt": "x", "temperature": float("nan")}, '"temperature" nan: expected 0'),
        ({"id": 1, "prompt": "x", "max_tokens": 1.5}, '"max_tokens" is a whole number'),
        ({"id": 1, "prompt": "x", "max_tokens": 0}, '"max_tokens" 0: expected 1 or more, or -1; 0'),
        ({"id": 1, "prompt": "x", "seed": -2}, '"seed" -2: expected 0'),
        ({"id": 1, "prompt": "x", "json_schema": {"const": object()}}, "cannot be written as JSON"),
        ({"id": 1, "prompt": "x", "json_schema": {"const": 1e999}}, '"json_schema"'),
        ({"id": 1, "prompt": "x", "regex": "a{" + "9" * 5000 + "}"}, "more than 100000 characters"),
        ({"id": 1, "prompt": "x", "n": 0}, '"n" is 0'),
        ({"id": 1, "prompt": "x", "n": True}, '"n" is a whole number'),
        ({"id": 1, "prompt": "x", "stop": [1]}, '"stop" is a text or a list'),
        ({"id": 1, "prompt": "x", "stop": ""}, '"stop" has an empty text'),
        ({"id": 1, "messages": "x"}, '"messages" is a list'),
        ({"id": 1, "messages": [{"role": "robot", "content": "x"}]}, "message 1"),
        ({"id": 1, "messages": [{"role": "assistant", "content": "x"}]}, "last message"),
    ],
)
def test_a_bad_record_says_what_and_where(value: Any, complaint: str) -> None:
    bad = parse({"id": 7, "prompt": "fine"}, value)[1]
    assert isinstance(bad, BadRecord)
    assert bad.error.startswith("line 2: ")
    assert complaint in bad.error
    assert "--" not in bad.error  # nobody typed an option


def test_minus_one_is_no_limit_and_a_random_seed() -> None:
    value = {"prompt": "x", "max_tokens": -1, "seed": -1}
    first, second = parse({"id": 1, **value}, {"id": 2, **value})
    assert isinstance(first, Record)
    assert isinstance(second, Record)
    assert first.stops.limit > 1 << 40
    # drawn once, so that every sample and every node knows it
    assert first.seed is not None
    assert first.seed != second.seed
    again = value_of(first)
    assert (again["seed"], again["max_tokens"]) == (first.seed, -1)


def test_an_id_is_used_once() -> None:
    bad = parse({"id": "a", "prompt": "x"}, {"id": 1, "prompt": "x"}, {"id": "a", "prompt": "y"})[2]
    assert isinstance(bad, BadRecord)
    # an answer of that id is there: the error must not be taken for another
    assert (bad.id, bad.line) == (None, 3)
    assert "the id 'a' is already that of line 1" in bad.error


def test_a_record_without_an_id_gets_its_number() -> None:
    records = parse({"prompt": "x"}, {"id": None, "prompt": "y"}, {"id": "a", "prompt": "z"})
    assert [record.id for record in records] == [1, 2, "a"]
    late = parse({"id": 2, "prompt": "x"}, {"prompt": "y"})[1]
    assert isinstance(late, BadRecord) and late.id is None
    assert late.error.startswith(
        "line 2: it has no id, and its number, 2, is already the id of line 1"
    )
    early = parse({"prompt": "x"}, {"id": 1, "prompt": "y"})[1]
    assert isinstance(early, BadRecord)
    assert early.error == "line 2: the id 1 is already that of line 1"


def test_an_error_counts_in_the_words_of_its_input() -> None:
    parser = RecordParser(SamplingSettings(), StopSettings())
    bad = parser.parse(3, {"prompt": 1}, "row")
    assert isinstance(bad, BadRecord) and bad.error.startswith("row 3: ")


def test_a_record_that_is_bad_otherwise_does_not_take_its_id() -> None:
    assert good({"id": "a", "prompt": 1}, {"id": "a", "prompt": "x"}).id == "a"


def test_seeds_depend_on_the_run_and_the_id_alone() -> None:
    one = good({"id": "a", "prompt": "x"})
    other = good({"id": 5, "prompt": "z"}, {"id": "a", "prompt": "x"})
    assert one.sample_seed(0) == other.sample_seed(0)
    seeds = {good({"id": i, "prompt": "x", "n": 3}).sample_seed(j) for i in "ab1" for j in range(3)}
    assert len(seeds | {good({"id": 1, "prompt": "x"}).sample_seed(0)}) == 10
    assert good({"id": "a", "prompt": "x"}, seed=2).sample_seed(0) != one.sample_seed(0)
    assert good({"id": "a", "prompt": "x"}, seed=None).sample_seed(0) is None
    assert good({"id": "a", "prompt": "x", "seed": 3}).sample_seed(0) == 3
    assert good({"id": "a", "prompt": "x", "seed": 3}).sample_seed(1) != 3


def test_a_line_of_output() -> None:
    assert Result("a", 3, "t", (1,), "end").as_json() == {
        "id": "a", "text": "t", "tokens": [1], "finish_reason": "end", "error": None,
    }  # fmt: skip
    assert Result(None, 3, error="e").as_json()["line"] == 3
    assert Result("a", 3, index=1).as_json()["index"] == 1


def test_numbers_of_numpy_will_do() -> None:
    record = good({
        "id": np.int64(7), "prompt": "x", "temperature": np.float32(0.5), "seed": np.int64(3),
        "max_tokens": np.int32(4), "n": np.uint8(2),
    })  # fmt: skip
    assert record.id == 7 and type(record.id) is int
    assert (record.sampling.temperature, record.seed, record.n) == (0.5, 3, 2)
    assert record.stops.max_tokens == 4
