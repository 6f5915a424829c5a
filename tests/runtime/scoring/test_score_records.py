"""Records to score: what is one, and what its line says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infer_os.runtime.batch.journal import Journal, line_of
from infer_os.runtime.batch.order import InputOrder
from infer_os.runtime.batch.records import BadRecord
from infer_os.runtime.errors import SettingsError
from infer_os.runtime.scoring.score_records import (
    SCORES,
    ScoreParser,
    ScoreRecord,
    ScoreResult,
    TokenScore,
    count_bytes,
    count_words,
)

RESULT = ScoreResult("a", 3, -2.5, True, 1, 4, 1, (TokenScore(7, " yes", -2.5),))


def test_records() -> None:
    parser = ScoreParser()
    assert parser.parse(1, {"id": "a", "context": "It is", "continuation": " a"}) == ScoreRecord(
        "a", 1, " a", "It is"
    )
    # a table says nothing where a field is empty
    assert parser.parse(2, {"continuation": "It", "context": None}) == ScoreRecord(2, 2, "It", "")
    assert parser.parse(3, {"text": "It is"}, "row") == ScoreRecord(3, 3, "It is", None, "row")


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ([], "a record is a JSON object, not a list"),
        ({}, 'either "text", or "continuation"'),
        ({"text": "a", "continuation": "b"}, 'either "text", or "continuation"'),
        ({"text": "a", "context": "b"}, '"context" goes with "continuation"'),
        ({"context": "b"}, 'either "text", or "continuation"'),
        ({"text": 7}, '"text" is a text, not a whole number'),
        ({"context": ["a"], "continuation": "b"}, '"context" is a text, not a list'),
        ({"text": "a", "prompt": "b"}, "unknown setting 'prompt'"),
        ({"id": 1, "text": "a"}, "the id 1 is already that of line 9"),
    ],
)
def test_what_is_no_record(value: object, fault: str) -> None:
    parser = ScoreParser()
    parser.parse(9, {"id": 1, "text": "x"})
    bad = parser.parse(10, value)
    assert isinstance(bad, BadRecord) and fault in bad.error and bad.error.startswith("line 10: ")


@pytest.mark.parametrize(
    ("text", "n_bytes", "n_words"),
    [("", 0, 1), ("é b", 4, 2), (" yes", 4, 2), ("a  b\n c", 7, 3), ("a\ud800", 4, 1)],
)
def test_bytes_and_words_are_counted_as_the_harness_does(
    text: str, n_bytes: int, n_words: int
) -> None:
    assert (count_bytes(text), count_words(text)) == (n_bytes, n_words)


def test_a_line() -> None:
    assert json.loads(line_of(RESULT)) == {
        "id": "a", "logprob": -2.5, "is_greedy": True, "n_tokens": 1, "bytes": 4, "words": 1,
        "error": None, "tokens": [{"token": 7, "text": " yes", "logprob": -2.5}],
    }  # fmt: skip
    failed = json.loads(line_of(ScoreResult(None, 4, error="line 4: no JSON")))
    assert (failed["line"], failed["logprob"], failed["error"]) == (4, None, "line 4: no JSON")


def test_a_journal_of_scores_goes_on_and_is_told_from_one_of_answers(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Journal(path, resume=False, form=SCORES) as journal:
        journal.write(RESULT)
        journal.write(ScoreResult("b", 4, error="line 4: wrong"))
    path.write_bytes(path.read_bytes() + b'{"id": "c", "logp')
    with Journal(path, resume=True, form=SCORES) as journal:
        assert journal.done == {("a", 0), (None, 4)}
    with pytest.raises(SettingsError, match="line 1 is not an answer of a batch"):
        Journal(path, resume=True)
    answers = b'{"id": 1, "text": "", "tokens": [], "finish_reason": "length", "error": null}\n'
    path.write_bytes(answers)
    with pytest.raises(SettingsError, match="line 1 is not an answer of a score"):
        Journal(path, resume=True, form=SCORES)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_of_scores(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"out.{ending}"
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    with Journal(path, resume=False, form=SCORES) as journal:
        journal.write(RESULT)
        journal.write(ScoreResult("b", 4, error="line 4: wrong"))
        journal.finish()
    if ending == "csv":
        header, first, second = path.read_text().splitlines()
        assert header == "id,logprob,is_greedy,n_tokens,bytes,words,error,tokens,line"
        assert first.startswith("a,-2.5,True,1,4,1,,") and second == "b,,,0,0,0,line 4: wrong,,4"
        return
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(path).to_pylist()
    assert [row["logprob"] for row in rows] == [-2.5, None]
    assert json.loads(rows[0]["tokens"]) == RESULT.as_json()["tokens"]


def test_scores_in_the_order_of_the_input() -> None:
    order = InputOrder[ScoreResult]()
    records = [ScoreRecord(i, i, "x") for i in (1, 2, 3)]
    assert list(order.watch(records, frozenset({(2, 0)}))) == records
    results = [ScoreResult(i, i, -1.0) for i in (3, 1)]
    assert [result.id for result in order.arrange(results)] == [1, 3]
