"""Bodies of requests: what is asked for, and what each wrong field is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from infer_os.runtime.chat.frame import Message
from infer_os.runtime.settings import SamplingSettings, StopSettings
from infer_os.serve.body import read_object
from infer_os.serve.errors import ApiError
from infer_os.serve.generation_request import Defaults, read_chat, read_completion

DEFAULTS = Defaults(("one", "two"), 100, SamplingSettings(seed=7), StopSettings(33, ("END",)))
USER = {"role": "user", "content": "Hi"}


def completion(**fields: Any) -> Any:
    return read_completion({"prompt": "Hi", **fields}, DEFAULTS)


def chat(**fields: Any) -> Any:
    return read_chat({"messages": [USER], **fields}, DEFAULTS)


def refusal(make: Any, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        make(**fields)
    assert "\n" not in caught.value.message
    return caught.value


def test_what_is_not_said_is_the_servers() -> None:
    asked = completion()
    assert asked.prompts == ("Hi",)
    assert asked.stops == DEFAULTS.stops
    assert (asked.seed, asked.n, asked.best_of, asked.logprobs) == (7, 1, 1, None)
    assert asked.sampling == SamplingSettings()


def test_null_is_as_if_it_were_not_there() -> None:
    assert completion(temperature=None, suffix=None, stop=None, seed=None) == completion()


def test_every_setting_arrives() -> None:
    asked = completion(
        temperature=0.5, top_p=0.9, top_k=3, min_p=0.1, repeat_penalty=1.2, seed=3, n=2, best_of=4,
        echo=True, stop=["a", "b"], max_tokens=5, logit_bias={"4": -100, "5": 1.5}, regex="a+",
    )  # fmt: skip
    assert asked.sampling == SamplingSettings(
        0.5, 3, 0.9, 0.1, 1.2, regex="a+", logit_bias=((4, -100), (5, 1.5))
    )
    assert asked.stops == StopSettings(5, ("a", "b"))
    assert (asked.seed, asked.n, asked.best_of, asked.echo) == (3, 2, 4, True)


def test_a_record_for_each_prompt() -> None:
    records = completion(prompt=["a", [1, 2]], n=2, best_of=3).records("x")
    assert [(r.id, r.prompt, r.n, r.logprobs) for r in records] == [
        ("x-0", "a", 3, 0), ("x-1", (1, 2), 3, 0),
    ]  # fmt: skip


def test_when_prompts_are_scored() -> None:
    def made(**fields: Any) -> Any:
        (record,) = completion(**fields).records("x")
        return record.scores_prompt, record.draws, record.logprobs

    assert made(echo=True) == (False, True, None)
    assert made(logprobs=3) == (False, True, 3)
    assert made(echo=True, logprobs=3) == (True, True, 3)
    assert made(echo=True, logprobs=3, max_tokens=0) == (True, False, 3)
    assert made(echo=True, max_tokens=0) == (True, False, None)


def test_a_list_of_numbers_is_one_prompt() -> None:
    assert completion(prompt=[1, 2, 3]).prompts == ((1, 2, 3),)


def test_a_random_seed_in_place_of_the_servers() -> None:
    assert completion(seed=-1).seed is None


def test_messages() -> None:
    asked = chat(messages=[
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "name": "x", "refusal": None},
        USER,
    ])  # fmt: skip
    assert asked.messages == (
        Message("system", "Be kind."), Message("user", "a\nb"), Message("assistant", "c"),
        Message("user", "Hi"),
    )  # fmt: skip


def test_what_clients_send_without_need() -> None:
    given: dict[str, Any] = {
        "user": "me", "metadata": {"a": "b"}, "store": True, "frequency_penalty": 0,
        "presence_penalty": 0.0, "tools": [], "tool_choice": "auto", "modalities": ["text"],
    }  # fmt: skip
    assert chat(**given) == chat()


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        ({"type": "text"}, ""),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"},
          "strict": True}}, {"type": "integer"}),
    ],
)  # fmt: skip
def test_response_formats(form: Any, schema: Any) -> None:
    found = chat(response_format=form).sampling.json_schema
    assert (json.loads(found) if found else "") == schema


def test_chat_limits_and_logprobs() -> None:
    asked = chat(max_tokens=4, max_completion_tokens=5, logprobs=True, top_logprobs=2)
    assert (asked.stops.max_tokens, asked.logprobs) == (5, 2)
    assert chat(max_tokens=4, logprobs=True).logprobs == 0
    assert chat(logprobs=False).logprobs is None


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"prompt": 5}, "prompt", "a text, a list of texts, or tokens"),
        ({"prompt": []}, "prompt", "empty"),
        ({"prompt": ["a", 5]}, "prompt[1]", "a text"),
        ({"prompt": [1, 100]}, "prompt[1]", "0 to 99"),
        ({"prompt": [1, True]}, "prompt[1]", "true: expected a whole number"),
        ({"prompt": [[1], [-1]]}, "prompt[1][0]", "0 to 99"),
        ({"prompt": ["a"] * 1025}, "prompt", "at most 1024"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"temperature": "hot"}, "temperature", "'hot': expected a number"),
        ({"temperature": -1}, "temperature", "0.001 to 1000"),
        ({"temperature": float("nan")}, "temperature", "0.001 to 1000"),
        ({"top_p": 0}, "top_p", "more than 0"),
        ({"top_k": 1.5}, "top_k", "a whole number"),
        ({"seed": 1 << 40}, "seed", "4294967294"),
        ({"n": 0}, "n", "1 to 1024"),
        ({"n": True}, "n", "true: expected a whole number"),
        ({"n": 3, "best_of": 2}, "best_of", "3 to 1024"),
        ({"best_of": 2, "stream": True}, "best_of", "cannot be streamed"),
        ({"max_tokens": 0}, "max_tokens", "1 or more"),
        ({"stop": ""}, "stop", "none of them empty"),
        ({"stop": ["a", 1]}, "stop", "a text or a list of texts"),
        ({"stop": ["a"] * 65}, "stop", "at most 64"),
        ({"echo": 1}, "echo", "True or False"),
        ({"logprobs": 21}, "logprobs", "0 to 20"),
        ({"logprobs": 1, "echo": True, "stream": True}, "stream", "cannot be streamed"),
        ({"max_tokens": 0, "echo": True, "n": 2}, "n", "nothing to draw"),
        ({"max_tokens": 0, "echo": True, "best_of": 2}, "best_of", "nothing to draw"),
        ({"max_tokens": False, "echo": True}, "max_tokens", "false: expected"),
        ({"logit_bias": {"100": 1}}, "logit_bias", "'100' is no token"),
        ({"logit_bias": {"١": 1}}, "logit_bias", "is no token"),
        ({"logit_bias": {"1": 101}}, "logit_bias[1]", "-100 to 100"),
        ({"logit_bias": [1]}, "logit_bias", "an object"),
        ({"frequency_penalty": 101}, "frequency_penalty", "-100 to 100; 0 is off"),
        ({"mirostat": 2, "typical_p": 0.5}, "mirostat", "takes the place of typical_p"),
        ({"min_tokens": 1.5}, "min_tokens", "a whole number"),
        ({"stream_options": {}}, "stream_options", "needs stream"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "not known"),
        ({"grammar": "root ::= x"}, "grammar", "cannot be used"),
        ({"regex": "("}, "regex", "cannot be used"),
        ({"regex": ""}, "regex", "empty"),
        ({"json_schema": {"type": "x"}}, "json_schema", "cannot be used"),
        ({"regex": "a", "grammar": 'root ::= "a"'}, "regex", "give one of them"),
        ({"temprature": 1}, "temprature", "not known"),
        ({"messages": []}, "messages", "not known"),
    ],
)  # fmt: skip
def test_a_wrong_field_of_a_completion(fields: Any, param: str, said: str) -> None:
    error = refusal(completion, **fields)
    assert error.param == param
    assert said in error.message
    assert error.status == 400
    assert len(error.message) < 300


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"messages": "Hi"}, "messages", "a list"),
        ({"messages": []}, "messages", "empty"),
        ({"messages": ["Hi"]}, "messages[0]", "an object"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].role", "one of system"),
        ({"messages": [USER, {**USER, "content": 5}]}, "messages[1].content", "a text, or a list"),
        ({"messages": [{**USER, "content": [{"type": "image_url"}]}]},
         "messages[0].content[0].type", "expected text"),
        ({"messages": [{**USER, "x": 1}]}, "messages[0].x", "not known"),
        ({"messages": [USER, {"role": "assistant", "content": "a"}]}, "messages", "of the user"),
        ({"tools": [{}]}, "tools", "not supported"),
        ({"tool_choice": "required"}, "tool_choice", "without tools"),
        ({"functions": [{}]}, "functions", "not supported"),
        ({"modalities": ["audio"]}, "modalities", "write text"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"logprobs": 2}, "logprobs", "True or False"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
         "response_format.json_schema.schema", "missing"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 5}}}},
         "response_format", "cannot be used"),
        ({"response_format": {"type": "json_object"}, "regex": "a"}, "response_format", "one of"),
        ({"prompt": "Hi"}, "prompt", "not known"),
        ({"best_of": 2}, "best_of", "not known"),
    ],
)  # fmt: skip
def test_a_wrong_field_of_a_chat(fields: Any, param: str, said: str) -> None:
    error = refusal(chat, **fields)
    assert error.param == param
    assert said in error.message


def test_another_model_is_not_found() -> None:
    assert completion(model="two") == completion()
    error = refusal(completion, model="gpt-4")
    assert (error.status, error.param, error.code) == (404, "model", "model_not_found")
    assert "one, two" in error.message


def test_a_missing_prompt() -> None:
    with pytest.raises(ApiError, match="prompt is missing"):
        read_completion({}, DEFAULTS)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b"[1]", "no JSON object"),
        (b"\xff\xfe", "no UTF-8"),
        (b"[" * 100_000, "too deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", "thousands of digits"),
    ],
)
def test_a_body_that_is_no_object(data: bytes, said: str) -> None:
    with pytest.raises(ApiError, match=said):
        read_object(data)
