"""``--adapter`` on the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from adapter_files import llama_file, random_adapter
from helpers import TESTS
from in_process import Cli

GPTJ = TESTS / "reference/gptj"
ADAPTER = TESTS / "reference/adapters/gptj"
PROMPT = ["-p", "the quick brown fox", "-n", 16, "--temperature", 0, "--type", "f32"]


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
    data = bytearray(file.read_bytes())
    data[-5000:-1000] = bytes(4000)  # its header is as it was
    file.write_bytes(data)
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
        (["--adapter", f"{ADAPTER}:1_000"], "the scale '1_000' is not a number"),
        (["--adapter", f"{ADAPTER}:nan"], "the scale 'nan' is not a number"),
        (["--adapter", f"{ADAPTER}:1e30"], "the scale '1e30': expected up to 1000, and not 0"),
        (["--adapter", f"{ADAPTER}:0"], "the scale '0': expected up to 1000, and not 0"),
        (["--adapter", "x" * 5000], f"--adapter {'x' * 200}...: no such folder"),
        (["--adapter", f"n={'x' * 300}"], f"--adapter {'x' * 200}...: no such folder"),
        (["--lora", "x" * 5000], f"--lora {'x' * 200}...: no such folder"),
        (["--adapter", "/dev/zero"], "--adapter /dev/zero: not a plain file"),
        (["--adapter", "n=/dev/zero:0.5"], "--adapter /dev/zero: not a plain file"),
        (["--lora", "/dev/zero"], "--lora /dev/zero: not a plain file"),
        (["--adapter", f"off={ADAPTER}"], "--adapter 'off': expected a name of"),
        (["--adapter", f"a b={ADAPTER}"], "--adapter 'a b': expected a name of"),
        (["--adapter", GPTJ], f"--adapter {GPTJ}: not a LoRA adapter"),
        (["--adapter", ADAPTER, "--adapter", f"x={ADAPTER}"], "one text is written with one"),
    ],
)
def test_what_cannot_be(cli: Cli, words: list[object], said: str) -> None:
    assert said in cli("generate", GPTJ, *words, "-p", "x").user_error


@pytest.mark.parametrize(
    "words",
    [
        ("generate", GPTJ, "--adapter", "PIPE", "-p", "x"), ("pull", GPTJ, "--lora", "PIPE"),
        ("generate", "PIPE", "-p", "x"), ("inspect", "PIPE"), ("plan", "PIPE"),
        ("convert", "PIPE", "--dry-run"), ("convert", GPTJ, "--dry-run", "--imatrix", "PIPE"),
        ("generate", "/dev/zero", "-p", "x"),
        ("plan", "/dev/zero"),
    ],
)  # fmt: skip
def test_a_pipe_or_a_device_in_place_of_a_file(
    cli: Cli, tmp_path: Path, words: tuple[object, ...]
) -> None:
    """Nobody writes into the pipe, and the device has no end."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    done = cli(*(pipe if word == "PIPE" else word for word in words))
    assert "not a plain file" in done.user_error


def test_a_cache_that_no_folder_can_be(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFER_OS_CACHE", "x" * 300)
    assert "File name too long" in cli("models").user_error


@pytest.mark.parametrize("words", [("eval", "MODEL", "--text"), ("convert", GPTJ, "--calibrate")])
def test_a_device_in_place_of_a_text(cli: Cli, tmp_path: Path, words: tuple[object, ...]) -> None:
    model = tmp_path / "m.gguf"
    assert cli("convert", GPTJ, "-o", model, "--type", "f32").code == 0
    words = tuple(model if word == "MODEL" else word for word in words)
    more = () if words[0] == "eval" else ("-o", tmp_path / "o.gguf")
    done = cli(*words, "/dev/zero", *more)
    assert done.code == 2 and "/dev/zero: not a text: it contains NUL bytes" in done.err
    assert not (tmp_path / "o.gguf").exists()


def test_another_models_adapter(cli: Cli) -> None:
    done = cli("generate", GPTJ, "--adapter", TESTS / "reference/adapters/bloom", "-p", "x")
    assert done.code == 2
    assert "it was made for someone/bloom" in done.err.splitlines()[-1]


def test_two_of_one_name(cli: Cli) -> None:
    done = cli("batch", GPTJ, "--adapter", ADAPTER, "--adapter", f"{ADAPTER}:0.5", stdin=b"x\n")
    assert "--adapter 'gptj' is the name of two; write NAME= in front" in done.user_error
