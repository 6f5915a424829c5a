"""``--beams`` of ``generate`` and ``batch``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import BUNDLED, Converter
from in_process import Cli, runner

FAST = ("--context", "128", "--threads", "1")


@pytest.fixture
def infer_os(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Cli:
    return runner(monkeypatch, capfdbinary)


@pytest.fixture(scope="module")
def model(converted: Converter) -> str:
    return str(converted(next(f for f in BUNDLED if f.name == "austen-6m"), "q8_0"))


def test_generate_writes_the_likeliest_text(model: str, infer_os: Cli) -> None:
    done = infer_os("generate", model, "-p", "She was", "-n", "8", "--beams", "4", *FAST)
    assert done.code == 0
    assert done.out.startswith(" ")
    assert "8 tokens of the likeliest text" in done.err
    told = json.loads(
        infer_os("generate", model, "-p", "She was", "-n", "8", "--beams", "4", "--json", *FAST).out
    )
    assert told["text"] + "\n" == done.out
    assert (told["prompt_tokens"], told["completion_tokens"]) == (2, 8)
    assert (len(told["tokens"]), told["finish_reason"]) == (8, "length")


def test_batch_writes_the_same(model: str, infer_os: Cli, tmp_path: Path) -> None:
    records = tmp_path / "in.jsonl"
    records.write_text(
        '{"id": 1, "prompt": "She was"}\n{"id": 2, "prompt": "It", "n": 2}\n'
        '{"id": 3, "prompt": "It", "temperature": 0.5}\n'
    )
    alone = infer_os("generate", model, "-p", "She was", "-n", "8", "--beams", "3", *FAST).out
    done = infer_os("batch", model, "-i", str(records), "-n", "8", "--beams", "3", *FAST)
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 1
    assert lines[0]["text"] + "\n" == alone
    assert [line.get("index") for line in lines] == [None, 0, 1, None]
    assert "cannot be combined with temperature" in lines[3]["error"]
    assert "3 records" not in done.err
    assert "4 records, 1 failed" in done.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--top-k", "3"), "--top-k with --beams"), (("--seed", "3"), "--seed with --beams"),
        (("--stop", "x", "--regex", "a"), "--regex, --stop with --beams"),
        (("--draft", "lookup"), "--draft and --beams"), (("--beams", "65"), "--beams 65: expected"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["generate", "batch"])
def test_what_cannot_be_combined(
    model: str, infer_os: Cli, options: tuple[str, ...], said: str, command: str, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("She was\n")
    given = ("-p", "She was") if command == "generate" else ("-i", str(tmp_path / "in.txt"))
    beams = () if "--beams" in options else ("--beams", "3")
    assert said in infer_os(command, model, *given, *beams, *options, *FAST).user_error


def test_batch_alone_has_more(model: str, infer_os: Cli, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("She was\n")
    for options, said in (
        (("--parallel", "4"), "--parallel 4: a beam search answers one record at a time"),
        (("--logprobs", "4"), "--logprobs 4: a beam search reports none"),
        (("--ray", "auto"), "--ray and --beams"),
    ):
        given = ("-i", str(tmp_path / "in.txt"), "--beams", "2", *options)
        assert said in infer_os("batch", model, *given, *FAST).user_error
