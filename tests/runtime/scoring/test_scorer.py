"""The scorer on small models: against Hugging Face, numpy, and itself in other company."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison import all_logits, has_windows, log_softmax
from helpers import BUNDLED, REFERENCES, REPOSITORY, Converter

from infer_os.runtime.batch.records import BadRecord
from infer_os.runtime.errors import SettingsError
from infer_os.runtime.plan.memory_plan import MemoryShortage
from infer_os.runtime.scoring.score_records import ScoreRecord, ScoreResult
from infer_os.runtime.scoring.scorer import USUAL_PARALLEL, Scorer
from infer_os.runtime.scoring.scoring_run import ScoringRun
from infer_os.runtime.scoring.settings import ScoringSettings
from infer_os.runtime.settings import EngineSettings

WORDS = (REPOSITORY / "models" / "bundled" / "held-out.txt").read_text().split()
SETTINGS = EngineSettings(context=128, threads=2)
BUNDLED_MODEL = next(folder for folder in BUNDLED if folder.name == "austen-6m")


def words(start: int, n: int) -> str:
    return " ".join(WORDS[start : start + n])


def records(n_contexts: int, longest: int = 60) -> list[ScoreRecord]:
    """Questions with four answers each, which begin alike in part, and a few texts."""
    chance = random.Random(7)
    made: list[ScoreRecord] = []
    for question in range(n_contexts):
        at = chance.randrange(2000)
        context = words(at, chance.randint(1, longest))
        answers = [" the", " " + words(at + 70, chance.randint(1, 12)), " the of", " a"]
        made += (
            ScoreRecord(f"{question}.{i}", 0, answer, context) for i, answer in enumerate(answers)
        )
        if question % 4 == 0:
            text = words(chance.randrange(2000), chance.choice([1, 30, 300]))
            made.append(ScoreRecord(f"{question}.text", 0, text))
    return [replace(record, line=line) for line, record in enumerate(made, 1)]


def scores(
    path: Path, items: Iterable[Any], parallel: int, settings: EngineSettings = SETTINGS
) -> dict[Any, ScoreResult]:
    with Scorer(path, settings, ScoringSettings(parallel)) as scorer:
        return {result.id: result for result in scorer.run(items)}


class Numbers:
    """A vocabulary whose texts are token numbers."""

    def __init__(self, opening: int) -> None:
        self.opening = opening

    def tokenize(
        self, text: str | bytes, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        return [int(number) for number in text.split()]

    def piece(self, token: int) -> bytes:
        return b"%d" % token


def run(scoring: ScoringRun, items: Iterable[ScoreRecord]) -> Iterator[ScoreResult]:
    for item in items:
        scoring.submit(item)
    while scoring.step():
        pass
    yield from scoring.take()


@pytest.mark.parametrize("kind", ["f32", "f16"])
@pytest.mark.parametrize("folder", REFERENCES, ids=lambda folder: folder.name)
def test_scores_are_those_of_hugging_face(folder: Path, kind: str, converted: Converter) -> None:
    tokens = [int(token) for token in np.load(folder / "tokens.npy")]
    log_probs = log_softmax(np.load(folder / "logits.npy"))
    expected = log_probs[np.arange(len(tokens) - 1), tokens[1:]]
    greedy = log_probs[:-1].argmax(1) == tokens[1:]
    numbers = [str(token) for token in tokens]
    path = converted(folder, kind)
    # only caches that our kernels take have windows
    kv = "f16" if has_windows(path) else "f32"
    settings = EngineSettings(context=max(64, len(tokens)), threads=2, kv=kv)
    with Scorer(path, settings, ScoringSettings(4)) as scorer:
        scoring = ScoringRun(replace(scorer.parts, vocab=Numbers(tokens[0])))
        items = [ScoreRecord(0, 1, " ".join(numbers[1:]))]
        items += (
            ScoreRecord(n, n + 1, " " + " ".join(numbers[n:]), " ".join(numbers[:n]))
            for n in (1, 20, 47)
        )
        results = {result.id: result for result in run(scoring, items)}
    for n, result in results.items():
        start = max(int(n or 0), 1) - 1
        assert result.tokens is not None
        got = [token.logprob for token in result.tokens]
        # llama.cpp looks its GELU up in a table of F16, and rounds attention to F16
        np.testing.assert_allclose(got, expected[start:], rtol=0, atol=1e-2)
        assert result.logprob == pytest.approx(sum(got), abs=1e-9)
        assert result.is_greedy == greedy[start:].all()
        assert [token.token for token in result.tokens] == tokens[start + 1 :]
    assert len(results) == 4


def test_scores_equal_numpy_on_all_logits(converted: Converter) -> None:
    path = converted(BUNDLED_MODEL, "f16")
    items = [item for item in records(6) if item.context is not None]
    for item, result in zip(items, sorted(scores(path, items, 8).values(), key=lambda r: r.line),
                            strict=True):  # fmt: skip
        with Scorer(path, SETTINGS, ScoringSettings(1)) as scorer:
            given = scorer.vocab.tokenize(item.context or "")
            whole = scorer.vocab.tokenize((item.context or "") + item.text)
        log_probs = log_softmax(all_logits(path, whole))
        rows = range(len(given) - 1, len(whole) - 1)
        assert result.tokens is not None
        assert [t.token for t in result.tokens] == whole[len(given) :]
        np.testing.assert_allclose(
            [t.logprob for t in result.tokens],
            [log_probs[row, whole[row + 1]] for row in rows], atol=2e-3,
        )  # fmt: skip
        assert result.n_bytes == len(item.text.encode())


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0", "q4_k_m"])
@pytest.mark.parametrize("load", ["mmap", "fast"])
@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_scores_do_not_depend_on_the_neighbours(
    kind: str, load: str, kv: str, converted: Converter
) -> None:
    path = converted(BUNDLED_MODEL, kind)
    settings = replace(SETTINGS, load=load, kv=kv)
    items = records(12)
    many = scores(path, items, 13, settings)
    assert len(many) == len(items) and not any(result.error for result in many.values())
    # texts that fill the context to its last token, too
    assert sum(result.n_tokens > 128 for result in many.values()) > 0
    assert scores(path, items[::-1], 2, settings) == many
    assert scores(path, items[10:11], 1, settings) == {items[10].id: many[items[10].id]}


@pytest.mark.parametrize("native", [True, False], ids=["ours", "stock"])
@pytest.mark.parametrize("folder", REFERENCES, ids=lambda folder: folder.name)
def test_every_architecture_is_independent_of_the_neighbours(
    folder: Path, native: bool, converted: Converter
) -> None:
    path = converted(folder)
    if has_windows(path) and not native:
        pytest.skip("its windows are computed by our kernels alone")
    settings = replace(SETTINGS, context=32, native=native)
    items = [
        # a letter a token; texts go beyond the context, and some contexts lose their beginning
        replace(
            item,
            context=item.context and item.context[:9],
            text=item.text[: 40 if item.context is None else 28],
        )
        for item in records(12)
    ]
    many = scores(path, items, 16, settings)
    assert many == scores(path, items[::-1], 3, settings)
    assert not any(result.error for result in many.values())


def test_a_context_is_computed_once(converted: Converter) -> None:
    path = converted(BUNDLED_MODEL, "q8_0")
    context = words(0, 40)
    items = [ScoreRecord(i, i + 1, " " + words(100 + 7 * i, 3), context) for i in range(40)]
    with Scorer(path, SETTINGS, ScoringSettings(8)) as scorer:
        results = {result.id: result for result in scorer.run(items)}
        counts = scorer.statistics.counts
        n_context = len(scorer.vocab.tokenize(context))
        scored = sum(result.n_tokens for result in results.values())
    assert len(results) == 40
    assert counts.prefilled == n_context - 1
    # a row for each token at most; that behind the context once for each slot that has a part
    assert counts.decoded <= scored - 40 + 3
    assert scorer.statistics.completion_tokens == scored


def test_answers_of_one_token_need_no_row_of_their_own(converted: Converter) -> None:
    path = converted(BUNDLED_MODEL, "q8_0")
    items = [
        ScoreRecord(i, i + 1, " " + a, words(0, 30)) for i, a in enumerate(["a", "I", "he", "to"])
    ]
    with Scorer(path, SETTINGS, ScoringSettings(2)) as scorer:
        results = list(scorer.run(items))
        assert scorer.statistics.counts.decoded == 1
    assert len({result.logprob for result in results}) == 4
    assert sum(np.exp(result.logprob or 0) for result in results) < 1


def test_a_record_that_cannot_be_scored(converted: Converter) -> None:
    path = converted(BUNDLED_MODEL, "q8_0")
    items = [
        ScoreRecord("empty", 1, ""), ScoreRecord("nothing", 2, "", "It is"),
        ScoreRecord("long", 3, " " + words(0, 200), "It is"), BadRecord(4, "line 4: no JSON"),
        ScoreRecord("good", 5, " a truth", "It is"),
        ScoreRecord("cut", 6, " a truth", words(0, 300)),
    ]  # fmt: skip
    results = scores(path, items, 2)
    assert results["empty"].error == "line 1: the text is empty"
    assert results["nothing"].error == "line 2: the continuation has no tokens of its own"
    assert "line 3: the continuation has" in (results["long"].error or "")
    assert results[None].error == "line 4: no JSON"
    assert results["good"].error is None and results["good"].n_left_out == 0
    assert results["cut"].n_left_out > 100
    assert results["cut"].as_json()["context_tokens_left_out"] == results["cut"].n_left_out


def test_what_was_done_is_left_out_and_totals_are_sums(converted: Converter) -> None:
    path = converted(BUNDLED_MODEL, "q8_0")
    items = records(3)
    with Scorer(path, SETTINGS, ScoringSettings(4, totals=True)) as scorer:
        done = {(item.id, 0) for item in items[:5]}
        first = {result.id: result for result in scorer.run(items, done)}
        # a run begins anew
        again = {result.id: result for result in scorer.run(items, done)}
    assert first == again
    assert set(first) == {item.id for item in items[5:]}
    assert all(result.tokens is None and "tokens" not in result.as_json() for result in
               first.values())  # fmt: skip
    whole = scores(path, items, 4)
    assert {key: replace(whole[key], tokens=None) for key in first} == first


def test_a_run_that_is_broken_off_leaves_nothing_behind(converted: Converter) -> None:
    path = converted(BUNDLED_MODEL, "q8_0")
    items = records(8)
    with Scorer(path, SETTINGS, ScoringSettings(4)) as scorer:
        running = scorer.run(items)
        next(running)
        running.close()
        assert {r.id: r for r in scorer.run(items[:3])} == scores(path, items[:3], 4)


def test_the_number_of_sequences_is_what_fits(converted: Converter) -> None:
    path = converted(BUNDLED_MODEL, "q8_0")
    with Scorer(path, SETTINGS) as scorer:
        assert scorer.n_seq == USUAL_PARALLEL
        needed = scorer.planned_bytes
        # rows of logits for a step that scores
        assert scorer.plan.sizes.n_outputs == 128
    with Scorer(path, replace(SETTINGS, memory=needed - 1)) as scorer:
        assert scorer.n_seq == 4
    with pytest.raises(MemoryShortage):
        Scorer(path, replace(SETTINGS, memory=1))
    with pytest.raises(SettingsError, match="draws no tokens"):
        Scorer(path, replace(SETTINGS, draft="lookup"))


def test_long_texts_are_counted_and_wait_for_each_other(converted: Converter) -> None:
    path = converted(BUNDLED_MODEL, "q8_0")
    text = words(0, 9000)
    assert len(text) > 40_000
    items = [ScoreRecord(i, i + 1, text[i:]) for i in range(2)]
    with Scorer(path, SETTINGS, ScoringSettings(8, totals=True)) as scorer:
        needed = scorer.planned_bytes
        results = list(scorer.run(items))
        most = scorer.planned_bytes - needed
        assert not any(result.error for result in results)
    assert most > 300 * len(text)
    tight = replace(SETTINGS, memory=needed + 300 * len(text))
    with Scorer(path, tight, ScoringSettings(8, totals=True)) as scorer:
        assert {r.id: r for r in scorer.run(items)} == {r.id: r for r in results}
        assert scorer.planned_bytes <= needed + 300 * len(text)
        [failed] = scorer.run([ScoreRecord(0, 1, text + text)])
        assert "a text of its length takes" in (failed.error or "")
