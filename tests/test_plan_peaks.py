"""Plans of commands against the memory that they take, each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from adapter_files import random_adapter

from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.models.bundled import DRAFT, TARGET

#: Runs a command and prints its peak: a small process between, as a child's begins at its parent's.
_WATCH = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdin=sys.stdin, stdout=subprocess.DEVNULL)
_, status, use = os.wait4(child.pid, 0)
print(use.ru_maxrss * 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""
_NEEDS = re.compile(r"it needs ([\d.]+) MB")
_TEXT = "the sea " * 300


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundled pair, prompts of 600 tokens, and records of them."""
    folder = tmp_path_factory.mktemp("peaks")
    convert(ConvertSettings(TARGET, folder / "model.gguf", "q8_0"))
    convert(ConvertSettings(DRAFT, folder / "draft.gguf", "q8_0"))
    (folder / "prompt.txt").write_text(_TEXT)
    records = [json.dumps({"id": i, "prompt": f"{i} {_TEXT}"}) for i in range(12)]
    (folder / "records.jsonl").write_text("\n".join(records))
    random_adapter(TARGET, folder / "lora", rank=16)
    adapted = [
        {"prompt": f"{i}{name} {_TEXT}", "adapter": name}
        for i in range(6) for name in ("lora", "off")
    ]  # fmt: skip
    (folder / "adapted.jsonl").write_text("\n".join(map(json.dumps, adapted)))
    pairs = [
        {"context": f"{i} {_TEXT[:1200]}", "continuation": f" {answer}"}
        for i in range(12) for answer in ("yes", "no", _TEXT[:400])
    ]  # fmt: skip
    texts = [{"text": f"{i} {_TEXT * 10}"} for i in range(6)]
    for name, values in (("pairs", pairs), ("texts", texts)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, values)))
    return folder


def peak_of(place: Path, words: list[str], stdin: str) -> tuple[int, int, str]:
    """A command's exit code, its peak in bytes, and what it wrote to stderr."""
    command = [sys.executable, "-m", "infer_os.cli", *words, "--threads", "1"]
    result = subprocess.run(
        [sys.executable, "-c", _WATCH, *command], input=stdin, capture_output=True, text=True,
        cwd=place, timeout=120, env={**os.environ, "INFER_OS_CACHE": str(place / "cache")},
    )  # fmt: skip
    return result.returncode, int(result.stdout.split()[-1]), result.stderr


@pytest.mark.parametrize(
    "command",
    [
        "generate model.gguf -f prompt.txt -n 4 --context 1024",
        "generate model.gguf -f prompt.txt -n 4 --context 2048",
        "generate model.gguf -f prompt.txt -n 4 --context 1024 --kv q8_0",
        "generate model.gguf -f prompt.txt -n 4 --context 1024 --kv f16:512,q8_0:1024",
        "generate model.gguf -f prompt.txt -n 4 --context 1024 --load fast",
        "generate model.gguf -f prompt.txt -n 4 --context 1024 --no-native",
        "generate model.gguf -f prompt.txt -n 4 --context 1024 --draft lookup",
        "generate model.gguf -f prompt.txt -n 4 --context 1024 --draft draft.gguf",
        "batch model.gguf -i records.jsonl -n 2 --context 1024 --parallel 1",
        "batch model.gguf -i records.jsonl -n 2 --context 1024 --parallel 8",
        "batch model.gguf -i records.jsonl -n 2 --context 1024 --parallel 9",
        "batch model.gguf -i adapted.jsonl -n 2 --context 1024 --parallel 4 --adapter lora",
        "batch model.gguf -i adapted.jsonl -n 2 --context 1024 --parallel 16 --adapter lora",
        "score model.gguf -i pairs.jsonl --context 1024 --parallel 1",
        "score model.gguf -i pairs.jsonl --context 1024 --parallel 8",
        "score model.gguf -i texts.jsonl --context 1024 --parallel 8",
        "chat model.gguf --context 1024 --session talk.session",
        "eval model.gguf --text prompt.txt --window 256 --windows 1 --reference draft.gguf",
        f"run --model {TARGET} --context 1024 --type q8_0",
    ],
)
def test_no_peak_is_above_its_plan(place: Path, command: str) -> None:
    """What a command says it needs is what it takes, or up to 10 MB or 5 % more."""
    words = command.split()
    stdin = f"{_TEXT}\n/quit\n" if words[0] == "chat" else _TEXT
    _, _, refused = peak_of(place, [*words, "--memory", "1"], stdin)
    found = _NEEDS.search(refused)
    assert found is not None, refused
    code, peak, said = peak_of(place, words, stdin)
    assert code == 0, said
    # how much of its libraries the kernel maps while a process runs differs by 2 MB
    assert peak <= float(found[1]) * 1e6 <= peak + max(peak / 20, 10e6) + 2e6
