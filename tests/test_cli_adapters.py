"""``--adapter`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from adapter_files import llama_file, random_adapter
from helpers import TESTS
from in_process import Cli, runner

GPTJ = TESTS / "reference/gptj"
ADAPTER = TESTS / "reference/adapters/gptj"
PROMPT = ["-p", "the quick brown fox", "-n", 16, "--temperature", 0, "--type", "f32"]


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Cli:
    monkeypatch.setenv("INFER_OS_CACHE", str(tmp_path / "cache"))
    return runner(monkeypatch, capfdbinary)


def test_the_text_of_the_merged_model(cli: Cli, tmp_path: Path) -> None:
    def told(model: Path, *words: object) -> dict[str, object]:
        found: dict[str, object] = json.loads(cli("generate", model, *words, "--json").out)
        return {key: found[key] for key in ("text", "adapter")}

    plain = told(GPTJ, *PROMPT)
    text = told(GPTJ, "--lora", f"{ADAPTER}:0.5", *PROMPT)["text"]
    assert plain["adapter"] is None and plain["text"] != text
    expected = {"text": text, "adapter": "gptj"}
    assert told(GPTJ, "--adapter", f"{ADAPTER}:0.5", *PROMPT) == expected
    # one file, made once, and again if it is damaged
    (file,) = (tmp_path / "cache/adapters/converted").iterdir()
    before = file.stat().st_mtime_ns
    model = next((tmp_path / "cache/models").rglob("gptj-f32.gguf"))
    words = PROMPT[:-2]
    named = told(model, "--adapter", f"x={ADAPTER}:0.5", *words)
    assert named == {**expected, "adapter": "x"} and file.stat().st_mtime_ns == before
    file.write_bytes(file.read_bytes()[:100])
    assert told(model, "--adapter", f"{ADAPTER}:0.5", *words) == expected
    foreign = llama_file(ADAPTER, model, tmp_path / "gptj.gguf")
    assert told(model, "--adapter", f"{foreign}:0.5", *words) == expected


def test_a_chat_switches(cli: Cli, tmp_path: Path) -> None:
    other = random_adapter(GPTJ, tmp_path / "other")
    typed = (
        b"hello\n/adapter\n/adapter b\n/retry\n/adapter off\n/retry\n/adapter c\n/adapter a\n/retry"
    )
    done = cli(
        "chat", GPTJ, "--adapter", f"a={ADAPTER}", "--adapter", f"b={other}", "-n", 8,
        "--temperature", 0, "--style", "plain", "--type", "f32", stdin=typed,
    )  # fmt: skip
    first, second, third, fourth = done.out.splitlines()
    assert first == fourth and len({first, second, third}) == 3
    assert "adapter a, loaded in" in done.err.replace("\n", " ")
    assert "adapter a (loaded: a, b, off)\n" in done.err
    assert "adapter off (loaded: a, b, off)\n" in done.err
    assert "error: /adapter 'c': expected one of a, b, off\n" in done.err
    plain = cli("chat", GPTJ, "-n", 8, "--temperature", 0, "--style", "plain", "--type", "f32",
                stdin=b"hello\n/adapter")  # fmt: skip
    assert plain.out.splitlines() == [third]
    assert "adapter off (loaded: none)\n" in plain.err


def test_a_session_is_of_one_adapter(cli: Cli, tmp_path: Path) -> None:
    session = ["--session", tmp_path / "s", "-n", 4, "--style", "plain", "--type", "f32"]
    assert cli("chat", GPTJ, "--adapter", ADAPTER, *session, stdin=b"hello").code == 0
    assert cli("chat", GPTJ, "--adapter", ADAPTER, *session, stdin=b"more").code == 0
    done = cli("chat", GPTJ, *session, stdin=b"more")
    assert done.code == 2 and "saved with another adapter on" in done.err


def test_a_batch_of_records(cli: Cli, tmp_path: Path) -> None:
    lines = [{"prompt": "the quick", "adapter": name} for name in ("gptj", "off")]
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    done = cli(
        "batch", GPTJ, "--adapter", ADAPTER, "-i", tmp_path / "in.jsonl", "-o", "-", "-n", 8,
        "--temperature", 0, "--ordered",
    )  # fmt: skip
    texts = [json.loads(line)["text"] for line in done.out.splitlines()]
    assert len(set(texts)) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--adapter", ""], "--adapter is empty"),
        (["--adapter", "no/such/folder"], "--adapter no/such/folder: no such folder"),
        (["--adapter", f"{ADAPTER}:fast"], "the scale 'fast' is not a number"),
        (["--adapter", f"off={ADAPTER}"], "--adapter 'off': expected a name of"),
        (["--adapter", f"a b={ADAPTER}"], "--adapter 'a b': expected a name of"),
        (["--adapter", GPTJ], f"--adapter {GPTJ}: not a LoRA adapter"),
        (["--adapter", ADAPTER, "--adapter", f"x={ADAPTER}"], "one text is written with one"),
    ],
)
def test_what_cannot_be(cli: Cli, words: list[object], said: str) -> None:
    assert said in cli("generate", GPTJ, *words, "-p", "x").user_error


def test_another_models_adapter(cli: Cli) -> None:
    done = cli("generate", GPTJ, "--adapter", TESTS / "reference/adapters/bloom", "-p", "x")
    assert done.code == 2
    assert "it was made for someone/bloom" in done.err.splitlines()[-1]


def test_two_of_one_name(cli: Cli) -> None:
    done = cli("batch", GPTJ, "--adapter", ADAPTER, "--adapter", f"{ADAPTER}:0.5", stdin=b"x\n")
    assert "--adapter 'gptj' is the name of two; write NAME= in front" in done.user_error
