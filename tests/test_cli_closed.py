"""Every command with standard streams that are closed, and with homes that cannot be written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import PARALLEL, Converter

COMMAND = [sys.executable, "-m", "infer_os.entry"]
FAST = ["--threads", "1", "--temperature", "0", "-n", "2"]
#: Words of each command; {m} is a model, {d} a checkpoint, {o} a new file, {i} records.
LINES = {
    "run": ["run", "--model", "{d}", "--type", "q8_0", "-p", "It", *FAST],
    "pull": ["pull", "{d}", "--type", "q8_0"],
    "chat": ["chat", "{m}", "--style", "plain", *FAST],
    "generate": ["generate", "{m}", "-p", "It", *FAST],
    "batch": ["batch", "{m}", "-i", "{i}", "-o", "{o}.jsonl", *FAST],
    "batch to stdout": ["batch", "{m}", "-i", "{i}", *FAST],
    "convert": ["convert", "{d}", "-o", "{o}.gguf", "--type", "q8_0", "--threads", "1"],
    "inspect": ["inspect", "{m}", "--json"],
    "plan": ["plan", "{m}", "--json"],
    "models": ["models", "list"],
}
#: All at once for every command, one by one for those that load a model and write a file.
CLOSED = [(name, "<&- >&- 2>&-") for name in LINES] + [
    (name, closed) for name in ("batch",) for closed in ("<&-", ">&-", "2>&-")
]


def call(
    words: list[str], model: Path, place: Path, redirection: str, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """A command of :data:`LINES`; stdin is empty where it is not closed."""
    (place / "in.jsonl").write_text(json.dumps({"id": 1, "prompt": "It"}) + "\n")
    places = {"m": model, "d": PARALLEL, "o": place / "new", "i": place / "in.jsonl"}
    filled = [word.format(**places) for word in words]
    return subprocess.run(
        ["bash", "-c", f'"$@" {redirection}', "-", *COMMAND, *filled], capture_output=True,
        check=False, timeout=120, stdin=subprocess.DEVNULL,
        env={**os.environ, "INFER_OS_CACHE": str(place / "cache"), "HF_HUB_OFFLINE": "1",
             **variables},
    )  # fmt: skip


@pytest.mark.parametrize(("name", "closed"), CLOSED)
def test_closed_streams_change_nothing_else(
    converted: Converter, tmp_path: Path, name: str, closed: str
) -> None:
    model = converted()
    before = model.read_bytes()
    done = call(LINES[name], model, tmp_path, closed)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"bug" not in done.stderr
    # nothing of what is printed went into a file that was opened instead
    assert model.read_bytes() == before
    made = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    expected = {"convert": {"new.gguf"}, "batch": {"new.jsonl"}}.get(name, set())
    assert set(made) == {"in.jsonl", *expected}
    if name == "convert":
        assert made["new.gguf"] == converted(kind="q8_0").read_bytes()
    if name == "batch":
        assert [json.loads(line)["id"] for line in made["new.jsonl"].splitlines()] == [1]
    for path in (tmp_path / "cache").rglob("*.gguf"):
        assert path.read_bytes() == converted(kind="q8_0").read_bytes()


@pytest.mark.parametrize("name", ["run", "pull", "chat"])
@pytest.mark.parametrize("home", ["/proc", "/dev/null"])
def test_a_home_without_room(converted: Converter, tmp_path: Path, name: str, home: str) -> None:
    variables = {"HOME": home, "INFER_OS_CACHE": "", "XDG_CACHE_HOME": ""}
    done = call(LINES[name], converted(), tmp_path, "", **variables)
    assert b"Traceback" not in done.stderr
    assert b"bug" not in done.stderr
    if name in ("run", "pull"):  # what is made needs a place
        assert done.returncode == 2
        assert done.stderr.count(b"error: ") == 1
        assert b"INFER_OS_CACHE" in done.stderr
    else:
        assert done.returncode == 0, done.stderr


def test_a_session_needs_a_cache(converted: Converter, tmp_path: Path) -> None:
    words = ["chat", "{m}", "--session", "{o}", *FAST]
    done = call(words, converted(), tmp_path, "", INFER_OS_CACHE="/proc/cache")
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"INFER_OS_CACHE names another place" in done.stderr


def test_a_reader_that_goes_away(converted: Converter, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"prompt": "It"}) + "\n" for _ in range(40)))
    line = " ".join([*COMMAND, "batch", str(converted()), "-i", str(source), *FAST[:4], "-n", "30"])
    for reader in ("head -1", "true"):
        done = subprocess.run(
            ["bash", "-c", f"{line} | {reader}; exit ${{PIPESTATUS[0]}}"], capture_output=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert b"Traceback" not in done.stderr
        assert b"bug" not in done.stderr
        assert b"Exception" not in done.stderr


def test_what_a_full_disk_did_not_take_changes_no_exit_code() -> None:
    script = (
        "import sys; sys.stdout.buffer.write(b'text'); sys.stderr.write('text')\n"
        "from infer_os.terminal.console import let_go_of_streams\n"
        "{}; sys.exit(3)"
    )
    for last, code in (("pass", 120), ("let_go_of_streams()", 3)):
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                [sys.executable, "-c", script.format(last)], stdout=full, check=False
            )
        assert done.returncode == code
