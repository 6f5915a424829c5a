"""Batches on a cluster: what travels, and two nodes of a local Ray cluster, one of which is lost.

The tests with a cluster need ``infer-os[ray]``, which is too large for the test environment.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from helpers import BUNDLED, Converter
from ray_cluster import run_without_ray, two_nodes

from infer_os.runtime.batch import ray_backend
from infer_os.runtime.batch.journal import line_of
from infer_os.runtime.batch.ray_backend import LARGEST_BLOCK, block_size, cut_blocks
from infer_os.runtime.batch.records import (
    Record,
    RecordParser,
    Result,
    TokenLogprobs,
    result_of,
    value_of,
)
from infer_os.runtime.settings import SamplingSettings, StopSettings

BUNDLED_MODEL = next(folder for folder in BUNDLED if folder.name == "austen-6m")
COMMAND = [sys.executable, "-m", "infer_os.cli", "batch"]
FAST = ["--parallel", "4", "--context", "256", "--threads", "1", "--temperature", "0"]


# ---- what travels


@pytest.mark.parametrize(
    "value",
    [
        {"id": "a", "prompt": "x"},
        {"id": 7, "prompt": "", "temperature": 0, "top_k": 3, "top_p": 0.5, "min_p": 0.1},
        {"id": "ü", "prompt": "x", "seed": 5, "n": 3, "max_tokens": 9, "stop": ["a", "b"]},
        {
            "id": 1,
            "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": ""}],
        },
        {"id": 2, "prompt": "x", "stop": []},
    ],
)
def test_a_record_arrives_as_it_was(value: dict[str, Any]) -> None:
    run = SamplingSettings(temperature=0.5, repeat_penalty=1.2, seed=3, grammar='root ::= "a"')
    stops = StopSettings(20, ("end",))
    record = RecordParser(run, stops).parse(4, value)
    sent = json.loads(json.dumps(value_of(record)))  # type: ignore[arg-type]
    assert RecordParser(run, stops).parse(4, sent) == record


def test_a_record_that_is_only_scored_arrives_as_it_was() -> None:
    parser = RecordParser(SamplingSettings(), StopSettings(), tells=True)
    record = parser.parse(4, {"id": 2, "prompt": "x", "max_tokens": 0})
    assert isinstance(record, Record) and record.scores_prompt and not record.draws
    again = RecordParser(SamplingSettings(), StopSettings(), tells=True)
    assert again.parse(4, json.loads(json.dumps(value_of(record)))) == record


def test_a_result_arrives_as_it_was() -> None:
    logprob = TokenLogprobs(5, "é", -0.1, ((5, -0.1), (6, -2.5)))
    for result in (
        Result("a", 3, "text", (1, 2), "length", logprobs=(logprob,)),
        Result(4, 5, "", (), "end", index=2),
        Result(4, 5, "", (), "length", prompt_logprobs=(logprob,)),
        Result(None, 6, error="line 6: no JSON"),
    ):
        assert result_of(result.line, json.loads(line_of(result))) == result


def test_blocks_hold_every_row_once_and_busy_all_nodes() -> None:
    for n_rows, n_nodes in ((0, 2), (1, 2), (40, 2), (1000, 3), (5000, 2)):
        rows = [str(i) for i in range(n_rows)]
        blocks = list(cut_blocks(iter(rows), n_nodes))
        assert [row for block in blocks for row in block] == rows
        assert all(len(block) <= LARGEST_BLOCK for block in blocks)
        if n_rows >= 1000:
            assert len(blocks) >= 3 * n_nodes
    assert [block_size(n, 2) for n in (1, 400, 10**6)] == [16, 50, LARGEST_BLOCK]


def test_a_long_input_is_not_read_before_it_is_sent() -> None:
    taken = []
    rows = (taken.append(i) or str(i) for i in range(100_000))  # type: ignore[func-returns-value]
    next(cut_blocks(rows, 2))
    assert len(taken) <= 8 * LARGEST_BLOCK


def test_without_ray_the_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": 1, "prompt": "x"}\n')
    done = run_without_ray("batch", tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'infer-os[ray]'" in done.stderr
    assert not (tmp_path / "out.jsonl").exists()


# ---- a cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with two_nodes() as made:
        yield made


@pytest.fixture
def model(converted: Converter) -> Path:
    return converted(BUNDLED_MODEL, "q8_0")


def write_records(path: Path, count: int, max_tokens: int) -> Path:
    def asked(text: str, i: int) -> dict[str, Any]:
        return {"prompt": text} if i % 8 else {"messages": [{"role": "user", "content": text}]}

    lines = [
        json.dumps({"id": f"r{i}", **asked("It was " + "very " * (i % 7), i),
                    "max_tokens": max_tokens + i % 20, "n": 1 + i % 2}) + "\n"
        for i in range(count)
    ]  # fmt: skip
    lines.insert(count // 2, "broken\n")
    path.write_text("".join(lines))
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def by_key(lines: list[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    found = {(line["id"], line.get("index", line.get("line"))): line for line in lines}
    assert len(found) == len(lines), "an answer is there twice"
    return found


def alone(model: Path, source: Path, out: Path) -> dict[Any, dict[str, Any]]:
    command = [*COMMAND, str(model), *FAST, "-i", str(source), "-o", str(out)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1
    return by_key(lines_of(out))


def on_cluster(cluster: Any, model: Path | str, source: Path, out: Path, *more: str) -> list[str]:
    return [*COMMAND, str(model), *FAST, "-i", str(source), "-o", str(out), "--ray",
            cluster.address, *more]  # fmt: skip


def words_of(stderr: bytes) -> bytes:
    """What is not Ray's: its C++ part warns of what every actor of Ray Data has."""
    lines = stderr.splitlines(keepends=True)
    return b"".join(line for line in lines if b"core_worker.cc" not in line)


