"""SIGTERM, SIGHUP and Ctrl-C in each command that takes a while: how it ends, what it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import BUNDLED, PARALLEL, Converter, copy_checkpoint
from hub_fixtures import REPOSITORY, Desk, client_environment, environment, make_repository
from in_process import Cli, runner

from infer_os import files
from infer_os.convert import pipeline
from infer_os.terminal import signals

MODEL = next(folder for folder in BUNDLED if folder.name == "austen-6m")
ENDS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]
HANDLED = (signal.SIGINT, *signals.ENDING)
FAST = ["--threads", "1", "--temperature", "0"]
#: As the command, but that the process gets a signal once a conversion is half through.
AT_HALF = """
import os, sys
from infer_os.convert import pipeline
real = pipeline.GgufOutput.write
calls = []
def write(*arguments):
    calls.append(1)
    real(*arguments)
    if len(calls) == 5:
        os.kill(os.getpid(), {number})
pipeline.GgufOutput.write = write
from infer_os.entry import main
main()
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFER_OS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def start(*words: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "infer_os.entry", *map(str, words)]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def files_in(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("number", ENDS)
def test_convert(tmp_path: Path, number: signal.Signals) -> None:
    folder = copy_checkpoint(PARALLEL, tmp_path / "checkpoint")
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", AT_HALF.format(number=int(number)), "convert", str(folder),
         "-o", str(tmp_path / "out" / "m.gguf"), "--type", "f16", "--threads", "1"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 128 + number
    assert done.stderr.count(b"\n") <= 1
    assert b"Traceback" not in done.stderr
    assert files_in(tmp_path / "out") == []


@pytest.mark.parametrize("number", ENDS)
def test_run_of_a_folder(tmp_path: Path, cache: Path, number: signal.Signals) -> None:
    line = ["run", "--model", str(MODEL), "-p", "It", "-n", "2", "--type", "q8_0", *FAST]
    script = AT_HALF.format(number=int(number))
    done = subprocess.run([sys.executable, "-c", script, *line], capture_output=True, check=False)
    assert done.returncode == 128 + number
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr
    assert not [name for name in files_in(cache / "models") if not name.endswith(".lock")]
    with start(*line) as again:
        out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert out


@pytest.mark.parametrize("number", ENDS)
def test_a_download_keeps_what_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    with environment(tmp_path, monkeypatch) as desk:
        folder = make_repository(tmp_path / "hub", PARALLEL, "safetensors-sharded")
        desk.server.repositories = {REPOSITORY: {"main": folder}}
        last = "model-00004-of-00004.safetensors"
        desk.server.faults.delay = 0.01
        came = desk_download(desk, tmp_path, last, number)
        assert came.returncode == 128 + number
        assert came.stderr == b"interrupted; the same command continues where it stopped\n"
        kept = [name for name in desk.cached() if name.endswith(".incomplete")]
        assert kept == [f"{last}.incomplete"]
        desk.server.faults.delay = 0
        desk.server.requests.clear()
        desk.convert()
        begins = [r for r in desk.server.ranges(last) if r and not r.startswith("bytes=0-")]
        assert begins, desk.server.ranges(last)
        assert desk.made() == ["m.gguf"]


def desk_download(
    desk: Desk, place: Path, last: str, number: signal.Signals
) -> subprocess.CompletedProcess[bytes]:
    """A conversion from the hub that gets a signal while its last shard comes."""
    command = ["convert", REPOSITORY, "-o", str(desk.target), "--type", "q8_0", "--threads", "1"]
    with subprocess.Popen(
        [sys.executable, "-m", "infer_os.entry", *command], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=client_environment(desk, place),
    ) as running:  # fmt: skip
        deadline = time.monotonic() + 60
        part = f"{last}.incomplete"
        while not any(p.stat().st_size > 8192 for p in desk.cache.rglob(part)):
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        running.send_signal(number)
        out, err = running.communicate(timeout=60)
    return subprocess.CompletedProcess(command, running.returncode, out, err)


@pytest.mark.parametrize("number", ENDS)
def test_batch_keeps_its_answers(
    converted: Converter, tmp_path: Path, number: signal.Signals
) -> None:
    model, out = converted(MODEL, "q8_0"), tmp_path / "out.jsonl"
    n_records = 60
    lines = [{"id": i, "prompt": f"It is {i}", "max_tokens": 40} for i in range(n_records)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    line = ["batch", model, "-i", tmp_path / "in.jsonl", "-o", out, "--context", "128",
            "--parallel", "4", *FAST]  # fmt: skip
    with start(*line) as running:
        while not (out.exists() and out.stat().st_size):
            assert running.poll() is None
            time.sleep(0.005)
        running.send_signal(number)
        stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == 128 + number
    assert stdout == b""
    assert stderr.decode() == f"interrupted; --resume continues {out}\n"
    before = out.read_bytes()
    assert before.endswith(b"\n")
    assert 0 < before.count(b"\n") < n_records
    with start(*line, "--resume") as again:
        _, stderr = again.communicate(timeout=120)
    assert again.returncode == 0, stderr
    assert out.read_bytes().startswith(before)
    answered = [json.loads(answer)["id"] for answer in out.read_bytes().splitlines()]
    assert sorted(answered) == list(range(n_records))


@pytest.mark.parametrize("number", ENDS)
def test_generate(converted: Converter, number: signal.Signals) -> None:
    line = ["generate", converted(), "-p", "The fox", "-n", "1000000", "--context", "100000"]
    with start(*line, "--threads", "1") as running:
        assert running.stdout
        first = running.stdout.read(20)
        running.send_signal(number)
        rest, err = running.communicate(timeout=60)
    assert running.returncode == 128 + number
    assert len(first) == 20
    assert b"Traceback" not in err
    assert b"error" not in err
    if number == signal.SIGINT:
        assert rest.endswith(b"\n")


def test_a_second_signal_does_not_disturb_the_first(converted: Converter, tmp_path: Path) -> None:
    session = tmp_path / "talk"
    with subprocess.Popen(
        [sys.executable, "-m", "infer_os.entry", "chat", str(converted()), "--session",
         str(session), "-n", "2", "--threads", "1"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as running:  # fmt: skip
        assert running.stdin and running.stderr
        running.stdin.write(b"one\n/stats\n")
        running.stdin.flush()
        for line in running.stderr:
            if line.startswith(b"[own kernels"):
                break
        running.send_signal(signal.SIGTERM)
        running.send_signal(signal.SIGTERM)
        _, err = running.communicate(timeout=60)
    assert running.returncode in (128 + signal.SIGTERM, -signal.SIGTERM)  # as it was exiting
    assert b"saved 1 turn" in err
    assert session.exists()


def test_what_is_ignored_stays_ignored(tmp_path: Path) -> None:
    script = (
        "import os, signal\n"
        "from infer_os.terminal import signals\n"
        "with signals.ending_in_order(): os.kill(os.getpid(), signal.SIGHUP)\n"
        "print('on')"
    )
    done = subprocess.run(
        ["bash", "-c", 'trap "" HUP; exec "$@"', "-", sys.executable, "-c", script],
        capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"on\n")


# ---- in this process


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Cli:
    return runner(monkeypatch, capfdbinary)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Handlers of a program around us, and that they are there again in the end."""
    own: list[Callable[..., None]] = [lambda *_: None for _ in HANDLED]
    before = [signal.signal(n, handler) for n, handler in zip(HANDLED, own, strict=True)]
    hook = sys.unraisablehook
    yield
    assert [signal.getsignal(n) for n in HANDLED] == own
    assert sys.unraisablehook is hook
    for n, handler in zip(HANDLED, before, strict=True):
        signal.signal(n, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", ENDS)
def test_handlers_are_restored_whatever_happens(
    run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    assert run("--version").code == 0
    assert run("inspect", tmp_path / "none").code == 2
    real = pipeline.GgufOutput.write

    def write(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        os.kill(os.getpid(), number)

    monkeypatch.setattr(pipeline.GgufOutput, "write", write)
    assert run("convert", PARALLEL, "-o", tmp_path / "m.gguf").code == 128 + number
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", ENDS)
def test_a_signal_that_python_drops_is_taken_all_the_same(number: signal.Signals) -> None:
    # a finalizer drops what is raised in it, as a callback of llama.cpp does
    class Odd:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)
            time.sleep(0.001)

    with pytest.raises((SystemExit, KeyboardInterrupt)) as ended, signals.ending_in_order():
        odd = Odd()
        del odd
        time.sleep(30)
    if number != signal.SIGINT:
        assert isinstance(ended.value, SystemExit)
        assert ended.value.code == 128 + number


def test_other_failures_that_python_drops_are_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: seen.append(lost.exc_type))

    class Odd:
        def __del__(self) -> None:
            raise ZeroDivisionError

    with signals.ending_in_order():
        odd = Odd()
        del odd
    assert seen == [ZeroDivisionError]


# ---- what fails names itself


def test_a_full_disk_under_the_cache_names_the_file_there(
    run: Cli, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(pipeline.GgufOutput, "_start", lambda *_: None)
    monkeypatch.setattr(os, "pwrite", full)
    done = run("run", "--model", MODEL, "-p", "It", "-n", "2", "--type", "q8_0", *FAST, stdin=b"")
    assert done.code in (1, 2)
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert str(cache / "models") in line
    assert "full" in line
    assert "standard output" not in done.err
    assert not [name for name in files_in(cache / "models") if not name.endswith(".lock")]


@pytest.mark.parametrize("call", ["write", "fsync", "open"])
def test_a_file_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "kept"
    files.write_file(path, b"old")

    def full(*_: object, **__: object) -> int:
        raise OSError(28, os.strerror(28))

    if call == "write":
        with pytest.raises(OSError, match="kept") as caught, files.new_file(path) as file:
            file.write(b"half")
            full()
    else:
        monkeypatch.setattr(os, call, full)
        with pytest.raises(OSError, match="kept") as caught:
            files.write_file(path, b"new")
        monkeypatch.undo()
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
