"""``chat --session`` and its surroundings: kills, second chats, other programs, full disks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import Converter

COMMAND = [sys.executable, "-m", "infer_os.entry", "chat"]
OPTIONS = ["-n", "4", "--style", "plain", "--threads", "1", "--temperature", "0"]
#: What /stats says, last of what a message causes.
ANSWERED = b"[own kernels"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFER_OS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(converted: Converter) -> Path:
    return converted()


def chat(
    model: Path, session: Path, *messages: str, before: str = ""
) -> subprocess.CompletedProcess[str]:
    """A whole chat on a pipe; ``before`` is a line of the shell in front of it."""
    command = [*COMMAND, str(model), "--session", str(session), *OPTIONS]
    return subprocess.run(
        ["bash", "-c", f'{before}\nexec "$@"', "-", *command], capture_output=True, text=True,
        check=False, timeout=120, input="".join(f"{m}\n" for m in messages),
    )  # fmt: skip


@contextmanager
def open_chat(model: Path, session: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A chat that waits for its next message; killed at the end if it still runs."""
    with subprocess.Popen(
        [*COMMAND, str(model), "--session", str(session), *OPTIONS],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as running:  # fmt: skip
        try:
            yield running
        finally:
            running.kill()


def say(running: subprocess.Popen[bytes], message: str) -> list[bytes]:
    """Send a message and wait until it is answered; returns what was said on stderr."""
    assert running.stdin and running.stderr
    running.stdin.write(f"{message}\n/stats\n".encode())
    running.stdin.flush()
    said = []
    for line in running.stderr:
        said.append(line)
        if line.startswith(ANSWERED):
            break
    return said


def messages_in(session: Path) -> list[str]:
    data = session.read_bytes()
    header = json.loads(data[24 : 24 + int.from_bytes(data[20:24], "little")])
    return [message for message, _ in header["turns"]]


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "cache")


def test_every_answered_turn_survives_a_kill(model: Path, tmp_path: Path) -> None:
    session = tmp_path / "talk"
    with open_chat(model, session) as running:
        for message in ("one", "two", "three"):
            say(running, message)
        running.send_signal(signal.SIGKILL)
    assert messages_in(session) == ["one", "two", "three"]
    again = chat(model, session, "four")
    assert again.returncode == 0
    assert "continuing 3 turns" in again.stderr
    assert "note: it did not end cleanly" in again.stderr
    assert "computed again" in again.stderr
    assert messages_in(session) == ["one", "two", "three", "four"]
    last = chat(model, session)
    assert "not ended in order" not in last.stderr
    assert left(tmp_path) == ["talk"]


def test_a_killed_chat_goes_on_as_if_it_had_not_been(model: Path, tmp_path: Path) -> None:
    for name in ("ended", "killed"):
        with open_chat(model, tmp_path / name) as running:
            say(running, "one two")
            say(running, "three")
            if name == "ended":
                assert running.stdin
                running.stdin.close()
                running.wait(60)
    replies = [chat(model, tmp_path / name, "and", "then").stdout for name in ("ended", "killed")]
    assert replies[0] == replies[1]


def test_the_second_chat_on_a_session_is_refused(model: Path, tmp_path: Path) -> None:
    session = tmp_path / "talk"
    with open_chat(model, session) as first:
        say(first, "one")
        second = chat(model, session, "other")
        assert (second.returncode, second.stdout) == (2, "")
        assert second.stderr == (
            f"error: {session}: another chat uses this session; end it, or name another\n"
        )
        # by another way to the same folder as well
        (tmp_path / "way").symlink_to(tmp_path)
        assert chat(model, tmp_path / "way" / "talk", "other").returncode == 2
        say(first, "two")
    assert messages_in(session) == ["one", "two"]
    assert chat(model, session, "three").returncode == 0


def test_another_session_is_not_saved_over_one_that_is_in_use(model: Path, tmp_path: Path) -> None:
    session = tmp_path / "talk"
    with open_chat(model, session) as first:
        say(first, "one")
        other = chat(model, tmp_path / "other", "hello", f"/save {session}", "bye")
        assert "another chat uses this session" in other.stderr
        assert other.returncode == 0
    assert messages_in(session) == ["one"]
    assert messages_in(tmp_path / "other") == ["hello", "bye"]