def wait_for_lines(run: subprocess.Popen[bytes], out: Path, count: int) -> None:
    while not out.exists() or out.read_bytes().count(b"\n") < count:
        assert run.poll() is None, run.stderr.read() if run.stderr else b""
        time.sleep(0.02)


def test_two_nodes_answer_as_one_machine(cluster: Any, model: Path, tmp_path: Path) -> None:
    source, out = write_records(tmp_path / "in.jsonl", 160, 60), tmp_path / "out.jsonl"
    expected = alone(model, source, tmp_path / "alone.jsonl")
    command = on_cluster(cluster, model, source, out, "--ordered", "--json")
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 1
    statistics = json.loads(words_of(done.stderr))
    assert (statistics["records"], statistics["failed"]) == (241, 1)
    # on a busy machine one may have answered all before the other has started
    assert 1 <= len(statistics["nodes"]) <= 2
    for node in statistics["nodes"]:
        assert 0 < node["memory"]["peak_rss_bytes"] <= node["memory"]["planned_bytes"]
    assert all(node["parallel"] == 4 for node in statistics["nodes"])
    assert by_key(lines_of(out)) == expected
    whole = [line["id"] for line in lines_of(out)]
    assert [i for i in whole if i] == sorted((i for i in whole if i), key=lambda i: int(i[1:]))
    # what is answered is not asked for again, and what was lost is
    kept = out.read_bytes().splitlines(keepends=True)[:30]
    out.write_bytes(b"".join(kept) + b'{"id": "r4')
    resumed = on_cluster(cluster, model, source, out, "--resume")
    assert subprocess.run(resumed, capture_output=True, check=False).returncode in (0, 1)
    assert by_key(lines_of(out)) == expected
    assert out.read_bytes().startswith(b"".join(kept))


def test_a_node_without_the_model_is_one_line(cluster: Any, tmp_path: Path) -> None:
    source, out = write_records(tmp_path / "in.jsonl", 2, 5), tmp_path / "out.jsonl"
    command = on_cluster(cluster, "no-such-model", source, out)
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 2, done.stderr
    words = words_of(done.stderr)
    assert words.count(b"\n") == 1
    assert b"error: --ray " in words
    assert b"no-such-model: no such file" in words


