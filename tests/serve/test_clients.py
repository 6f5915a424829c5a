"""The server on a trained model, asked by OpenAI's own client, and compared with ``batch``."""

from __future__ import annotations

import base64
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from helpers import BUNDLED, REPOSITORY, Converter
from http_server import Service, eventually, running

from infer_os.runtime.batch.batch_engine import BatchEngine
from infer_os.runtime.batch.settings import BatchSettings
from infer_os.runtime.scoring.embedder import Embedder
from infer_os.runtime.scoring.score_records import parsed_texts
from infer_os.runtime.scoring.scorer import Scorer
from infer_os.runtime.scoring.settings import ScoringSettings
from infer_os.runtime.settings import EngineSettings, Extra
from infer_os.serve.batch_seat import BatchSeat

AUSTEN = next(folder for folder in BUNDLED if folder.name == "austen-6m")
TRUTH = "It is a truth universally"
SCHEMA = {
    "type": "object", "properties": {"name": {"enum": ["Emma", "Anne"]}, "age": {"enum": [1, 2]}},
    "required": ["name", "age"], "additionalProperties": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(converted: Converter) -> Path:
    return converted(AUSTEN, "q8_0")


@pytest.fixture(scope="module")
def service(model: Path) -> Iterator[Service]:
    settings = EngineSettings(context=256, threads=1, extras=frozenset({Extra.SERVER}))
    engine = BatchEngine(model, settings, BatchSettings(parallel=8))

    def open_embedder(memory: int) -> Embedder:
        return Embedder(model, replace(settings, memory=memory), model=engine.model)

    with running(BatchSeat(engine, open_embedder), names=("austen",)) as found:
        yield found


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["austen"]
    assert client.models.retrieve("austen").owned_by == "infer-os"


@pytest.mark.parametrize("wanted", ["float", "base64", None])
def test_embeddings(client: openai.OpenAI, model: Path, wanted: Any) -> None:
    texts = [TRUTH, "Mr. Darcy danced only once with Mrs. Hurst " * 4, "and"]
    # the client asks for base64 by itself, and unpacks it
    form = {} if wanted is None else {"encoding_format": wanted}
    got = client.embeddings.create(model="austen", input=texts, **form)
    with Embedder(model, EngineSettings(context=256, threads=1)) as embedder:
        tokens = [embedder.vocab.tokenize(text) for text in texts]
        expected = [embedder.embed(each).tolist() for each in tokens]
    found = [item.embedding for item in got.data]
    if wanted == "base64":
        found = [np.frombuffer(base64.b64decode(str(text)), "<f4").tolist() for text in found]
    assert found == expected
    assert got.usage.prompt_tokens == sum(map(len, tokens))
    again = client.embeddings.create(model="austen", input=tokens)
    assert [item.embedding for item in again.data] == expected
    # texts are written as before
    assert client.completions.create(model="austen", prompt=TRUTH, max_tokens=5).choices[0].text


def test_a_completion_and_its_stream(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "austen", "prompt": TRUTH, "max_tokens": 12, "seed": 5}
    whole = client.completions.create(**ask)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12
    chunks = list(
        client.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    )
    *pieces, last = chunks
    assert "".join(chunk.choices[0].text for chunk in pieces) == whole.choices[0].text
    assert last.usage == whole.usage


def test_samples_differ_and_repeat(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "austen", "prompt": [TRUTH, "She"], "n": 2, "seed": 3,
                           "max_tokens": 12}  # fmt: skip
    first, second = (client.completions.create(**ask) for _ in range(2))
    texts = [choice.text for choice in first.choices]
    assert len(set(texts)) == 4
    assert [choice.text for choice in second.choices] == texts


def test_tokens_as_a_prompt(client: openai.OpenAI, service: Service) -> None:
    tokens = service.post("/tokenize", content=TRUTH).json["tokens"]
    ask: dict[str, Any] = {"model": "austen", "max_tokens": 8, "temperature": 0}
    texts = [
        client.completions.create(prompt=prompt, **ask).choices[0].text
        for prompt in (TRUTH, tokens, [tokens])
    ]
    assert len(set(texts)) == 1
    assert service.post("/detokenize", tokens=tokens).json["content"] == TRUTH


def test_logprobs(client: openai.OpenAI) -> None:
    got = client.completions.create(
        model="austen", prompt=TRUTH, max_tokens=6, temperature=0, logprobs=3
    )
    told = got.choices[0].logprobs
    assert told is not None and told.tokens is not None and told.top_logprobs is not None
    assert told.token_logprobs is not None and told.text_offset is not None
    assert "".join(told.tokens) == got.choices[0].text
    for token, logprob, top in zip(
        told.tokens, told.token_logprobs, told.top_logprobs, strict=True
    ):
        assert max(top, key=lambda t: top[t]) == token
        assert top[token] == logprob < 0
    assert told.text_offset == [
        len("".join(told.tokens[:i])) for i in range(len(told.tokens))
    ]  # fmt: skip


LONG = (REPOSITORY / "models" / "bundled" / "held-out.txt").read_text()
#: Prompts of one token up to a full context, some with beginnings in common.
SCORED = [LONG[at : at + n] for at, n in ((0, 1), (0, 60), (0, 300), (90, 5), (700, 400))]


@pytest.fixture(scope="module")
def expected(model: Path) -> list[list[tuple[int, float]]]:
    """What ``infer-os score`` says of the texts, each token of them."""
    settings = EngineSettings(context=256, threads=1)
    with closing(Scorer(model, settings, ScoringSettings(parallel=3))) as scorer:
        results = sorted(scorer.run(parsed_texts(SCORED)), key=lambda result: result.line)
    return [[(t.token, t.logprob) for t in result.tokens or ()] for result in results]


def prompt_of(service: Service, text: str) -> list[int]:
    """The tokens of a text behind the one that begins texts, as scoring has them."""
    (opening,) = service.post("/tokenize", content="<|endoftext|>").json["tokens"]
    return [opening, *service.post("/tokenize", content=text).json["tokens"]]


def test_the_logprobs_of_an_echo_are_those_of_score(
    client: openai.OpenAI, service: Service, expected: list[list[tuple[int, float]]]
) -> None:
    ask: dict[str, Any] = {"model": "austen", "echo": True, "logprobs": 2, "max_tokens": 0}
    prompts = [prompt_of(service, text) for text in SCORED]
    got = client.completions.create(prompt=prompts, **ask)
    assert got.usage is not None and got.usage.completion_tokens == 0
    for choice, prompt, scores in zip(got.choices, prompts, expected, strict=True):
        assert choice.finish_reason == "length"
        told = choice.logprobs
        assert told is not None and told.tokens is not None and told.top_logprobs is not None
        assert told.token_logprobs is not None
        assert told.token_logprobs == [None, *(logprob for _, logprob in scores)]
        assert prompt[1:] == [token for token, _ in scores]
        assert len(told.tokens) == len(told.top_logprobs) == len(prompt)
        for token, logprob, top in zip(
            told.tokens[1:], told.token_logprobs[1:], told.top_logprobs[1:], strict=True
        ):
            assert len(top) == 2
            assert top.get(token, logprob) == logprob


def test_the_likeliest_of_an_echo_are_what_is_drawn(
    client: openai.OpenAI, service: Service
) -> None:
    ask: dict[str, Any] = {"model": "austen", "temperature": 0, "logprobs": 1, "echo": True}
    drawn = client.completions.create(prompt=TRUTH, max_tokens=12, **ask).choices[0]
    again = client.completions.create(prompt=drawn.text, max_tokens=1, **ask).choices[0]
    one, two = drawn.logprobs, again.logprobs
    assert one is not None and two is not None and one.tokens and two.tokens
    assert one.token_logprobs and two.token_logprobs and two.top_logprobs
    n = len(one.tokens)
    assert two.tokens[:n] == one.tokens
    assert two.text_offset == [len("".join(two.tokens[:i])) for i in range(n + 1)]
    for i in range(n - 12, n):
        assert two.top_logprobs[i] == {two.tokens[i]: two.token_logprobs[i]}
        assert two.token_logprobs[i] == pytest.approx(one.token_logprobs[i], abs=1e-9)


def test_texts_and_scores_beside_each_other_are_as_alone(
    service: Service, expected: list[list[tuple[int, float]]]
) -> None:
    prompts = [prompt_of(service, text) for text in SCORED]
    write: dict[str, Any] = {"prompt": TRUTH, "max_tokens": 40, "temperature": 0}
    alone = texts_of_server(service, write)

    def one(i: int) -> None:
        if i % 3 == 0:
            assert texts_of_server(service, write) == alone
            return
        which = i % len(prompts)
        ask = {"prompt": prompts[which], "echo": True, "logprobs": 0, "max_tokens": i % 2}
        (choice,) = service.post("/v1/completions", ask).json["choices"]
        got = choice["logprobs"]["token_logprobs"][1 : len(prompts[which])]
        assert got == [logprob for _, logprob in expected[which]]

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(one, range(40)))


