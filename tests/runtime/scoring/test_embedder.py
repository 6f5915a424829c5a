"""Embeddings: transformers' hidden states, normalized; records, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import BUNDLED, TESTS, Converter
from in_process import Cli, runner

from infer_os.runtime.errors import PromptError, SettingsError
from infer_os.runtime.scoring.embedder import POOLINGS, Embedder, EmbedParser
from infer_os.runtime.settings import EngineSettings

STORED: list[dict[str, Any]] = json.loads(
    (TESTS / "reference" / "embeddings.json").read_text("utf-8")
)
SETTINGS = EngineSettings(context=128, threads=1, kv="f32")


@pytest.fixture
def infer_os(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Cli:
    return runner(monkeypatch, capfdbinary)


@pytest.fixture(scope="module")
def model(converted: Converter) -> Path:
    return converted(next(f for f in BUNDLED if f.name == "austen-6m"), "q8_0")


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("n_rows", [0, 32])
@pytest.mark.parametrize("name", dict.fromkeys(case["model"] for case in STORED))
def test_the_states_of_transformers(
    converted: Converter, name: str, pooling: str, n_rows: int
) -> None:
    gguf = converted(TESTS / "reference" / name, "f32")
    with Embedder(gguf, SETTINGS, pooling) as embedder:
        embedder._n_rows = n_rows or embedder._n_rows
        for case in (case for case in STORED if case["model"] == name):
            vector = embedder.embed(case["tokens"])
            assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
            assert np.abs(vector - case[pooling]).max() < 2e-3
            assert float(vector @ np.array(case[pooling])) > 1 - 1e-5


def test_the_poolings_differ() -> None:
    for case in STORED:
        same = np.allclose(case["mean"], case["last"], atol=1e-2)
        assert same == (len(case["tokens"]) == 1)


def test_a_text_does_not_depend_on_those_before_it(model: Path) -> None:
    with Embedder(model, EngineSettings(context=128, threads=1)) as embedder:
        tokens = embedder.vocab.tokenize("She was not so much in love")
        first = embedder.embed(tokens)
        embedder.embed(embedder.vocab.tokenize("Mr. Darcy"))
        assert np.array_equal(embedder.embed(tokens), first)


def test_what_cannot_be_embedded(model: Path) -> None:
    with Embedder(model, EngineSettings(context=32, threads=1)) as embedder:
        for tokens, said in (([], "the text is empty"), ([5] * 33, "but the context holds 32")):
            with pytest.raises(PromptError, match=said):
                embedder.embed(tokens)
        assert embedder.embed([5] * 32).shape == (embedder._engine.model.n_embd,)
    with pytest.raises(SettingsError, match=r"^pooling max: expected mean or last"):
        Embedder(model, EngineSettings(), "max")
    with pytest.raises(SettingsError, match=r"^draft nothing is drawn"):
        Embedder(model, EngineSettings(draft="lookup"))


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (np.nan, "the model computes no finite vector"),
        (np.inf, "the model computes no finite vector"),
        (0.0, "the model computes a vector of length 0"),
    ],
)
def test_a_model_whose_states_have_no_direction(
    model: Path, monkeypatch: pytest.MonkeyPatch, state: float, said: str
) -> None:
    with Embedder(model, EngineSettings(context=32, threads=1)) as embedder:
        n_embd = embedder._engine.model.n_embd
        monkeypatch.setattr(
            embedder._context, "states", lambda n: np.full((n, n_embd), state, np.float32)
        )
        (result,) = embedder.run([EmbedParser().parse(1, {"text": "She"})])
    assert result.embedding is None
    assert str(result.error).startswith(f"line 1: {said}")


def test_records(model: Path) -> None:
    parser = EmbedParser()
    values: list[Any] = [
        {"id": "a", "text": "She"}, {"id": "b"}, {"id": "c", "text": ""}, {"text": "x", "n": 2},
    ]  # fmt: skip
    records = [parser.parse(i + 1, value) for i, value in enumerate(values)]
    with Embedder(model, EngineSettings(context=32, threads=1)) as embedder:
        found = [result.as_json() for result in embedder.run(records)]
        assert (embedder.statistics.records, embedder.statistics.failed) == (4, 3)
        assert [each.id for each in embedder.run(records[:2], {("a", 0)})] == ["b"]
    assert np.linalg.norm(found[0]["embedding"]) == pytest.approx(1, abs=1e-5)
    assert [each["error"] for each in found] == [
        None, 'line 2: "text" is a text, not nothing', "line 3: the text is empty",
        "line 4: unknown setting 'n'; known: id, text",
    ]  # fmt: skip


def test_the_command(model: Path, infer_os: Cli, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("She was\nMr. Darcy\n")
    given = ["embed", model, "-i", tmp_path / "in.txt", "--context", "64", "--threads", "1"]
    done = infer_os(*given)
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 0
    assert "2 records, 0 failed" in done.err
    assert [(line["id"], line["error"]) for line in lines] == [(1, None), (2, None)]
    out = tmp_path / "out.jsonl"
    infer_os(*given, "-o", out)
    assert [json.loads(line) for line in out.read_text("utf-8").splitlines()] == lines
    again = infer_os(*given, "-o", out, "--resume")
    assert "already complete" in again.err
    last = infer_os(*given, "--pooling", "last")
    assert json.loads(last.out.splitlines()[0])["embedding"] != lines[0]["embedding"]
    assert "--pooling max: expected mean or last" in infer_os(*given, "--pooling", "max").user_error