def test_no_cluster_is_one_line(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data", reason="needs infer-os[ray]")
    source, out = write_records(tmp_path / "in.jsonl", 2, 5), tmp_path / "out.jsonl"
    command = [*COMMAND, str(model), "-i", str(source), "-o", str(out), "--ray", "nonsense"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"ray start --head" in done.stderr
    assert not out.exists()


def test_nodes_with_different_models_are_refused() -> None:
    from infer_os.runtime.batch.ray_backend import RayBatch
    from infer_os.runtime.batch.running import BatchStatistics
    from infer_os.runtime.errors import ClusterError

    batch = object.__new__(RayBatch)
    batch._address, batch.nodes, batch.statistics = "auto", {}, BatchStatistics()
    report = {"node": "a", "model": "1", "parallel": 1, "planned_bytes": 1, "peak_rss_bytes": 1,
              "prompt_tokens": 3, "shared_tokens": 0, "notes": ["n"]}  # fmt: skip
    batch._hear(report)
    batch._hear({**report, "node": "b"})
    assert batch.statistics.prompt_tokens == 6
    assert batch.notes == ("n",)
    with pytest.raises(ClusterError, match="nodes a and c have different files"):
        batch._hear({**report, "node": "c", "model": "2"})


def test_a_block_that_was_computed_twice_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from infer_os.runtime.batch.ray_backend import RayBatch

    answers = [Result("a", 1, "x", (1,)), Result("b", 2, "x", (1,), index=1),
               Result("b", 2, "y", (1, 2), index=0), Result("a", 1, "y", (2,))]  # fmt: skip
    batch = object.__new__(RayBatch)
    batch._places, sent = ["node"], []
    monkeypatch.setattr(RayBatch, "_ray", SimpleNamespace(put=lambda table: table), raising=False)
    monkeypatch.setattr(ray_backend, "_table", sent.append)
    monkeypatch.setattr(batch, "_results", lambda blocks: answers)
    parser = RecordParser(SamplingSettings(), StopSettings())
    records = [parser.parse(1, {"id": "a", "prompt": "x"}), parser.parse(2, {"id": 3})]
    results = list(batch.run([*records, parser.parse(3, {"id": "c", "prompt": ""})], {("c", 0)}))
    assert [(r.id, r.index, r.text) for r in results] == [
        (3, None, ""), ("a", None, "x"), ("b", 1, "x"), ("b", 0, "y")
    ]  # fmt: skip
    assert (batch.statistics.records, batch.statistics.failed) == (4, 1)
    assert batch.statistics.completion_tokens == 4
    assert [json.loads(row)["value"]["id"] for block in sent for row in block] == ["a"]


def workers() -> list[psutil.Process]:
    everything = psutil.Process().children(recursive=True)
    return [p for p in everything if any("MapWorker" in part for part in p.cmdline())]


@pytest.mark.parametrize("lost", ["worker", "node"])
def test_what_a_lost_worker_had_is_answered_once(
    lost: str, cluster: Any, model: Path, tmp_path: Path
) -> None:
    source, out = write_records(tmp_path / "in.jsonl", 120, 150), tmp_path / "out.jsonl"
    expected = alone(model, source, tmp_path / "alone.jsonl")
    with subprocess.Popen(
        on_cluster(cluster, model, source, out), stderr=subprocess.PIPE
    ) as run:  # fmt: skip
        wait_for_lines(run, out, 2)
        if lost == "worker":
            victims = workers()
            assert 1 <= len(victims) <= 2
            victims[0].kill()
        else:
            cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
        at_kill = out.read_bytes().count(b"\n")
        _, stderr = run.communicate(timeout=240)
    assert run.returncode == 1, stderr
    assert at_kill < len(expected)
    assert by_key(lines_of(out)) == expected


def test_a_worker_tells_what_it_cannot_do() -> None:
    def fail() -> Any:
        raise ValueError("odd")

    mine = (ray_backend.__version__, ray_backend.llama_version())
    run = (SamplingSettings(), StopSettings())
    assert ray_backend.Worker(fail, *run, ("9", "x"))._failure.endswith("not 9 with x")
    assert ray_backend.Worker(fail, *run, mine)._failure == "ValueError: odd"