def test_best_of_is_the_likeliest(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "austen", "prompt": TRUTH, "max_tokens": 8, "seed": 4,
                           "logprobs": 0}  # fmt: skip
    every = client.completions.create(**ask, n=4).choices
    (best,) = client.completions.create(**ask, best_of=4).choices

    def mean(choice: Any) -> float:
        values = choice.logprobs.token_logprobs
        return float(sum(values) / len(values))

    assert best.text == max(every, key=mean).text


def test_a_bias_of_tokens(client: openai.OpenAI, service: Service) -> None:
    (comma,) = service.post("/tokenize", content=",").json["tokens"]
    ask: dict[str, Any] = {"model": "austen", "prompt": TRUTH, "max_tokens": 4, "temperature": 0}
    got = client.completions.create(**ask, logit_bias={str(comma): 100})
    assert got.choices[0].text == ",,,,"
    free = client.completions.create(**ask, logprobs=1).choices[0]
    (first,) = service.post("/tokenize", content=free.logprobs.tokens[0]).json["tokens"]
    banned = client.completions.create(**ask, logit_bias={str(first): -100}).choices[0]
    assert not banned.text.startswith(free.logprobs.tokens[0])


def test_a_chat_and_its_stream(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {
        "model": "austen", "max_completion_tokens": 12, "seed": 5,
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
    }  # fmt: skip
    whole = client.chat.completions.create(**ask).choices[0].message
    assert whole.role == "assistant"
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(**ask, stream=True)
    ]
    assert "".join(pieces) == whole.content


