"""``llm`` (https://llm.datasette.io) asks the server, set up as docs/serve.md says.

Runs where llm is installed (``pip install llm``).
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPOSITORY
from http_server import Service, running

from infer_os.serve.scripted_engine import ScriptedEngine

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm") is None, reason="llm is not installed"
)
REPLY = "Grüße aus\nMeryton."


def reply(prompt: bytes) -> str:
    return prompt.decode() if b"repeat" in prompt else REPLY


def set_up(folder: Path, service: Service) -> None:
    guide = (REPOSITORY / "docs" / "serve.md").read_text()
    found = re.search(r"```text\n(- model_id: .*?)```", guide, re.DOTALL)
    assert found is not None
    lines = found[1].replace("gpt-j-6B", "fake").replace("http://127.0.0.1:8080", service.url)
    (folder / "extra-openai-models.yaml").write_text(lines)


def llm(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "LLM_USER_PATH": str(folder), "OPENAI_API_KEY": "none"}
    return subprocess.run(
        [sys.executable, "-m", "llm", *words], capture_output=True, text=True, env=variables,
        timeout=120, check=False,
    )  # fmt: skip


def test_llm_streams_and_waits(tmp_path: Path) -> None:
    with running(ScriptedEngine(reply)) as service:
        set_up(tmp_path, service)
        for words in ((), ("--no-stream",), ("-s", "Be brief.", "-o", "max_tokens", "99")):
            done = llm(tmp_path, "-m", "gpt-j", "Hi", *words)
            assert (done.returncode, done.stdout.rstrip("\n")) == (0, REPLY), done.stderr


def test_llm_goes_on_with_a_conversation(tmp_path: Path) -> None:
    with running(ScriptedEngine(reply)) as service:
        set_up(tmp_path, service)
        assert llm(tmp_path, "-m", "gpt-j", "Hi").returncode == 0
        done = llm(tmp_path, "-c", "repeat")
        assert done.stdout.rstrip() == f"user: Hi\nassistant: {REPLY}\nuser: repeat"


def test_llm_shows_what_is_wrong(tmp_path: Path) -> None:
    with running(ScriptedEngine(reply), api_key="sesame") as service:
        set_up(tmp_path, service)
        done = llm(tmp_path, "-m", "gpt-j", "Hi")
    assert done.returncode == 1
    assert "the key is not this server's" in done.stderr
