"""Scoring on a cluster: what travels, and two nodes of a local Ray cluster.

The tests with a cluster need ``infer-os[ray]``, which is too large for the test environment.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import BUNDLED, Converter
from ray_cluster import run_without_ray, two_nodes

from infer_os.runtime.batch import ray_backend
from infer_os.runtime.batch.journal import line_of
from infer_os.runtime.batch.ray_backend import own_versions
from infer_os.runtime.batch.records import BadRecord
from infer_os.runtime.scoring.ray_scoring import RayScores, ScoreWorker
from infer_os.runtime.scoring.score_records import (
    ScoreParser,
    ScoreResult,
    TokenScore,
    score_result_of,
    score_value_of,
)
from infer_os.runtime.scoring.scorer import Scorer
from infer_os.runtime.scoring.settings import ScoringSettings
from infer_os.runtime.settings import EngineSettings

AUSTEN = next(folder for folder in BUNDLED if folder.name == "austen-6m")
COMMAND = [sys.executable, "-m", "infer_os.entry", "score"]
VALUES: list[dict[str, Any]] = [
    {"id": "a", "text": "It is a truth universally acknowledged"}, {"id": 7, "text": ""},
    {"id": "ü", "context": "It is", "continuation": " a truth"},
    {"id": 2, "context": "", "continuation": "x"},
]  # fmt: skip
RESULTS = [
    ScoreResult("a", 3, -1.5, True, 2, 7, 2, (TokenScore(5, "é", -1.0), TokenScore(6, "x", -0.5))),
    ScoreResult(4, 5, -0.25, False, 1, 3, 1, None, 9),
    ScoreResult(4, 6, error="line 6: no text"),
]


@pytest.mark.parametrize("value", VALUES)
def test_a_record_arrives_as_it_was(value: dict[str, Any]) -> None:
    record = ScoreParser().parse(4, value)
    assert not isinstance(record, BadRecord)
    sent = json.loads(json.dumps(score_value_of(record)))
    assert ScoreParser().parse(4, sent) == record


@pytest.mark.parametrize("result", RESULTS)
def test_a_result_arrives_as_it_was(result: ScoreResult) -> None:
    assert score_result_of(result.line, json.loads(line_of(result))) == result


def test_a_result_without_a_finite_sum() -> None:
    line = json.loads(line_of(ScoreResult("a", 3, float("nan"), False, 1, 1, 1)))
    again = score_result_of(3, line)
    assert again.logprob is not None and again.logprob != again.logprob


def test_what_is_bad_is_not_sent_and_all_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, sent = object.__new__(RayScores), list[Any]()
    cluster._places = ["node"]
    monkeypatch.setattr(RayScores, "_ray", SimpleNamespace(put=lambda table: table), raising=False)
    monkeypatch.setattr(ray_backend, "_table", sent.append)
    monkeypatch.setattr(cluster, "_results", lambda blocks: RESULTS[:1])
    parser = ScoreParser()
    records = [parser.parse(i, value) for i, value in enumerate(VALUES, 1)]
    results = list(cluster.run([parser.parse(9, {"id": 5}), *records], {("ü", 0)}))
    assert [(r.id, r.error is None) for r in results] == [(5, False), ("a", True)]
    rows = [json.loads(row) for block in sent for row in block]
    assert [row["value"]["id"] for row in rows] == ["a", 7, 2]
    now = cluster.statistics
    assert (now.records, now.failed, now.completion_tokens) == (2, 1, 2)


def test_a_worker_scores_as_the_scorer_alone(converted: Converter) -> None:
    model = converted(AUSTEN, "q8_0")

    def open_scorer() -> Scorer:
        return Scorer(model, EngineSettings(context=128, threads=1), ScoringSettings(2))

    parser = ScoreParser()
    records = [parser.parse(i, value) for i, value in enumerate(VALUES, 1)]
    with open_scorer() as scorer:
        expected = {result.line: result for result in scorer.run(records)}
    worker = ScoreWorker(open_scorer, own_versions())
    rows = [
        json.dumps({"line": r.line, "value": score_value_of(r), "done": []})  # type: ignore[arg-type]
        for r in records
    ]
    found = {
        line: score_result_of(line, json.loads(text))
        for line, text in worker._answers(worker._engine, rows)
    }
    assert found == expected
    worker._engine.close()


def test_without_ray_the_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": 1, "text": "x"}\n')
    done = run_without_ray("score", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "pip install 'infer-os[ray]'" in done.stderr
    assert not (tmp_path / "out.jsonl").exists()


# ---- a cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with two_nodes() as made:
        yield made


def test_two_nodes_score_as_one_machine(cluster: Any, converted: Converter, tmp_path: Path) -> None:
    model, source = converted(AUSTEN, "q8_0"), tmp_path / "in.jsonl"
    lines = [
        json.dumps({"id": i, "context": "It was " + "very " * (i % 7), "continuation": " so"})
        for i in range(150)
    ]
    source.write_text("\n".join([*lines[:70], "broken", *lines[70:]]) + "\n")
    command = [*COMMAND, str(model), "--parallel", "4", "--context", "128", "--threads", "1",
               "-i", str(source)]  # fmt: skip
    found: dict[str, list[dict[str, Any]]] = {}
    for name, more in (("alone", []), ("nodes", ["--ray", cluster.address, "--json"])):
        out = tmp_path / f"{name}.jsonl"
        done = subprocess.run(
            [*command, "-o", str(out), "--ordered", *more], capture_output=True, check=False
        )
        assert done.returncode == 1, done.stderr  # of the broken line
        found[name] = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert found["nodes"] == found["alone"] and len(found["alone"]) == 151
    said = [line for line in done.stderr.splitlines() if b"core_worker.cc" not in line]
    statistics = json.loads(said[-1])
    assert (statistics["records"], statistics["failed"]) == (151, 1)
    assert statistics["scored_tokens"] == sum(line["n_tokens"] for line in found["alone"])
    assert 1 <= len(statistics["nodes"]) <= 2
    for node in statistics["nodes"]:
        assert 0 < node["memory"]["peak_rss_bytes"] <= node["memory"]["planned_bytes"]