def test_logprobs_of_a_chat(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(
        model="austen", messages=[{"role": "user", "content": "Hi"}], max_tokens=3,
        logprobs=True, top_logprobs=2,
    )  # fmt: skip
    told = got.choices[0].logprobs
    assert told is not None and told.content is not None
    assert [len(entry.top_logprobs) for entry in told.content] == [2, 2, 2]
    assert all(bytes(entry.bytes or ()).decode() == entry.token for entry in told.content)


def test_a_schema(client: openai.OpenAI) -> None:
    form: Any = {
        "type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
    }  # fmt: skip
    got = client.chat.completions.create(
        model="austen", messages=[{"role": "user", "content": "Who?"}], max_tokens=60,
        response_format=form,
    )  # fmt: skip
    value = json.loads(got.choices[0].message.content or "")
    assert value["name"] in ("Emma", "Anne") and value["age"] in (1, 2)


def test_errors(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "austen", "prompt": TRUTH}
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**ask, temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt-4", prompt=TRUTH)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.APIStatusError) as long:
        client.completions.create(model="austen", prompt="word " * 3000)
    assert (long.value.status_code, long.value.code) == (413, "context_length_exceeded")
    with pytest.raises(openai.BadRequestError) as tools:
        client.chat.completions.create(
            model="austen", messages=[{"role": "user", "content": "Hi"}],
            tools=[{"type": "function", "function": {"name": "f"}}],
        )  # fmt: skip
    assert tools.value.param == "tools"


def test_a_prompt_that_is_far_too_long_is_not_tokenized(service: Service) -> None:
    # 3 MB in one word, which a tokenizer would look at for minutes
    got = service.complete("a" * 3_000_000)
    assert (got.status, got.error["code"]) == (413, "context_length_exceeded")
    assert "at least" in got.error["message"]


RECORDS: list[dict[str, Any]] = [
    {"prompt": TRUTH, "max_tokens": 10, "temperature": 0},
    {"prompt": TRUTH, "max_tokens": 10, "seed": 3},
    {"prompt": "She was", "max_tokens": 14, "seed": 4, "top_k": 5, "min_p": 0.0, "top_p": 0.9},
    {"prompt": "He said", "max_tokens": 8, "seed": 5, "n": 3, "temperature": 1.5},
    {"prompt": "Mr.", "max_tokens": 30, "seed": 6, "stop": [".", " the"]},
    {"prompt": "In", "max_tokens": 20, "seed": 7, "regex": "[a-z ]{5,9}\\."},
    {"messages": [{"role": "user", "content": "How are you?"}], "max_tokens": 12, "seed": 8},
    {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
     "max_tokens": 12, "temperature": 0, "stop": "\n"},
    {"messages": [{"role": "user", "content": "Who?"}], "max_tokens": 60, "seed": 9,
     "json_schema": SCHEMA},
]  # fmt: skip


def texts_of_batch(model: Path) -> list[list[str]]:
    """What ``infer-os batch`` writes for the records."""
    lines = "".join(json.dumps({"id": i, **record}) + "\n" for i, record in enumerate(RECORDS))
    command = [
        sys.executable, "-m", "infer_os.cli", "batch", str(model), "--parallel", "8", "--context",
        "256", "--threads", "1",
    ]  # fmt: skip
    done = subprocess.run(command, input=lines.encode(), capture_output=True, check=True)
    found: dict[int, dict[int, str]] = {}
    for line in done.stdout.splitlines():
        answer = json.loads(line)
        assert answer["error"] is None
        found.setdefault(answer["id"], {})[answer.get("index", 0)] = answer["text"]
    return [[found[i][j] for j in sorted(found[i])] for i in range(len(RECORDS))]


def texts_of_server(service: Service, record: dict[str, Any]) -> list[str]:
    if "messages" in record:
        choices = service.post("/v1/chat/completions", record).json["choices"]
        return [choice["message"]["content"] for choice in choices]
    return [choice["text"] for choice in service.post("/v1/completions", record).json["choices"]]


def test_the_texts_are_those_of_batch_whatever_else_runs(model: Path, service: Service) -> None:
    expected = texts_of_batch(model)
    assert [texts_of_server(service, record) for record in RECORDS] == expected
    chance = random.Random(1)
    order = [i for i in range(len(RECORDS)) for _ in range(4)]
    chance.shuffle(order)
    with ThreadPoolExecutor(12) as pool:
        got = list(pool.map(lambda i: texts_of_server(service, RECORDS[i]), order))
    assert got == [expected[i] for i in order]


def test_clients_that_drop_lose_nothing_of_others(service: Service) -> None:
    chance = random.Random(2)
    ask: dict[str, Any] = {"prompt": TRUTH, "max_tokens": 24, "seed": 11}
    (expected,) = texts_of_server(service, ask)

    def one(drops: bool) -> None:
        if not drops:
            assert texts_of_server(service, ask) == [expected]
            return
        body = json.dumps({**ask, "max_tokens": 200, "stream": chance.random() < 0.5}).encode()
        with service.connect() as link:
            link.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            link.settimeout(chance.random() / 4)
            try:
                link.recv(1 << 16)
            except TimeoutError:
                pass

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(one, [i % 2 == 0 for i in range(40)]))
    eventually(lambda: service.get("/status").json["running"] == 0, "what nobody waits for runs on")
    assert service.get("/status").json["waiting"] == 0
