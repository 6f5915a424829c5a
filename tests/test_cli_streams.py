"""The command line and its surroundings: closed streams, full devices, signals, names."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import Converter

from infer_os.native.gguf_file import read_gguf_header
from infer_os.terminal import console, render

COMMAND = [sys.executable, "-m", "infer_os.cli"]


def shell(text: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["bash", "-c", text], capture_output=True, check=False)


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_a_closed_stdin_is_an_empty_one(command: str, converted: Converter) -> None:
    done = shell(f"{' '.join(COMMAND)} {command} {converted()} <&-")
    assert b"bug" not in done.stderr
    assert b"Traceback" not in done.stderr
    assert done.returncode == (2 if command == "generate" else 0)


@pytest.mark.parametrize(
    "options", ["generate {}", "run {}", "batch {} -i -", "score {} -i -", "embed {} -i -"]
)
def test_stdin_that_cannot_be_read_is_one_line(
    options: str, converted: Converter, tmp_path: Path
) -> None:
    command = f"{' '.join(COMMAND)} {options.format(converted())}"
    done = shell(f"{command} 0> {tmp_path / 'written'}")
    assert (done.returncode, done.stderr.decode()) == (
        1, "error: standard input: Bad file descriptor\n"
    )  # fmt: skip


def test_a_full_device_is_one_line(converted: Converter) -> None:
    done = shell(f"{' '.join(COMMAND)} inspect --json {converted()} > /dev/full")
    assert done.returncode == 1
    assert done.stderr.decode() == "error: standard output: No space left on device\n"


def test_a_chat_that_is_told_to_end_keeps_its_session(converted: Converter, tmp_path: Path) -> None:
    session = tmp_path / "talk.session"
    command = [*COMMAND, "chat", str(converted()), "--session", str(session), "-n", "4"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as chat:
        assert chat.stdin is not None
        assert chat.stdout is not None
        chat.stdin.write(b"hello\n/stats\n")
        chat.stdin.flush()
        chat.stdout.readline()
        time.sleep(1)
        chat.send_signal(signal.SIGTERM)
        assert chat.wait(20) == 128 + signal.SIGTERM
    assert session.exists()


def test_json_has_no_nan(converted: Converter, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    header = read_gguf_header(converted())
    odd = replace(header, metadata={**header.metadata, "odd": float("nan"), "far": float("inf")})
    console.answer_json(render.header_json(odd))
    shown = json.loads(capfdbinary.readouterr().out, parse_constant=lambda text: pytest.fail(text))
    assert shown["metadata"]["odd"] is None
    assert shown["metadata"]["far"] is None


@pytest.mark.parametrize("threads", [(), ("--threads", "1")])
def test_demos_figures_for_machines(threads: tuple[str, ...]) -> None:
    command = [*COMMAND, "demo", *threads, "--json"]
    done = subprocess.run(command, capture_output=True, check=True)
    told = json.loads(done.stdout)
    assert [row["type"] for row in told["rows"]] == ["q8_0", "q4_0"]
    assert 0 < told["rows"][1]["file_bytes"] < told["rows"][0]["file_bytes"] < told["source_bytes"]
    assert all(row["text"] and row["decode_tokens_per_s"] > 0 for row in told["rows"])


def test_demo_refuses_threads_before_it_converts() -> None:
    done = subprocess.run([*COMMAND, "demo", "--threads", "9999"], capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr.count(b"\n") == 1
