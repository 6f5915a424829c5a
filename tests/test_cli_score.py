"""``infer-os score`` as a process: files, pipes, kills, wrong options."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import BUNDLED, REPOSITORY, Converter

COMMAND = [sys.executable, "-m", "infer_os.cli", "score"]
BUNDLED_MODEL = next(folder for folder in BUNDLED if folder.name == "austen-6m")
FAST = ["--context", "128", "--threads", "1"]
WORDS = (REPOSITORY / "models" / "bundled" / "held-out.txt").read_text().split()


@pytest.fixture
def model(converted: Converter) -> Path:
    return converted(BUNDLED_MODEL, "q8_0")


def score(
    model: Path, *options: str | Path, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    command = [*COMMAND, str(model), *FAST, *map(str, options)]
    return subprocess.run(command, input=stdin, capture_output=True, check=False)


def write_records(path: Path, n_questions: int) -> Path:
    """Questions of four answers each, and a text of several windows."""
    chance = random.Random(5)
    lines: list[dict[str, Any]] = [{"id": "text", "text": " ".join(WORDS[:300])}]
    for question in range(n_questions):
        at = chance.randrange(3000)
        context = " ".join(WORDS[at : at + chance.randint(5, 60)])
        for number, answer in enumerate((" the", " of the", " she was", " " + WORDS[at + 99])):
            lines.append({"id": f"{question}.{number}", "context": context, "continuation": answer})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def lines_of(data: bytes | Path) -> list[dict[str, Any]]:
    text = data.read_bytes() if isinstance(data, Path) else data
    return [json.loads(line) for line in text.splitlines()]


def test_files_in_order(model: Path, tmp_path: Path) -> None:
    source, out = write_records(tmp_path / "in.jsonl", 5), tmp_path / "out.jsonl"
    done = score(model, "-i", source, "-o", out, "--ordered", "--parallel", "3")
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    lines = lines_of(out)
    assert [line["id"] for line in lines] == [line["id"] for line in lines_of(source)]
    for line, record in zip(lines, lines_of(source), strict=True):
        text = record.get("text") or record["continuation"]
        assert "".join(token["text"] for token in line["tokens"]) == text
        assert line["logprob"] == pytest.approx(sum(t["logprob"] for t in line["tokens"]))
        assert line["n_tokens"] == len(line["tokens"]) and line["bytes"] == len(text.encode())
        assert line["error"] is None and isinstance(line["is_greedy"], bool)
    assert b"21 records, 0 failed | 4 at once" in done.stderr or b"3 at once" in done.stderr


def test_pipes_totals_and_statistics(model: Path) -> None:
    source = b'{"context": "It is", "continuation": " a truth"}\nbroken\n{"text": "It is"}\n'
    done = score(model, "--totals", "--json", stdin=source)
    assert done.returncode == 1
    lines = {line["id"] or "bad": line for line in lines_of(done.stdout)}
    assert set(lines) == {1, "bad", 3} and "line 2: not JSON" in lines["bad"]["error"]
    assert lines[1]["logprob"] < 0 and "tokens" not in lines[1]
    statistics = json.loads(done.stderr)
    assert (statistics["records"], statistics["failed"]) == (3, 1)
    assert statistics["scored_tokens"] == lines[1]["n_tokens"] + lines[3]["n_tokens"]
    assert statistics["memory"]["peak_rss_bytes"] <= statistics["memory"]["planned_bytes"]


def test_plain_lines_are_texts(model: Path) -> None:
    done = score(model, stdin=b"It is a truth\nuniversally acknowledged\n")
    assert done.returncode == 0, done.stderr
    assert sorted((line["id"], line["words"]) for line in lines_of(done.stdout)) == [(1, 4), (2, 2)]


def test_a_score_is_out_before_the_next_record_is_written(model: Path) -> None:
    command = [*COMMAND, str(model), *FAST]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **streams) as run:  # type: ignore[call-overload]
        for number in range(3):
            record = {"id": number, "context": "It is", "continuation": " a" * (1 + number)}
            run.stdin.write(json.dumps(record).encode() + b"\n")
            run.stdin.flush()
            assert json.loads(run.stdout.readline())["id"] == number
        run.send_signal(signal.SIGINT)
        assert run.wait() == 130


def test_csv_in_and_out(model: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text('id,context,continuation\na,It is," a"\nb,," truth"\n')
    assert score(model, "-i", source, "-o", out, "--ordered").returncode == 0
    header, *rows = out.read_text().splitlines()
    assert header == "id,logprob,is_greedy,n_tokens,bytes,words,error,tokens"
    assert [row.split(",")[0] for row in rows] == ["a", "b"]
    again = score(model, "-i", source, "-o", out, "--resume")
    assert again.returncode == 0 and b"already complete with 2 answers" in again.stderr


def test_killed_at_five_moments_nothing_is_lost_or_doubled(model: Path, tmp_path: Path) -> None:
    source = write_records(tmp_path / "in.jsonl", 60)
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert score(model, "-i", source, "-o", whole).returncode == 0
    command = [*COMMAND, str(model), *FAST, "-i", str(source), "-o", str(out), "--resume"]
    chance, size = random.Random(3), whole.stat().st_size
    for kill in range(5):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
            before = out.stat().st_size if out.exists() else 0
            goal = before + chance.randrange(size // 10)
            while run.poll() is None and (not out.exists() or out.stat().st_size <= goal):
                time.sleep(0.001)
            assert run.poll() is None, run.stderr.read() if run.stderr else b""
            run.send_signal(signal.SIGKILL)
        if kill == 2:  # as a kill within a write would leave it
            with out.open("ab") as handle:
                handle.write(b'{"id": "9.3", "logprob": -1')
    last = score(model, "-i", source, "-o", out, "--resume", "--parallel", "3")
    assert last.returncode == 0 and b"answers of an earlier run" in last.stderr
    got, expected = ({line["id"]: line for line in lines_of(path)} for path in (out, whole))
    assert len(lines_of(out)) == 241
    # to the last bit, with other sequences at once
    assert got == expected


def test_an_output_of_a_batch_is_not_gone_on_with(model: Path, tmp_path: Path) -> None:
    source, out = write_records(tmp_path / "in.jsonl", 1), tmp_path / "out.jsonl"
    answer = {"id": "text", "text": "", "tokens": [], "finish_reason": "length", "error": None}
    out.write_text(json.dumps(answer) + "\n")
    done = score(model, "-i", source, "-o", out, "--resume")
    assert done.returncode == 2 and b"line 1 is not an answer of a score" in done.stderr
    assert lines_of(out) == [answer]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--resume"], "--resume has no effect without an --output file"),
        (["--parallel", "0"], "--parallel 0: expected a number, or auto"),
        (["--parallel", "1000"], "expected 1 to 256, or auto"),
        (["-i", "x.doc"], "expected a name that ends in"),
    ],
)
def test_wrong_options_are_one_line(model: Path, options: list[str], fault: str) -> None:
    done = score(model, *options, stdin=b"It is\n")
    assert done.returncode == 2
    assert fault in done.stderr.decode() and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("option", ["--draft", "--temperature", "--logprobs"])
def test_options_that_mean_nothing_are_not_there(model: Path, option: str) -> None:
    done = score(model, option, "1", stdin=b"It is\n")
    assert done.returncode == 2 and b"No such option" in done.stderr
