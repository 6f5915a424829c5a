"""``infer-os batch`` as a process: files, pipes, kills, full disks."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import BUNDLED, Converter

COMMAND = [sys.executable, "-m", "infer_os.cli", "batch"]
BUNDLED_MODEL = next(folder for folder in BUNDLED if folder.name == "austen-6m")
FAST = ["--parallel", "8", "--context", "256", "--threads", "1", "--temperature", "0"]


@pytest.fixture
def model(converted: Converter) -> Path:
    return converted(BUNDLED_MODEL, "q8_0")


def batch(
    model: Path, *options: str | Path, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    command = [*COMMAND, str(model), *FAST, *map(str, options)]
    return subprocess.run(command, input=stdin, capture_output=True, check=False)


def write_records(path: Path, count: int, **more: Any) -> Path:
    chance = random.Random(5)
    words = ["the", "of", "and", "to", "her", "was", "she", "it", "had", "not", "his", "with"]
    lines = [
        {"id": f"r{i}", "prompt": " ".join(chance.choices(words, k=chance.randint(2, 30))), **more}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def lines_of(data: bytes | Path) -> list[dict[str, Any]]:
    text = data.read_bytes() if isinstance(data, Path) else data
    return [json.loads(line) for line in text.splitlines()]


def test_files(model: Path, tmp_path: Path) -> None:
    source = write_records(tmp_path / "in.jsonl", 20)
    done = batch(model, "-i", source, "-o", tmp_path / "out.jsonl", "-n", "6", "--ordered")
    assert done.returncode == 0, done.stderr
    assert done.stdout == b""
    answers = lines_of(tmp_path / "out.jsonl")
    assert [answer["id"] for answer in answers] == [f"r{i}" for i in range(20)]
    assert {*answers[0]} == {"id", "text", "tokens", "finish_reason", "error"}
    assert b"20 records, 0 failed" in done.stderr


def test_pipes_and_json_statistics(model: Path) -> None:
    # through a shell, since a process's peak begins with that of the one which forked it
    command = " ".join([*COMMAND, str(model), *FAST, "-n 5 --json --logprobs 2; exit $?"])
    done = subprocess.run(
        ["bash", "-c", command], input=b"It is\nShe was\n", capture_output=True, check=False
    )
    assert done.returncode == 0
    answers = lines_of(done.stdout)
    assert sorted(answer["id"] for answer in answers) == [1, 2]
    assert len(answers[0]["logprobs"]) == 5
    statistics = json.loads(done.stderr)
    assert statistics["records"] == 2
    assert statistics["completion_tokens"] == 10
    assert 0 < statistics["memory"]["peak_rss_bytes"] <= statistics["memory"]["planned_bytes"]


def test_bad_records_do_not_end_the_run(model: Path) -> None:
    stdin = b'{"id": 1, "prompt": "x"}\n{"id": 2\n{"prompt": 5}\n{"id": 3, "prompt": "x", "a": 1}\n'
    done = batch(model, "-n", "3", stdin=stdin)
    assert done.returncode == 1
    answers = lines_of(done.stdout)
    assert [answer.get("line") for answer in answers if answer["error"]] == [2, 3, 4]
    assert [answer["id"] for answer in answers if not answer["error"]] == [1]
    assert b"Traceback" not in done.stderr


def test_options_without_effect_are_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "prefix.txt").write_text("Once")
    given = ["--system", "Be brief.", "--style", "dialogue", "--prefix"]
    options = ["-n", "2", *given, str(tmp_path / "prefix.txt")]
    prompt = b'{"id": 1, "prompt": "x"}\n'
    talk = b'{"id": 2, "messages": [{"role": "user", "content": "x"}]}\n'
    for stdin, unused in (
        (prompt, [b"--system", b"--style"]), (talk, [b"--prefix"]), (prompt + talk, []),
    ):  # fmt: skip
        done = batch(model, *options, stdin=stdin)
        assert done.returncode == 0, done.stderr
        notes = [line for line in done.stderr.splitlines() if b"had no effect" in line]
        assert [note.split()[1] for note in notes] == unused


def starting(model: Path, *options: str | Path, **streams: Any) -> subprocess.Popen[bytes]:
    command = [*COMMAND, str(model), *FAST, *map(str, options)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, **streams)


@pytest.mark.parametrize("ordered", [[], ["--ordered"]])
def test_an_answer_is_out_before_the_next_record_is_written(
    model: Path, ordered: list[str]
) -> None:
    with starting(model, "-n", "3", *ordered, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as run:
        assert run.stdin and run.stdout and run.stderr
        for number in range(3):
            record = {"id": f"r{number}", "prompt": "It is", "n": 1 + number}
            run.stdin.write(json.dumps(record).encode() + b"\n")
            run.stdin.flush()
            for _ in range(record["n"]):
                assert json.loads(run.stdout.readline())["id"] == record["id"]
        run.stdin.write(b"broken\n")
        run.stdin.flush()
        assert "line 4" in json.loads(run.stdout.readline())["error"]
        run.stdin.close()
        assert run.stdout.read() == b""
        assert b"7 records, 1 failed" in run.stderr.read()
    assert run.returncode == 1


def test_a_pipe_with_a_name(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    os.mkfifo(source)
    with starting(model, "-n", "2", "-i", source, stdout=subprocess.PIPE) as run:
        assert run.stdout and run.stderr
        with source.open("wb", buffering=0) as pipe:
            pipe.write(b'{"id": 1, "prompt": "It is"}\n')
            assert json.loads(run.stdout.readline())["id"] == 1
            pipe.write(b'{"id": 2, "prompt": "It is"}\n')
        assert json.loads(run.stdout.read())["id"] == 2
        stderr = run.stderr.read()
    assert run.returncode == 0, stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_a_pipe_is_waited_for(
    model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out.jsonl"
    with starting(model, "-n", "2", "-o", out, stdin=subprocess.PIPE) as run:
        assert run.stdin and run.stderr
        run.stdin.write(b'{"id": 1, "prompt": "It is"}\n{"id": 2')
        run.stdin.flush()
        while not (out.exists() and out.stat().st_size):
            assert run.poll() is None
            time.sleep(0.005)
        run.send_signal(number)
        # the pipe stays open
        assert run.stderr.read().decode() == f"interrupted; --resume continues {out}\n"
        assert run.wait() == 128 + number
    assert [answer["id"] for answer in lines_of(out)] == [1]


def test_a_second_run_finds_the_output_taken_while_a_pipe_is_waited_for(
    model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    with starting(model, "-n", "2", "-o", out, stdin=subprocess.PIPE) as run:
        assert run.stdin and run.stderr
        while not out.exists():
            assert run.poll() is None
            time.sleep(0.005)
        second = batch(model, "-n", "2", "-o", out, "--resume", stdin=b"It is\n")
        assert second.returncode == 2
        assert second.stderr == f"error: {out}: another run is writing it\n".encode()
        run.stdin.write(b'{"id": 1, "prompt": "It is"}\n')
        run.stdin.close()
        run.stderr.read()
    assert run.returncode == 0
    assert [answer["id"] for answer in lines_of(out)] == [1]


def test_an_input_that_fails_while_it_is_read(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("id,prompt,id\n1,x,2\n")
    done = batch(model, "-i", source)
    assert done.returncode == 2
    assert done.stderr == f"error: {source}: line 1: two columns have the name 'id'\n".encode()


def test_killed_at_ten_moments_nothing_is_lost_or_doubled(model: Path, tmp_path: Path) -> None:
    source = write_records(tmp_path / "in.jsonl", 64)
    lengths = random.Random(7)
    lines = [
        json.dumps({**record, "max_tokens": lengths.randint(20, 200)}) + "\n"
        for record in lines_of(source)
    ]
    lines.insert(20, "broken\n")
    source.write_text("".join(lines))
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    options: list[str | Path] = ["-i", source]
    assert batch(model, *options, "-o", whole).returncode == 1
    command = [*COMMAND, str(model), *FAST, *map(str, options), "-o", str(out), "--resume"]
    chance, kills = random.Random(11), 0
    size = len(whole.read_bytes())
    while kills < 10:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
            before = out.stat().st_size if out.exists() else 0
            # somewhere in its writing, and so that ten kills do not reach the end
            goal = before + chance.randrange(size // 20)
            while run.poll() is None and (not out.exists() or out.stat().st_size <= goal):
                time.sleep(0.001)
            time.sleep(chance.random() * 0.02)
            assert run.poll() is None, run.stderr.read() if run.stderr else b""
            run.send_signal(signal.SIGKILL)
        kills += 1
        if kills % 3 == 0:  # as a kill within a write would leave it
            with out.open("ab") as handle:
                handle.write(b'{"id": "r63", "text": "half')
    assert len(lines_of_whole(out)) < 65
    last = batch(model, *options, "-o", out, "--resume")
    assert last.returncode == (1 if b"1 failed" in last.stderr else 0)
    got, expected = lines_of(out), lines_of(whole)
    assert len(got) == 65
    key = lambda answer: (answer["id"] or "", answer.get("line", 0))  # noqa: E731
    assert sorted(got, key=key) == sorted(expected, key=key)


def lines_of_whole(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def test_an_output_that_exists_is_refused_before_loading(model: Path, tmp_path: Path) -> None:
    source = write_records(tmp_path / "in.jsonl", 2)
    out = tmp_path / "out.jsonl"
    out.write_text("mine\n")
    done = batch(Path("no-such.gguf"), "-i", source, "-o", out)
    assert done.returncode == 2
    assert b"already exists" in done.stderr
    assert out.read_text() == "mine\n"
    assert batch(model, "-i", source, "-o", out, "--resume").returncode == 2
    assert out.read_text() == "mine\n"
    assert batch(model, "-i", source, "-o", out, "-n", "2", "--force").returncode == 0
    assert len(lines_of(out)) == 2


def test_a_run_that_cannot_start_leaves_no_output(tmp_path: Path) -> None:
    source = write_records(tmp_path / "in.jsonl", 2)
    done = batch(tmp_path / "no-such.gguf", "-i", source, "-o", tmp_path / "out.jsonl")
    assert done.returncode == 2
    assert not (tmp_path / "out.jsonl").exists()


def test_a_full_disk(model: Path, tmp_path: Path) -> None:
    source = write_records(tmp_path / "in.jsonl", 4)
    command = " ".join([*COMMAND, str(model), *FAST, "-n", "3", "-i", str(source)])
    done = subprocess.run(
        ["bash", "-c", f"{command} > /dev/full"], capture_output=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == b"error: standard output: No space left on device\n"
    # a file must not grow past 1 KiB: writing fails as on a full disk, with another errno
    out = tmp_path / "out.jsonl"
    limited = f"trap '' XFSZ; ulimit -f 1; {command} -n 30 -o {out}"
    done = subprocess.run(["bash", "-c", limited], capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"--resume continues" in done.stderr
    assert out.read_bytes().endswith(b"\n")
    assert batch(model, "-i", source, "-n", "30", "-o", out, "--resume").returncode == 0
    assert sorted(answer["id"] for answer in lines_of(out)) == ["r0", "r1", "r2", "r3"]


def test_a_closed_pipe(model: Path, tmp_path: Path) -> None:
    source = write_records(tmp_path / "in.jsonl", 30)
    command = " ".join([*COMMAND, str(model), *FAST, "-n", "20", "-i", str(source)])
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -1; exit ${{PIPESTATUS[0]}}"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert len(lines_of(done.stdout)) == 1
    assert b"Traceback" not in done.stderr


def test_an_interrupted_run_says_how_to_go_on(model: Path, tmp_path: Path) -> None:
    source = write_records(tmp_path / "in.jsonl", 200)
    out = tmp_path / "out.jsonl"
    command = [*COMMAND, str(model), *FAST, "-n", "60", "-i", str(source), "-o", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as run:
        while not (out.exists() and out.stat().st_size):
            assert run.poll() is None
            time.sleep(0.005)
        run.send_signal(signal.SIGINT)
        _, stderr = run.communicate(timeout=30)
    assert run.returncode == 130
    assert stderr.decode() == f"interrupted; --resume continues {out}\n"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--parallel", "many"], "--parallel many"),
        (["--parallel", "0"], "--parallel 0"),
        (["--resume"], "--resume has no effect"),
        (["--force"], "--force has no effect"),
        (["-i", "none.jsonl"], "No such file"),
        (["-o", "out.xml"], "expected a name"),
        (["--style", "odd"], "--style odd: expected one of dialogue, plain, "),
        (["--style", "template"], "has no chat template; --style dialogue does"),
        (["--prefix", "none.txt"], "none.txt"),
        (["--grammar", "none.gbnf"], "none.gbnf"),
        (["--logprobs", "-1"], "--logprobs -1"),
    ],
)
def test_wrong_options_are_one_line(
    options: list[str], complaint: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = batch(model, *options, stdin=b"x\n")
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert complaint.encode() in done.stderr


def test_csv_in_and_out_with_resume(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("id,prompt,max_tokens\n" + "".join(f"a{i},it was {i},3\n" for i in range(9)))
    out = tmp_path / "out.csv"
    assert batch(model, "-i", source, "-o", out, "--resume").returncode == 0
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["in.csv", "out.csv"]
    assert out.read_text().count("length") == 9
    again = batch(model, "-i", source, "-o", out, "--resume")
    assert again.returncode == 0
    assert b"already complete" in again.stderr


def test_a_grammar_of_generate(model: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.gbnf", tmp_path / "bad.gbnf"
    good.write_text('root ::= "yes" | "no"\n')
    bad.write_text('root ::= "yes\n')
    generate = [*COMMAND[:-1], "generate", str(model), "-p", "Is it?"]
    done = subprocess.run([*generate, "--grammar", good], capture_output=True, check=False)
    assert done.stdout.decode().strip() in ("yes", "no")
    done = subprocess.run([*generate, "--grammar", bad], capture_output=True, check=False)
    assert (done.returncode, done.stderr.count(b"\n"), done.stdout) == (2, 1, b"")
    assert b"bad.gbnf" in done.stderr
    both = [*generate, "--grammar", good, "--json-schema", good]
    assert subprocess.run(both, capture_output=True, check=False).returncode == 2


def test_no_tokens_with_logprobs_are_the_scores_of_prompts(model: Path, tmp_path: Path) -> None:
    source = write_records(tmp_path / "in.jsonl", 20, max_tokens=0)
    texts = [json.loads(line) for line in source.read_text().splitlines()]
    # between them, and in the same steps, others are continued
    mixed = [*texts, *({"id": f"w{i}", "prompt": texts[i]["prompt"]} for i in range(6))]
    random.Random(3).shuffle(mixed)
    source.write_text("".join(json.dumps(line) + "\n" for line in mixed))
    done = batch(model, "-i", source, "--logprobs", "1", "-n", "30")
    assert done.returncode == 0, done.stderr
    answers = {line["id"]: line for line in lines_of(done.stdout)}
    records = [
        {"id": text["id"], "context": text["prompt"].split(" ")[0],
         "continuation": text["prompt"][len(text["prompt"].split(" ")[0]) :]}
        for text in texts
    ]  # fmt: skip
    command = [
        sys.executable, "-m", "infer_os.cli", "score", str(model), "--context", "256",
        "--threads", "1",
    ]  # fmt: skip
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    scored = subprocess.run(command, input=lines, capture_output=True, check=True)
    for line in lines_of(scored.stdout):
        answer = answers[line["id"]]
        assert (answer["text"], answer["tokens"], answer["finish_reason"]) == ("", [], "length")
        assert "logprobs" not in answer
        told = answer["prompt_logprobs"]
        assert (told[0]["logprob"], told[0]["top"]) == (None, [])
        n = line["n_tokens"]
        got = [{key: one[key] for key in ("token", "text", "logprob")} for one in told[-n:]]
        assert got == line["tokens"]
        assert line["is_greedy"] == all(one["top"][0][0] == one["token"] for one in told[-n:])
    assert len(answers["w3"]["logprobs"]) == 30 and "prompt_logprobs" not in answers["w3"]
    refused = batch(model, stdin=b'{"prompt": "It", "max_tokens": 0}\n')
    assert b"0 needs logprobs" in refused.stdout


def test_a_prompt_of_one_token_has_no_scores(model: Path) -> None:
    lines = b'{"prompt": "It", "max_tokens": 0}\n{"prompt": "It", "max_tokens": 0, "n": 2}\n'
    first, second = lines_of(batch(model, "--logprobs", "1", stdin=lines).stdout)
    first, second = sorted((first, second), key=lambda line: line["error"] is not None)
    assert [one["logprob"] for one in first["prompt_logprobs"]] == [None]
    assert "nothing is drawn" in second["error"]
