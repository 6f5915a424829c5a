"""``--grammar``, ``--json-schema`` and ``--regex`` on the command line, as texts and from files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers import BUNDLED, Converter
from in_process import Cli, runner

SCHEMA = '{"type": "object", "properties": {"n": {"type": "integer", "minimum": 5, "maximum": 7}}}'


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Cli:
    return runner(monkeypatch, capfdbinary)


@pytest.fixture
def model(converted: Converter) -> Path:
    return converted(next(f for f in BUNDLED if f.name == "austen-6m"), "q8_0")


@pytest.mark.parametrize(
    ("option", "text", "expected"),
    [
        ("--grammar", 'root ::= "yes" | "no"', "(yes|no)"),
        ("--json-schema", SCHEMA, r'\{("n": ?[567])?\}'),
    ],
)
def test_a_text_or_a_file(
    option: str, text: str, expected: str, cli: Cli, model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())  # as some editors write it
    said = [
        cli("generate", model, "-p", "It is", "--seed", 1, "--threads", 1, option, given)
        for given in (text, file)
    ]
    assert said[0].out == said[1].out
    assert re.fullmatch(expected, said[0].out.strip()), said[0].out


def test_an_expression(cli: Cli, model: Path) -> None:
    done = cli("generate", model, "-p", "It is", "--threads", 1, "--regex", r"[0-9]{3}-[a-f]")
    assert re.fullmatch(r"[0-9]{3}-[a-f]", done.out.strip())
    assert done.code == 0


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--json-schema", '{"not": {}}'], "--json-schema: the JSON schema, at /not: the keyword"),
        (["--json-schema", "none.json"], "none.json: cannot be read"),
        (["--json-schema", ""], "--json-schema: is empty"),
        (["--grammar", "root ::= ("], "--grammar: line 1 of the grammar"),
        (["--json-schema", "[]"], "--json-schema []: this is a list; a schema is a JSON object"),
        (["--json-schema", "null"], "--json-schema null: this is null; a schema is a JSON object"),
        (["--json-schema", "-5"], "--json-schema -5: this is a number"),
        (["--regex", "("], "--regex: the regular expression: unclosed group, at character 1"),
        (["--regex", "a", "--json-schema", "{}"], "--json-schema and --regex: give one of them"),
    ],
)
def test_what_cannot_be_used_is_one_line(options: list[str], complaint: str, cli: Cli) -> None:
    # before any model is looked for
    for command in ("generate", "chat", "batch"):
        assert complaint in cli(command, "none.gguf", *options).user_error


@pytest.mark.parametrize("data", [b"\xff\xfe{", b"", b" \n", b"{" * 5_000_000])
def test_a_bad_file_is_one_line(data: bytes, cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(data)
    for option in ("--grammar", "--json-schema"):
        assert str(file) in cli("generate", "none.gguf", option, file).user_error


def test_a_reply_of_a_chat_follows_it(cli: Cli, model: Path) -> None:
    lines = b"Hello\n/set regex [0-9]{4}\nHello\n/set regex (\n/set regex\n"
    done = cli(
        "chat", model, "--style", "plain", "--threads", 1, "--json-schema", SCHEMA, stdin=lines
    )
    assert re.search(r'\{("n": ?[567])?\}', done.out)
    assert re.search(r"\b[0-9]{4}\b", done.out)
    # the expression takes the place of the schema, and says so
    assert "json_schema none\nregex [0-9]{4}\n" in done.err
    assert "/set regex cannot be used: the regular expression: unclosed group" in done.err


def test_records_of_a_batch(cli: Cli, model: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    values = [{"id": 1, "prompt": "x"}, {"id": 2, "prompt": "x", "json_schema": json.loads(SCHEMA)}]
    source.write_text("".join(json.dumps(value) + "\n" for value in values))
    done = cli(
        "batch", model, "-i", source, "-o", target, "--threads", 1, "--parallel", 8,
        "--context", 64, "--regex", "[a-z]{3}",
    )  # fmt: skip
    assert done.code == 0, done.err
    texts = {v["id"]: v["text"] for v in map(json.loads, target.read_text().splitlines())}
    assert re.fullmatch("[a-z]{3}", texts[1])
    assert set(json.loads(texts[2])) <= {"n"}
