"""The beginning of a command: closed streams, signals, and what steers a terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infer_os.busy import let_openmp_sleep, running_tasks
from infer_os.convert.errors import OutputError
from infer_os.convert.output_locks import locked_in_turn
from infer_os.runtime.chat.session_place import SessionPlace
from infer_os.runtime.errors import SessionError
from infer_os.terminal import console, signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_the_imports_ends_without_a_word(number: signal.Signals) -> None:
    script = (
        "import builtins, os, sys\n"
        "from infer_os.entry import main\n"
        "real = builtins.__import__\n"
        "def load(name, *a, **k):\n"
        f"    if name == 'typer': os.kill(os.getpid(), {int(number)})\n"
        "    return real(name, *a, **k)\n"
        "builtins.__import__ = load\n"
        "sys.argv = ['infer-os', '--version']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, b"", b"")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_a_closed_stream_is_no_failure(closed: str) -> None:
    command = f"{sys.executable} -m infer_os.entry --version {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    assert done.returncode == 0
    assert b"Error" not in done.stderr


def test_a_start_never_searches_all_objects_for_garbage() -> None:
    script = (
        "import gc, sys\n"
        "from infer_os.entry import main\n"
        "sys.argv = ['infer-os', 'generate', '/no/such/model.gguf', '-p', 'x']\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert end.code == 2\n"
        "print(gc.get_stats()[2]['collections'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.stdout == b"0\n", done.stderr


@pytest.mark.parametrize(
    ("arguments", "tasks", "environment", "policy"),
    [
        (["generate", "--no-native"], [3, 4, 3], {}, "passive"),
        (["generate"], [3, 4, 3], {}, None),  # our team does not wait like this
        (["generate", "--no-native"], [3, 2, 3], {}, None),  # busy for a moment
        (["generate", "--no-native"], [None], {}, None),
        (["generate", "--no-native"], [9, 9, 9], {"GOMP_SPINCOUNT": "0"}, None),
        (["generate", "--no-native"], [9, 9, 9], {"OMP_WAIT_POLICY": "active"}, "active"),
    ],
)
def test_openmp_sleeps_where_no_processor_is_left(
    arguments: list[str], tasks: list[int | None], environment: dict[str, str], policy: str | None
) -> None:
    found = iter(tasks)
    let_openmp_sleep(arguments, environment, running=lambda: next(found), processors=2)
    assert environment.get("OMP_WAIT_POLICY") == policy


def test_it_is_decided_before_the_library_is_loaded() -> None:
    script = (
        "import os, sys\n"
        "from infer_os import busy, entry\n"
        "def decide(arguments, environment):\n"
        "    print(arguments, 'gomp' in open('/proc/self/maps').read())\n"
        "entry.let_openmp_sleep = decide\n"
        "sys.argv = ['infer-os', 'generate', '/no/such/model.gguf', '-p', 'x', '--no-native']\n"
        "try:\n    entry.main()\n"
        "except SystemExit as end:\n    assert end.code == 2\n"
        "print('gomp' in open('/proc/self/maps').read())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    first, last = done.stdout.decode().splitlines()
    assert first.endswith("'--no-native'] False"), done.stderr
    assert last == "True"


def test_running_tasks_are_the_kernels(tmp_path: Path) -> None:
    assert running_tasks(tmp_path) is None
    (tmp_path / "proc").mkdir()
    for text, wanted in (
        ("0.10 0.20 0.30 5/321 999\n", 5),
        ("0.1 0.2 0.3", None),
        ("a b c d", None),
    ):
        (tmp_path / "proc/loadavg").write_text(text)
        assert running_tasks(tmp_path) == wanted


def test_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, *signals.ENDING)]
    with pytest.raises(SystemExit) as ended, signals.ending_in_order():
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGINT, *signals.ENDING)] == before


def test_a_lock_that_can_never_be_made_ends() -> None:
    with (
        pytest.raises(OutputError, match="INFER_OS_CACHE"),
        locked_in_turn(Path("/proc/nothing/x/.lock"), lambda: None),
    ):
        pass


@pytest.mark.parametrize("steering", ["\x1b", "\x07", "\x9b", "\u202e", "\u2066", "\x7f", "\r"])
def test_what_steers_a_terminal_is_spelled_out(steering: str) -> None:
    assert steering not in console.printable(f"a{steering}b")


def test_what_scripts_need_stays() -> None:
    for text in ("a\u3000b", "\U0001f468\u200d\U0001f469", "\u0645\u200c\u06cc"):
        assert console.printable(text) == text


def test_a_note_of_a_stranger_is_one_harmless_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.notes(["x\x1b]0;t\x07\nerror: y"])
    assert capsys.readouterr().err == "note: x\\x1b]0;t\\x07 error: y\n"


def test_a_second_chat_on_a_session_is_refused(tmp_path: Path) -> None:
    place = SessionPlace(tmp_path / "s", tmp_path)
    with pytest.raises(SessionError, match="another chat uses this session"):
        SessionPlace(tmp_path / "s", tmp_path)
    place.close()
    SessionPlace(tmp_path / "s", tmp_path).close()
