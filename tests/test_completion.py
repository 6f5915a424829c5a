"""Shell completion, asked as bash asks for it: words so far in, words that may follow out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = str(Path(sys.executable).parent / "infer-os")


def offered(words: str) -> list[str]:
    """What is offered for the last of the words, which may be empty."""
    asked = {"_INFER_OS_COMPLETE": "complete_bash", "COMP_WORDS": words,
             "COMP_CWORD": str(len(words.split(" ")) - 1)}  # fmt: skip
    done = subprocess.run([COMMAND], env={**os.environ, **asked}, capture_output=True, check=True)
    assert done.stderr == b""
    return done.stdout.decode().split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("infer-os mo", ["models"]),
        ("infer-os models r", ["rm"]),
        ("infer-os models show gpt-j", ["gpt-j-6B"]),
        ("infer-os batch microsoft/D",
         [f"microsoft/DialoGPT-{size}" for size in ("small", "medium", "large")]),
        ("infer-os chat m.gguf --style di", ["dialogue", "dialogpt"]),
        ("infer-os chat m.gguf --sty", ["--style"]),
        ("infer-os run --model distil", ["distilgpt2"]),
        ("infer-os run --model gpt2 --load l", ["locked"]),
        ("infer-os convert gpt2 --type q8", ["q8_0"]),
        ("infer-os generate ./mine.g", []),
    ],
)  # fmt: skip
def test_what_is_offered(words: str, expected: list[str]) -> None:
    assert offered(words) == expected


def test_the_script_for_a_shell() -> None:
    done = subprocess.run(
        [COMMAND, "--show-completion", "bash"], capture_output=True, check=True, text=True
    )
    # files are offered where nothing else is
    assert "complete -o default -F" in done.stdout
