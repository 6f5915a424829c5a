"""A model that computes NaN: one clear line from every command, and never an empty answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gguf_parts import GgufParts
from helpers import TESTS, Converter
from in_process import Cli

from infer_os import load
from infer_os.native.errors import NotFinite

SAID = "the model computes no finite"


@pytest.fixture(params=[np.nan, np.inf], ids=["nan", "inf"])
def broken(converted: Converter, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """GPT-J, in whose last norm one weight is not a number."""
    parts = GgufParts.read(converted(TESTS / "reference/gptj", "f32"))
    norm = parts.tensor("output_norm.weight")
    norm.data = np.float32(request.param).tobytes() + norm.data[4:]
    return parts.write(tmp_path / "broken.gguf")


@pytest.mark.parametrize(
    "words",
    [
        (), ("--temperature", 0), ("--seed", 1, "--draft", "lookup"), ("--draft", "lookup"),
        ("--regex", "[a-z]+"), ("--mirostat", 2),
    ],
)  # fmt: skip
def test_one_text(cli: Cli, broken: Path, words: tuple[object, ...]) -> None:
    done = cli("generate", broken, "-p", "the quick", "-n", 4, *words)
    assert done.code == 2 and done.out == "" and SAID in done.err


def test_an_answer(cli: Cli, broken: Path) -> None:
    assert SAID in cli("run", broken, "hello").err
    assert SAID in cli("chat", broken, stdin=b"hello").err


@pytest.mark.parametrize(
    ("command", "record", "words"),
    [
        ("batch", {"prompt": "ab"}, ("-n", 4)),
        ("batch", {"prompt": "ab", "temperature": 0}, ("-n", 4)),
        ("batch", {"prompt": "ab"}, ("-n", 4, "--beams", 2)),
        ("score", {"text": "ab cd"}, ()),
        ("embed", {"text": "ab cd"}, ()),
    ],
)
def test_records(
    cli: Cli, broken: Path, command: str, record: dict[str, object], words: tuple[object, ...]
) -> None:
    done = cli(command, broken, "-i", "-", "-o", "-", *words, stdin=json.dumps(record).encode())
    (line,) = done.out.splitlines()
    assert done.code == 1 and SAID in json.loads(line)["error"]


def test_the_python_api(broken: Path) -> None:
    with load(broken) as model:
        with pytest.raises(NotFinite):
            model.generate("the quick")
        with pytest.raises(NotFinite):
            model.chat().say("hello")