def test_a_file_that_another_program_changed_is_left_alone(model: Path, tmp_path: Path) -> None:
    session = tmp_path / "talk"
    assert chat(model, tmp_path / "mine", "a", "b").returncode == 0
    (tmp_path / "talk.1").write_text("taken")
    with open_chat(model, session) as running:
        say(running, "one")
        other = (tmp_path / "mine").read_bytes()
        (tmp_path / "mine").replace(session)
        said = say(running, "two")
        assert any(b"another program changed it" in line for line in said)
        assert session.read_bytes() == other
        assert running.stdin
        running.stdin.close()
        running.wait(60)
        assert running.stderr
        assert f"saved 2 turns in {session}.2".encode() in running.stderr.read()
    assert session.read_bytes() == other
    assert (tmp_path / "talk.1").read_text() == "taken"
    assert messages_in(tmp_path / "talk.2") == ["one", "two"]


def test_a_session_that_was_removed_is_written_again(model: Path, tmp_path: Path) -> None:
    session = tmp_path / "talk"
    with open_chat(model, session) as running:
        say(running, "one")
        session.unlink()
        say(running, "two")
    assert messages_in(session) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("folder", "cannot be a session file: it is a folder"),
        ("pipe", "cannot be a session file: it is a device, a pipe or a socket"),
        ("/dev/null", "cannot be a session file: it is a device, a pipe or a socket"),
        ("/proc/talk", "cannot be written: No such file or directory"),
        ("kept", "is write-protected; chmod u+w, or choose another name"),
        ("notes", "not a session file of infer-os; choose another name"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_anything_is_said(
    model: Path, tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "notes").write_text("mine")
    if name == "kept":
        assert chat(model, tmp_path / "kept", "one").returncode == 0
        (tmp_path / "kept").chmod(0o400)
    before = left(tmp_path)
    done = chat(model, tmp_path / name, "hello")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {tmp_path / name}: {reason}\n"
    assert left(tmp_path) == before


def test_a_chat_that_loads_a_pipe_goes_on(model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    pipe = tmp_path / "pipe"
    done = chat(model, tmp_path / "talk", f"/load {pipe}", f"/save {pipe}", "one")
    assert done.returncode == 0
    assert done.stderr.count("it is a device, a pipe or a socket") == 2
    assert messages_in(tmp_path / "talk") == ["one"]


def test_a_full_disk_keeps_the_turns_that_there_is_room_for(model: Path, tmp_path: Path) -> None:
    session = tmp_path / "talk"
    assert chat(model, session, "one").returncode == 0
    # no file may grow past a kilobyte, as on a full disk, but with another errno: the turns
    # fit, the rows do not
    limit = "trap '' XFSZ; ulimit -f 1"
    done = chat(model, session, "two", before=limit)
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1
    assert f"error: {session}: cannot be written: File too large\n" in done.stderr
    assert messages_in(session) == ["one", "two"]
    assert left(tmp_path) == ["talk"]
    assert chat(model, session, "three").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_keeps_all_with_its_rows(
    model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    session = tmp_path / "talk"
    with open_chat(model, session) as running:
        say(running, "one")
        time.sleep(0.2)
        running.send_signal(number)
        assert running.wait(60) == 128 + number
    again = chat(model, session, "two")
    assert "not ended in order" not in again.stderr
    assert messages_in(session) == ["one", "two"]
    assert left(tmp_path) == ["talk"]


def test_a_stopped_chat_goes_on(model: Path, tmp_path: Path) -> None:
    session = tmp_path / "talk"
    with open_chat(model, session) as running:
        say(running, "one")
        running.send_signal(signal.SIGTSTP)
        time.sleep(0.2)
        running.send_signal(signal.SIGCONT)
        say(running, "two")
    assert messages_in(session) == ["one", "two"]


@pytest.mark.parametrize("closed", ["exec 2>&-", "exec >&-", "exec >&- 2>&-", "exec 2>/dev/full"])
def test_closed_streams_lose_no_turn(model: Path, tmp_path: Path, closed: str) -> None:
    done = chat(model, tmp_path / "talk", "one", "two", before=closed)
    assert done.returncode == 0, done.stderr
    assert messages_in(tmp_path / "talk") == ["one", "two"]
